//! What was sent, what was answered and what arrived: whether the server kept its word.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::target::Arrival;
use crate::text;

/// How many problems are kept to be shown: the first tell most.
const PROBLEMS: usize = 12;

/// A webhook's name: which sender sent it, and the how manieth of that sender it is. Its delivery id says both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) sender: usize,
    pub(crate) number: usize,
}

impl Name {
    pub(crate) fn delivery_id(self) -> String {
        format!("chaos-{}-{}", self.sender, self.number)
    }

    fn parse(delivery_id: &str) -> Option<Self> {
        let (sender, number) = delivery_id.strip_prefix("chaos-")?.split_once('-')?;
        Some(Self { sender: sender.parse().ok()?, number: number.parse().ok()? })
    }
}

/// Where a sender's webhooks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    /// The server that gets them first.
    pub(crate) server: usize,
    /// Their repository.
    pub(crate) repository: usize,
}

/// The book that senders and target write, and whoever waits reads.
#[derive(Debug)]
pub(crate) struct Ledger(watch::Sender<State>);

/// What the book says. Of bodies it keeps hashes alone: its size is bounded by the number of webhooks.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The repository of each sender, and the server that it sends to.
    origins: Vec<Origin>,
    sent: Vec<Vec<Entry>>,
    /// The newest webhook of each sender among those that arrived.
    newest: Vec<Option<usize>>,
    /// How often something was started anew.
    starts: u32,
    /// When the first webhook arrived that was sent after the last start.
    recovered: Option<Instant>,
    /// Answered with 201 or 204.
    pub(crate) accepted: u64,
    /// Tries that got no answer.
    pub(crate) unanswered: u64,
    /// Tries that were put off with 429 or 503.
    pub(crate) put_off: u64,
    /// Webhooks that arrived, each counted once.
    pub(crate) arrived: u64,
    /// Arrivals of what had arrived before.
    pub(crate) repeats: u64,
    /// Answered, and not arrived yet.
    missing: u64,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    hash: [u8; 32],
    /// After which start it was sent first.
    start: u32,
    accepted: bool,
    /// The store's number of it, if the first try was answered with one.
    sequence: Option<u64>,
    /// The how manieth it was to arrive for the first time.
    arrived: Option<u64>,
}

impl Ledger {
    /// An empty one, for senders of these origins.
    pub(crate) fn new(origins: &[Origin]) -> Self {
        let count = origins.len();
        Self(watch::Sender::new(State {
            origins: origins.to_vec(),
            sent: (0..count).map(|_| Vec::new()).collect(),
            newest: vec![None; count],
            ..State::default()
        }))
    }

    /// Changes the book.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut changed = None;
        self.0.send_modify(|state| changed = Some(change(state)));
        changed.expect("send_modify calls its closure")
    }

    /// A webhook came to the target.
    pub(crate) fn arrives(&self, arrival: &Arrival) {
        let hash = Sha256::digest(&arrival.body).into();
        self.write(|state| {
            if let Err(error) = &arrival.signature {
                state.problem(format!("{} arrived with a wrong signature: {error}", arrival.delivery_id()));
            }
            state.arrives(arrival.delivery_id(), hash, arrival.at);
        });
    }

    /// Reads it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.borrow())
    }

    /// Waits until it says something.
    pub(crate) async fn wait(&self, until: impl FnMut(&State) -> bool) {
        // It never closes: the sender is here.
        drop(self.0.subscribe().wait_for(until).await);
    }
}

impl State {
    /// Something was started anew: what is sent from here on shows that all works again.
    pub(crate) fn started(&mut self) {
        self.starts += 1;
        self.recovered = None;
    }

    /// A webhook that is sent for the first time.
    pub(crate) fn sends(&mut self, sender: usize, body: &[u8]) -> Name {
        let entries = &mut self.sent[sender];
        let hash = Sha256::digest(body).into();
        entries.push(Entry { hash, start: self.starts, accepted: false, sequence: None, arrived: None });
        Name { sender, number: entries.len() - 1 }
    }

    /// It was answered with 201 or 204; with a sequence if that is known to be of its first arrival at the server.
    pub(crate) fn accepts(&mut self, name: Name, sequence: Option<u64>) {
        let entry = &mut self.sent[name.sender][name.number];
        entry.accepted = true;
        entry.sequence = sequence;
        self.accepted += 1;
        self.missing += u64::from(entry.arrived.is_none());
    }

