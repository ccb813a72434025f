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
use super::queue::{Answer, Request, Task};
use super::retention::{self, Upkeep};
use super::schema;
use super::statements::{self, Batch, Failure};
use crate::event::{Address, ClientId, Event, Sequence};
use crate::store::{Appended, Options, Registration, Statistics, StoreError};

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

/// What one request did, known when its group is committed.
enum Done {
    Appended(Appended),
    /// The new event, if the one to redeliver is there.
    Redelivered(Option<Arc<Event>>),
    Registered(Registration),
    Removed(bool),
    Forgotten(Vec<ClientId>),
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
        let changes = self.connection.total_changes();
        match self.transact(&group) {
            Ok((position, done)) => {
                // A group without a change writes nothing: it says nothing about the disk.
                if self.connection.total_changes() > changes {
                    self.succeeded();
                }
                let writable = self.position.writable;
                self.publish(Statistics { writable, ..position }, group, done);
            }
            Err(failure) if group.len() > 1 && !fails_everybody(&failure) => {
                for request in group {
                    self.write(vec![request]);
                }
            }
            Err(failure) => {
                let error = self.shared.refusal(failure);
                // What cannot be read says nothing of what can be written.
                if !matches!(error, StoreError::DamagedEvent { .. }) {
                    self.failed(&error, group.iter().map(|request| request.weight.bytes()).sum());
                }
                for request in group {
                    request.task.fail(error.clone());
                }
            }
        }
    }

    /// Does all requests in one transaction, or none. Returns what the store then holds.
    fn transact(&mut self, group: &[Request]) -> Result<(Statistics, Vec<Done>), Failure> {
        self.upkeep.ensure_synced(&self.connection)?;
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut batch = Batch { transaction: &transaction, position: self.position, now: self.clock.now() };
        let mut done = Vec::with_capacity(group.len());
        for request in group {
            done.push(match &request.task {
                Task::Append { webhook, .. } => {
                    Done::Appended(batch.append(webhook, self.options.redelivery)?)
                }
                Task::Redeliver { sequence, address, .. } => {
                    Done::Redelivered(batch.redeliver(*sequence, address)?.map(Arc::new))
                }
                Task::Acknowledge { client, acknowledgements, cursor, .. } => {
                    statements::acknowledge(&transaction, client, acknowledgements, *cursor)?;
                    Done::Nothing
                }
                Task::RecordFirstAttempts { client, first_attempts, .. } => {
                    attempts::record(&transaction, client, first_attempts, batch.now)?;
                    Done::Nothing
                }
                Task::Seek { client, cursor, .. } => {
                    statements::seek(&transaction, client, *cursor)?;
                    Done::Nothing
                }
                Task::RegisterClient { client, owner, .. } => {
                    Done::Registered(clients::register(&transaction, client, owner, batch.now)?)
                }
                Task::RemoveClient { client, .. } => Done::Removed(clients::remove(&transaction, client)?),
                Task::ForgetClients { age, connected, .. } => {
                    Done::Forgotten(clients::forget(&transaction, *age, connected, batch.now)?)
                }
                Task::ChangeWatchlist { pattern, change, .. } => {
                    statements::change_watchlist(&transaction, pattern, *change)?;
                    Done::Nothing
                }
                Task::StoreRelayState { relay, state, .. } => {
                    statements::store_relay_state(&transaction, relay, state)?;
                    Done::Nothing
                }
                #[cfg(test)]
                Task::Inspect { .. } => Done::Nothing,
            });
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
                let reply = match (task, done) {
                    (Task::Append { webhook, answer }, Done::Appended(appended)) => {
                        if let Appended::Stored { sequence, redelivery } = appended {
                            let address = Address::default();
                            tail.push(Arc::new(Event { sequence, redelivery, address, webhook: *webhook }));
                        }
                        Reply::Appended(answer, appended)
                    }
                    (Task::Redeliver { answer, .. }, Done::Redelivered(event)) => {
                        let sequence = event.as_ref().map(|event| event.sequence);
                        event.into_iter().for_each(|event| tail.push(event));
                        Reply::Redelivered(answer, sequence)
                    }
                    (Task::RegisterClient { answer, .. }, Done::Registered(registration)) => {
                        Reply::Registered(answer, registration)
                    }
                    (Task::RemoveClient { answer, .. }, Done::Removed(removed)) => {
                        Reply::Removed(answer, removed)
                    }
                    (Task::ForgetClients { answer, .. }, Done::Forgotten(clients)) => {
                        Reply::Forgotten(answer, clients)
                    }
                    (
                        Task::Acknowledge { answer, .. }
                        | Task::RecordFirstAttempts { answer, .. }
                        | Task::Seek { answer, .. }
                        | Task::ChangeWatchlist { answer, .. }
                        | Task::StoreRelayState { answer, .. },
                        _,
                    ) => Reply::Nothing(answer),
                    _ => continue,
                };
                answers.push((reply, weight));
            }
        }
        if appended {
            self.head.send_replace(position.head);
        }
        for (reply, _weight) in answers {
            reply.give();
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
    Registered(Answer<Registration>, Registration),
    Removed(Answer<bool>, bool),
    Forgotten(Answer<Vec<ClientId>>, Vec<ClientId>),
    Nothing(Answer<()>),
}

impl Reply {
    /// Tells whoever asked. They may have gone; what they asked for is done all the same.
    fn give(self) {
        match self {
            Self::Appended(answer, appended) => drop(answer.send(Ok(appended))),
            Self::Redelivered(answer, sequence) => drop(answer.send(Ok(sequence))),
            Self::Registered(answer, registration) => drop(answer.send(Ok(registration))),
            Self::Removed(answer, removed) => drop(answer.send(Ok(removed))),
            Self::Forgotten(answer, clients) => drop(answer.send(Ok(clients))),
            Self::Nothing(answer) => drop(answer.send(Ok(()))),
        }
    }
}

/// Whether an error comes from the disk or the connection, so that each request alone would meet it too.
fn fails_everybody(failure: &Failure) -> bool {
    let Failure::Database(error) = failure else { return false };
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
