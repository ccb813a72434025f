//! The fields of a payload that tell where an event belongs, read in one tolerant pass.
//!
//! No field is in every event. A field that is missing, has another type or cannot be read counts as absent. Of several
//! equal keys the last one counts, with all in it.

use super::scanner::Scanner;
use crate::text::is_showable;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is read from a payload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) action: Option<Box<str>>,
    pub(super) repository: Option<Repository>,
    pub(super) installation: Option<Installation>,
    organization: Option<Account>,
    enterprise: Option<Account>,
    /// `sponsorship.sponsorable`: whom the sponsor pays.
    sponsorable: Option<Account>,
    /// `marketplace_purchase.account`: who buys.
    buyer: Option<Account>,
    /// `account` of an `installation_target`: who was renamed.
    account: Option<Account>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) id: Option<u64>,
    pub(super) full_name: Option<Box<str>>,
    owner: Option<Account>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Installation {
    pub(super) id: Option<u64>,
    account: Option<Account>,
}

/// A user, an organisation or an enterprise. Users and organisations have a login, enterprises a slug.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    login: Option<Box<str>>,
    slug: Option<Box<str>>,
}

impl Payload {
    /// Reads a payload. `None` if it is not an object: after a byte order mark and white space it must start with `{`.
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
        Scanner::new(json).object(Self::read_member)
    }

    /// How many bytes the scanner looks at to read a payload, each as often as it does.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn steps(json: &[u8]) -> usize {
        let mut scanner = Scanner::new(json);
        drop(scanner.object(Self::read_member));
        scanner.steps()
    }

    fn read_member(&mut self, key: &str, scanner: &mut Scanner<'_>) {
        match key {
            "action" => self.action = scanner.text().filter(|action| is_showable(action)),
            "repository" => self.repository = scanner.object(Repository::read_member),
            "installation" => self.installation = scanner.object(Installation::read_member),
            "organization" => self.organization = scanner.object(Account::read_member),
            "enterprise" => self.enterprise = scanner.object(Account::read_member),
            "sponsorship" => self.sponsorable = account_in("sponsorable", scanner),
            "marketplace_purchase" => self.buyer = account_in("account", scanner),
            "account" => self.account = scanner.object(Account::read_member),
            _ => scanner.skip_value(),
        }
    }

    /// The account that the event belongs to, unless its repository's name says so.
    pub(super) fn account(&self) -> Option<&str> {
        let repository = self.repository.as_ref().and_then(|repository| repository.owner.as_ref());
        let installation = self.installation.as_ref().and_then(|installation| installation.account.as_ref());
        let accounts = [
            repository,
            self.organization.as_ref(),
            installation,
            self.enterprise.as_ref(),
            self.sponsorable.as_ref(),
            self.buyer.as_ref(),
            self.account.as_ref(),
        ];
        accounts.into_iter().flatten().find_map(Account::name)
    }

    /// The owner in the repository's full name, also if the rest of that name cannot be read.
    pub(super) fn named_owner(&self) -> Option<&str> {
        let (owner, _) = self.repository.as_ref()?.full_name.as_deref()?.split_once('/')?;
        Some(owner).filter(|owner| is_showable(owner))
    }
}

impl Repository {
    fn read_member(&mut self, key: &str, scanner: &mut Scanner<'_>) {
        match key {
            "id" => self.id = scanner.number(),
            "full_name" => self.full_name = scanner.text(),
            "owner" => self.owner = scanner.object(Account::read_member),
            _ => scanner.skip_value(),
        }
    }
}

impl Installation {
    fn read_member(&mut self, key: &str, scanner: &mut Scanner<'_>) {
        match key {
            "id" => self.id = scanner.number(),
            "account" => self.account = scanner.object(Account::read_member),
            _ => scanner.skip_value(),
        }
    }
}

impl Account {
    fn read_member(&mut self, key: &str, scanner: &mut Scanner<'_>) {
        match key {
            "login" => self.login = scanner.text(),
            "slug" => self.slug = scanner.text(),
            _ => scanner.skip_value(),
        }
    }

    fn name(&self) -> Option<&str> {
        [&self.login, &self.slug].into_iter().flatten().map(|name| &**name).find(|name| is_showable(name))
    }
}

/// The account in the field `name` of the next value.
fn account_in(name: &str, scanner: &mut Scanner<'_>) -> Option<Account> {
    let read_member = |account: &mut Option<Account>, key: &str, scanner: &mut Scanner<'_>| {
        if key == name {
            *account = scanner.object(Account::read_member);
        } else {
            scanner.skip_value();
        }
    };
    scanner.object(read_member).flatten()
}
