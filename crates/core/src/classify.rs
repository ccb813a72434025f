//! What a GitHub request is: headers and body in, [`Webhook`] out. This is the only place that parses a body.
//!
//! Sources: GitHub Docs, "Webhook events and payloads"; the header names are those of its section "Delivery headers".

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};

use crate::event::{DeliveryId, EventType, Facts, HookId, IdentifierError, Source, Timestamp, Webhook};
use crate::headers::{HeaderError, Headers};
use crate::hop::Hops;
use crate::repository::{RepositoryId, RepositoryName};
use crate::text::is_showable;
use crate::verify::{Unverified, Verified};

const CONTENT_TYPE: &str = "content-type";
const EVENT: &str = "x-github-event";
const DELIVERY: &str = "x-github-delivery";
const HOOK_ID: &str = "x-github-hook-id";
/// The event of a relayed webhook that does not say which it is. GitHub has none of this name.
const UNKNOWN: &str = "unknown";

/// How the body carries its JSON, by its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// `application/json`: the body is the payload.
    Json,
    /// `application/x-www-form-urlencoded`: the field `payload` is.
    Form,
}

/// The identifying headers of a GitHub request, read before its body comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// How to read the body.
    pub format: BodyFormat,
    /// The event's name (`X-GitHub-Event`).
    pub event: Box<str>,
    /// The delivery id (`X-GitHub-Delivery`).
    pub delivery_id: DeliveryId,
    /// The hook that fired (`X-GitHub-Hook-ID`), if it says so.
    pub hook_id: Option<HookId>,
}

/// What a server that relays says of a webhook beside it. It counts only where the webhook itself is silent: an old server
/// may have lost headers on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hearsay {
    /// The delivery id.
    pub delivery_id: Option<DeliveryId>,
    /// The repository's number.
    pub repository_id: Option<RepositoryId>,
}

impl Envelope {
    /// Reads the identifying headers.
    ///
    /// # Errors
    /// [`ClassifyError::ContentType`] or [`ClassifyError::Header`] and its kin.
    pub fn read(headers: &Headers) -> Result<Self, ClassifyError> {
        Self::read_with(headers, None)
    }

    /// Reads those that a server relays. A missing `Content-Type` is JSON, a missing event `unknown`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_relayed(headers: &Headers, hearsay: &Hearsay) -> Result<Self, ClassifyError> {
        Self::read_with(headers, Some(hearsay))
    }

    fn read_with(headers: &Headers, hearsay: Option<&Hearsay>) -> Result<Self, ClassifyError> {
        if let Some(name) = headers.first_not_text() {
            return Err(ClassifyError::HeaderNotText(name.into()));
        }
        let is_relayed = hearsay.is_some();
        let format = match headers.single(CONTENT_TYPE) {
            Err(HeaderError::Missing(_)) if is_relayed => BodyFormat::Json,
            content_type => body_format(content_type.map_err(|_| ClassifyError::ContentType)?)?,
        };
        let event = match headers.single(EVENT) {
            Err(HeaderError::Missing(_)) if is_relayed => UNKNOWN,
            event => event?,
        };
        if event.len() > 128
            || !event.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        {
            return Err(ClassifyError::EventName);
        }
        let identifier = |header| move |source| ClassifyError::Identifier { header, source };
        let hook_id = match headers.single(HOOK_ID) {
            Ok(id) => Some(id.parse().map_err(identifier(HOOK_ID))?),
            Err(HeaderError::Missing(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let delivery_id =
            match (headers.single(DELIVERY), hearsay.and_then(|hearsay| hearsay.delivery_id.as_ref())) {
                (Err(HeaderError::Missing(_)), Some(delivery_id)) => delivery_id.clone(),
                (delivery_id, _) => delivery_id?.parse().map_err(identifier(DELIVERY))?,
            };
        Ok(Self { format, event: event.into(), delivery_id, hook_id })
    }
}

/// Reads a GitHub request whose signature was seen to.
///
/// # Errors
/// [`ClassifyError`]: what is missing, or where the body is not what its `Content-Type` says.
pub fn github(request: Verified, received_at: Timestamp) -> Result<Webhook, ClassifyError> {
    let envelope = Envelope::read(request.headers())?;
    webhook(request, envelope, received_at)
}

/// Reads a GitHub request that a server relays, whose signature was seen to. What it lacks is taken from `hearsay`; its
/// headers stay as they were sent.
///
/// # Errors
/// As [`github`].
pub fn relayed(
    request: Verified,
    hearsay: &Hearsay,
    received_at: Timestamp,
) -> Result<Webhook, ClassifyError> {
    let envelope = Envelope::read_relayed(request.headers(), hearsay)?;
    let mut webhook = webhook(request, envelope, received_at)?;
    let facts = &mut webhook.facts;
    if facts.repository_name.is_none() {
        facts.repository_id = facts.repository_id.or(hearsay.repository_id);
    }
    Ok(webhook)
}

fn webhook(
    request: Verified,
    Envelope { format, event, delivery_id, hook_id }: Envelope,
    received_at: Timestamp,
) -> Result<Webhook, ClassifyError> {
    let Unverified { headers, body } = request.into_inner();
    let json = match format {
        BodyFormat::Json => Cow::Borrowed(&*body),
        BodyFormat::Form => form_payload(&body)?,
    };
    let payload = Payload::parse(&json)?;
    let repository_name = payload
        .repository
        .as_ref()
        .and_then(|repository| repository.full_name.as_deref())
        .map(|name| name.parse::<RepositoryName>().map_err(|_| ClassifyError::RepositoryName))
        .transpose()?;
    let facts = Facts {
        source: Source::GITHUB,
        hook_id,
        delivery_id,
        owner: payload.owner(repository_name.as_ref()),
        event_type: EventType { name: event, action: payload.action.filter(|action| is_showable(action)) },
        repository_id: payload.repository.and_then(|repository| repository.id).map(RepositoryId),
        repository_name,
        installation_id: payload.installation.and_then(|installation| installation.id),
        received_at,
        hops: Hops::default(),
    };
    Ok(Webhook { facts, headers, body })
}

fn body_format(content_type: &str) -> Result<BodyFormat, ClassifyError> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(BodyFormat::Json)
    } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        Ok(BodyFormat::Form)
    } else {
        Err(ClassifyError::ContentType)
    }
}

