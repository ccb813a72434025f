//! Which events a subscription wants.

use std::fmt;
use std::str::FromStr;

use crate::event::{EventType, Facts};
use crate::repository::RepositoryPattern;

/// Selects events by repository and by kind. An empty list selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these repositories.
    pub repositories: Vec<RepositoryPattern>,
    /// Any of these kinds.
    pub events: Vec<EventPattern>,
}

impl Filter {
    /// Whether the event is selected.
    pub fn matches(&self, facts: &Facts) -> bool {
        let (id, name, owner) = (facts.repository_id, facts.repository_name.as_ref(), facts.owner.as_deref());
        (self.repositories.is_empty()
            || self.repositories.iter().any(|pattern| pattern.matches(id, name, owner)))
            && (self.events.is_empty()
                || self.events.iter().any(|pattern| pattern.matches(&facts.event_type)))
    }
}

/// Selects events by kind: `push`, or `pull_request.opened` for one action of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPattern(EventType);

impl EventPattern {
    /// Whether an event of this kind is selected.
    pub fn matches(&self, event: &EventType) -> bool {
        self.0.name == event.name && (self.0.action.is_none() || self.0.action == event.action)
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for EventPattern {
    type Err = EventPatternError;

    fn from_str(text: &str) -> Result<Self, EventPatternError> {
        let error = || EventPatternError(text.chars().take(80).collect());
        let usable = |part: &str| {
            !part.is_empty()
                && part.len() <= 128
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        };
        let (name, action) = match text.trim().split_once('.') {
            Some((name, action)) => (name, Some(action)),
            None => (text.trim(), None),
        };
        if !usable(name) || !action.is_none_or(usable) {
            return Err(error());
        }
        Ok(Self(EventType { name: name.into(), action: action.map(Into::into) }))
    }
}

/// The text names no kind of event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an event (push) nor an event with its action (pull_request.opened)")]
pub struct EventPatternError(Box<str>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    fn pattern(text: &str) -> EventPattern {
        text.parse().unwrap()
    }

    #[test]
    fn selects_by_both() {
        let mut facts = testing::webhook(1, "octo/hello", 10).facts;
        facts.event_type = EventType { name: "pull_request".into(), action: Some("opened".into()) };
        let filter = |repositories: &[&str], events: &[&str]| Filter {
            repositories: repositories.iter().map(|text| text.parse().unwrap()).collect(),
            events: events.iter().map(|text| pattern(text)).collect(),
        };
        assert!(filter(&[], &[]).matches(&facts));
        assert!(filter(&["octo/*"], &["push", "pull_request"]).matches(&facts));
        assert!(filter(&["octo/hello"], &["pull_request.opened"]).matches(&facts));
        assert!(!filter(&["octo/hello"], &["pull_request.closed"]).matches(&facts));
        assert!(!filter(&["octo/other"], &["pull_request"]).matches(&facts));
        assert!(!filter(&[], &["pull"]).matches(&facts));
    }

    proptest! {
        #[test]
        fn patterns_round_trip(text in "[a-zA-Z0-9_-]{1,128}(\\.[a-zA-Z0-9_-]{1,128})?") {
            prop_assert_eq!(pattern(&text).to_string(), text);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            drop(text.parse::<EventPattern>());
        }
    }
}
