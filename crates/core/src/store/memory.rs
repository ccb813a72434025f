//! The store without a disk, for tests, embedding and platforms that keep nothing.
//!
//! It is a log without bounds of its own ([`Tail`]) under one lock, with maps beside it. No call waits: every
//! operation is a few map accesses, and no call holds the lock while it looks at more than [`SCAN_LIMIT`] events.
//! Retention happens at each call, before it looks: nothing needs a thread or a timer, and between calls count and bytes are
//! within their bounds all the same, because only an append could break them. Age is measured with the monotonic clock.

mod clients;
mod first_attempts;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::watch;

use self::clients::Registered;
use self::first_attempts::FirstAttempts;
use super::listing::Sieve;
use super::tail::{Bounds, Look, SCAN_LIMIT, Tail};
use super::{
    Acknowledgement, Appended, Entry, EventStore, FirstAttempt, History, Listed, Listing, Options, Order,
    Owner, Page, ReadLimit, Redelivery, Registration, Report, Run, RunId, Statistics, StoreError, StoreId,
    WatchlistChange, beyond,
};
use crate::event::{
    Address, ClientId, DeliveryId, Event, Facts, HookId, Sequence, Source, Timestamp, Webhook,
};
use crate::filter::Filter;
use crate::hop::{Hops, Origin};
use crate::outcomes::Outcomes;
use crate::repository::{RepositoryId, RepositoryPattern};
use crate::subscription::Progress;
use crate::target::OutcomeResult;

/// A store in memory: gone with the process, otherwise as good as any.
#[derive(Debug)]
pub struct MemoryStore {
    id: StoreId,
    /// The one run of a store that ends with its process.
    history: History,
    options: Options,
    state: Mutex<State>,
    head: watch::Receiver<Sequence>,
}

#[derive(Debug)]
struct State {
    log: Tail,
    /// When each event of the log was accepted.
    accepted: VecDeque<Instant>,
    /// The newest event of each identity.
    newest: HashMap<Identity, Sequence>,
    /// The event of each origin and identity.
    origins: HashMap<(Origin, Identity), Sequence>,
    reports: BTreeMap<Sequence, BTreeMap<ClientId, Outcomes>>,
    /// What all reports take, for retention.
    report_bytes: u64,
    /// How many events each repository with a number has.
    counts: BTreeMap<RepositoryId, u64>,
    clients: BTreeMap<ClientId, Progress>,
    registered: BTreeMap<ClientId, Registered>,
    first_attempts: FirstAttempts,
    watchlist: HashMap<RepositoryPattern, WatchlistChange>,
    relays: HashMap<String, String>,
    /// How many events retention has removed.
    removed: u64,
    /// `None` once closed: whoever waits on the head wakes.
    head: Option<watch::Sender<Sequence>>,
}

/// What one part of the log has of what is looked for.
enum Found {
    /// The event.
    Event(Sequence),
    /// Nothing so far; the next part begins here.
    More(Sequence),
    /// Nothing in the whole log, which ends here.
    Nothing(Sequence),
}

type Identity = (Source, Option<HookId>, DeliveryId);

fn identity(facts: &Facts) -> Identity {
    let (source, hook, delivery) = facts.identity();
    (source.clone(), hook.cloned(), delivery.clone())
}

impl MemoryStore {
    /// An empty store.
    pub fn new(options: Options) -> Self {
        let (sender, head) = watch::channel(Sequence::ZERO);
        let state = State {
            log: Tail::new(Sequence::ZERO, Sequence::ZERO, Bounds::NONE),
            accepted: VecDeque::new(),
            newest: HashMap::new(),
            origins: HashMap::new(),
            reports: BTreeMap::new(),
            report_bytes: 0,
            counts: BTreeMap::new(),
            clients: BTreeMap::new(),
            registered: BTreeMap::new(),
            first_attempts: FirstAttempts::default(),
            watchlist: HashMap::new(),
            relays: HashMap::new(),
            removed: 0,
            head: Some(sender),
        };
        let history = History::new(vec![Run { id: RunId::random(), start: Sequence::ZERO }]);
        Self { id: StoreId::random(), history, options, state: Mutex::new(state), head }
    }

    /// The state, after retention.
    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        // No operation leaves the state half changed where it could panic, so a poisoned lock is still good.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.head.is_none() {
            return Err(StoreError::Closed);
        }
        state.retain(&self.options, Instant::now());
        Ok(state)
    }
}

