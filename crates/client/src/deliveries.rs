//! Every event between its arrival and the server's receipt for its acknowledgement.
//!
//! Deliveries outlive streams: when one breaks, lanes go on, and what the server sends again on the next stream is
//! recognised here instead of being delivered twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gitstafette_core::event::{Event, Sequence};
use gitstafette_core::store::Acknowledgement;
use gitstafette_core::target::{Outcome, OutcomeResult};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lane::{self, Parcel, Report};
use crate::route::{Destination, LaneKey, Route};

/// The target's name in the outcome of an event that no route wanted.
const NO_TARGET: &str = "none";

/// The lanes, what is in them, and what was acknowledged without a receipt yet.
///
/// Channels and maps are unbounded in themselves; the subscription's window bounds what is in them.
#[derive(Debug)]
pub(crate) struct Deliveries {
    destinations: Vec<Arc<Destination>>,
    /// The store that the sequences below are of.
    store: Option<String>,
    lanes: HashMap<LaneKey, Lane>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    sender: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
    in_lanes: HashMap<Sequence, Pending>,
    unconfirmed: BTreeMap<Sequence, Acknowledgement>,
}

/// A lane's entrance, and how many events are in it. An empty lane is closed.
#[derive(Debug)]
struct Lane {
    parcels: mpsc::UnboundedSender<Parcel>,
    inside: usize,
}

/// An event in its lanes: one outcome per route is awaited.
#[derive(Debug)]
struct Pending {
    awaited: usize,
    outcomes: Vec<Outcome>,
}

impl Deliveries {
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        Self {
            destinations: Destination::all(routes),
            store: None,
            lanes: HashMap::new(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            sender,
            reports,
            in_lanes: HashMap::new(),
            unconfirmed: BTreeMap::new(),
        }
    }

    /// The stream's sequences are of this store. If that is another one than before (a server that keeps events in
    /// memory was started anew), the same sequences now mean other events: what is in lanes is finished without being
    /// acknowledged, and all else is forgotten.
    pub(crate) fn belong_to(&mut self, store: &str) {
        let before = self.store.replace(store.to_owned());
        if before.is_none_or(|before| before == store) {
            return;
        }
        if !self.in_lanes.is_empty() {
            tracing::warn!(
                events = self.in_lanes.len(),
                "the server has another store: what is under way is finished unheard"
            );
        }
        // Without an entrance a lane ends when it is through.
        self.lanes.clear();
        self.in_lanes.clear();
        self.unconfirmed.clear();
        (self.sender, self.reports) = mpsc::unbounded_channel();
    }

    /// Takes an event from the stream. Returns its acknowledgement if there is nothing to wait for: it was delivered
    /// before and the server has not heard, or no route wants it.
    pub(crate) fn accept(&mut self, event: &Arc<Event>) -> Option<Acknowledgement> {
        if let Some(acknowledgement) = self.unconfirmed.get(&event.sequence) {
            return Some(acknowledgement.clone());
        }
        if self.in_lanes.contains_key(&event.sequence) {
            return None;
        }
        let facts = &event.webhook.facts;
        let wanted: Vec<_> =
            (0..self.destinations.len()).filter(|at| self.destinations[*at].wants(event)).collect();
        if wanted.is_empty() {
            return Some(self.finished(event.sequence, vec![filtered()]));
        }
        self.in_lanes.insert(event.sequence, Pending { awaited: wanted.len(), outcomes: Vec::new() });
        for route in wanted {
            self.enter(LaneKey::new(route, facts), route, Arc::clone(event));
        }
        None
    }

    fn enter(&mut self, key: LaneKey, route: usize, event: Arc<Event>) {
        let lane = self.lanes.entry(key).or_insert_with_key(|key| {
            let (sender, parcels) = mpsc::unbounded_channel();
            let lane = lane::Lane {
                key: key.clone(),
                destination: Arc::clone(&self.destinations[route]),
                parcels,
                reports: self.sender.clone(),
                stop: self.stop.clone(),
            };
            self.tasks.spawn(lane.run());
            Lane { parcels: sender, inside: 0 }
        });
        lane.inside += 1;
        // The lane only ends when it is removed from the map, or when all are stopped.
        drop(lane.parcels.send(Parcel { event, arrived: Instant::now() }));
    }

