//! What is on its way, and what became of the rest.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::load;
use crate::target::Arrival;

/// Written by senders and target.
#[derive(Debug, Default)]
pub(crate) struct Book(watch::Sender<Counts>);

/// What it says.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// When each webhook was due that has neither arrived nor been refused.
    on_their_way: HashMap<u64, Instant>,
    /// Of what arrived since they were taken last.
    latencies: Vec<Duration>,
    pub(crate) accepted: u64,
    /// Answered with anything but 201, or not at all.
    pub(crate) refused: u64,
    pub(crate) delivered: u64,
    /// Arrivals of what had arrived before, or was refused.
    pub(crate) repeats: u64,
    /// The first thing that went wrong.
    pub(crate) problem: Option<String>,
}

impl Book {
    /// A webhook is sent that was due then.
    pub(crate) fn sends(&self, number: u64, due: Instant) {
        self.0.send_modify(|counts| {
            counts.on_their_way.insert(number, due);
        });
    }

    pub(crate) fn accepts(&self) {
        self.0.send_modify(|counts| counts.accepted += 1);
    }

    pub(crate) fn refuses(&self, number: u64, why: String) {
        self.0.send_modify(|counts| {
            counts.on_their_way.remove(&number);
            counts.refused += 1;
            counts.problem.get_or_insert(why);
        });
    }

    /// A webhook came to the target.
    pub(crate) fn arrives(&self, arrival: &Arrival) {
        self.0.send_modify(|counts| {
            if let Err(error) = &arrival.signature {
                counts.problem.get_or_insert(format!("{}: {error}", arrival.delivery_id()));
                return;
            }
            counts.arrives(load::number(arrival.delivery_id()), arrival.at);
        });
    }

    /// The latencies of what arrived since the last call.
    pub(crate) fn take_latencies(&self) -> Vec<Duration> {
        let mut taken = Vec::new();
        self.0.send_modify(|counts| taken = std::mem::take(&mut counts.latencies));
        taken
    }

    /// Reads it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Counts) -> T) -> T {
        look(&self.0.borrow())
    }

    /// Waits until it says something.
    pub(crate) async fn wait(&self, until: impl FnMut(&Counts) -> bool) {
        // It never closes: the sender is here.
        drop(self.0.subscribe().wait_for(until).await);
    }
}

impl Counts {
    fn arrives(&mut self, number: Option<u64>, at: Instant) {
        match number.and_then(|number| self.on_their_way.remove(&number)) {
            Some(due) => {
                self.latencies.push(at.saturating_duration_since(due));
                self.delivered += 1;
            }
            None => self.repeats += 1,
        }
    }

    /// How many were sent and have not arrived: lost, when all is over.
    pub(crate) fn on_their_way(&self) -> usize {
        self.on_their_way.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_webhook_is_on_its_way_until_it_arrives_or_is_refused() {
        let book = Book::default();
        let due = Instant::now();
        (0..3).for_each(|number| book.sends(number, due));
        book.accepts();
        book.refuses(1, "503".into());
        book.refuses(9, "429".into());
        let arrive =
            |number| book.0.send_modify(|counts| counts.arrives(number, due + Duration::from_millis(3)));
        [Some(0), Some(0), None].into_iter().for_each(arrive);
        assert_eq!(book.take_latencies(), [Duration::from_millis(3)]);
        assert!(book.take_latencies().is_empty());
        book.read(|counts| {
            assert_eq!((counts.accepted, counts.refused, counts.delivered), (1, 2, 1));
            assert_eq!((counts.repeats, counts.on_their_way()), (2, 1));
            assert_eq!(counts.problem.as_deref(), Some("503"));
        });
    }
}
