//! What a GitHub request is: headers and body in, [`Webhook`] out. This is the only place that parses a body.
//!
//! GitHub does not retry, so nothing that a signed request holds is refused for its content: metadata that cannot be read
//! counts as absent. Refused are only a body that is no JSON object (or a form that contains one), a media type that is
//! neither, and a request without its identifying headers.
//!
//! Sources: GitHub Docs, "Webhook events and payloads"; the header names are those of its section "Delivery headers".

mod form;
mod payload;
mod scanner;

use std::borrow::Cow;

use crate::event::{DeliveryId, EventType, Facts, HookId, IdentifierError, Source, Timestamp, Webhook};
use crate::headers::{HeaderError, Headers};
use crate::hop::Hops;
use crate::repository::{RepositoryId, RepositoryName};
use crate::text::is_showable;
use crate::verify::{Unverified, Verified};
use payload::Payload;

const CONTENT_ENCODING: &str = "content-encoding";
const CONTENT_TYPE: &str = "content-type";
const EVENT: &str = "x-github-event";
const DELIVERY: &str = "x-github-delivery";
const HOOK_ID: &str = "x-github-hook-id";
/// The event of a webhook whose event name cannot be read, or that was relayed without one. GitHub has none of this name.
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
        let is_relayed = hearsay.is_some();
        if headers.all(CONTENT_ENCODING).any(is_encoded) {
            return Err(ClassifyError::ContentEncoding);
        }
        let format = match body_format(headers)? {
            Some(format) => format,
            None if is_relayed => BodyFormat::Json,
            None => return Err(ClassifyError::ContentType),
        };
        let event = match headers.single(EVENT) {
            Ok(event) if is_showable(event) => event,
            Ok(_) | Err(HeaderError::NotText(_)) => UNKNOWN,
            Err(HeaderError::Missing(_)) if is_relayed => UNKNOWN,
            Err(error) => return Err(error.into()),
        };
        let delivery_id = match delivery_id(headers) {
            Ok(delivery_id) => delivery_id,
            Err(error) => hearsay.and_then(|hearsay| hearsay.delivery_id.clone()).ok_or(error)?,
        };
        let hook_id = headers.single(HOOK_ID).ok().and_then(|id| id.parse().ok());
        Ok(Self { format, event: event.into(), delivery_id, hook_id })
    }
}

/// Reads a GitHub request whose signature was seen to.
///
/// # Errors
/// [`ClassifyError`]: what is missing, or where the body is not what its `Content-Type` says.
pub fn github(request: Verified, received_at: Timestamp) -> Result<Webhook, ClassifyError> {
    let envelope = Envelope::read(request.headers())?;
    webhook(request, envelope, None, received_at)
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
    webhook(request, envelope, Some(hearsay), received_at)
}

fn webhook(
    request: Verified,
    Envelope { format, event, delivery_id, hook_id }: Envelope,
    hearsay: Option<&Hearsay>,
    received_at: Timestamp,
) -> Result<Webhook, ClassifyError> {
    let Unverified { headers, body } = request.into_inner();
    let json = match format {
        BodyFormat::Json => Cow::Borrowed(&*body),
        BodyFormat::Form => form::payload(&body).ok_or(ClassifyError::Form)?,
    };
    let payload = Payload::read(&json).ok_or(ClassifyError::NotAnObject)?;
    let repository_name: Option<RepositoryName> =
        payload.repository.as_ref().and_then(|repository| repository.full_name.as_deref()?.parse().ok());
    let repository_id = match &payload.repository {
        Some(repository) => repository.id.map(RepositoryId),
        None => hearsay.and_then(|hearsay| hearsay.repository_id),
    };
    let facts = Facts {
        source: Source::GITHUB,
        hook_id,
        delivery_id,
        owner: repository_name
            .as_ref()
            .map(RepositoryName::owner)
            .or_else(|| payload.account())
            .or_else(|| payload.named_owner())
            .map(Into::into),
        event_type: EventType { name: event, action: payload.action },
        repository_id,
        repository_name,
        installation_id: payload.installation.and_then(|installation| installation.id),
        received_at,
        hops: Hops::default(),
    };
    Ok(Webhook { facts, headers, body })
}

/// Whether a `Content-Encoding` changes the body (RFC 9110 §8.4; `identity` does not).
fn is_encoded(content_encoding: &[u8]) -> bool {
    let coding = content_encoding.trim_ascii();
    !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
}

/// The format that `Content-Type` names, whatever its parameters; nothing if there is no `Content-Type`.
fn body_format(headers: &Headers) -> Result<Option<BodyFormat>, ClassifyError> {
    let mut formats = headers.all(CONTENT_TYPE).map(|value| {
        let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let essence = essence.to_ascii_lowercase();
        let is_json_suffix = |essence: &[u8]| essence.ends_with(b"+json") && essence.contains(&b'/');
        match &*essence {
            b"application/json" | b"text/json" => Ok(BodyFormat::Json),
            b"application/x-www-form-urlencoded" => Ok(BodyFormat::Form),
            other if is_json_suffix(other) => Ok(BodyFormat::Json),
            _ => Err(ClassifyError::ContentType),
        }
    });
    let Some(first) = formats.next().transpose()? else { return Ok(None) };
    if formats.any(|other| other != Ok(first)) { Err(ClassifyError::ContentType) } else { Ok(Some(first)) }
}

fn delivery_id(headers: &Headers) -> Result<DeliveryId, ClassifyError> {
    let id = headers.single(DELIVERY)?;
    id.parse().map_err(|source| ClassifyError::Identifier { header: DELIVERY, source })
}

/// Why a request is no GitHub webhook. The sender's fault; sending the same again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyError {
    /// The body is compressed or encoded in another way. The signature would no longer match what a target decodes.
    #[error("the header Content-Encoding is not supported; send the body without it")]
    ContentEncoding,
    /// Neither JSON nor form.
    #[error(
        "the Content-Type is neither JSON (application/json, text/json, *+json) nor application/x-www-form-urlencoded"
    )]
    ContentType,
    /// An identifying header is not usable.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// An identifying header does not hold an identifier.
    #[error("the header {header} is not usable: {source}")]
    Identifier {
        /// The header's name.
        header: &'static str,
        /// What is wrong with it.
        source: IdentifierError,
    },
    /// The form does not have exactly one payload.
    #[error("the form does not have exactly one field named payload")]
    Form,
    /// The payload is no JSON object.
    #[error("the payload is not a JSON object: it does not start with {{")]
    NotAnObject,
}

/// How many bytes are looked at to read a payload, each as often as it is: for checks that the time is linear.
#[cfg(any(test, feature = "testing"))]
pub fn payload_steps(json: &[u8]) -> usize {
    Payload::steps(json)
}

#[cfg(test)]
mod tests;
