//! Random operations on a store and on the simplest thing that could be one: both must say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::{
    Acknowledgement, Appended, Entry, EventStore, Fate, FateFilter, Listing, MemoryStore, Options, Order,
    ReadLimit, Redelivery, Report, StoreId,
};
use crate::event::{Address, ClientId, Event, Sequence, Timestamp, Webhook};
use crate::filter::Filter;
use crate::hop::{Hop, Hops};
use crate::outcomes::Outcomes;
use crate::repository::RepositoryId;
use crate::subscription::Progress;
use crate::target::{Outcome, OutcomeResult};
use crate::testing;

/// Sequences are given as places in the log, so that they hit; one beyond the end is an event that is not there.
#[derive(Clone, Debug)]
enum Step {
    Append {
        number: u64,
        size: usize,
        way: Vec<Hop>,
    },
    /// Each event with so many outcomes.
    Acknowledge {
        client: u8,
        events: Vec<(usize, u32)>,
        cursor: usize,
    },
    Seek {
        client: u8,
        cursor: usize,
    },
    Read {
        after: usize,
        repository: Option<bool>,
        events: usize,
        bytes: u64,
    },
    Before {
        time: u64,
    },
    Redeliver {
        event: usize,
        address: Address,
    },
    List {
        first: usize,
        last: usize,
        listing: Listing,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let (place, client) = (0..15usize, 0..2u8);
    prop_oneof![
        6 => (0..8u64, 0..3000usize, way())
            .prop_map(|(number, size, way)| Step::Append { number, size, way }),
        4 => (client.clone(), proptest::collection::vec((place.clone(), reported()), 0..3), place.clone())
            .prop_map(|(client, events, cursor)| Step::Acknowledge { client, events, cursor }),
        1 => (client, place.clone()).prop_map(|(client, cursor)| Step::Seek { client, cursor }),
        4 => (place.clone(), any::<Option<bool>>(), 0..6usize, 0..8000u64)
            .prop_map(|(after, repository, events, bytes)| Step::Read { after, repository, events, bytes }),
        1 => (0..9u64).prop_map(|time| Step::Before { time }),
        2 => (place.clone(), address()).prop_map(|(event, address)| Step::Redeliver { event, address }),
        3 => (place.clone(), place.clone(), listing())
            .prop_map(|(first, last, listing)| Step::List { first, last, listing }),
        1 => Just(Step::Reopen),
    ]
}

/// How many outcomes are reported: often none or one, and more than are stored.
fn reported() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..2u32, 1 => Just(50u32)]
}

/// Few servers and sequences, so that origins meet.
fn way() -> impl Strategy<Value = Vec<Hop>> {
    let hop = (0..2u64, 1..5u64, any::<bool>()).prop_map(|(store, sequence, redelivery)| Hop {
        store: StoreId::new(store.wrapping_sub(1)),
        server: format!("server-{store}").into(),
        sequence: Sequence::new(sequence),
        received_at: Timestamp::from_millis(sequence),
        redelivery,
    });
    prop_oneof![Just(Vec::new()), proptest::collection::vec(hop, 1..4)]
}

fn address() -> impl Strategy<Value = Address> {
    (proptest::option::of(0..3u8), proptest::collection::vec(0..3u32, 0..3)).prop_map(|(only, at)| {
        let targets = at.into_iter().map(|at| target(at).into()).collect();
        Address { client: only.map(client), targets }
    })
}

/// A listing of everywhere; where it begins and ends is set when the log is known.
fn listing() -> impl Strategy<Value = Listing> {
    let fates =
        prop_oneof![Just(Fate::Pending), Just(Fate::Delivered), Just(Fate::DeadLetter), Just(Fate::Filtered)];
    let fate = (fates, address()).prop_map(|(fate, at)| FateFilter {
        fate,
        client: at.client,
        target: at.targets.into_iter().next(),
    });
    let numbers = (proptest::option::weighted(0.2, 0..8u64), proptest::option::weighted(0.2, 0..9u64));
    (numbers, proptest::option::of(fate), any::<Option<bool>>(), any::<bool>(), 0..6usize).prop_map(
        |((delivery, since), fate, even, oldest, limit)| Listing {
            filter: filter(even),
            delivery_id: delivery.map(|number| webhook(number, 0).facts.delivery_id),
            received_since: since.map(|number| webhook(number, 0).facts.received_at),
            fate,
            order: if oldest { Order::OldestFirst } else { Order::NewestFirst },
            limit,
            ..Listing::default()
        },
    )
}

