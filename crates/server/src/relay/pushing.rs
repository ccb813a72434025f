//! A relay that pushes to another server: when the receiver's store was emptied or set back to an older copy, it pushes the
//! missing events again.
//!
//! This server keeps the cursor, and the receiver tells with each answer how far its log goes. The relay stores pairs of both.
//! When the receiver is in another run, the relay compares the histories. If the receiver lacks events that it had, the cursor
//! moves back to the last pair that the receiver still has. No event is pushed meanwhile, so the order stays. What the receiver
//! has already is a repeat there.

use std::pin::pin;
use std::sync::Arc;

use gitstafette_client::target::{PeerLog, ServerTarget};
use gitstafette_client::{Client, ClientState, Seen, Start};
use gitstafette_core::event::Sequence;
use gitstafette_core::store::EventStore;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::state::{self, StoredLog};

/// How many pairs are kept. Near the cursor they are close to each other, and far from it far apart.
const PAIRS: usize = 64;

/// A place in both logs: the receiver has all events up to the one in its log up to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    here: u64,
    there: u64,
}

/// What the relay stores.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    peer: Option<StoredLog>,
    pairs: Vec<Pair>,
}

/// A relay at work.
#[derive(Debug)]
pub(super) struct Pushing {
    pub(super) client: Client,
    pub(super) server: Arc<ServerTarget>,
    pub(super) store: Arc<dyn EventStore>,
    /// The name that its state is stored under.
    pub(super) relay: String,
    pub(super) start: Start,
}

impl Pushing {
    /// Pushes until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let Some(peer) = self.server.peer() else { return self.client.run(stop).await };
        let stored: Stored = state::load(&*self.store, &self.relay).await.unwrap_or_default();
        let (known, mut pairs) = (stored.peer.map(Seen::from), Pairs(stored.pairs));
        let is_new = known.is_none();
        peer.send_modify(|peer| peer.known = known);
        let mut back = None;
        loop {
            let client = self.client.clone().knowing(back.map(|back| self.own_log(back)));
            let generation = stop.child_token();
            let mut running = pin!(client.run(generation.clone()));
            let begins_latest = is_new && self.start == Start::Latest;
            let (found, to) = tokio::select! {
                () = &mut running => return,
                lost = self.follow(peer, &mut pairs, begins_latest) => lost,
                never = self.server.watch_peer() => match never {},
            };
            generation.cancel();
            running.await;
            // Only now: until the cursor stands at its new place, nothing newer may be pushed.
            peer.send_modify(|peer| *peer = PeerLog { known: Some(found), is_exact: true, found: None });
            back = Some(to);
        }
    }

    /// This server's log up to a sequence.
    fn own_log(&self, sequence: Sequence) -> Seen {
        Seen { store: self.store.id().to_string(), history: self.store.history().clone(), sequence }
    }

    /// Stores pairs as the cursor moves. Returns when the receiver lacks events: its log, and where to go back to.
    async fn follow(
        &self,
        peer: &watch::Sender<PeerLog>,
        pairs: &mut Pairs,
        begins_latest: bool,
    ) -> (Seen, Sequence) {
        let (mut progress, mut answers) = (self.client.state(), peer.subscribe());
        loop {
            let cursor = {
                let state = progress.borrow_and_update();
                state.subscribed.then_some(state.cursor)
            };
            // After the cursor: all up to it has been answered before.
            let log = answers.borrow_and_update().clone();
            match (log.known, log.found) {
                (Some(known), Some(found)) => match pairs.compare(&known, log.is_exact, &found) {
                    Some(back) => {
                        warn!(
                            to = back.get(),
                            "the receiver lacks events that it had: they are pushed again"
                        );
                        return (found, back);
                    }
                    None => {
                        info!("the receiver was started again and has all events that it had");
                        peer.send_modify(|peer| (peer.known, peer.found) = (Some(found), None));
                    }
                },
                (Some(known), None) if log.is_exact => {
                    if let Some(cursor) = cursor
                        && pairs.add(cursor, known.sequence, begins_latest)
                    {
                        let stored = Stored { peer: Some((&known).into()), pairs: pairs.0.clone() };
                        state::store(&*self.store, &self.relay, &stored).await;
                    }
                }
                _ => {}
            }
            if !changed(&mut progress, &mut answers).await {
                return std::future::pending().await;
            }
        }
    }
}

/// Waits for a change of either; `false` if there will be none.
async fn changed(
    progress: &mut watch::Receiver<ClientState>,
    answers: &mut watch::Receiver<PeerLog>,
) -> bool {
    tokio::select! {
        changed = progress.changed() => changed.is_ok(),
        changed = answers.changed() => changed.is_ok(),
    }
}

