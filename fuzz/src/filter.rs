//! The filter parser: patterns from a configuration or a client, and what they select.
//!
//! An input is eight lines: a watchlist and a filter's repositories and events, each with commas between its patterns,
//! then an event's repository id, repository name, owner, name and action. What is missing is empty.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use gitstafette_core::event::{EventType, Facts};
use gitstafette_core::filter::{EventPattern, Filter};
use gitstafette_core::repository::{RepositoryId, RepositoryName, RepositoryPattern, Watchlist};
use gitstafette_core::testing;

use crate::assert_one_line;

/// Parses the patterns and asks them about the event.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let watched: Vec<RepositoryPattern> = parse_all(next());
    let repositories: Vec<RepositoryPattern> = parse_all(next());
    let events: Vec<EventPattern> = parse_all(next());
    let facts = facts([next(), next(), next(), next(), next()]);

    assert_patterns(&repositories);
    assert_watchlist(&watched, &repositories, &facts);
    assert_filter(Filter { repositories, events }, &facts);
}

/// The patterns among these; each survives being written and read.
fn parse_all<T>(text: &str) -> Vec<T>
where
    T: FromStr<Err: Display> + Display + PartialEq + Debug,
{
    let parse = |part: &str| match part.parse::<T>() {
        Ok(pattern) => {
            let written = pattern.to_string();
            assert_one_line(&written);
            assert_eq!(written.parse().ok().as_ref(), Some(&pattern), "{part:?} as {written:?}");
            Some(pattern)
        }
        Err(error) => {
            assert_one_line(&error.to_string());
            None
        }
    };
    // The checks compare each pattern with each.
    text.split(',').take(16).filter_map(parse).collect()
}

/// Those of an event; what is no name is left out, as the webhook parser does.
fn facts([id, name, owner, event, action]: [&str; 5]) -> Facts {
    let repository_name: Option<RepositoryName> = name.parse().ok();
    if let Some(parsed) = &repository_name {
        assert_eq!((parsed.as_str(), parsed.to_string()), (name, name.to_owned()));
        assert!(parsed.is(parsed));
    }
    Facts {
        repository_id: id.parse().ok().map(RepositoryId),
        repository_name,
        owner: Some(owner).filter(|owner| !owner.is_empty()).map(Into::into),
        event_type: EventType {
            name: Some(event).filter(|event| is_event_name(event)).unwrap_or("push").into(),
            action: Some(action).filter(|action| !action.is_empty()).map(Into::into),
        },
        ..testing::webhook(1, "octo/hello", 0).facts
    }
}

/// Whether the webhook parser takes it for an event's name.
fn is_event_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn selects(pattern: &RepositoryPattern, facts: &Facts) -> bool {
    pattern.matches(facts.repository_id, facts.repository_name.as_ref(), facts.owner.as_deref())
}

/// Patterns agree with themselves and with each other.
fn assert_patterns(patterns: &[RepositoryPattern]) {
    for pattern in patterns {
        assert!(pattern.overlaps(pattern), "{pattern}");
        match pattern {
            RepositoryPattern::Id(id) => assert!(pattern.matches(Some(*id), None, None)),
            RepositoryPattern::Name(name) => {
                let upper = name.as_str().to_ascii_uppercase().parse().expect("the case makes no difference");
                assert!(pattern.matches(None, Some(&upper), None));
                let owner: RepositoryPattern =
                    format!("{}/*", name.owner()).parse().expect("a name's owner makes a pattern");
                assert!(owner.matches(None, Some(name), None) && owner.overlaps(pattern));
            }
            RepositoryPattern::Owner(owner) => assert!(pattern.matches(None, None, Some(owner))),
            RepositoryPattern::All => assert!(pattern.matches(None, None, None)),
        }
        for other in patterns {
            assert_eq!(pattern.overlaps(other), other.overlaps(pattern), "{pattern} and {other}");
        }
    }
}

/// What a watchlist admits, a subscription to it may wait for.
fn assert_watchlist(watched: &[RepositoryPattern], wanted: &[RepositoryPattern], facts: &Facts) {
    let watchlist = Watchlist::new(watched.to_vec());
    let admitted =
        watchlist.admits(facts.repository_id, facts.repository_name.as_ref(), facts.owner.as_deref());
    for pattern in watched {
        assert!(watchlist.may_admit(pattern), "{pattern} is in the watchlist");
    }
    for pattern in wanted {
        if admitted && selects(pattern, facts) {
            assert!(watchlist.may_admit(pattern), "{pattern} selects what {watched:?} admits");
        }
    }
    let subscribed = Filter { repositories: watched.to_vec(), events: Vec::new() };
    assert_eq!(admitted, !watched.is_empty() && subscribed.matches(facts), "a watchlist is a filter");
}

/// A filter selects what both its lists select, and an empty list selects all.
fn assert_filter(filter: Filter, facts: &Facts) {
    assert!(Filter::default().matches(facts));
    let by_repository = Filter { repositories: filter.repositories.clone(), events: Vec::new() };
    let by_event = Filter { repositories: Vec::new(), events: filter.events.clone() };
    assert_eq!(filter.matches(facts), by_repository.matches(facts) && by_event.matches(facts));
    for pattern in &filter.events {
        if pattern.matches(&facts.event_type) {
            let whole: EventPattern = facts.event_type.name.parse().expect("it is in the pattern");
            assert!(whole.matches(&facts.event_type), "{whole} selects less than {pattern}");
        }
    }
    let kind = facts.event_type.to_string();
    if let Ok(exact) = kind.parse::<EventPattern>()
        && exact.to_string() == kind
    {
        assert!(exact.matches(&facts.event_type), "{exact}");
    }
    let wider = Filter {
        repositories: [filter.repositories, vec![RepositoryPattern::All]].concat(),
        events: filter.events,
    };
    assert_eq!(wider.matches(facts), by_event.matches(facts), "* is all repositories");
}
