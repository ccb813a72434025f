//! The one thread that writes: a transaction per group of what is queued, then the answers.
//!
//! Between groups the same thread removes what retention no longer wants: see [`retention`].

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, PoisonError};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::watch;

use super::Shared;
use super::attempts;
use super::clients;
use super::clock::Clock;
use super::outage::Outage;
use super::queue::{Request, Task};
use super::retention::{self, Upkeep};
use super::schema;
use super::statements::{self, Batch, Failure};
use crate::event::Sequence;
use crate::store::{Options, Redelivery, Statistics, StoreError};

/// How many requests go into one transaction: more would not make a sync cheaper, only the first wait longer.
pub(super) const GROUP_REQUESTS: usize = 256;
/// How many bytes go into one transaction, likewise; one request may exceed it.
const GROUP_BYTES: u64 = 4 << 20;

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
    pub(super) outage: Outage,
    /// Whether the run of this process is not recorded yet: it has no event.
    begins_run: bool,
}

/// A request that failed by itself, and why.
type FailedRequest = (Request, Failure);

/// What was committed.
struct Committed {
    /// What the store then holds.
    position: Statistics,
    /// Whether anything was written. A group without a change says nothing about the disk.
    has_changes: bool,
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
        let outage = Outage::default();
        Ok(Self {
            connection,
            options,
            shared,
            position,
            clock,
            upkeep,
            head,
            requests,
            outage,
            begins_run: true,
        })
    }

    /// Works until the queue is gone and empty.
    pub(super) fn run(mut self) {
        while let Some(first) = self.next() {
            let group = self.group(first);
            self.write(group);
            self.after_group();
            self.measure_files();
        }
        self.finish();
    }

    /// The next request. While none waits, this thread does its upkeep, step by step, and then sleeps until a
    /// request comes, the oldest event is too old, or it is time to try again what failed.
    fn next(&mut self) -> Option<Request> {
        loop {
            match self.requests.try_recv() {
                Ok(request) => return Some(request),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            self.probe();
            if self.idle_step() {
                self.measure_files();
                continue;
            }
            match [self.idle_for(), self.try_again_in()].into_iter().flatten().min() {
                None => return self.requests.recv().ok(),
                Some(time) => match self.requests.recv_timeout(time) {
                    Ok(request) => return Some(request),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {}
                },
            }
        }
    }

    /// Measures the files. Only this thread makes them longer or shorter, so that nobody else has to ask the disk.
    fn measure_files(&mut self) {
        self.position.disk_bytes = schema::disk_bytes(&self.shared.database);
        *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = self.position;
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
        let (mut group, mut failed) = (group, Vec::new());
        match self.transact(&mut group, &mut failed) {
            Ok(Committed { position, has_changes }) => {
                if has_changes {
                    self.succeeded();
                }
                let writable = self.position.writable;
                let is_alone = group.is_empty();
                self.publish(Statistics { writable, ..position }, group);
                self.fail_alone(failed, is_alone);
            }
            Err(error) => {
                let error = self.shared.failure(error);
                self.failed(&error, group.iter().map(|request| request.weight.bytes()).sum());
                group.into_iter().for_each(|request| request.task.fail(error.clone()));
                self.fail_alone(failed, false);
            }
        }
    }

    /// Does the requests in one transaction, or none. Those that fail by themselves are undone and taken out. An error is one
    /// of the disk or the connection, which each request alone would meet, too.
    fn transact(
        &mut self,
        group: &mut Vec<Request>,
        failed: &mut Vec<FailedRequest>,
    ) -> rusqlite::Result<Committed> {
        self.upkeep.ensure_synced(&self.connection)?;
        'transaction: loop {
            let changes = self.connection.total_changes();
            let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let mut batch =
                Batch { transaction: &transaction, position: self.position, now: self.clock.now() };
            let mut next = 0;
            while let Some(request) = group.get_mut(next) {
                let position = batch.position;
                transaction.prepare_cached("SAVEPOINT request")?.execute(())?;
                match perform(&mut request.task, &mut batch, self.options.redelivery) {
                    Ok(()) => next += 1,
                    Err(Failure::Database(error)) if fails_everybody(&error) => return Err(error),
                    Err(failure) => {
                        failed.push((group.remove(next), failure));
                        batch.position = position;
                        // SQLite refuses every write after an unreadable page. So this one shows whether it goes on.
                        let undo = "ROLLBACK TO request; UPDATE position SET head = head;";
                        if transaction.execute_batch(undo).is_err() {
                            continue 'transaction;
                        }
                    }
                }
                transaction.prepare_cached("RELEASE request")?.execute(())?;
            }
            if group.is_empty() {
                return Ok(Committed { position: self.position, has_changes: false });
            }
            let position = batch.position;
            if position != self.position {
                statements::store_position(&transaction, &position)?;
            }
            let begins = self.begins_run && position.head > self.position.head;
            if begins && let Some(run) = self.shared.history.current() {
                statements::begin_run(&transaction, run)?;
            }
            transaction.commit()?;
            self.begins_run &= !begins;
            let has_changes = self.connection.total_changes() > changes;
            return Ok(Committed { position, has_changes });
        }
    }

    /// Answers requests that failed by themselves. If there were no others, nothing shows that the store can write.
    fn fail_alone(&mut self, failed: Vec<FailedRequest>, is_alone: bool) {
        for (Request { task, weight }, failure) in failed {
            let error = self.shared.refusal(failure);
            // What cannot be read says nothing of what can be written.
            if is_alone && !matches!(error, StoreError::DamagedEvent { .. }) {
                self.failed(&error, weight.bytes());
            }
            task.fail(error);
        }
    }

    /// Shows what was committed and answers who asked: the tail first, then the head, then the answers, so that
    /// nobody hears of an event that cannot be read.
    fn publish(&mut self, position: Statistics, group: Vec<Request>) {
        let appended = position.head > self.position.head;
        if self.position.events == 0 && position.events > 0 {
            self.upkeep.begins_with(self.clock.now());
        }
        self.position = position;
        *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = position;
        let mut answers = Vec::with_capacity(group.len());
        {
            let mut tail = self.shared.tail.write().unwrap_or_else(PoisonError::into_inner);
            for Request { task, weight } in group {
                let (event, answer) = task.finish();
                event.into_iter().for_each(|event| tail.push(event));
                answers.push((answer, weight));
            }
        }
        if appended {
            self.head.send_replace(position.head);
        }
        for (answer, _weight) in answers {
            answer();
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
                Task::Inspect { run, mut answer } => {
                    run(&self.connection);
                    answer.hold(());
                    answer.send();
                }
                _ => rest.push(request),
            }
        }
        rest
    }
}

