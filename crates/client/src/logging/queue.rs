//! Log lines on their way to standard error, bounded in bytes. A thread of its own writes them: if nobody reads the pipe, that
//! thread waits, and no other. Lines that do not fit meanwhile are dropped and counted.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many bytes may wait.
const CAPACITY: usize = 256 << 10;

/// The lines that wait.
#[derive(Debug, Default)]
pub(super) struct LineQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines dropped since this was last told.
    dropped: u64,
    /// Whether the thread writes what it took.
    is_writing: bool,
    /// When the thread is to look at something else.
    alarm: Option<Instant>,
}

/// What the thread is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Write these bytes. So many lines after them were dropped.
    Write { bytes: Vec<u8>, dropped: u64 },
    /// The alarm went off.
    Alarm,
}

impl LineQueue {
    /// Adds a line, or drops it if there is no room.
    fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if !state.waiting.is_empty() && state.waiting.len() + line.len() > CAPACITY {
            state.dropped += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        self.changed.notify_all();
    }

    /// Lets the thread look at something else at this time, if not earlier.
    pub(super) fn set_alarm(&self, at: Instant) {
        let mut state = self.state();
        state.alarm = Some(state.alarm.map_or(at, |earlier| earlier.min(at)));
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for work.
    pub(super) fn next(&self) -> Work {
        let mut state = self.state();
        state.is_writing = false;
        self.changed.notify_all();
        loop {
            if !state.waiting.is_empty() || state.dropped > 0 {
                state.is_writing = true;
                let bytes = std::mem::take(&mut state.waiting);
                return Work::Write { bytes, dropped: std::mem::take(&mut state.dropped) };
            }
            let waiting = state.alarm.map(|alarm| alarm.saturating_duration_since(Instant::now()));
            state = match waiting {
                Some(Duration::ZERO) => {
                    state.alarm = None;
                    return Work::Alarm;
                }
                Some(waiting) => {
                    self.changed.wait_timeout(state, waiting).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Waits until everything is written, but not longer than this.
    pub(super) fn flush(&self, timeout: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        drop(self.changed.wait_timeout_while(self.state(), timeout, is_busy));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes into the queue. It never fails and never waits: a webhook must not fail for want of a log line.
#[derive(Debug)]
pub(super) struct LineWriter(pub(super) Arc<LineQueue>);

impl io::Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_do_not_fit_are_dropped_and_counted() {
        let queue = LineQueue::default();
        let line = vec![b'x'; CAPACITY / 4];
        for _ in 0..7 {
            queue.push(&line);
        }
        assert_eq!(queue.next(), Work::Write { bytes: line.repeat(4), dropped: 3 });
        queue.push(b"one\n");
        queue.push(b"two\n");
        assert_eq!(queue.next(), Work::Write { bytes: b"one\ntwo\n".to_vec(), dropped: 0 });
        queue.push(&line.repeat(5));
        assert_eq!(
            queue.next(),
            Work::Write { bytes: line.repeat(5), dropped: 0 },
            "one may be larger alone"
        );
    }

    #[test]
    fn an_alarm_goes_off_once_and_after_what_waits() {
        let queue = LineQueue::default();
        queue.set_alarm(Instant::now());
        queue.set_alarm(Instant::now() + Duration::from_secs(3600));
        queue.push(b"line\n");
        assert_eq!(queue.next(), Work::Write { bytes: b"line\n".to_vec(), dropped: 0 });
        assert_eq!(queue.next(), Work::Alarm);
        queue.push(b"line\n");
        assert_eq!(queue.next(), Work::Write { bytes: b"line\n".to_vec(), dropped: 0 });
    }
}
