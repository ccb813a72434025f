//! The one thread that writes: a transaction per group of what is queued, then the answers.
//!
//! Between groups the same thread removes what retention no longer wants: see [`retention`].

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, PoisonError};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::watch;

use super::queue::{Answer, Request, Task};
use super::retention::{self, Clock, Upkeep};
use super::{Shared, codec, failure};
use crate::event::{Address, ClientId, Event, Sequence, Timestamp, Webhook};
use crate::store::{Acknowledgement, Appended, Options, Redelivery, Statistics, beyond};

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
    /// Whether the last group failed: an operator hears of the first failure and of the recovery.
    failing: bool,
}

/// What one request did, known when its group is committed.
enum Done {
    Appended(Appended),
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
            match self.idle_for() {
                None => return self.requests.recv().ok(),
                Some(time) => match self.requests.recv_timeout(time) {
                    Ok(request) => return Some(request),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {}
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
                if self.failing {
                    self.failing = false;
                    tracing::info!("the store can write again");
                }
                self.publish(position, group, done);
            }
            Err(error) if group.len() > 1 && !fails_everybody(&error) => {
                for request in group {
                    self.write(vec![request]);
                }
            }
            Err(error) => {
                let error = failure(&self.shared.database, error);
                if !self.failing {
                    self.failing = true;
                    tracing::error!(%error, "the store cannot write");
                }
                for request in group {
                    request.task.fail(error.clone());
                }
            }
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
                Task::Append { webhook, .. } => Done::Appended(append(
                    &transaction,
                    webhook,
                    &mut position,
                    now,
                    self.options.redelivery,
                )?),
                Task::Acknowledge { client, acknowledgements, cursor, .. } => {
                    acknowledge(&transaction, client, acknowledgements, *cursor)?;
                    Done::Nothing
                }
                Task::Seek { client, cursor, .. } => {
                    seek(&transaction, client, *cursor)?;
                    Done::Nothing
                }
                #[cfg(test)]
                Task::Inspect { .. } => Done::Nothing,
            });
        }
        if position != self.position {
            store_position(&transaction, &position)?;
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
                    (Task::Acknowledge { answer, .. } | Task::Seek { answer, .. }, _) => {
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

fn append(
    transaction: &Transaction<'_>,
    webhook: &Webhook,
    position: &mut Statistics,
    now: Timestamp,
    redelivery: Redelivery,
) -> rusqlite::Result<Appended> {
    let facts = &webhook.facts;
    let hook_id = facts.hook_id.as_ref().map(|id| id.as_str());
    let newest: Option<(Sequence, bool)> = transaction
        .prepare_cached(
            "SELECT sequence, EXISTS (SELECT 1 FROM outcomes WHERE outcomes.sequence = events.sequence) \
             FROM events WHERE delivery_id = ?1 AND hook_id IS ?2 AND source = ?3 ORDER BY sequence DESC LIMIT 1",
        )?
        .query_row(params![facts.delivery_id.as_str(), hook_id, facts.source.as_str()], |row| {
            Ok((codec::sequence(row, 0)?, row.get(1)?))
        })
        .optional()?;
    if let Some((sequence, delivered)) = newest
        && (!delivered || redelivery == Redelivery::Drop)
    {
        return Ok(Appended::Repeat { sequence });
    }
    let (sequence, redelivery, size) = (position.head.next(), newest.is_some(), webhook.size());
    transaction
        .prepare_cached(
            "INSERT INTO events (sequence, source, hook_id, delivery_id, event, action, repository_id, \
             repository_name, owner, installation_id, received_at, accepted_at, redelivery, size) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            codec::signed(sequence.get()),
            facts.source.as_str(),
            hook_id,
            facts.delivery_id.as_str(),
            facts.event_type.name,
            facts.event_type.action,
            facts.repository_id.map(|id| id.0.cast_signed()),
            facts.repository_name.as_ref().map(|name| name.as_str()),
            facts.owner,
            facts.installation_id.map(u64::cast_signed),
            codec::signed(facts.received_at.as_millis()),
            codec::signed(now.as_millis()),
            redelivery,
            codec::signed(size),
        ])?;
    transaction
        .prepare_cached("INSERT INTO payloads (sequence, headers, body) VALUES (?1, ?2, ?3)")?
        .execute(params![
            codec::signed(sequence.get()),
            codec::encode_headers(&webhook.headers),
            &*webhook.body
        ])?;
    if position.events == 0 {
        position.first = sequence;
    }
    position.head = sequence;
    position.events += 1;
    position.bytes += size;
    Ok(Appended::Stored { sequence, redelivery })
}

fn acknowledge(
    transaction: &Transaction<'_>,
    client: &ClientId,
    acknowledgements: &[Acknowledgement],
    cursor: Sequence,
) -> rusqlite::Result<()> {
    let name = client.as_str();
    // RETURNING gives the cursor as it then is: it may have been further already.
    let cursor = transaction
        .prepare_cached(
            "INSERT INTO cursors (client, cursor) VALUES (?1, ?2) \
             ON CONFLICT (client) DO UPDATE SET cursor = max(cursor, excluded.cursor) RETURNING cursor",
        )?
        .query_row(params![name, codec::signed(cursor.get())], |row| codec::sequence(row, 0))?;
    transaction
        .prepare_cached("DELETE FROM ahead WHERE client = ?1 AND sequence <= ?2")?
        .execute(params![name, codec::signed(cursor.get())])?;
    // Both inserts take nothing if retention has removed the event.
    let mut ahead = transaction.prepare_cached(
        "INSERT OR IGNORE INTO ahead (client, sequence) SELECT ?1, sequence FROM events WHERE sequence = ?2",
    )?;
    for sequence in beyond(acknowledgements, cursor) {
        ahead.execute(params![name, codec::signed(sequence.get())])?;
    }
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO outcomes (sequence, client, target, result, code, attempts, duration_ns, at, detail) \
         SELECT sequence, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM events WHERE sequence = ?1",
    )?;
    for Acknowledgement { sequence, outcomes } in acknowledgements {
        for outcome in outcomes {
            insert.execute(params![
                codec::signed(sequence.get()),
                name,
                outcome.target,
                outcome.result.as_str(),
                outcome.code,
                outcome.attempts,
                i64::try_from(outcome.duration.as_nanos()).unwrap_or(i64::MAX),
                codec::signed(outcome.at.as_millis()),
                outcome.detail,
            ])?;
        }
    }
    Ok(())
}

fn seek(transaction: &Transaction<'_>, client: &ClientId, cursor: Sequence) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO cursors (client, cursor) VALUES (?1, ?2)")?
        .execute(params![client.as_str(), codec::signed(cursor.get())])?;
    transaction.prepare_cached("DELETE FROM ahead WHERE client = ?1")?.execute([client.as_str()])?;
    Ok(())
}

/// Writes head and totals.
pub(super) fn store_position(transaction: &Transaction<'_>, position: &Statistics) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE position SET head = ?1, events = ?2, bytes = ?3")?.execute(
        params![
            codec::signed(position.head.get()),
            codec::signed(position.events),
            codec::signed(position.bytes)
        ],
    )?;
    Ok(())
}
