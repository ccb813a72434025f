//! Errors as `application/problem+json` (RFC 9457), and the one function that maps errors to HTTP.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use gitstafette_core::classify::ClassifyError;
use gitstafette_core::store::StoreError;
use gitstafette_core::verify::SignatureError;
use gitstafette_proto::convert::{EventSizeError, GoHeaderError};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::auth::AuthError;

/// When to come again after an overload: it passes as soon as the disk has caught up.
const SOON: Duration = Duration::from_secs(2);
/// When to come again after a failure of the store: an operator must act.
const LATER: Duration = Duration::from_secs(30);

/// Why a webhook is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error(transparent)]
    Classify(#[from] ClassifyError),
    #[error(transparent)]
    NoHeader(#[from] GoHeaderError),
    #[error("the body is larger than {limit} bytes; the server's limit is set with --body-limit")]
    TooLarge { limit: u64 },
    #[error(transparent)]
    TooLargeToSend(#[from] EventSizeError),
    #[error("the body did not arrive within {} s", .0.as_secs())]
    TooSlow(Duration),
    #[error("the body ended before its announced length, or the connection broke")]
    Incomplete,
    #[error("the body arrives too slowly while other webhooks wait for memory; try again")]
    Behind,
    #[error("too many bytes of webhooks are being received at once; try again")]
    Overloaded,
    #[error("the store did not commit the webhook within {} s; it may still do so", .0.as_secs())]
    Uncommitted(Duration),
    #[error("{0} is not on the watchlist; add it with --repositories or `gitstafette-client watchlist add`")]
    NotWatched(String),
    #[error(
        "the payload names no repository and no account that can be read; only the watchlist entry * accepts such events (--repositories '*')"
    )]
    OfNobody,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the server failed while reading the webhook")]
    Internal,
}

/// An answer that says what to change.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    retry_after: Option<Duration>,
    /// The scheme by which a caller could authenticate.
    scheme: Option<&'static str>,
}

#[derive(Serialize)]
struct ProblemBody<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None, scheme: None }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn into_detail(self) -> String {
        self.detail
    }

    fn again(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }
}

impl From<Refusal> for Problem {
    /// Whose fault it is, and whether it may be tried again, as an HTTP status.
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let scheme = matches!(refusal, Refusal::Signature(_)).then_some("X-Hub-Signature-256");
        let status = match refusal {
            Refusal::Store(error) => return error.into(),
            Refusal::Signature(_) => StatusCode::UNAUTHORIZED,
            Refusal::Classify(ClassifyError::ContentType | ClassifyError::ContentEncoding) => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            Refusal::Classify(_) | Refusal::NoHeader(_) | Refusal::Incomplete => StatusCode::BAD_REQUEST,
            Refusal::TooLarge { .. } | Refusal::TooLargeToSend(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::TooSlow(_) | Refusal::Behind => StatusCode::REQUEST_TIMEOUT,
            Refusal::NotWatched(_) | Refusal::OfNobody => StatusCode::NOT_ACCEPTABLE,
            Refusal::Overloaded | Refusal::Uncommitted(_) => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).again(SOON);
            }
            Refusal::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { scheme, ..Self::new(status, detail) }
    }
}

impl From<StoreError> for Problem {
    /// The details of a broken disk are the operator's: they are in the log.
    fn from(error: StoreError) -> Self {
        let (detail, after) = match error {
            StoreError::DamagedEvent { .. } => {
                return Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
            }
            StoreError::Overloaded => ("too many webhooks are waiting for the disk; try again", SOON),
            StoreError::Closed => ("the server is going down; try again", SOON),
            StoreError::Full { .. } => ("the server's disk is full; its operator must make room", LATER),
            StoreError::Failed(_) | StoreError::Damaged { .. } => {
                ("the server's store failed; its log says why", LATER)
            }
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).again(after)
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        if matches!(error, AuthError::NotOperator | AuthError::NotClient | AuthError::NotPublisher) {
            return Self::new(StatusCode::FORBIDDEN, error.to_string());
        }
        Self { scheme: Some("Bearer"), ..Self::new(StatusCode::UNAUTHORIZED, error.to_string()) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, after.as_secs().into());
        }
        if let Some(scheme) = self.scheme {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
