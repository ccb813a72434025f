//! Which events go to which target.

use std::collections::HashSet;
use std::sync::Arc;

use gitstafette_core::event::{Event, Facts};
use gitstafette_core::filter::Filter;
use gitstafette_core::target::Target;

use crate::gate::Gate;
use crate::policy::DeliveryPolicy;

/// Sends the events that a filter selects to a target.
#[derive(Clone, Debug)]
pub struct Route {
    /// What is selected.
    pub filter: Filter,
    /// Where it goes.
    pub target: Arc<dyn Target>,
    /// How often and how long to try.
    pub policy: DeliveryPolicy,
}

impl Route {
    /// Everything to `target`, with the usual patience.
    pub fn new(target: Arc<dyn Target>) -> Self {
        Self { filter: Filter::default(), target, policy: DeliveryPolicy::default() }
    }
}

/// A route as it runs: under a name of its own, with the gate that its lanes share.
#[derive(Debug)]
pub(crate) struct Destination {
    /// The target's name; with a number where several routes lead to targets of the same name. Outcomes, logs and
    /// redeliveries to one target speak of it.
    pub(crate) name: Arc<str>,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) policy: DeliveryPolicy,
    pub(crate) gate: Gate,
    filter: Filter,
}

impl Destination {
    /// One per route, in their order. The second of the same name is `name#2`, and so on.
    pub(crate) fn all(routes: Vec<Route>) -> Vec<Arc<Self>> {
        let mut taken: HashSet<Arc<str>> = HashSet::new();
        let free_name = |name: &str| {
            let numbered = (2..).map(|number| format!("{name}#{number}").into());
            let free =
                std::iter::once(Arc::from(name)).chain(numbered).find(|name| taken.insert(Arc::clone(name)));
            free.expect("numbers do not run out")
        };
        let names: Vec<_> = routes.iter().map(|route| route.target.name()).map(free_name).collect();
        let all = routes.into_iter().zip(names).map(|(Route { filter, target, policy }, name)| {
            Arc::new(Self { name, target, policy, gate: Gate::new(policy.parallel), filter })
        });
        all.collect()
    }

    /// Whether the event goes this way: the filter wants it, and it is not addressed to another target.
    pub(crate) fn wants(&self, event: &Event) -> bool {
        self.filter.matches(&event.webhook.facts) && event.address.includes_target(&self.name)
    }
}

/// Keeps the order: events with the same key go through one lane, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    /// The place of the route among the client's.
    pub(crate) route: usize,
    subject: Arc<str>,
}

impl LaneKey {
    /// The lane of an event on the route at `route`: one per repository, by its number, which outlives a rename. What
    /// has no repository is kept in order per owner.
    pub(crate) fn new(route: usize, facts: &Facts) -> Self {
        let subject = match (facts.repository_id, &facts.repository_name) {
            (Some(id), _) => id.to_string(),
            (None, Some(name)) => name.as_str().to_ascii_lowercase(),
            (None, None) => format!("{}/", facts.owner.as_deref().unwrap_or_default()),
        };
        Self { route, subject: format!("{} {subject}", facts.source).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::PrintTarget;
    use gitstafette_core::repository::RepositoryId;
    use gitstafette_core::testing;

    #[test]
    fn a_lane_per_repository_and_route() {
        let facts = testing::webhook(1, "octo/hello", 0).facts;
        let mut renamed = testing::webhook(2, "octo/goodbye", 0).facts;
        renamed.repository_id = facts.repository_id;
        assert_eq!(LaneKey::new(0, &facts), LaneKey::new(0, &renamed));
        assert_ne!(LaneKey::new(0, &facts), LaneKey::new(1, &facts));
        renamed.repository_id = Some(RepositoryId(1));
        assert_ne!(LaneKey::new(0, &facts), LaneKey::new(0, &renamed));
        let mut owner = facts.clone();
        (owner.repository_id, owner.repository_name) = (None, None);
        assert_ne!(LaneKey::new(0, &facts), LaneKey::new(0, &owner));
    }

    #[test]
    fn every_route_has_a_name_of_its_own() {
        let routes = vec![Route::new(Arc::new(PrintTarget::new())); 3];
        let names: Vec<_> = Destination::all(routes).iter().map(|one| one.name.to_string()).collect();
        assert_eq!(names, ["print", "print#2", "print#3"]);
    }
}