fn filter(even: Option<bool>) -> Filter {
    let repositories = even.map(|even| repository(even).parse().unwrap()).into_iter().collect();
    Filter { repositories, events: Vec::new() }
}

fn target(number: u32) -> &'static str {
    ["argo", "jenkins", "shell"][number as usize % 3]
}

fn client(number: u8) -> ClientId {
    format!("client-{number}").parse().unwrap()
}

fn repository(even: bool) -> &'static str {
    if even { "octo/even" } else { "octo/odd" }
}

fn webhook(number: u64, size: usize) -> Webhook {
    testing::webhook(number, repository(number.is_multiple_of(2)), size)
}

fn outcome(attempts: u32) -> Outcome {
    let results = [OutcomeResult::Failed, OutcomeResult::Delivered, OutcomeResult::Filtered];
    Outcome {
        target: target(attempts).to_owned(),
        result: results[attempts as usize / 3 % 4 % 3],
        code: None,
        attempts,
        duration: Duration::from_nanos(attempts.into()),
        at: Timestamp::from_millis(1),
        detail: String::new(),
    }
}

/// One of many, which take more than is stored.
fn long_outcome(number: u32) -> Outcome {
    let target = format!("target-{}", number % 60);
    Outcome { target, detail: "x".repeat(3000), ..outcome(number) }
}

/// The simplest store: it looks through everything, always.
#[derive(Debug, Default)]
struct Model {
    events: Vec<Arc<Event>>,
    /// Those that an operator made.
    copies: BTreeSet<Sequence>,
    /// By event and client.
    outcomes: BTreeMap<(Sequence, u8), Outcomes>,
    progress: BTreeMap<u8, Progress>,
    reports: u32,
}

impl Model {
    fn sequence(&self, place: usize) -> Sequence {
        match place.checked_sub(1) {
            None => Sequence::ZERO,
            Some(at) => self.events.get(at).map_or(self.head().next(), |event| event.sequence),
        }
    }

    fn head(&self) -> Sequence {
        self.events.last().map_or(Sequence::ZERO, |event| event.sequence)
    }

    /// The repeated event, or whether it is a redelivery.
    fn known(&self, webhook: &Webhook, redelivery: Redelivery) -> Result<bool, Sequence> {
        let hops = &webhook.facts.hops;
        let mut events = self.events.iter();
        let has_origin = |event: &&Arc<Event>| {
            let facts = &event.webhook.facts;
            (facts.hops.origin(), facts.identity()) == (hops.origin(), webhook.facts.identity())
        };
        if let Some(event) = hops.origin().and_then(|_| events.find(has_origin)) {
            return Err(event.sequence);
        }
        let redelivered_elsewhere = hops.last().is_some_and(|hop| hop.redelivery);
        let same = |event: &&Arc<Event>| {
            event.webhook.facts.identity() == webhook.facts.identity()
                && !self.copies.contains(&event.sequence)
        };
        let Some(newest) = self.events.iter().rev().find(same) else { return Ok(redelivered_elsewhere) };
        let delivered = !self.reports(newest.sequence).is_empty();
        if delivered && redelivery == Redelivery::Deliver { Ok(true) } else { Err(newest.sequence) }
    }

    fn reports(&self, sequence: Sequence) -> Vec<Report> {
        let of_it = self.outcomes.iter().filter(|((event, _), _)| *event == sequence);
        of_it
            .flat_map(|((_, number), all)| all.iter().map(|one| Report::new(&client(*number), one)))
            .collect()
    }

    fn acknowledge(&mut self, number: u8, acknowledgements: &[Acknowledgement], cursor: Sequence) {
        let progress = self.progress.entry(number).or_default();
        progress.cursor = progress.cursor.max(cursor);
        for Acknowledgement { sequence, outcomes } in acknowledgements {
            if self.events.iter().any(|event| event.sequence == *sequence) {
                progress.ahead.insert(*sequence);
                let kept = self.outcomes.entry((*sequence, number)).or_default();
                outcomes.iter().for_each(|outcome| kept.add(outcome.clone()));
            }
        }
        let cursor = progress.cursor;
        progress.ahead.remove_through(cursor);
    }

    fn read(&self, after: Sequence, filter: &Filter, limit: ReadLimit) -> Vec<Arc<Event>> {
        let mut bytes = 0;
        let selected = self.events.iter().filter(|event| event.sequence > after);
        let selected = selected.filter(|event| filter.matches(&event.webhook.facts)).enumerate();
        selected
            .take_while(|(at, event)| {
                bytes += event.webhook.size();
                *at == 0 || (*at < limit.events && bytes <= limit.bytes)
            })
            .map(|(_, event)| Arc::clone(event))
            .collect()
    }

