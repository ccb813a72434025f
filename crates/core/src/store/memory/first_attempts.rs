//! The memory store's first attempts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::event::{ClientId, Sequence};
use crate::store::{Acknowledgement, FirstAttempt, MAX_FIRST_ATTEMPTS};

/// First attempts by client, event and target.
#[derive(Debug, Default)]
pub(super) struct FirstAttempts(HashMap<ClientId, BTreeMap<(Sequence, String), Began>>);

/// When an event was first tried, as the age that it had at a time: the monotonic clock may be too young for the difference.
#[derive(Debug)]
struct Began {
    age: Duration,
    recorded: Instant,
}

impl FirstAttempts {
    /// Records first attempts of events that are in the store, as far as there is room for the client. `accepted` says
    /// when an event was accepted.
    pub(super) fn record(
        &mut self,
        client: &ClientId,
        first_attempts: Vec<FirstAttempt>,
        accepted: impl Fn(Sequence) -> Option<Instant>,
    ) {
        let began = self.0.entry(client.clone()).or_default();
        for FirstAttempt { sequence, target, age } in first_attempts {
            if let Some(accepted) = accepted(sequence)
                && began.len() < MAX_FIRST_ATTEMPTS
            {
                let began_now = Began { age: age.min(accepted.elapsed()), recorded: Instant::now() };
                began.entry((sequence, target)).or_insert(began_now);
            }
        }
    }

    /// A client's first attempts of these events, with the ages now.
    pub(super) fn load(&self, client: &ClientId, sequences: &RangeInclusive<Sequence>) -> Vec<FirstAttempt> {
        let began = self.0.get(client).into_iter().flatten();
        began
            .filter(|((sequence, _), _)| sequences.contains(sequence))
            .map(|((sequence, target), began)| FirstAttempt {
                sequence: *sequence,
                target: target.clone(),
                age: began.age.saturating_add(began.recorded.elapsed()),
            })
            .collect()
    }

    /// The last event of which a client's first attempt is recorded; zero if there is none.
    pub(super) fn last(&self, client: &ClientId) -> Sequence {
        let last = self.0.get(client).and_then(BTreeMap::last_key_value);
        last.map_or(Sequence::ZERO, |((sequence, _), _)| *sequence)
    }

    /// Forgets what the client has done.
    pub(super) fn forget(
        &mut self,
        client: &ClientId,
        acknowledgements: &[Acknowledgement],
        cursor: Sequence,
    ) {
        if let Some(began) = self.0.get_mut(client) {
            let done: BTreeSet<_> = acknowledgements.iter().map(|one| one.sequence).collect();
            began.retain(|(sequence, _), _| *sequence > cursor && !done.contains(sequence));
        }
    }

    /// Forgets what retention has removed, up to this event.
    pub(super) fn remove_through(&mut self, last: Sequence) {
        self.0.retain(|_, began| {
            began.retain(|(sequence, _), _| *sequence > last);
            !began.is_empty()
        });
    }

    /// Forgets all about a client.
    pub(super) fn clear(&mut self, client: &ClientId) {
        self.0.remove(client);
    }
}