impl State {
    /// Removes what is over a bound, oldest first.
    fn retain(&mut self, options: &Options, now: Instant) {
        let retention = options.retention;
        while let Some(accepted) = self.accepted.front() {
            let too_old = now.saturating_duration_since(*accepted) > retention.age;
            let too_many = self.log.len() > 1
                && (self.log.len() as u64 > retention.count || self.bytes() > retention.bytes);
            if !too_old && !too_many {
                return;
            }
            self.accepted.pop_front();
            let Some(event) = self.log.remove_first() else { return };
            self.removed += 1;
            self.forget(&event);
        }
    }

    /// Drops what was kept beside an event that is gone.
    fn forget(&mut self, event: &Event) {
        let identity = identity(&event.webhook.facts);
        if self.newest.get(&identity) == Some(&event.sequence) {
            self.newest.remove(&identity);
        }
        if let Some(origin) = event.webhook.facts.hops.origin() {
            self.origins.remove(&(origin, identity));
        }
        for (client, outcomes) in self.reports.remove(&event.sequence).into_iter().flatten() {
            self.report_bytes -= outcomes.stored_bytes(client.as_str().len());
        }
        if let Some(id) = event.webhook.facts.repository_id
            && let Some(count) = self.counts.get_mut(&id)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&id);
            }
        }
        for progress in self.clients.values_mut() {
            // The oldest goes first: all before it is gone already.
            progress.ahead.remove_through(event.sequence);
        }
        self.first_attempts.remove_through(event.sequence);
    }

    fn append(&mut self, webhook: Webhook, options: &Options) -> Appended {
        let hops = &webhook.facts.hops;
        let was_redelivery = hops.handed_on_as_redelivery();
        let identity = identity(&webhook.facts);
        let origin = hops.origin().map(|origin| (origin, identity.clone()));
        if let Some(sequence) = origin.as_ref().and_then(|origin| self.origins.get(origin)) {
            return Appended::Repeat { sequence: *sequence };
        }
        let known = self.newest.get(&identity).copied();
        if let Some(sequence) = known {
            let undelivered = !self.reports.contains_key(&sequence);
            if undelivered || options.redelivery == Redelivery::Drop {
                return Appended::Repeat { sequence };
            }
        }
        let redelivery = known.is_some() || was_redelivery;
        let sequence = self.push(webhook, redelivery, Address::default());
        self.newest.insert(identity, sequence);
        if let Some(origin) = origin {
            self.origins.insert(origin, sequence);
        }
        Appended::Stored { sequence, redelivery }
    }

    fn push(&mut self, webhook: Webhook, redelivery: bool, address: Address) -> Sequence {
        let sequence = self.log.head().next();
        self.accepted.push_back(Instant::now());
        if let Some(id) = webhook.facts.repository_id {
            *self.counts.entry(id).or_default() += 1;
        }
        self.log.push(Arc::new(Event { sequence, redelivery, address, webhook }));
        sequence
    }

    fn redeliver(&mut self, sequence: Sequence, address: &Address) -> Option<Sequence> {
        let mut webhook = self.log.find(sequence)?.webhook.clone();
        webhook.facts.hops = Hops::default();
        let new = self.push(webhook, true, address.clone());
        let reports = self.reports.get_mut(&sequence).into_iter().flatten();
        for (_, outcomes) in reports.filter(|(client, _)| address.includes_client(client)) {
            for reported in outcomes.iter_mut() {
                let is_dead =
                    reported.outcome.result == OutcomeResult::Failed && reported.redelivered_as.is_none();
                if is_dead && address.includes_target(&reported.outcome.target) {
                    reported.redelivered_as = Some(new);
                }
            }
        }
        Some(new)
    }

    fn list(&self, listing: &Listing) -> Listed {
        let mut sieve = Sieve::new(listing);
        let mut events = self.log.range(listing.first, listing.last);
        while let Some(event) = match listing.order {
            Order::OldestFirst => events.next(),
            Order::NewestFirst => events.next_back(),
        } {
            match sieve.look(event.sequence, Some(&event.webhook.facts)) {
                Look::Stop => break,
                Look::Pass => {}
                Look::Take => sieve.take(Entry::new(event, self.reports(event.sequence))),
            }
        }
        sieve.finish()
    }

    fn reports(&self, sequence: Sequence) -> Vec<Report> {
        let of_client = |(client, outcomes): (&ClientId, &Outcomes)| {
            outcomes.iter().map(|one| Report::new(client, one)).collect::<Vec<_>>()
        };
        self.reports.get(&sequence).into_iter().flatten().flat_map(of_client).collect()
    }

    /// Bytes of the events and of what was reported of them.
    fn bytes(&self) -> u64 {
        self.log.bytes() + self.report_bytes
    }

    /// Looks for the first event from `from` on that was received at `time` or later, in a bounded part of the log.
    fn look_for(&self, time: Timestamp, from: Sequence) -> Found {
        let mut events = self.log.range(from, Sequence::MAX);
        for event in events.by_ref().take(SCAN_LIMIT) {
            if event.webhook.facts.received_at >= time {
                return Found::Event(event.sequence);
            }
        }
        match events.next() {
            Some(event) => Found::More(event.sequence),
            None => Found::Nothing(self.log.head()),
        }
    }

    /// Tells who waits that the log has grown.
    fn announce(&mut self, options: &Options, sequence: Sequence) {
        self.retain(options, Instant::now());
        if let Some(head) = &self.head {
            head.send_replace(sequence);
        }
    }

    fn record_first_attempts(&mut self, client: &ClientId, first_attempts: Vec<FirstAttempt>) {
        let Some(first) = self.log.first().map(|event| event.sequence.get()) else { return };
        if self.clients.contains_key(client) {
            // The log has no gaps.
            let place = |sequence: Sequence| usize::try_from(sequence.get().checked_sub(first)?).ok();
            let accepted = |sequence| self.accepted.get(place(sequence)?).copied();
            self.first_attempts.record(client, first_attempts, accepted);
        }
    }

    fn acknowledge(&mut self, client: &ClientId, acknowledgements: Vec<Acknowledgement>, cursor: Sequence) {
        let progress = self.clients.entry(client.clone()).or_default();
        progress.cursor = progress.cursor.max(cursor);
        let ahead = beyond(&acknowledgements, progress.cursor);
        progress.ahead.extend(ahead.into_iter().filter(|sequence| self.log.contains(*sequence)));
        progress.ahead.remove_through(progress.cursor);
        self.first_attempts.forget(client, &acknowledgements, progress.cursor);
        for Acknowledgement { sequence, outcomes } in acknowledgements {
            if outcomes.is_empty() || !self.log.contains(sequence) {
                continue;
            }
            let kept = self.reports.entry(sequence).or_default().entry(client.clone()).or_default();
            self.report_bytes -= kept.stored_bytes(client.as_str().len());
            outcomes.into_iter().for_each(|outcome| kept.add(outcome));
            self.report_bytes += kept.stored_bytes(client.as_str().len());
        }
    }
}

