//! Requests shaped exactly as GitHub's: headers, content types, signatures.

use bytes::Bytes;

use crate::secret::Secret;
use crate::verify::GitHubSignature;

/// A payload written for this project in GitHub's shape.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The event's name, as `X-GitHub-Event` has it.
    pub event: &'static str,
    /// The JSON payload.
    pub payload: &'static str,
}

/// One sample of each event that the usual tools listen to.
pub const SAMPLES: &[Sample] = &[];

/// A push whose payload is at least `bytes` long, as after a merge of many commits.
pub fn large_push(bytes: usize) -> String {
    format!("{{\"padding\":{bytes}}}")
}

/// How a hook sends its payload: its "Content type" setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
}

/// A hook as configured at GitHub.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Its number.
    pub id: u64,
    /// Its content type.
    pub format: Format,
    /// Its secret; without one nothing is signed.
    pub secret: Option<Secret>,
}

/// A request as GitHub would send it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Header fields, names spelled as GitHub does.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

impl Hook {
    /// The request with which this hook sends `payload`.
    pub fn request(&self, event: &str, delivery_id: &str, payload: &str) -> Request {
        let (content_type, body) = match self.format {
            Format::Json => ("application/json", payload.to_owned()),
            Format::Form => (
                "application/x-www-form-urlencoded",
                form_urlencoded::Serializer::new(String::new()).append_pair("payload", payload).finish(),
            ),
        };
        let mut headers = vec![
            ("Accept", "*/*".to_owned()),
            ("Content-Type", content_type.to_owned()),
            ("User-Agent", "GitHub-Hookshot/044aadd".to_owned()),
            ("X-GitHub-Delivery", delivery_id.to_owned()),
            ("X-GitHub-Event", event.to_owned()),
            ("X-GitHub-Hook-ID", self.id.to_string()),
            ("X-GitHub-Hook-Installation-Target-ID", "537845873".to_owned()),
            ("X-GitHub-Hook-Installation-Target-Type", "repository".to_owned()),
        ];
        if let Some(secret) = &self.secret {
            headers.push(("X-Hub-Signature-256", GitHubSignature::sign(secret, body.as_bytes())));
        }
        Request { headers, body: Bytes::from(body) }
    }
}
