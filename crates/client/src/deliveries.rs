//! Every event between its arrival and the server's receipt for its acknowledgement.
//!
//! Deliveries outlive streams: when one breaks, lanes go on, and what the server sends again is not delivered twice.
//!
//! One window serves all lanes, so a lane that is held up, by a target that is down or slow, must not fill it. What goes beyond
//! such a lane's share is *deferred*: the body is dropped, the server is told, and only the sequence stays in the lane's backlog.
//! When the lane comes to it, it is *recalled*, and the server sends it once more. An event for several lanes is deferred when
//! those that still need it all have it in their backlog. At most [`MOST_DEFERRED`] are; then the window fills up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use gitstafette_core::event::{Event, Sequence};
use gitstafette_core::outcomes::{MAX_TARGETS, Outcomes};
use gitstafette_core::store::{Acknowledgement, FirstAttempt};
use gitstafette_core::target::Outcome;
use gitstafette_proto::convert::{MAX_DEFERRED, Seen};
use gitstafette_proto::v1::subscribe_request::Request;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::lane::Report;
use crate::lanes::Lanes;
use crate::outbox::Outbox;
use crate::pending::{Body, Pending};
use crate::route::{Destination, LaneKey};
use crate::session::FAREWELL;
use crate::state::ClientState;
use crate::window::Window;

mod log;

/// How many events are deferred at most: fewer than the server allows, as it also counts what is recalled and not sent yet.
const MOST_DEFERRED: usize = MAX_DEFERRED - 1024;

/// The lanes, what waits for them, and what was acknowledged without a receipt yet.
///
/// Channels and maps are unbounded in themselves; the subscription's window bounds what is in them, and [`MOST_DEFERRED`].
#[derive(Debug)]
pub(crate) struct Deliveries {
    destinations: Vec<Arc<Destination>>,
    state: watch::Sender<ClientState>,
    /// The log that the sequences below are of, and how far it is known.
    seen: Option<Seen>,
    lanes: Lanes,
    reports: mpsc::UnboundedReceiver<Report>,
    window: Window,
    pending: HashMap<Sequence, Pending>,
    /// Those of the pending whose body is not here: deferred or recalled.
    absent: BTreeSet<Sequence>,
    /// How many of these are deferred.
    deferred: usize,
    /// Those of the pending that no lane has room for: to be deferred.
    parked: BTreeSet<Sequence>,
    unconfirmed: BTreeMap<Sequence, Acknowledgement>,
    outbox: Outbox,
    /// When the client stops waiting for the lanes to end; `None` while it runs.
    stop_deadline: Option<Instant>,
}

