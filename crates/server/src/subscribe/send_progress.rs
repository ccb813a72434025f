//! How a connection takes what a stream sends, so that a peer that does not read is noticed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a connection may take nothing of a stream before it is cut: the peer does not read.
pub(crate) const STALLED: Duration = Duration::from_secs(60);
/// Likewise while others wait for the bytes that it holds.
const CONTENDED: Duration = Duration::from_secs(10);
/// How often that is checked while something is on its way.
pub(crate) const CHECK: Duration = Duration::from_secs(5);
/// How slowly a client may take a large event while others wait, in bytes a second: a slow line at home.
const SLOWEST: u64 = 64 << 10;

/// What a connection has taken of one stream.
#[derive(Debug)]
pub(crate) struct SendProgress {
    state: Mutex<State>,
    gone: CancellationToken,
    reader: Reader,
}

/// Who reads the messages of a stream.
#[derive(Debug, PartialEq, Eq)]
enum Reader {
    /// A connection, which is cut if it takes nothing.
    Connection,
    /// A part of this server, which has bounds of its own.
    Server,
}

#[derive(Debug)]
struct State {
    /// Messages that the connection has not taken.
    messages: usize,
    /// When it took something, or was given something to take.
    moved: Instant,
}

impl Default for SendProgress {
    fn default() -> Self {
        let state = State { messages: 0, moved: Instant::now() };
        Self { state: Mutex::new(state), gone: CancellationToken::new(), reader: Reader::Connection }
    }
}

impl SendProgress {
    /// Of a stream that a part of this server reads. It is never cut.
    pub(crate) fn of_server() -> Self {
        Self { reader: Reader::Server, ..Self::default() }
    }

    /// The connection is given a message.
    pub(crate) fn queued(&self) {
        let mut state = self.state();
        if state.messages == 0 {
            state.moved = Instant::now();
        }
        state.messages += 1;
    }

    /// The connection has taken a message.
    pub(crate) fn taken(&self) {
        let mut state = self.state();
        state.messages = state.messages.saturating_sub(1);
        state.moved = Instant::now();
    }

    /// The connection has taken a part of a message.
    pub(crate) fn part(&self) {
        self.state().moved = Instant::now();
    }

    /// The connection asks for nothing more.
    pub(crate) fn end(&self) {
        self.gone.cancel();
    }

    /// Waits until the connection asks for nothing more.
    pub(crate) async fn ended(&self) {
        self.gone.cancelled().await;
    }

    /// Whether the peer does not read.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled_for() >= STALLED
    }

    /// Whether the peer reads too slowly for a message of so many bytes that others wait for, and that it has since `since`.
    pub(crate) fn is_in_the_way(&self, bytes: u64, since: Instant) -> bool {
        let time = CONTENDED.saturating_add(Duration::from_secs(bytes / SLOWEST));
        self.reader == Reader::Connection && (self.stalled_for() >= CONTENDED || since.elapsed() >= time)
    }

    /// Waits until the connection has taken the end of the stream, or cuts it if it takes nothing.
    pub(crate) async fn end_or_cut(&self, cut: &CancellationToken) {
        self.queued();
        while tokio::time::timeout(CHECK, self.ended()).await.is_err() {
            if self.is_stalled() {
                cut.cancel();
                return;
            }
        }
    }

    fn stalled_for(&self) -> Duration {
        let state = self.state();
        if state.messages == 0 || self.reader == Reader::Server {
            Duration::ZERO
        } else {
            state.moved.elapsed()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_noticed() {
        let progress = SendProgress::default();
        tokio::time::advance(2 * STALLED).await;
        assert!(!progress.is_stalled(), "there was nothing to take");
        progress.queued();
        progress.queued();
        tokio::time::advance(STALLED - CHECK).await;
        assert!(!progress.is_stalled());
        progress.part();
        tokio::time::advance(STALLED - CHECK).await;
        assert!(!progress.is_stalled(), "it reads slowly");
        tokio::time::advance(CHECK).await;
        assert!(progress.is_stalled());
        progress.taken();
        assert!(!progress.is_stalled());
        progress.taken();
        tokio::time::advance(2 * STALLED).await;
        assert!(!progress.is_stalled(), "it has taken everything");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_of_the_server_is_never_cut() {
        let progress = SendProgress::of_server();
        progress.queued();
        let since = Instant::now();
        tokio::time::advance(10 * STALLED).await;
        assert!(!progress.is_stalled() && !progress.is_in_the_way(1, since));
    }

    #[tokio::test(start_paused = true)]
    async fn while_others_wait_a_peer_has_less_time() {
        let (progress, since) = (SendProgress::default(), Instant::now());
        progress.queued();
        for _ in 0..10 {
            tokio::time::advance(CONTENDED - Duration::from_secs(1)).await;
            assert!(!progress.is_in_the_way(100 * SLOWEST, since));
            progress.part();
        }
        tokio::time::advance(CONTENDED).await;
        assert!(progress.is_in_the_way(100 * SLOWEST, since), "it takes nothing");
        progress.part();
        tokio::time::advance(CONTENDED - Duration::from_secs(1)).await;
        assert!(!progress.is_in_the_way(110 * SLOWEST, since));
        assert!(progress.is_in_the_way(90 * SLOWEST, since), "it is too slow");
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_stream_that_is_not_read_is_cut() {
        let progress = SendProgress::default();
        let cut = CancellationToken::new();
        progress.end_or_cut(&cut).await;
        assert!(cut.is_cancelled());
        let cut = CancellationToken::new();
        progress.end();
        progress.end_or_cut(&cut).await;
        assert!(!cut.is_cancelled());
    }
}
