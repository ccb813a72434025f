//! The lanes that are open: their tasks, what each has been given, and what waits for each.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use gitstafette_core::event::Sequence;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::lane::{self, Report};
use crate::queue::{Parcel, Queue};
use crate::route::{Destination, LaneKey};
use crate::window::{Load, Window};

/// All lanes. One that has nothing to do is closed.
#[derive(Debug)]
pub(crate) struct Lanes {
    open: HashMap<LaneKey, Lane>,
    tasks: JoinSet<()>,
    reports: mpsc::UnboundedSender<Report>,
    /// Ends all.
    stop: CancellationToken,
    /// Lanes of an earlier generation, which run to their end unheard, and the sign of it.
    ending: HashMap<LaneKey, CancellationToken>,
}

/// A lane from outside.
#[derive(Debug)]
pub(crate) struct Lane {
    given: Arc<Queue>,
    /// What its task was given and has not completed.
    pub(crate) held: Load,
    /// What its task is to be given, in order.
    pub(crate) backlog: BTreeSet<Sequence>,
    /// Up to here the backlog fits the lane's share, as soon as all of it is here.
    pub(crate) reach: Sequence,
    /// Whether the event at its head was tried in vain.
    retrying: bool,
    /// Whether it takes long.
    slow: bool,
    ended: CancellationToken,
}

impl Lane {
    fn is_held_up(&self) -> bool {
        self.retrying || self.slow
    }

    pub(crate) fn queue(&mut self, sequence: Sequence) {
        self.backlog.insert(sequence);
    }

    pub(crate) fn hand(&self, parcel: Parcel) {
        self.given.push(parcel);
    }

    /// Takes back the last event that its task was given and has not begun with.
    pub(crate) fn take_back(&mut self) -> Option<Sequence> {
        let Parcel { event, .. } = self.given.take_back()?;
        self.held.remove(event.webhook.size());
        self.backlog.insert(event.sequence);
        self.reach = self.reach.min(event.sequence.previous());
        Some(event.sequence)
    }
}

impl Lanes {
    /// No lanes yet. They will send their reports here.
    pub(crate) fn new(reports: mpsc::UnboundedSender<Report>) -> Self {
        Self {
            open: HashMap::new(),
            tasks: JoinSet::new(),
            reports,
            stop: CancellationToken::new(),
            ending: HashMap::new(),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &LaneKey) -> Option<&mut Lane> {
        self.open.get_mut(key)
    }

    /// The lane with this key, which is opened if it is not.
    pub(crate) fn open(&mut self, key: &LaneKey, destination: &Arc<Destination>) -> &mut Lane {
        self.open.entry(key.clone()).or_insert_with_key(|key| {
            let given = Arc::new(Queue::default());
            let ended = CancellationToken::new();
            let lane = lane::Lane {
                key: key.clone(),
                destination: Arc::clone(destination),
                queue: Arc::clone(&given),
                reports: self.reports.clone(),
                stop: self.stop.clone(),
            };
            let (before, end) = (self.ending.remove(key), ended.clone().drop_guard());
            let running = async move {
                // The order at the target holds across generations, even if this one is stopped meanwhile.
                if let Some(before) = before {
                    before.cancelled().await;
                }
                lane.run().await;
                drop(end);
            };
            // A relay's lanes say whose they are.
            self.tasks.spawn(running.in_current_span());
            Lane {
                given,
                held: Load::default(),
                backlog: BTreeSet::new(),
                reach: Sequence::ZERO,
                retrying: false,
                slow: false,
                ended,
            }
        })
    }

    /// Whether the event is among the next of a lane that are wanted here.
    pub(crate) fn is_next(&self, key: &LaneKey, sequence: Sequence) -> bool {
        self.open.get(key).is_some_and(|lane| sequence <= lane.reach && lane.backlog.contains(&sequence))
    }

    /// A lane's first event failed and is tried again.
    pub(crate) fn retries(&mut self, key: &LaneKey) {
        if let Some(lane) = self.open.get_mut(key) {
            lane.retrying = true;
        }
    }

    /// A lane's first event takes long.
    pub(crate) fn is_slow(&mut self, key: &LaneKey) {
        if let Some(lane) = self.open.get_mut(key) {
            lane.slow = true;
        }
    }

    /// Whether the lane's first event holds up those behind it.
    pub(crate) fn is_held_up(&self, key: &LaneKey) -> bool {
        self.open.get(key).is_some_and(Lane::is_held_up)
    }

    /// Whether some lane's does.
    pub(crate) fn any_is_held_up(&self) -> bool {
        self.open.values().any(Lane::is_held_up)
    }

    /// A lane is through with an event of this size.
    pub(crate) fn completed(&mut self, key: &LaneKey, size: u64) {
        if let Some(lane) = self.open.get_mut(key) {
            lane.held.remove(size);
            (lane.retrying, lane.slow) = (false, false);
        }
    }

    /// Whether an event for the target at `route` waits for another try.
    pub(crate) fn are_retrying(&self, route: usize) -> bool {
        self.open.iter().any(|(key, lane)| key.route == route && lane.retrying)
    }

    pub(crate) fn close_if_empty(&mut self, key: &LaneKey) {
        if self.open.get(key).is_some_and(|lane| lane.held.events == 0 && lane.backlog.is_empty()) {
            let closed = self.open.remove(key);
            closed.iter().for_each(|lane| lane.given.close());
        }
    }

    /// The lanes that have much more than their share.
    pub(crate) fn over(&self, window: &Window) -> Vec<LaneKey> {
        let over = self.open.iter().filter(|(_, lane)| window.is_exceeded(lane.held));
        over.map(|(key, _)| key.clone()).collect()
    }

    /// Takes events out of all backlogs; returns the lanes that had them.
    pub(crate) fn without(&mut self, gone: &[Sequence]) -> Vec<LaneKey> {
        let had = |lane: &mut Lane| gone.iter().filter(|sequence| lane.backlog.remove(sequence)).count() > 0;
        self.open.iter_mut().filter_map(|(key, lane)| had(lane).then(|| key.clone())).collect()
    }

    /// Starts anew: the open lanes are given what is here of their backlog and end after that, and new ones with the same
    /// key begin when they have. Their reports go elsewhere.
    pub(crate) fn replace(
        &mut self,
        reports: mpsc::UnboundedSender<Report>,
        here: impl Fn(&LaneKey, Sequence) -> Option<Parcel>,
    ) {
        self.reports = reports;
        self.ending.retain(|_, ended| !ended.is_cancelled());
        for (key, lane) in self.open.drain() {
            for parcel in lane.backlog.iter().filter_map(|sequence| here(&key, *sequence)) {
                lane.hand(parcel);
            }
            lane.given.close();
            self.ending.insert(key, lane.ended);
        }
    }

    /// Waits for the end of a task. A lane that panicked takes its owner along: nothing may go on as if its events were
    /// being delivered.
    pub(crate) async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(ended) => propagate(ended),
            None => std::future::pending().await,
        }
    }

    /// How many are open.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }

    /// Lets all lanes end: the attempts under way are finished, waiting events are not begun.
    pub(crate) fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Whether all lanes have ended.
    pub(crate) fn have_ended(&self) -> bool {
        self.tasks.is_empty()
    }
}

fn propagate(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}
