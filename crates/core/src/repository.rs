//! Repositories: how one is named, and the patterns that select them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::text::is_showable;

/// The longest repository pattern or name that is taken, in bytes. GitHub allows 39 for an owner and 100 for a
/// name; forges with nested groups go further.
const MAX_NAME_BYTES: usize = 512;

/// The forge's own number of a repository; it outlives a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RepositoryId(pub u64);

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A repository's full name, `owner/name`, spelled as the forge spells it.
///
/// The owner is all before the last slash, so that nested groups (`group/subgroup/name`) have one too. Two names
/// that differ only in ASCII case are the same repository at every forge: compare with [`RepositoryName::is`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RepositoryName(Box<str>);

impl RepositoryName {
    /// The owner: a user, an organisation or a path of groups.
    pub fn owner(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(owner, _)| owner)
    }

    /// `owner/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both name the same repository.
    pub fn is(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        let (owner, name) = text.rsplit_once('/').ok_or_else(|| RepositoryError::new(text))?;
        let usable = |part: &str| {
            is_showable(part) && part.chars().all(|c| !c.is_whitespace() && !matches!(c, '*' | ','))
        };
        // An owner is shown alone, too: the path of groups as a whole, not only each of them.
        let owner_usable = is_showable(owner) && owner.split('/').all(usable);
        if text.len() > MAX_NAME_BYTES || !owner_usable || !usable(name) {
            return Err(RepositoryError::new(text));
        }
        Ok(Self(text.into()))
    }
}

/// Selects repositories: by id, by name, all of an owner, or all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RepositoryPattern {
    /// `537845873`: the repository with this id.
    Id(RepositoryId),
    /// `owner/name`: the repository of this name, whatever its case.
    Name(RepositoryName),
    /// `owner/*`: every repository of the owner, and what belongs to the owner itself (organisation and
    /// installation events).
    Owner(Box<str>),
    /// `*`: everything, events without an owner too.
    All,
}

impl RepositoryPattern {
    /// Whether an event of this repository or owner is selected; all three may be unknown.
    pub fn matches(
        &self,
        id: Option<RepositoryId>,
        name: Option<&RepositoryName>,
        owner: Option<&str>,
    ) -> bool {
        match self {
            Self::Id(wanted) => id == Some(*wanted),
            Self::Name(wanted) => name.is_some_and(|name| name.is(wanted)),
            Self::Owner(wanted) => name
                .map(RepositoryName::owner)
                .or(owner)
                .is_some_and(|owner| owner.eq_ignore_ascii_case(wanted)),
            Self::All => true,
        }
    }

    /// Whether both select the same, however they are spelled.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Id(a), Self::Id(b)) => a == b,
            (Self::Name(a), Self::Name(b)) => a.is(b),
            (Self::Owner(a), Self::Owner(b)) => a.eq_ignore_ascii_case(b),
            (Self::All, Self::All) => true,
            _ => false,
        }
    }

    /// Whether some event could be selected by both. An id and a name may be the same repository: only the forge
    /// knows, so the answer is yes.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Id(a), Self::Id(b)) => a == b,
            (Self::Name(a), Self::Name(b)) => a.is(b),
            (Self::Owner(a), Self::Owner(b)) => a.eq_ignore_ascii_case(b),
            (Self::Name(name), Self::Owner(owner)) | (Self::Owner(owner), Self::Name(name)) => {
                name.owner().eq_ignore_ascii_case(owner)
            }
            (Self::Id(_), _) | (_, Self::Id(_)) | (Self::All, _) | (_, Self::All) => true,
        }
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::Owner(owner) => write!(f, "{owner}/*"),
            Self::All => f.write_str("*"),
        }
    }
}

impl Serialize for RepositoryPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for RepositoryPattern {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        let text = text.trim();
        if text == "*" {
            return Ok(Self::All);
        }
        if let Some(owner) = text.strip_suffix("/*") {
            // An owner is spelled as in a name; the placeholder only completes it.
            let name: RepositoryName =
                format!("{owner}/x").parse().map_err(|_| RepositoryError::new(text))?;
            return Ok(Self::Owner(name.owner().into()));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(|id| Self::Id(RepositoryId(id))).map_err(|_| RepositoryError::new(text));
        }
        text.parse().map(Self::Name)
    }
}

/// The text names no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a repository id, owner/name, owner/* nor *")]
pub struct RepositoryError(Box<str>);

impl RepositoryError {
    fn new(text: &str) -> Self {
        Self(text.chars().take(80).collect())
    }
}

/// The repositories that a server accepts; all else is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watchlist(Vec<RepositoryPattern>);

impl Watchlist {
    /// A watchlist of these patterns; with none it admits nothing.
    pub fn new(patterns: Vec<RepositoryPattern>) -> Self {
        Self(patterns)
    }

    /// Whether an event of this repository or owner is accepted.
    pub fn admits(
        &self,
        id: Option<RepositoryId>,
        name: Option<&RepositoryName>,
        owner: Option<&str>,
    ) -> bool {
        self.0.iter().any(|pattern| pattern.matches(id, name, owner))
    }