/// Places in both logs, in order.
#[derive(Debug, Default)]
struct Pairs(Vec<Pair>);

impl Pairs {
    /// Adds a pair if the cursor moved; `true` if it did. The first one of a relay that begins with the newest event says that
    /// the receiver needs nothing before it.
    fn add(&mut self, here: Sequence, there: Sequence, begins_latest: bool) -> bool {
        let there = if self.0.is_empty() && begins_latest { Sequence::ZERO } else { there };
        let pair = Pair { here: here.get(), there: there.get() };
        if self.0.last().is_some_and(|last| last.here >= pair.here) {
            return false;
        }
        self.0.push(pair);
        if self.0.len() > PAIRS {
            self.thin_out();
        }
        true
    }

    /// Removes the pair that is missed least: its neighbours are close to each other, compared with their distance from the
    /// newest.
    fn thin_out(&mut self) {
        let newest = self.0.last().map_or(0, |pair| pair.here);
        let cost = |at: usize| {
            let gap = self.0[at + 1].here - self.0[at - 1].here;
            gap as f64 / (newest - self.0[at - 1].here) as f64
        };
        let least = (1..self.0.len() - 1).min_by(|one, other| cost(*one).total_cmp(&cost(*other)));
        if let Some(least) = least {
            self.0.remove(least);
        }
    }

    /// Where to go back to if the receiver lacks events that it had, and forgets the pairs beyond. `is_exact`: what is known of
    /// its log is all that was pushed there.
    fn compare(&mut self, known: &Seen, is_exact: bool, found: &Seen) -> Option<Sequence> {
        let common = known.last_common(&found.store, &found.history).unwrap_or_default().min(found.sequence);
        if is_exact && common >= known.sequence {
            return None;
        }
        self.0.retain(|pair| pair.there <= common.get());
        Some(self.0.last().map_or(Sequence::ZERO, |pair| Sequence::new(pair.here)))
    }
}

#[cfg(test)]
mod tests {
    use gitstafette_core::store::{History, Run, RunId};

    use super::*;

    fn log(store: &str, runs: &[(u64, u64)], sequence: u64) -> Seen {
        let run = |(id, start): &(u64, u64)| Run { id: RunId::new(*id), start: Sequence::new(*start) };
        Seen {
            store: store.to_owned(),
            history: History::new(runs.iter().map(run).collect()),
            sequence: Sequence::new(sequence),
        }
    }

    fn pairs(numbers: impl IntoIterator<Item = u64>) -> Pairs {
        let mut pairs = Pairs::default();
        for here in numbers {
            assert!(pairs.add(Sequence::new(here), Sequence::new(here + 1000), false));
        }
        pairs
    }

    #[test]
    fn it_goes_back_to_the_last_place_that_the_receiver_still_has() {
        let known = log("a", &[(1, 0)], 1030);
        let started_again = log("a", &[(1, 0), (2, 1030)], 1030);
        let set_back = log("a", &[(1, 0), (2, 1025)], 1100);
        let emptied = log("b", &[(3, 0)], 5);
        let back = |found: &Seen, is_exact: bool| pairs([10, 20, 30]).compare(&known, is_exact, found);
        assert_eq!(back(&started_again, true), None);
        assert_eq!(
            back(&started_again, false),
            Some(Sequence::new(30)),
            "more may have been pushed than is stored"
        );
        assert_eq!(back(&set_back, true), Some(Sequence::new(20)));
        assert_eq!(back(&emptied, true), Some(Sequence::ZERO));
        let mut latest = Pairs::default();
        assert!(latest.add(Sequence::new(500), Sequence::new(3), true));
        assert!(!latest.add(Sequence::new(500), Sequence::new(4), true));
        assert!(latest.add(Sequence::new(600), Sequence::new(103), true));
        assert_eq!(latest.compare(&log("a", &[(1, 0)], 103), true, &emptied), Some(Sequence::new(500)));
    }

    #[test]
    fn pairs_are_bounded_and_close_to_each_other_near_the_newest() {
        let pairs = pairs((1..=100_000).map(|number| number * 7));
        assert_eq!(pairs.0.len(), PAIRS);
        let newest = pairs.0.last().unwrap().here;
        assert_eq!(newest, 700_000);
        for two in pairs.0.windows(2) {
            let (gap, distance) = (two[1].here - two[0].here, newest - two[0].here);
            assert!(gap <= 7 || gap * 2 <= distance, "{two:?}");
        }
    }
}