    fn before(&self, time: Timestamp) -> Sequence {
        let first = self.events.iter().find(|event| event.webhook.facts.received_at >= time);
        first.map_or(self.head(), |event| event.sequence.previous())
    }

    /// Does one step in both and compares what they say.
    async fn follow(
        &mut self,
        store: &impl EventStore,
        step: Step,
        options: Options,
    ) -> Result<(), TestCaseError> {
        match step {
            Step::Append { number, size, way } => {
                let mut webhook = webhook(number, size);
                webhook.facts.hops = Hops::new(way);
                let known = self.known(&webhook, options.redelivery);
                match store.append(webhook.clone()).await.unwrap() {
                    Appended::Repeat { sequence } => prop_assert_eq!(known, Err(sequence)),
                    Appended::Stored { sequence, redelivery } => {
                        prop_assert_eq!(known, Ok(redelivery));
                        prop_assert!(sequence > self.head());
                        self.events.push(Arc::new(Event {
                            sequence,
                            redelivery,
                            address: Address::default(),
                            webhook,
                        }));
                    }
                }
            }
            Step::Acknowledge { client: number, events, cursor } => {
                let mut acknowledgements = Vec::new();
                for (place, reported) in events {
                    let first = self.reports + 1;
                    self.reports += reported.max(1);
                    let outcomes = match reported {
                        50 => (first..first + 50).map(long_outcome).collect(),
                        _ => (first..first + reported).map(outcome).collect(),
                    };
                    acknowledgements.push(Acknowledgement { sequence: self.sequence(place), outcomes });
                }
                let cursor = self.sequence(cursor);
                self.acknowledge(number, &acknowledgements, cursor);
                store.acknowledge(&client(number), acknowledgements, cursor).await.unwrap();
            }
            Step::Seek { client: number, cursor } => {
                let cursor = self.sequence(cursor);
                self.progress.insert(number, Progress { cursor, ..Progress::default() });
                store.seek(&client(number), cursor).await.unwrap();
            }
            Step::Read { after, repository: even, events, bytes } => {
                let after = self.sequence(after);
                let filter = filter(even);
                let limit = ReadLimit { events, bytes };
                let page = store.read(after, &filter, limit).await.unwrap();
                let rest = self.read(page.read_to, &filter, ReadLimit { events: 1, bytes: 0 });
                prop_assert_eq!(&page.events, &self.read(after, &filter, limit));
                prop_assert!(page.events.last().is_none_or(|event| event.sequence <= page.read_to));
                prop_assert!(rest.is_empty() || !page.events.is_empty(), "read past what is selected");
            }
            Step::Before { time } => {
                let time = Timestamp::from_millis(1_700_000_000_000 + time);
                prop_assert_eq!(store.before(time).await.unwrap(), self.before(time));
            }
            Step::Redeliver { event, address } => {
                let sequence = self.sequence(event);
                let copy = store.redeliver(sequence, address.clone()).await.unwrap();
                prop_assert_eq!(copy.is_some(), self.redeliver(sequence, address, copy));
            }
            Step::List { first, last, listing } => {
                let (first, last) = (self.sequence(first), self.sequence(last));
                self.list(store, &Listing { first, last, ..listing }).await?;
            }
            Step::Reopen => {}
        }
        Ok(())
    }

    /// Does what a store did that gave the copy this sequence; whether there is anything to copy.
    fn redeliver(&mut self, sequence: Sequence, address: Address, copy: Option<Sequence>) -> bool {
        let Some(event) = self.events.iter().find(|event| event.sequence == sequence).cloned() else {
            return false;
        };
        let Some(copy) = copy.filter(|copy| *copy > self.head()) else { return false };
        for ((of, number), outcomes) in &mut self.outcomes {
            for one in outcomes.iter_mut() {
                let here =
                    address.includes_client(&client(*number)) && address.includes_target(&one.outcome.target);
                if *of == sequence && here && Report::new(&client(*number), one).is_dead_letter() {
                    one.redelivered_as = Some(copy);
                }
            }
        }
        self.copies.insert(copy);
        let mut webhook = event.webhook.clone();
        webhook.facts.hops = Hops::default();
        self.events.push(Arc::new(Event { sequence: copy, redelivery: true, address, webhook }));
        true
    }

