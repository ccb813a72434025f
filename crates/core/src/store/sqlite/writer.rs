//! The one thread that writes: a transaction per group of what is queued, then the answers.
//!
//! Between groups the same thread removes what retention no longer wants: see [`retention`].

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::watch;

use super::queue::{Answer, Request, Task};
use super::retention::{self, Clock, Upkeep};
use super::{Shared, failure, statements};
use crate::event::{Address, Event, Sequence};
use crate::store::{Appended, Options, Statistics, StoreError};

/// How many requests go into one transaction: more would not make a sync cheaper, only the first wait longer.
pub(super) const GROUP_REQUESTS: usize = 256;
/// How many bytes go into one transaction, likewise; one request may exceed it.
const GROUP_BYTES: u64 = 4 << 20;

/// How often the writer looks whether a disk that was full or broken takes anything again.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// The writer's state. It lives on its thread.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    /// What is committed.
    pub(super) position: Statistics,
    pub(super) clock: Clock,
    pub(super) upkeep: Upkeep,
    head: watch::Sender<Sequence>,
    requests: Receiver<Request>,
    /// Whether the last group failed: an operator hears of the first failure and of the recovery.
    failing: bool,
}

/// What one request did, known when its group is committed.
enum Done {
    Appended(Appended),
    Redelivered(Option<Sequence>),
    Nothing,
}

impl Writer {
    /// A writer with an open database.
    pub(super) fn new(
        connection: Connection,
        options: Options,
        shared: Arc<Shared>,
        head: watch::Sender<Sequence>,
        requests: Receiver<Request>,
    ) -> rusqlite::Result<Self> {
        let position = shared.statistics();
        let clock = Clock::load(&connection)?;
        let upkeep = Upkeep::load(&connection)?;
        Ok(Self { connection, options, shared, position, clock, upkeep, head, requests, failing: false })
    }

    /// Works until the queue is gone and empty.
    pub(super) fn run(mut self) {
        while let Some(first) = self.next() {
            let group = self.group(first);
            self.write(group);
            self.after_group();
        }
        self.finish();
    }