    /// A webhook came to the target, with a body of this hash.
    fn arrives(&mut self, delivery_id: &str, hash: [u8; 32], at: Instant) {
        let name = Name::parse(delivery_id);
        let found = name.and_then(|name| Some((name, self.sent.get_mut(name.sender)?.get_mut(name.number)?)));
        let Some((name, entry)) = found else {
            return self.problem(format!("{delivery_id:?} arrived and was never sent"));
        };
        let same = entry.hash == hash;
        let first = entry.arrived.is_none();
        if first {
            entry.arrived = Some(self.arrived);
            self.arrived += 1;
            self.missing -= u64::from(entry.accepted);
            if entry.start == self.starts && self.recovered.is_none() {
                self.recovered = Some(at);
            }
        } else {
            self.repeats += 1;
        }
        if !same {
            self.problem(format!("{delivery_id} arrived with other bytes than were sent"));
        }
        let newest = &mut self.newest[name.sender];
        match *newest {
            Some(newest) if first && name.number < newest => {
                self.problem(format!("{delivery_id} arrived first after number {newest} of the same sender"));
            }
            _ => *newest = (*newest).max(Some(name.number)),
        }
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// How many were accepted and have not arrived.
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// What went wrong so far, a line each; `None` if nothing did.
    pub(crate) fn problems(&self) -> Option<String> {
        (!self.problems.is_empty()).then(|| self.problems.join("\n"))
    }

    /// What is wrong at the end: the same, what is missing, and where order of acceptance and order of arrival differ.
    pub(crate) fn verdict(&self) -> Option<String> {
        let mut problems = self.problems.clone();
        if self.missing > 0 {
            let names: Vec<_> = self.lost().take(PROBLEMS).map(Name::delivery_id).collect();
            let missing = text::thousands(self.missing as f64);
            problems.push(format!("{missing} accepted webhooks did not arrive: {} …", names.join(", ")));
        }
        problems.extend(self.disorder());
        (!problems.is_empty()).then(|| problems.join("\n"))
    }

    fn lost(&self) -> impl Iterator<Item = Name> {
        self.sent.iter().enumerate().flat_map(|(sender, entries)| {
            let lost = move |(number, entry): (usize, &Entry)| {
                (entry.accepted && entry.arrived.is_none()).then_some(Name { sender, number })
            };
            entries.iter().enumerate().filter_map(lost)
        })
    }

    /// The delivery ids of all webhooks that were accepted.
    pub(crate) fn accepted_ids(&self) -> BTreeSet<String> {
        let accepted = self.sent.iter().enumerate().flat_map(|(sender, entries)| {
            let numbers = entries.iter().enumerate().filter(|(_, entry)| entry.accepted);
            numbers.map(move |(number, _)| Name { sender, number }.delivery_id())
        });
        accepted.collect()
    }

    /// The first sequence that a server gave twice, and the first pair of each repository that arrived in another order than
    /// that of its server's store. Senders that share a repository are compared with each other only here.
    fn disorder(&self) -> Vec<String> {
        let mut stored: BTreeMap<(usize, u64), (Origin, u64)> = BTreeMap::new();
        let mut problems = Vec::new();
        for (sender, entry) in
            self.sent.iter().enumerate().flat_map(|(at, all)| all.iter().map(move |e| (at, e)))
        {
            let origin = self.origins[sender];
            if let (Some(sequence), Some(arrived)) = (entry.sequence, entry.arrived)
                && stored.insert((origin.server, sequence), (origin, arrived)).is_some()
            {
                problems.push(format!("the sequence {sequence} was given to two webhooks"));
            }
        }
        let mut last: BTreeMap<Origin, u64> = BTreeMap::new();
        for ((_, sequence), (origin, arrived)) in stored {
            let before = last.insert(origin, arrived);
            if before.is_some_and(|before| before > arrived) {
                let repository = origin.repository;
                problems
                    .push(format!("sequence {sequence} of repository {repository} overtook an earlier one"));
            }
        }
        problems.truncate(PROBLEMS);
        problems
    }

    /// How long it took since `started` until a webhook that was sent later arrived.
    pub(crate) fn recovery(&self, started: Instant) -> Option<Duration> {
        self.recovered.map(|at| at.saturating_duration_since(started))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(state: &mut State, name: Name, text: &'static str) {
        state.arrives(&name.delivery_id(), Sha256::digest(text).into(), Instant::now());
    }

    fn origins(repositories: &[usize]) -> Vec<Origin> {
        repositories.iter().map(|repository| Origin { server: 0, repository: *repository }).collect()
    }

    /// A book in which each sender of `repositories` sent `count` webhooks that were accepted one after another.
    fn book(repositories: &[usize], count: u64) -> Ledger {
        let ledger = Ledger::new(&origins(repositories));
        for round in 0..count {
            for sender in 0..repositories.len() {
                ledger.write(|state| {
                    let name = state.sends(sender, b"a");
                    state.accepts(name, Some(round * repositories.len() as u64 + sender as u64 + 1));
                });
            }
        }
        ledger
    }

    fn name(sender: usize, number: usize) -> Name {
        Name { sender, number }
    }

    #[test]
    fn delivery_ids_name_sender_and_number() {
        assert_eq!(Name::parse(&name(11, 4_711).delivery_id()), Some(name(11, 4_711)));
        for other in ["", "chaos-1", "chaos-1-x", "1-2"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn all_in_order_is_well_and_repeats_are_counted() {
        let ledger = book(&[1, 2], 2);
        assert_eq!(ledger.read(State::missing), 4);
        ledger.write(|state| {
            for name in [name(1, 0), name(0, 0), name(0, 0), name(0, 1), name(0, 0), name(1, 1)] {
                arrive(state, name, "a");
            }
            assert_eq!((state.arrived, state.repeats, state.missing()), (4, 2, 0));
            assert_eq!(state.verdict(), None);
        });
    }

    #[test]
    fn what_is_lost_changed_or_unknown_is_told() {
        let ledger = book(&[1], 2);
        ledger.write(|state| {
            arrive(state, name(0, 0), "b");
            arrive(state, name(0, 7), "a");
            let told = state.verdict().unwrap();
            assert!(told.contains("chaos-0-0 arrived with other bytes"), "{told}");
            assert!(told.contains("\"chaos-0-7\" arrived and was never sent"), "{told}");
            assert!(told.contains("1 accepted webhooks did not arrive: chaos-0-1"), "{told}");
        });
    }

    #[test]
    fn one_senders_webhooks_arrive_in_the_order_of_sending() {
        let ledger = book(&[1], 2);
        ledger.write(|state| {
            arrive(state, name(0, 1), "a");
            arrive(state, name(0, 0), "a");
            let told = state.problems().unwrap();
            assert!(told.contains("chaos-0-0 arrived first after number 1"), "{told}");
        });
    }

    #[test]
    fn senders_of_one_repository_are_compared_by_sequence() {
        for (repositories, well) in [([1, 2], true), ([1, 1], false)] {
            let ledger = book(&repositories, 1);
            ledger.write(|state| {
                arrive(state, name(1, 0), "a");
                arrive(state, name(0, 0), "a");
                assert_eq!(state.verdict().is_none(), well, "{:?}", state.verdict());
            });
        }
    }

    #[test]
    fn a_sequence_is_given_once() {
        let ledger = Ledger::new(&origins(&[1, 2]));
        ledger.write(|state| {
            for sender in [0, 1] {
                let name = state.sends(sender, b"a");
                state.accepts(name, Some(1));
                arrive(state, name, "a");
            }
            assert!(state.verdict().unwrap().contains("sequence 1 was given to two"));
        });
    }

    #[test]
    fn servers_number_their_events_apart() {
        let ledger = Ledger::new(&[0, 1].map(|server| Origin { server, repository: 1 }));
        ledger.write(|state| {
            for (sender, sequence) in [(1, 2), (0, 1), (0, 2), (1, 3)] {
                let name = state.sends(sender, b"a");
                state.accepts(name, Some(sequence));
                arrive(state, name, "a");
            }
            assert_eq!(state.verdict(), None);
            assert_eq!(state.accepted_ids().len(), 4);
        });
    }

    #[tokio::test]
    async fn only_what_is_sent_after_a_start_shows_recovery() {
        let ledger = book(&[1], 1);
        let started = Instant::now();
        ledger.write(|state| {
            state.started();
            arrive(state, name(0, 0), "a");
            assert_eq!(state.recovery(started), None);
            let later = state.sends(0, b"a");
            arrive(state, later, "a");
            assert!(state.recovery(started).is_some());
            state.accepts(later, None);
            assert_eq!(state.missing(), 0, "it arrived before it was answered");
        });
        ledger.wait(|state| state.recovery(started).is_some()).await;
    }
}
