//! The client ids that a store in memory knows.

use std::time::{Duration, Instant};

use super::State;
use crate::event::ClientId;
use crate::store::{Owner, Registration};

/// A client id that was registered.
#[derive(Debug)]
pub(super) struct Registered {
    /// `None` if an operator released the id.
    owner: Option<String>,
    seen: Instant,
}

impl State {
    pub(super) fn register(&mut self, client: &ClientId, owner: &Owner) -> Registration {
        let seen = Instant::now();
        if let Some(known) = self.registered.get_mut(client) {
            if !owner.inherits_from(known.owner.as_deref()) {
                return Registration::OwnedByAnother;
            }
            *known = Registered { owner: Some(owner.label.clone()), seen };
            return Registration::Registered;
        }
        let is_own = |known: &&Registered| known.owner.as_ref() == Some(&owner.label);
        let ids = self.registered.values().filter(is_own).count();
        if ids >= owner.max_ids {
            return Registration::LimitReached;
        }
        self.registered.insert(client.clone(), Registered { owner: Some(owner.label.clone()), seen });
        Registration::Registered
    }

    pub(super) fn release_client(&mut self, client: &ClientId) -> bool {
        match self.registered.get_mut(client) {
            Some(known) => known.owner = None,
            None => return self.clients.contains_key(client),
        }
        true
    }

    pub(super) fn remove_client(&mut self, client: &ClientId) -> bool {
        let was_registered = self.registered.remove(client).is_some();
        self.first_attempts.clear(client);
        self.clients.remove(client).is_some() || was_registered
    }

    pub(super) fn forget_clients(&mut self, age: Duration, connected: &[ClientId]) -> Vec<ClientId> {
        let now = Instant::now();
        for client in connected {
            if let Some(known) = self.registered.get_mut(client) {
                known.seen = now;
            }
        }
        let is_expired = |known: &Registered| now.saturating_duration_since(known.seen) >= age;
        let expired =
            self.registered.iter().filter(|(client, known)| is_expired(known) && !connected.contains(client));
        let expired: Vec<_> = expired.map(|(client, _)| client.clone()).collect();
        for client in &expired {
            self.remove_client(client);
        }
        expired
    }
}