impl Deliveries {
    /// Deliveries to these destinations, which fit the window, and tell the state. `seen` is the log that is known already.
    pub(crate) fn new(
        destinations: Vec<Arc<Destination>>,
        window: Window,
        state: watch::Sender<ClientState>,
        seen: Option<Seen>,
    ) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        Self {
            destinations,
            state,
            seen,
            lanes: Lanes::new(sender),
            reports,
            window,
            pending: HashMap::new(),
            absent: BTreeSet::new(),
            deferred: 0,
            parked: BTreeSet::new(),
            unconfirmed: BTreeMap::new(),
            outbox: Outbox::default(),
            stop_deadline: None,
        }
    }

    /// A new stream begins. Returns what is deferred, for its subscription; what was recalled comes by itself, and what was
    /// done meanwhile is acknowledged as soon as it stands.
    pub(crate) fn resume(&mut self) -> Vec<Sequence> {
        self.outbox = Outbox::default();
        for acknowledgement in self.unconfirmed.values() {
            self.outbox.acknowledge(acknowledgement.clone());
        }
        // The server confirms no first attempts, so it may have missed them.
        for (sequence, pending) in &self.pending {
            for route in pending.failed_at() {
                let target = Arc::clone(&self.destinations[*route].name);
                self.outbox.first_attempt(*sequence, target, pending.arrived);
            }
        }
        let deferred = |sequence: &&Sequence| matches!(self.pending[sequence].body, Body::Deferred);
        self.absent.iter().filter(deferred).copied().collect()
    }

    /// Takes an event from the stream, with the first attempts at its targets that an earlier client made; `true` if it is
    /// new.
    pub(crate) fn accept(&mut self, event: &Arc<Event>, first_attempts: &[FirstAttempt]) -> bool {
        let sequence = event.sequence;
        self.saw(sequence);
        if let Some(acknowledgement) = self.unconfirmed.get(&sequence) {
            // It was delivered before, and the server has not heard.
            self.outbox.acknowledge(acknowledgement.clone());
            return false;
        }
        let is_new = match self.pending.get_mut(&sequence) {
            Some(Pending { body: Body::Here(_), .. }) => return false,
            Some(pending) => {
                let before = std::mem::replace(&mut pending.body, Body::Here(Arc::clone(event)));
                self.absent.remove(&sequence);
                if let Body::Deferred = before {
                    self.deferred -= 1;
                    self.window.taken.add(pending.size);
                }
                false
            }
            None => true,
        };
        if is_new {
            let ways = self.ways(event);
            if ways.is_empty() {
                self.filtered(sequence);
                return true;
            }
            self.enter(event, &ways, first_attempts);
        }
        self.advance(event);
        self.squeeze();
        self.publish(|state| state.received = state.received.max(sequence));
        is_new
    }

    /// The lanes that an event goes through.
    fn ways(&self, event: &Event) -> Vec<LaneKey> {
        let wanted = self.destinations.iter().enumerate().filter(|(_, destination)| destination.wants(event));
        wanted.map(|(route, _)| LaneKey::new(route, &event.webhook.facts)).collect()
    }

    fn enter(&mut self, event: &Arc<Event>, ways: &[LaneKey], first_attempts: &[FirstAttempt]) {
        let tried_before = first_attempts.iter().filter_map(|first| {
            let route =
                self.destinations.iter().position(|destination| *destination.name == *first.target)?;
            Some((route, first.age))
        });
        let pending = Pending::new(event, ways.len(), tried_before.collect());
        self.window.taken.add(pending.size);
        self.pending.insert(event.sequence, pending);
        for key in ways {
            self.lanes.open(key, &self.destinations[key.route]).queue(event.sequence);
        }
    }

    /// Hands an event on to those of its lanes that have room for it, and puts it down if none has.
    fn advance(&mut self, event: &Event) {
        let ways = self.ways(event);
        for key in &ways {
            self.refill(key);
        }
        let sequence = event.sequence;
        let in_backlogs =
            self.pending.get(&sequence).is_some_and(|pending| pending.queued == pending.awaited);
        if in_backlogs && !ways.iter().any(|key| self.lanes.is_next(key, sequence)) {
            self.parked.insert(sequence);
        }
        self.defer();
    }

    /// Gives a lane as much of its backlog as fits its share, in order, and recalls what is not here.
    fn refill(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let mut ahead = lane.held;
        let (mut handed, mut seen) = (0, 0);
        lane.reach = Sequence::ZERO;
        for sequence in &lane.backlog {
            let Some(pending) = self.pending.get_mut(sequence) else { break };
            if !self.window.admits(ahead, pending.size) {
                break;
            }
            ahead.add(pending.size);
            seen += 1;
            lane.reach = *sequence;
            self.parked.remove(sequence);
            match &pending.body {
                // Only in order: not past one that is still on its way.
                Body::Here(_) if handed + 1 == seen => {
                    pending.parcel(key.route).into_iter().for_each(|parcel| lane.hand(parcel));
                    lane.held.add(pending.size);
                    pending.queued -= 1;
                    handed += 1;
                }
                Body::Here(_) | Body::Recalled => {}
                Body::Deferred => {
                    pending.body = Body::Recalled;
                    self.deferred -= 1;
                    self.window.taken.add(pending.size);
                    self.outbox.recall(*sequence);
                }
            }
        }
        for _ in 0..handed {
            lane.backlog.pop_first();
        }
    }

    /// Takes back what lanes were given when there was more room than there is now.
    fn squeeze(&mut self) {
        for key in self.lanes.over(&self.window) {
            while let Some(lane) = self.lanes.get_mut(&key)
                && self.window.is_over(lane.held)
                && let Some(sequence) = lane.take_back()
                && let Some(pending) = self.pending.get_mut(&sequence)
            {
                pending.queued += 1;
                if pending.queued == pending.awaited {
                    self.parked.insert(sequence);
                }
                self.defer();
            }
        }
    }

    /// Drops the bodies of what no lane has room for and a lane is held up with, as far as the server allows. What only
    /// waits its turn in a lane that gets on stays: it would come over the wire twice.
    fn defer(&mut self) {
        // Looked at with each event: as a rule no lane is held up, and then there is nothing to look for.
        if !self.lanes.any_is_held_up() {
            return;
        }
        let held_up = |sequence: &&Sequence| match self.pending.get(sequence).map(|pending| &pending.body) {
            Some(Body::Here(event)) => self.ways(event).iter().any(|key| self.lanes.is_held_up(key)),
            _ => false,
        };
        let room = MOST_DEFERRED.saturating_sub(self.deferred);
        let wanted: Vec<_> = self.parked.iter().rev().filter(held_up).take(room).copied().collect();
        for sequence in wanted {
            self.parked.remove(&sequence);
            let Some(pending) = self.pending.get_mut(&sequence) else { continue };
            pending.body = Body::Deferred;
            self.window.taken.remove(pending.size);
            self.absent.insert(sequence);
            self.deferred += 1;
            self.outbox.defer(sequence);
        }
    }

    /// Waits for the next word from a lane, and does what follows from it. Cancel safe.
    pub(crate) async fn progress(&mut self) {
        tokio::select! {
            () = self.lanes.ended() => {}
            Some(report) = self.reports.recv() => self.hear(report),
        }
    }

    /// Runs something else to its end, and hears what the lanes say meanwhile.
    pub(crate) async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                () = self.progress() => {}
            }
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Slow(key) => {
                self.lanes.is_slow(&key);
                self.defer();
                self.publish(|_| {});
            }
            Report::Retrying { lane, sequence, reason } => {
                self.lanes.retries(&lane);
                if let Some(pending) = self.pending.get_mut(&sequence)
                    && pending.fails_first(lane.route)
                {
                    let target = Arc::clone(&self.destinations[lane.route].name);
                    self.outbox.first_attempt(sequence, target, pending.arrived);
                }
                self.defer();
                self.show_failing(lane.route);
                self.publish(|state| {
                    if let Some(target) = state.targets.get_mut(lane.route) {
                        target.last_error = Some(reason);
                    }
                });
            }
            Report::Completed { lane, sequence, outcome } => self.complete(&lane, sequence, outcome),
        }
    }

    fn complete(&mut self, key: &LaneKey, sequence: Sequence, outcome: Outcome) {
        let Some(pending) = self.pending.get_mut(&sequence) else { return };
        self.lanes.completed(key, pending.size);
        self.state.send_modify(|state| state.count(key.route, &outcome));
        pending.awaited -= 1;
        pending.outcomes.push(outcome);
        match (&pending.body, pending.awaited) {
            (_, 0) => {
                self.window.taken.remove(pending.size);
                let outcomes = std::mem::take(&mut pending.outcomes);
                self.pending.remove(&sequence);
                self.finished(sequence, outcomes);
            }
            (Body::Here(event), _) => {
                let event = Arc::clone(event);
                self.advance(&event);
            }
            (Body::Deferred | Body::Recalled, _) => {}
        }
        self.go_on(key);
        self.defer();
        self.show_failing(key.route);
        self.publish(|_| {});
    }

    /// Gives a lane more to do, or closes it.
    fn go_on(&mut self, key: &LaneKey) {
        self.refill(key);
        self.lanes.close_if_empty(key);
    }

    fn finished(&mut self, sequence: Sequence, mut outcomes: Vec<Outcome>) {
        if outcomes.len() > MAX_TARGETS {
            // As many stay as a store keeps: with all of them the message could be larger than a server takes.
            outcomes = outcomes.into_iter().collect::<Outcomes>().into();
        }
        let acknowledgement = Acknowledgement { sequence, outcomes };
        self.outbox.acknowledge(acknowledgement.clone());
        self.unconfirmed.insert(sequence, acknowledgement);
    }

    /// The server has stored these acknowledgements.
    pub(crate) fn confirmed(&mut self, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            self.unconfirmed.remove(&Sequence::new(sequence));
        }
    }

    /// The server granted so much of the window that was asked for.
    pub(crate) fn granted(&mut self, events: u32, bytes: u64) {
        self.window.granted(events, bytes);
    }

    /// The server's cursor stands here: it has all acknowledgements up to it, and nothing before it will come again.
    pub(crate) fn cursor_at(&mut self, cursor: Sequence) {
        self.saw(cursor);
        self.unconfirmed = self.unconfirmed.split_off(&cursor.next());
        self.forget(Sequence::ZERO..=cursor);
        self.publish(|state| state.cursor = cursor);
    }

    /// The server's log goes as far as here.
    pub(crate) fn head_at(&mut self, head: Sequence) {
        self.saw(head);
        self.publish(|state| state.head = head);
    }

    /// The server no longer has these events: what is not here of them will not come.
    pub(crate) fn missed(&mut self, first: Sequence, last: Sequence) {
        if first <= last {
            self.forget(first..=last);
            self.publish(|state| state.missed += last.get() - first.get() + 1);
        }
    }

    /// Forgets what was to come again and will not, and lets the lanes that waited for it go on.
    fn forget(&mut self, gone: RangeInclusive<Sequence>) {
        let gone: Vec<_> = self.absent.range(gone).copied().collect();
        if gone.is_empty() {
            return;
        }
        for sequence in &gone {
            self.absent.remove(sequence);
            match self.pending.remove(sequence) {
                Some(Pending { body: Body::Deferred, .. }) => self.deferred -= 1,
                Some(pending) => self.window.taken.remove(pending.size),
                None => {}
            }
        }
        for key in self.lanes.without(&gone) {
            self.go_on(&key);
        }
        self.defer();
    }

    /// Whether the server is to be told something.
    pub(crate) fn has_news(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The next message for the server.
    pub(crate) fn next_news(&mut self) -> Option<Request> {
        self.outbox.next(self.window.events())
    }

    /// How many acknowledgements have no receipt yet.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.unconfirmed.len()
    }

    /// What was done and has no receipt yet.
    pub(crate) fn done(&self) -> impl Iterator<Item = Sequence> {
        self.unconfirmed.keys().copied()
    }

    /// Lets the lanes end: the attempts under way are finished, waiting events stay at the server. Returns when the client
    /// stops waiting for them, which is the same however often this is called.
    pub(crate) fn begin_stop(&mut self) -> Instant {
        self.lanes.begin_stop();
        *self.stop_deadline.get_or_insert_with(|| Instant::now() + FAREWELL)
    }

    /// Whether all lanes have ended and all their reports were handled.
    pub(crate) fn has_stopped(&self) -> bool {
        self.lanes.have_ended() && self.reports.is_empty()
    }

    /// Waits for the end of the lanes and handles their reports.
    pub(crate) async fn stopped(&mut self) {
        while !self.has_stopped() {
            self.progress().await;
        }
    }

    fn show_failing(&self, route: usize) {
        let failing = self.lanes.are_retrying(route);
        self.state.send_modify(|state| {
            if let Some(target) = state.targets.get_mut(route) {
                target.shows(failing);
            }
        });
    }

    fn publish(&self, change: impl FnOnce(&mut ClientState)) {
        self.state.send_modify(|state| {
            change(state);
            (state.waiting, state.deferred) = (self.pending.len(), self.deferred);
        });
    }
}

mod without_target;

#[cfg(test)]
mod tests;