#[async_trait]
impl EventStore for MemoryStore {
    async fn append(&self, webhook: Webhook) -> Result<Appended, StoreError> {
        let mut state = self.state()?;
        let appended = state.append(webhook, &self.options);
        if let Appended::Stored { sequence, .. } = appended {
            state.announce(&self.options, sequence);
        }
        Ok(appended)
    }

    async fn read(&self, after: Sequence, filter: &Filter, limit: ReadLimit) -> Result<Page, StoreError> {
        let state = self.state()?;
        let nothing = Page { read_to: after, ..Page::default() };
        Ok(state.log.read(after, filter, limit).unwrap_or(nothing))
    }

    fn head(&self) -> watch::Receiver<Sequence> {
        self.head.clone()
    }

    async fn before(&self, time: Timestamp) -> Result<Sequence, StoreError> {
        let mut from = Sequence::ZERO;
        // The lock is released between two parts of the log.
        loop {
            match self.state()?.look_for(time, from) {
                Found::Event(sequence) => return Ok(sequence.previous()),
                Found::Nothing(head) => return Ok(head),
                Found::More(next) => from = next,
            }
            tokio::task::yield_now().await;
        }
    }

    async fn progress(&self, client: &ClientId) -> Result<Option<Progress>, StoreError> {
        Ok(self.state()?.clients.get(client).cloned())
    }

    async fn seek(&self, client: &ClientId, cursor: Sequence) -> Result<(), StoreError> {
        let progress = Progress { cursor, ..Progress::default() };
        let mut state = self.state()?;
        state.clients.insert(client.clone(), progress);
        state.first_attempts.clear(client);
        Ok(())
    }

    async fn acknowledge(
        &self,
        client: &ClientId,
        acknowledgements: Vec<Acknowledgement>,
        cursor: Sequence,
    ) -> Result<(), StoreError> {
        self.state()?.acknowledge(client, acknowledgements, cursor);
        Ok(())
    }