fn form_payload(body: &[u8]) -> Result<Cow<'_, [u8]>, ClassifyError> {
    let mut payloads =
        form_urlencoded::parse(body).filter(|(name, _)| name == "payload").map(|(_, value)| value);
    match (payloads.next(), payloads.next()) {
        (Some(Cow::Borrowed(payload)), None) => Ok(Cow::Borrowed(payload.as_bytes())),
        (Some(Cow::Owned(payload)), None) => Ok(Cow::Owned(payload.into_bytes())),
        _ => Err(ClassifyError::Form),
    }
}

/// The parts of a payload that say where an event belongs. None is in every event.
#[derive(Debug, Deserialize)]
struct Payload {
    action: Option<Box<str>>,
    #[serde(default, deserialize_with = "object")]
    repository: Option<Repository>,
    #[serde(default, deserialize_with = "object")]
    organization: Option<Account>,
    #[serde(default, deserialize_with = "object")]
    installation: Option<Installation>,
}

#[derive(Debug, Deserialize)]
struct Repository {
    id: Option<u64>,
    full_name: Option<Box<str>>,
}

#[derive(Debug, Deserialize)]
struct Account {
    login: Option<Box<str>>,
}

#[derive(Debug, Deserialize)]
struct Installation {
    id: Option<u64>,
    #[serde(default, deserialize_with = "object")]
    account: Option<Account>,
}

impl Payload {
    fn parse(json: &[u8]) -> Result<Self, ClassifyError> {
        // Every value is looked at first: what serde skips it does not check, neither nesting nor text.
        serde_json::from_slice::<Object<Value>>(json).map_err(|error| json_error(&error, "not an object"))?;
        serde_json::from_slice(json)
            .map_err(|error| json_error(&error, "a field has another type than GitHub's"))
    }

    fn owner(&self, repository: Option<&RepositoryName>) -> Option<Box<str>> {
        let login = |account: &Account| account.login.clone().filter(|login| is_showable(login));
        repository
            .map(|name| name.owner().into())
            .or_else(|| self.organization.as_ref().and_then(login))
            .or_else(|| {
                self.installation
                    .as_ref()
                    .and_then(|installation| installation.account.as_ref())
                    .and_then(login)
            })
    }
}

/// What is wrong with the JSON, and where. serde's own words for a wrong type quote the payload, and a payload must not
/// reach a log.
fn json_error(error: &serde_json::Error, wrong_type: &str) -> ClassifyError {
    ClassifyError::Json(if error.is_data() {
        format!("{wrong_type}, at line {} column {}", error.line(), error.column())
    } else {
        error.to_string()
    })
}

/// Any JSON value, visited and dropped. Its recursion is bounded by serde_json, at 128 levels.
struct Value;

/// A JSON object, read as `T`. What serde derives takes an array too, for the fields in their order; a receiver would
/// find no repository in it, or another.
struct Object<T>(T);

fn object<'de, D: de::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(value)| value))
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData)).map(Self)
    }
}

/// The entries of an object, read as `T`.
struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries))
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
        while elements.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// Why a request is no GitHub webhook. The sender's fault; sending the same again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyError {
    /// Neither JSON nor form.
    #[error("the Content-Type is neither application/json nor application/x-www-form-urlencoded")]
    ContentType,
    /// An identifying header is not usable.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A header that no JSON and no protobuf text could carry on.
    #[error("the header {0} is not valid UTF-8")]
    HeaderNotText(Box<str>),
    /// An identifying header does not hold an identifier.
    #[error("the header {header} is not usable: {source}")]
    Identifier {
        /// The header's name.
        header: &'static str,
        /// What is wrong with it.
        source: IdentifierError,
    },
    /// The event's name is not one.
    #[error("the header {EVENT} is not an event's name: letters, digits, _ and -")]
    EventName,
    /// The form does not have exactly one payload.
    #[error("the form does not have exactly one field named payload")]
    Form,
    /// The payload is not the JSON object it should be.
    #[error("the payload is not a JSON object as GitHub sends it: {0}")]
    Json(String),
    /// The repository's name is not one.
    #[error("the payload's repository.full_name is not owner/name")]
    RepositoryName,
}

#[cfg(test)]
mod tests;
