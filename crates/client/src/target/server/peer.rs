//! The store of the server that events are published to: whether it still is what it was.
//!
//! A publisher that keeps account names the run of the receiver's store that it knows with each event. In another run the
//! receiver stores nothing. So the publisher finds out whether the receiver was set back before it sends newer events there.

use std::convert::Infallible;

use gitstafette_core::event::Sequence;
use gitstafette_proto::convert::{Seen, history};
use gitstafette_proto::v1::{PublishRequest, PublishResponse, PublishResult};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::iter;
use tonic::{Code, Status};

use super::ServerTarget;
use crate::client::{RECONNECT, STEADY};
use crate::connect::wait_for_return;

/// The wait after short connections grows this often: a receiver that was set back is noticed within some seconds.
const SHORT_CONNECTIONS: u32 = 5;

/// What is known of the receiver's log.
#[derive(Clone, Debug, Default)]
pub struct PeerLog {
    /// Its store, and how far its log went in the last answers. `None`: it was not asked yet, or its store is in memory.
    pub known: Option<Seen>,
    /// Whether an answer of this process said how far its log goes. Otherwise it may have gone further than is known.
    pub is_exact: bool,
    /// The log that it has now, if its store is in another run than is known.
    pub found: Option<Seen>,
}

impl PeerLog {
    /// The id of the run that is known; empty if none is.
    fn run_id(&self) -> String {
        self.known.as_ref().map(run_id).unwrap_or_default()
    }

    /// Takes in an answer to a request that named the run `asked`; `true` if that changed something.
    fn answered(&mut self, asked: &str, answer: &PublishResponse) -> bool {
        if answer.store_id.is_empty() {
            return false;
        }
        let (runs, head) = (history(&answer.runs), Sequence::new(answer.head));
        let log = Seen { store: answer.store_id.clone(), history: runs, sequence: head };
        let answer_run = if log.history.runs().is_empty() { asked.to_owned() } else { run_id(&log) };
        match &mut self.known {
            None => (self.known, self.is_exact) = (Some(log), true),
            Some(known) if run_id(known) == answer_run && known.store == log.store => {
                known.sequence = if self.is_exact { known.sequence.max(head) } else { head };
                self.is_exact = true;
            }
            // Late, and of a run before the known one: it says nothing of now.
            Some(_) if log.history.runs().is_empty() => return false,
            Some(_) => self.found = Some(log),
        }
        true
    }
}

fn run_id(log: &Seen) -> String {
    log.history.current().map(|run| run.id.to_string()).unwrap_or_default()
}

impl ServerTarget {
    /// Keeps account of the receiver's log in `peer`. Whoever holds the other end must act on a log that was
    /// [found](PeerLog::found): until then no event is published.
    #[must_use]
    pub fn following(mut self, peer: watch::Sender<PeerLog>) -> Self {
        self.peer = Some(peer);
        self
    }

    /// The receiver's log, if account of it is kept.
    pub fn peer(&self) -> Option<&watch::Sender<PeerLog>> {
        self.peer.as_ref()
    }

    /// The run of the receiver's store that is known; empty if no account is kept.
    pub(super) fn known_run_id(&self) -> String {
        self.peer.as_ref().map(|peer| peer.borrow().run_id()).unwrap_or_default()
    }

    /// Takes in an answer.
    pub(super) fn take_account(&self, asked: &str, answer: &PublishResponse) {
        if let Some(peer) = &self.peer {
            peer.send_if_modified(|peer| peer.answered(asked, answer));
        }
    }

    /// Asks the receiver which store it has, now and whenever a connection to it has ended, so that one that was set back is
    /// noticed without an event.
    pub async fn watch_peer(&self) -> Infallible {
        let mut failures = 0;
        loop {
            match self.ask().await {
                Ok(Some(mut ended)) => {
                    let connected = Instant::now();
                    // An error means the same: all connections are gone.
                    drop(ended.changed().await);
                    // A proxy may end each connection after its answer.
                    failures =
                        if connected.elapsed() >= STEADY { 1 } else { (failures + 1).min(SHORT_CONNECTIONS) };
                    tokio::time::sleep(RECONNECT.delay(failures, fastrand::f64())).await;
                }
                // Its store is in memory, or it is older than this: it may be asleep, and is not woken.
                Ok(None) => return std::future::pending().await,
                Err(status) => {
                    failures += 1;
                    tracing::debug!(
                        target.name = self.name,
                        reason = status.message(),
                        "cannot ask the receiver"
                    );
                    let wait = RECONNECT.delay(failures, fastrand::f64());
                    wait_for_return(&self.address.host, self.address.port, wait, false).await;
                }
            }
        }
    }

    /// Asks which store the receiver has; `None` if it does not say. Returns what tells the end of the connection.
    async fn ask(&self) -> Result<Option<watch::Receiver<u64>>, Status> {
        let dialing = self.dial();
        let link = dialing.link.clone().await.inspect_err(|_| self.hang_up(dialing.number))?;
        let mut ended = link.ended.clone();
        ended.mark_unchanged();
        let asked = self.known_run_id();
        let request = PublishRequest { event: None, known_run_id: asked.clone() };
        let asking = async {
            let mut answers = link.calls.clone().publish(iter([request])).await?.into_inner();
            answers.message().await?.ok_or_else(|| Status::unavailable("there was no answer"))
        };
        let answer = tokio::time::timeout(self.timeout, asking)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("there was no answer in time")));
        match answer {
            Ok(answer) if answer.store_id.is_empty() && answer.result() != PublishResult::OtherRun => {
                Ok(None)
            }
            Ok(answer) => {
                self.take_account(&asked, &answer);
                Ok(Some(ended))
            }
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::InvalidArgument) => Ok(None),
            Err(status) => {
                self.hang_up(dialing.number);
                Err(status)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gitstafette_proto::v1::Run;

    use super::*;

    fn answer(runs: &[(&str, u64)], head: u64) -> PublishResponse {
        let run = |(id, start): &(&str, u64)| Run { run_id: format!("{id:0>16}"), start_sequence: *start };
        PublishResponse {
            store_id: "a".to_owned(),
            runs: runs.iter().map(run).collect(),
            head,
            ..PublishResponse::default()
        }
    }

    #[test]
    fn another_run_is_found_and_the_known_one_followed() {
        let mut peer = PeerLog::default();
        assert!(!peer.answered("", &PublishResponse::default()), "in memory");
        peer.answered("", &answer(&[("1", 0)], 5));
        // Of several first answers at once each counts.
        peer.answered("", &answer(&[("1", 0)], 7));
        let asked = peer.run_id();
        peer.answered(&asked, &answer(&[], 6));
        assert_eq!(peer.known.as_ref().map(|known| known.sequence), Some(Sequence::new(7)));
        assert!(peer.found.is_none() && peer.is_exact);
        peer.answered(&asked, &answer(&[("1", 0), ("2", 4)], 4));
        assert_eq!(peer.found.as_ref().map(|found| found.sequence), Some(Sequence::new(4)));
        // It is acted on; an answer of the run before comes late.
        (peer.known, peer.found) = (peer.found.take(), None);
        assert!(!peer.answered(&asked, &answer(&[], 9)));
        peer.answered(&asked, &answer(&[("1", 0), ("2", 4)], 5));
        assert!(peer.found.is_none(), "it is known");
        assert_eq!(peer.known.map(|known| known.sequence), Some(Sequence::new(5)));
    }
}