    async fn record_first_attempts(
        &self,
        client: &ClientId,
        first_attempts: Vec<FirstAttempt>,
    ) -> Result<(), StoreError> {
        self.state()?.record_first_attempts(client, first_attempts);
        Ok(())
    }

    async fn first_attempts(
        &self,
        client: &ClientId,
        sequences: RangeInclusive<Sequence>,
    ) -> Result<Vec<FirstAttempt>, StoreError> {
        Ok(self.state()?.first_attempts.load(client, &sequences))
    }

    async fn last_first_attempt(&self, client: &ClientId) -> Result<Sequence, StoreError> {
        Ok(self.state()?.first_attempts.last(client))
    }

    async fn reports(&self, sequence: Sequence) -> Result<Vec<Report>, StoreError> {
        Ok(self.state()?.reports(sequence))
    }

    async fn list(&self, listing: &Listing) -> Result<Listed, StoreError> {
        let mut listing = listing.clone();
        if let Some(since) = listing.received_since {
            listing.first = listing.first.max(self.before(since).await?.next());
        }
        Ok(self.state()?.list(&listing))
    }

    async fn redeliver(&self, sequence: Sequence, address: Address) -> Result<Option<Sequence>, StoreError> {
        let mut state = self.state()?;
        let redelivered = state.redeliver(sequence, &address);
        if let Some(sequence) = redelivered {
            state.announce(&self.options, sequence);
        }
        Ok(redelivered)
    }

    async fn counts(&self, from: RepositoryId, limit: usize) -> Result<Vec<(RepositoryId, u64)>, StoreError> {
        let state = self.state()?;
        Ok(state.counts.range(from..).take(limit).map(|(id, count)| (*id, *count)).collect())
    }

    async fn cursors(&self) -> Result<Vec<(ClientId, Sequence)>, StoreError> {
        let state = self.state()?;
        Ok(state.clients.iter().map(|(client, progress)| (client.clone(), progress.cursor)).collect())
    }

    async fn register_client(&self, client: &ClientId, owner: &Owner) -> Result<Registration, StoreError> {
        Ok(self.state()?.register(client, owner))
    }

    async fn release_client(&self, client: &ClientId) -> Result<bool, StoreError> {
        Ok(self.state()?.release_client(client))
    }

    async fn remove_client(&self, client: &ClientId) -> Result<bool, StoreError> {
        Ok(self.state()?.remove_client(client))
    }

    async fn forget_clients(
        &self,
        age: Duration,
        connected: Vec<ClientId>,
    ) -> Result<Vec<ClientId>, StoreError> {
        Ok(self.state()?.forget_clients(age, &connected))
    }

    async fn watchlist_changes(&self) -> Result<Vec<(RepositoryPattern, WatchlistChange)>, StoreError> {
        Ok(self.state()?.watchlist.iter().map(|(pattern, change)| (pattern.clone(), *change)).collect())
    }

    async fn change_watchlist(
        &self,
        pattern: &RepositoryPattern,
        change: Option<WatchlistChange>,
    ) -> Result<(), StoreError> {
        let watchlist = &mut self.state()?.watchlist;
        match change {
            Some(change) => watchlist.insert(pattern.clone(), change),
            None => watchlist.remove(pattern),
        };
        Ok(())
    }

    fn id(&self) -> StoreId {
        self.id
    }

    fn history(&self) -> &History {
        &self.history
    }

    fn is_durable(&self) -> bool {
        false
    }

    async fn relay_state(&self, relay: &str) -> Result<Option<String>, StoreError> {
        Ok(self.state()?.relays.get(relay).cloned())
    }

    async fn store_relay_state(&self, relay: &str, state: String) -> Result<(), StoreError> {
        self.state()?.relays.insert(relay.to_owned(), state);
        Ok(())
    }

    async fn statistics(&self) -> Result<Statistics, StoreError> {
        let state = self.state()?;
        Ok(Statistics {
            events: state.log.len() as u64,
            bytes: state.bytes(),
            first: state.log.first().map_or(Sequence::ZERO, |event| event.sequence),
            head: state.log.head(),
            removed: state.removed,
            damaged: 0,
            disk_bytes: 0,
            writable: true,
        })
    }

    async fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.head = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[tokio::test]
    async fn keeps_the_contract() {
        conformance::run(async |options| MemoryStore::new(options)).await;
    }
}
