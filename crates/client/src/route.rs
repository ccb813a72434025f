//! Which events go to which target.

use std::sync::Arc;

use gitstafette_core::event::Facts;
use gitstafette_core::filter::Filter;
use gitstafette_core::target::Target;

/// Sends the events that a filter selects to a target.
#[derive(Clone, Debug)]
pub struct Route {
    /// What is selected.
    pub filter: Filter,
    /// Where it goes.
    pub target: Arc<dyn Target>,
}

impl Route {
    /// Everything to `target`.
    pub fn new(target: Arc<dyn Target>) -> Self {
        Self { filter: Filter::default(), target }
    }
}

/// Keeps the order: events with the same key go through one lane, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    route: usize,
    subject: Box<str>,
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
}