    /// Waits for the next event that is through all its lanes. Cancel safe.
    pub(crate) async fn completed(&mut self) -> Acknowledgement {
        loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next() => propagate(ended),
                Some(report) = self.reports.recv() => {
                    if let Some(acknowledgement) = self.complete(report) {
                        return acknowledgement;
                    }
                }
            }
        }
    }

    fn complete(&mut self, report: Report) -> Option<Acknowledgement> {
        let Report::Completed { lane, sequence, outcome } = report else { return None };
        if let Some(entrance) = self.lanes.get_mut(&lane) {
            entrance.inside -= 1;
            if entrance.inside == 0 {
                self.lanes.remove(&lane);
            }
        }
        let pending = self.in_lanes.get_mut(&sequence)?;
        pending.awaited -= 1;
        pending.outcomes.push(outcome);
        if pending.awaited > 0 {
            return None;
        }
        let outcomes = self.in_lanes.remove(&sequence)?.outcomes;
        Some(self.finished(sequence, outcomes))
    }

    fn finished(&mut self, sequence: Sequence, outcomes: Vec<Outcome>) -> Acknowledgement {
        let acknowledgement = Acknowledgement { sequence, outcomes };
        self.unconfirmed.insert(sequence, acknowledgement.clone());
        acknowledgement
    }

    /// The server has stored these acknowledgements.
    pub(crate) fn confirmed(&mut self, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            self.unconfirmed.remove(&Sequence::new(sequence));
        }
    }

    /// The server's cursor stands here: it has all acknowledgements up to it.
    pub(crate) fn cursor_at(&mut self, cursor: Sequence) {
        self.unconfirmed = self.unconfirmed.split_off(&cursor.next());
    }

    /// How many acknowledgements have no receipt yet.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.unconfirmed.len()
    }

    /// Ends the lanes: the tries under way are finished, what waits is left. Returns what was completed meanwhile.
    pub(crate) async fn stop(&mut self) -> Vec<Acknowledgement> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            propagate(ended);
        }
        let mut completed = Vec::new();
        while let Ok(report) = self.reports.try_recv() {
            completed.extend(self.complete(report));
        }
        completed
    }
}

/// A lane ended. If it panicked so does its owner: nothing may go on as if its events were being delivered.
fn propagate(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn filtered() -> Outcome {
    Outcome {
        target: NO_TARGET.into(),
        result: OutcomeResult::Filtered,
        code: None,
        attempts: 0,
        duration: Duration::ZERO,
        at: SystemTime::now().into(),
        detail: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use gitstafette_core::event::Address;
    use gitstafette_core::target::{Attempt, Target, Verdict};
    use gitstafette_core::testing;

    #[derive(Debug)]
    struct Always;

    #[async_trait]
    impl Target for Always {
        fn name(&self) -> &str {
            "always"
        }

        async fn attempt(&self, _: &Event) -> Attempt {
            Attempt { verdict: Verdict::Delivered, code: None, detail: String::new() }
        }
    }

    fn deliveries(routes: Vec<Route>) -> Deliveries {
        Deliveries::new(routes)
    }

    fn event(sequence: u64, repository: &str) -> Arc<Event> {
        let webhook = testing::webhook(sequence, repository, 3);
        Arc::new(Event {
            sequence: Sequence::new(sequence),
            redelivery: false,
            address: Address::default(),
            webhook,
        })
    }

    #[tokio::test]
    async fn what_is_sent_again_is_not_delivered_again() {
        let mut deliveries = deliveries(vec![Route::new(Arc::new(Always))]);
        let one = event(1, "octo/hello");
        assert_eq!(deliveries.accept(&one), None);
        assert_eq!(deliveries.accept(&one), None, "it is in its lane");
        let acknowledgement = deliveries.completed().await;
        assert_eq!(acknowledgement.outcomes.len(), 1);
        assert_eq!(deliveries.accept(&one), Some(acknowledgement), "the server has not heard of it");
        deliveries.confirmed([1]);
        assert_eq!(deliveries.unconfirmed(), 0);
        assert!(deliveries.lanes.is_empty(), "an empty lane is closed");
    }

    #[tokio::test]
    async fn one_acknowledgement_with_an_outcome_per_route() {
        let only = |pattern: &str| Route {
            filter: Filter { repositories: vec![pattern.parse().unwrap()], events: vec![] },
            ..Route::new(Arc::new(Always))
        };
        use gitstafette_core::filter::Filter;
        let mut deliveries =
            deliveries(vec![Route::new(Arc::new(Always)), only("octo/hello"), only("octo/other")]);
        assert_eq!(deliveries.accept(&event(1, "octo/hello")), None);
        assert_eq!(deliveries.completed().await.outcomes.len(), 2);
        assert_eq!(deliveries.accept(&event(2, "octo/third")), None);
        assert_eq!(deliveries.completed().await.outcomes.len(), 1);
    }

    #[tokio::test]
    async fn what_no_route_wants_is_filtered() {
        let mut deliveries = deliveries(vec![]);
        let acknowledgement = deliveries.accept(&event(1, "octo/hello")).unwrap();
        assert_eq!(acknowledgement.outcomes[0].result, OutcomeResult::Filtered);
        deliveries.cursor_at(Sequence::new(1));
        assert_eq!(deliveries.unconfirmed(), 0);
    }

    #[tokio::test]
    async fn stopping_returns_what_was_done() {
        let mut deliveries = deliveries(vec![Route::new(Arc::new(Always))]);
        deliveries.accept(&event(1, "octo/hello"));
        while deliveries.reports.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(deliveries.stop().await.len(), 1);
    }
}