    /// The next request. While none waits, this thread does its upkeep, step by step, and then sleeps until a
    /// request comes or the oldest event is too old.
    fn next(&mut self) -> Option<Request> {
        loop {
            match self.requests.try_recv() {
                Ok(request) => return Some(request),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            if self.idle_step() {
                continue;
            }
            let wait = match self.idle_for() {
                idle if !self.failing => idle,
                idle => Some(idle.unwrap_or(PROBE_INTERVAL).min(PROBE_INTERVAL)),
            };
            match wait {
                None => return self.requests.recv().ok(),
                Some(time) => match self.requests.recv_timeout(time) {
                    Ok(request) => return Some(request),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => self.probe(),
                },
            }
        }
    }

    /// What waits now, as far as it fits one transaction.
    fn group(&self, first: Request) -> Vec<Request> {
        let mut bytes = first.weight.bytes();
        let mut group = vec![first];
        while group.len() < GROUP_REQUESTS && bytes < GROUP_BYTES {
            let Ok(request) = self.requests.try_recv() else { break };
            bytes += request.weight.bytes();
            group.push(request);
        }
        group
    }

    /// Commits a group and answers it.
    fn write(&mut self, group: Vec<Request>) {
        #[cfg(test)]
        let group = self.inspect(group);
        match self.transact(&group) {
            Ok((position, done)) => {
                self.wrote();
                self.publish(position, group, done);
            }
            Err(error) if group.len() > 1 && !fails_everybody(&error) => {
                for request in group {
                    self.write(vec![request]);
                }
            }
            Err(error) => {
                let error = self.failed(error);
                for request in group {
                    request.task.fail(error.clone());
                }
            }
        }
    }

    /// Notes that a write was durable.
    fn wrote(&mut self) {
        if self.failing {
            self.failing = false;
            self.shared.writable.store(true, Ordering::Release);
            tracing::info!("the store can write again");
        }
    }

    /// Notes that nothing can be written. An operator hears of the first failure and of the recovery.
    fn failed(&mut self, error: rusqlite::Error) -> StoreError {
        let error = failure(&self.shared.database, error);
        if !self.failing {
            self.failing = true;
            self.shared.writable.store(false, Ordering::Release);
            tracing::error!(%error, "the store cannot write");
        }
        error
    }

    /// Looks whether the disk takes anything again, if it did not: nobody may send while the server says so.
    fn probe(&mut self) {
        if !self.failing {
            return;
        }
        let written = self
            .upkeep
            .ensure_synced(&self.connection)
            .and_then(|()| self.connection.execute("UPDATE position SET head = head", ()));
        match written {
            Ok(_) => self.wrote(),
            Err(error) => drop(self.failed(error)),
        }
    }

    /// Does all requests in one transaction, or none. Returns what the store then holds.
    fn transact(&mut self, group: &[Request]) -> rusqlite::Result<(Statistics, Vec<Done>)> {
        self.upkeep.ensure_synced(&self.connection)?;
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut position = self.position;
        let mut done = Vec::with_capacity(group.len());
        let now = self.clock.now();
        for request in group {
            done.push(match &request.task {
                Task::Append { webhook, .. } => {
                    let redelivery = self.options.redelivery;
                    Done::Appended(statements::append(&transaction, webhook, &mut position, now, redelivery)?)
                }
                Task::Redeliver { sequence, address, .. } => Done::Redelivered(statements::redeliver(
                    &transaction,
                    *sequence,
                    address,
                    &mut position,
                    now,
                )?),
                Task::Acknowledge { client, acknowledgements, cursor, .. } => {
                    statements::acknowledge(&transaction, client, acknowledgements, *cursor)?;
                    Done::Nothing
                }
                Task::Seek { client, cursor, .. } => {
                    statements::seek(&transaction, client, *cursor)?;
                    Done::Nothing
                }
                Task::ChangeWatchlist { pattern, change, .. } => {
                    statements::change_watchlist(&transaction, pattern, *change)?;
                    Done::Nothing
                }
                #[cfg(test)]
                Task::Inspect { .. } => Done::Nothing,
            });
        }
        if position != self.position {
            statements::store_position(&transaction, &position)?;
        }
        transaction.commit()?;
        Ok((position, done))
    }

    /// Shows what was committed and answers who asked: the tail first, then the head, then the answers, so that
    /// nobody hears of an event that cannot be read.
    fn publish(&mut self, position: Statistics, group: Vec<Request>, done: Vec<Done>) {
        let appended = position.head > self.position.head;
        if self.position.events == 0 && position.events > 0 {
            self.upkeep.begins_with(self.clock.now());
        }
        self.position = position;
        *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = position;
        let mut answers = Vec::with_capacity(group.len());
        {
            let mut tail = self.shared.tail.write().unwrap_or_else(PoisonError::into_inner);
            for (Request { task, weight }, done) in group.into_iter().zip(done) {
                match (task, done) {
                    (Task::Append { webhook, answer }, Done::Appended(appended)) => {
                        if let Appended::Stored { sequence, redelivery } = appended {
                            let address = Address::default();
                            tail.push(Arc::new(Event { sequence, redelivery, address, webhook: *webhook }));
                        }
                        answers.push((Reply::Appended(answer, appended), weight));
                    }
                    (Task::Redeliver { answer, .. }, Done::Redelivered(new)) => {
                        if let Some(sequence) = new {
                            tail.pass(sequence);
                        }
                        answers.push((Reply::Redelivered(answer, new), weight));
                    }
                    (
                        Task::Acknowledge { answer, .. }
                        | Task::Seek { answer, .. }
                        | Task::ChangeWatchlist { answer, .. },
                        _,
                    ) => {
                        answers.push((Reply::Nothing(answer), weight));
                    }
                    _ => {}
                }
            }
        }
        if appended {
            self.head.send_replace(position.head);
        }
        for (reply, _weight) in answers {
            // Whoever asked may have gone; what they asked for is done all the same.
            match reply {
                Reply::Appended(answer, appended) => drop(answer.send(Ok(appended))),
                Reply::Redelivered(answer, new) => drop(answer.send(Ok(new))),
                Reply::Nothing(answer) => drop(answer.send(Ok(()))),
            }
        }
    }

    /// Carries the log over into the database and ends. The next open has nothing to recover.
    fn finish(self) {
        // Somebody else who reads (a shell, a backup) must not hold up the end: then the log just stays.
        let patience = self.connection.busy_timeout(retention::LOG_WAIT);
        let checkpoint = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
        let closed =
            patience.and(checkpoint).and_then(|()| self.connection.close().map_err(|(_, error)| error));
        if let Err(error) = closed {
            tracing::warn!(%error, "the store's log stays; the next start reads it");
        }
    }

    #[cfg(test)]
    fn inspect(&self, group: Vec<Request>) -> Vec<Request> {
        let mut rest = Vec::new();
        for request in group {
            match request.task {
                Task::Inspect { run, answer } => {
                    run(&self.connection);
                    drop(answer.send(Ok(())));
                }
                _ => rest.push(request),
            }
        }
        rest
    }
}

/// An answer that is known and not yet given.
enum Reply {
    Appended(Answer<Appended>, Appended),
    Redelivered(Answer<Option<Sequence>>, Option<Sequence>),
    Nothing(Answer<()>),
}

/// Whether an error comes from the disk or the connection, so that each request alone would meet it too.
fn fails_everybody(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
        )
    )
}