/// Does one task and holds its result.
fn perform(task: &mut Task, batch: &mut Batch<'_>, redelivery: Redelivery) -> Result<(), Failure> {
    let transaction = batch.transaction;
    match task {
        Task::Append { webhook, answer } => answer.hold(batch.append(webhook, redelivery)?),
        Task::Redeliver { sequence, address, event, answer, .. } => {
            *event = batch.redeliver(*sequence, address)?.map(Arc::new);
            answer.hold(event.as_ref().map(|event| event.sequence));
        }
        Task::Acknowledge { client, acknowledgements, cursor, answer } => {
            batch.acknowledge(client, acknowledgements, *cursor)?;
            answer.hold(());
        }
        Task::RecordFirstAttempts { client, first_attempts, answer } => {
            attempts::record(transaction, client, first_attempts, batch.now)?;
            answer.hold(());
        }
        Task::Seek { client, cursor, answer } => {
            statements::seek(transaction, client, *cursor)?;
            answer.hold(());
        }
        Task::RegisterClient { client, owner, answer } => {
            answer.hold(clients::register(transaction, client, owner, batch.now)?);
        }
        Task::ReleaseClient { client, answer } => answer.hold(clients::release(transaction, client)?),
        Task::RemoveClient { client, answer } => answer.hold(clients::remove(transaction, client)?),
        Task::ForgetClients { age, connected, answer } => {
            answer.hold(clients::forget(transaction, *age, connected, batch.now)?);
        }
        Task::ChangeWatchlist { pattern, change, answer } => {
            statements::change_watchlist(transaction, pattern, *change)?;
            answer.hold(());
        }
        Task::StoreRelayState { relay, state, answer } => {
            statements::store_relay_state(transaction, relay, state)?;
            answer.hold(());
        }
        #[cfg(test)]
        Task::Inspect { .. } => {}
    }
    Ok(())
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