    /// Whether an event that `pattern` selects could be accepted: a subscription that is outside the watchlist
    /// would wait for ever.
    pub fn may_admit(&self, pattern: &RepositoryPattern) -> bool {
        self.0.iter().any(|own| own.overlaps(pattern))
    }

    /// The patterns, in the order of the configuration.
    pub fn patterns(&self) -> &[RepositoryPattern] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> RepositoryPattern {
        text.parse().unwrap()
    }

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    fn written_and_read(text: &str) -> RepositoryPattern {
        let parsed = pattern(text);
        assert_eq!(pattern(&parsed.to_string()), parsed, "{text:?}");
        parsed
    }

    #[test]
    fn patterns_select() {
        let hello = name("Octo/Hello");
        let id = Some(RepositoryId(7));
        assert!(pattern("7").matches(id, Some(&hello), Some("Octo")));
        assert!(!pattern("8").matches(id, Some(&hello), Some("Octo")));
        assert!(pattern("octo/hello").matches(id, Some(&hello), None));
        assert!(!pattern("octo/hell").matches(id, Some(&hello), None));
        assert!(pattern("octo/*").matches(id, Some(&hello), None));
        assert!(pattern("octo/*").matches(None, None, Some("OCTO")), "an event of the organisation itself");
        assert!(!pattern("oct/*").matches(id, Some(&hello), Some("Octo")));
        assert!(pattern("*").matches(None, None, None));
        assert!(!pattern("octo/*").matches(None, None, None));
    }

    #[test]
    fn a_repositorys_own_owner_decides() {
        // A forged `organization` beside the repository must not open another owner's pattern.
        assert!(!pattern("octo/*").matches(None, Some(&name("evil/x")), Some("octo")));
    }

    #[test]
    fn what_is_no_pattern() {
        for text in [
            "",
            " ",
            "octo",
            "/",
            "octo/",
            "/hello",
            "octo/he llo",
            "*/hello",
            "octo/*/x",
            "a,b/c",
            "-1",
            "**",
        ] {
            assert!(text.parse::<RepositoryPattern>().is_err(), "{text:?}");
        }
        assert!("99999999999999999999999".parse::<RepositoryPattern>().is_err(), "does not fit an id");
        assert_eq!(pattern("group/sub/name"), RepositoryPattern::Name(name("group/sub/name")));
        assert_eq!(name("group/sub/name").owner(), "group/sub");
    }

    #[test]
    fn an_owner_can_be_shown_as_a_whole() {
        // The wire carries the owner as a text of its own and refuses what is too long for a line: an event with such
        // an owner was taken in, and stopped every subscriber's stream.
        let group = "g".repeat(128);
        assert!(format!("{group}/name").parse::<RepositoryName>().is_ok());
        assert!(format!("{group}/{group}/name").parse::<RepositoryName>().is_err());
        assert!(format!("{group}/{group}/*").parse::<RepositoryPattern>().is_err());
    }

    #[test]
    fn subscriptions_outside_the_watchlist_are_known() {
        let watchlist = Watchlist::new(vec![pattern("7"), pattern("octo/*")]);
        assert!(watchlist.may_admit(&pattern("octo/hello")));
        assert!(watchlist.may_admit(&pattern("*")));
        assert!(watchlist.may_admit(&pattern("other/name")), "could be the repository with id 7");
        let names = Watchlist::new(vec![pattern("octo/hello")]);
        assert!(!names.may_admit(&pattern("octo/other")));
        assert!(!names.may_admit(&pattern("other/*")));
        assert!(names.may_admit(&pattern("octo/*")));
        assert!(!Watchlist::default().may_admit(&pattern("*")));
    }

    proptest! {
        #[test]
        fn ids_round_trip(id in any::<u64>(), zeros in "0{0,3}") {
            prop_assert_eq!(written_and_read(&format!("{zeros}{id}")), RepositoryPattern::Id(RepositoryId(id)));
        }

        #[test]
        fn names_round_trip(text in "[^\\pC\\pZ\\s*,/]{1,20}(/[^\\pC\\pZ\\s*,/]{1,20}){1,3}") {
            prop_assert_eq!(written_and_read(&text), RepositoryPattern::Name(name(&text)));
            prop_assert_eq!(name(&text).to_string(), text);
        }

        #[test]
        fn owners_round_trip(owner in "[^\\pC\\pZ\\s*,/]{1,20}(/[^\\pC\\pZ\\s*,/]{1,20}){0,2}") {
            let pattern = RepositoryPattern::Owner(owner.as_str().into());
            prop_assert_eq!(written_and_read(&format!("{owner}/*")), pattern);
        }

        #[test]
        fn space_around_a_pattern_is_no_part_of_it(before in "[ \t]{0,3}", after in "[ \t\n]{0,3}") {
            for text in ["*", "7", "octo/*", "octo/hello"] {
                prop_assert_eq!(written_and_read(&format!("{before}{text}{after}")), pattern(text));
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            drop(text.parse::<RepositoryPattern>());
        }
    }
}