    /// Compares one page, and what is said of the next.
    async fn list(&self, store: &impl EventStore, listing: &Listing) -> Result<(), TestCaseError> {
        let selected = |event: &&Arc<Event>| {
            let facts = &event.webhook.facts;
            event.sequence >= listing.first
                && event.sequence <= listing.last
                && listing.filter.matches(facts)
                && listing.delivery_id.as_ref().is_none_or(|id| *id == facts.delivery_id)
                && listing.received_since.is_none_or(|since| facts.received_at >= since)
        };
        let entries = self.events.iter().filter(selected);
        let entries = entries.map(|event| Entry::new(event, self.reports(event.sequence)));
        let mut entries: Vec<_> = entries
            .filter(|entry| listing.fate.as_ref().is_none_or(|fate| fate.matches(&entry.reports)))
            .collect();
        if listing.order == Order::NewestFirst {
            entries.reverse();
        }
        let rest = entries.split_off(listing.limit.max(1).min(entries.len()));
        let page = store.list(listing).await.unwrap();
        prop_assert_eq!(&page.entries, &entries);
        if let Some(first) = rest.first() {
            let next = page.next.expect("there is more");
            let (last, first) = (entries.last().map(|entry| entry.sequence), first.sequence);
            match listing.order {
                Order::OldestFirst => prop_assert!(last < Some(next) && next <= first),
                Order::NewestFirst => prop_assert!(last > Some(next) && next >= first),
            }
        }
        Ok(())
    }

    /// Compares everything that can be asked.
    async fn compare(&self, store: &impl EventStore) -> Result<(), TestCaseError> {
        let all = ReadLimit { events: 1000, bytes: u64::MAX };
        let page = store.read(Sequence::ZERO, &Filter::default(), all).await.unwrap();
        prop_assert_eq!(&page.events, &self.events);
        prop_assert_eq!(*store.head().borrow(), self.head());
        for number in 0..2 {
            prop_assert_eq!(
                store.progress(&client(number)).await.unwrap(),
                self.progress.get(&number).cloned()
            );
        }
        for event in &self.events {
            prop_assert_eq!(store.reports(event.sequence).await.unwrap(), self.reports(event.sequence));
        }
        let cursors = self.progress.iter().map(|(number, progress)| (client(*number), progress.cursor));
        prop_assert_eq!(store.cursors().await.unwrap(), cursors.collect::<Vec<_>>());
        let mut counts = BTreeMap::new();
        for id in self.events.iter().filter_map(|event| event.webhook.facts.repository_id) {
            *counts.entry(id).or_insert(0) += 1;
        }
        prop_assert_eq!(store.counts(RepositoryId(0), 100).await.unwrap(), Vec::from_iter(counts));
        let statistics = store.statistics().await.unwrap();
        prop_assert_eq!(statistics.events, self.events.len() as u64);
        let outcomes = self.outcomes.values().map(|outcomes| outcomes.stored_bytes("client-0".len()));
        let events = self.events.iter().map(|event| event.webhook.size());
        prop_assert_eq!(statistics.bytes, events.chain(outcomes).sum::<u64>());
        Ok(())
    }
}

fn options(redelivery: bool) -> Options {
    let redelivery = if redelivery { Redelivery::Deliver } else { Redelivery::Drop };
    Options { redelivery, ..Options::default() }
}

/// Follows the steps; `reopen` makes a store of what the last one left.
async fn follow<S: EventStore>(
    steps: Vec<Step>,
    options: Options,
    mut reopen: impl AsyncFnMut(Option<S>) -> S,
) -> Result<(), TestCaseError> {
    let (mut store, mut model) = (reopen(None).await, Model::default());
    for step in steps {
        if matches!(step, Step::Reopen) {
            store = reopen(Some(store)).await;
        }
        model.follow(&store, step, options).await?;
    }
    model.compare(&store).await
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_as_the_model(steps in proptest::collection::vec(step(), 1..60), redelivery: bool) {
        let options = options(redelivery);
        let reopen = async |store: Option<MemoryStore>| store.unwrap_or_else(|| MemoryStore::new(options));
        runtime().block_on(follow(steps, options, reopen))?;
    }
}

#[cfg(feature = "sqlite")]
proptest! {
    // Each case syncs the disk some dozen times.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_is_as_the_model(steps in proptest::collection::vec(step(), 1..60), redelivery: bool) {
        let options = options(redelivery);
        let folder = tempfile::TempDir::new()?;
        let reopen = async |store: Option<super::SqliteStore>| {
            drop(store);
            super::SqliteStore::open(folder.path(), options).unwrap()
        };
        runtime().block_on(follow(steps, options, reopen))?;
    }
}
