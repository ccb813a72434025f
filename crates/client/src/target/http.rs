//! An HTTP endpoint: Jenkins, Argo CD, anything that takes the forge's own request.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use gitstafette_core::event::Event;
use gitstafette_core::headers::{Headers, is_hop_by_hop, is_unsafe_to_forward};
use gitstafette_core::target::{Attempt, Target, Verdict};
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::connect::{PROBE_TIMEOUT, is_reachable};
use crate::explain::{self, Fault};

/// How much of a failed answer is kept for people, in bytes.
const DETAIL_BYTES: usize = 2048;
/// The longest new URL that an outcome suggests.
const LOCATION_BYTES: usize = 1024;
/// How much of an answer's body is read at most, so that the connection can be used again.
const DRAIN_BYTES: usize = 64 << 10;
/// How long an answer's body is read at most.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How many bodies of one target are read at the same time after their answers have counted. The connections of all others
/// are closed instead.
const MAX_DRAINS: usize = 32;
/// How long connecting may take. The whole try has the target's own time-out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept. Below the 5 s after which Node.js servers close theirs, because a request
/// on a connection that is just being closed fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Posts each event to one URL: the body byte for byte, with every end-to-end header that is safe to forward.
///
/// Redirects are not followed: a POST would arrive as something else. They are final answers, and the outcome names the
/// setting to change and its new value.
pub struct HttpTarget {
    name: String,
    url: Url,
    client: Client,
    /// The name of the setting that the URL is from.
    setting: String,
    /// What is asked for to learn whether the target is back; `None` only connects.
    probe: Option<Url>,
    /// Tasks that read the rest of bodies. They end with the target.
    drains: Mutex<JoinSet<()>>,
}

impl HttpTarget {
    /// A target for `url`, `http` or `https`, with a time-out for one whole try and the TLS for `https`.
    ///
    /// # Errors
    /// [`HttpTargetError`]: the URL cannot be posted to.
    pub fn try_new(url: &str, timeout: Duration, tls: rustls::ClientConfig) -> Result<Self, HttpTargetError> {
        if !url.contains("://") {
            return Err(HttpTargetError::Url("it must begin with http:// or https://".into()));
        }
        let url = Url::parse(url).map_err(|error| HttpTargetError::Url(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(HttpTargetError::Url("the scheme is neither http nor https".into()));
        }
        let host = url.host_str().ok_or_else(|| HttpTargetError::Url("there is no host in it".into()))?;
        let name = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Resolver)
            // A target is near: a proxy from the environment is the way out, not in.
            .no_proxy()
            .http1_only()
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(HttpTargetError::Client)?;
        Ok(Self {
            name,
            url,
            client,
            setting: "the target's URL".into(),
            probe: None,
            drains: Mutex::default(),
        })
    }

    /// Names the setting that the URL is from, for outcomes that ask to change it.
    #[must_use]
    pub fn set_by(self, setting: &str) -> Self {
        Self { setting: setting.to_owned(), ..self }
    }

    /// Looks whether the target is back with a `GET` of this path at its host, instead of a connection alone. Any answer
    /// below 500 will do: for a target whose port is open long before it can take a webhook. The path may have a query.
    #[must_use]
    pub fn probed_at(self, path: &str) -> Self {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        let mut probe = self.url.clone();
        probe.set_path(path);
        probe.set_query(query);
        probe.set_fragment(None);
        Self { probe: Some(probe), ..self }
    }

    /// Whether a `GET` is answered in time with less than 500.
    async fn answers(&self, probe: Url) -> bool {
        let request = self.client.get(probe).timeout(PROBE_TIMEOUT);
        request.send().await.is_ok_and(|response| !response.status().is_server_error())
    }

    /// Reads how the attempt went from the head of the answer. Only a failed attempt waits for the start of the body, which
    /// says why. The rest of the body is read in the background.
    async fn answered(&self, response: Response) -> Attempt {
        let status = response.status();
        let verdict = verdict(status, response.headers());
        let reason = status.canonical_reason().unwrap_or_default();
        let line = format!("{} {reason}", status.as_u16());
        let redirect = if status.is_redirection() { location(&response) } else { None };
        let mut body = BoundedBody::new(response);
        let detail = match redirect {
            Some(location) => format!(
                "{line}: the target redirects, and a redirected webhook does not arrive; set {} to {location}",
                self.setting
            ),
            None if verdict == Verdict::Delivered => line,
            None => Some(body.read_start().await).filter(|text| !text.is_empty()).unwrap_or(line),
        };
        self.drain(body);
        Attempt { verdict, code: Some(status.as_u16()), detail }
    }

    /// Reads the rest of a body in the background, so that the connection can be used again.
    fn drain(&self, mut body: BoundedBody) {
        let mut drains = self.drains.lock().unwrap_or_else(PoisonError::into_inner);
        while drains.try_join_next().is_some() {}
        if drains.len() < MAX_DRAINS {
            drains.spawn(async move { while body.next().await.is_some() {} });
        }
    }

    /// Whether a TCP connection comes about. It is closed at once: no TLS and no request, which would show in the target's
    /// log every second.
    async fn connects(&self) -> bool {
        let host = self.url.host_str().unwrap_or_default();
        // The port is known: the scheme is http or https.
        let port = self.url.port_or_known_default().unwrap_or_default();
        is_reachable(host.trim_matches(['[', ']']), port).await
    }
}

/// Why an [`HttpTarget`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HttpTargetError {
    /// The URL is not one to post to.
    #[error("not a URL to post to: {0}")]
    Url(String),
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(reqwest::Error),
}

impl fmt::Debug for HttpTarget {
    /// Without path and query, which may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTarget").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Target for HttpTarget {
    fn name(&self) -> &str {
        &self.name
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let headers = match forwarded(&event.webhook.headers) {
            Ok(headers) => headers,
            Err(detail) => return Attempt { verdict: Verdict::Final, code: None, detail },
        };
        let request = self.client.post(self.url.clone()).headers(headers).body(event.webhook.body.clone());
        match request.send().await {
            Ok(response) => self.answered(response).await,
            Err(error) => {
                // Name, address, connection, TLS: nothing was sent. Else a time-out, or a connection cut before the
                // answer: the target may have it. All may be better next time.
                let verdict = if error.is_connect() { Verdict::Unreachable } else { Verdict::Retry(None) };
                Attempt { verdict, code: None, detail: describe(&error) }
            }
        }
    }

    async fn is_reachable(&self) -> bool {
        match &self.probe {
            Some(probe) => self.answers(probe.clone()).await,
            None => self.connects().await,
        }
    }
}

/// The header fields that go to the target.
fn forwarded(headers: &Headers) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in
        headers.iter().filter(|(name, _)| !is_hop_by_hop(name) && !is_unsafe_to_forward(name))
    {
        let field = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_bytes(value).ok());
        let (name, value) = field.ok_or_else(|| format!("the header {name:?} cannot be sent over HTTP"))?;
        map.append(name, value);
    }
    Ok(map)
}

/// What the status of an answer means for the event.
fn verdict(status: StatusCode, headers: &HeaderMap) -> Verdict {
    match status {
        _ if status.is_success() => Verdict::Delivered,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Verdict::Retry(retry_after(headers))
        }
        _ if status.is_server_error() => Verdict::Retry(retry_after(headers)),
        _ => Verdict::Final,
    }
}

/// Where a redirect leads, as a new value for the setting. Neither with its query nor with a user, which may hold secrets.
fn location(response: &Response) -> Option<String> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    let mut url = response.url().join(text).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    let has_query = url.query().is_some();
    url.set_query(None);
    url.set_fragment(None);
    url.set_username("").and_then(|()| url.set_password(None)).ok()?;
    if url.as_str().len() > LOCATION_BYTES {
        return None;
    }
    Some(if has_query { format!("{url} and its query, which is not shown here") } else { url.into() })
}

/// `Retry-After`: whole seconds or an HTTP date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse().map(Duration::from_secs).ok();
    seconds.or_else(|| httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok())
}

/// The body of an answer, of which at most [`DRAIN_BYTES`] are read, for at most [`DRAIN_TIMEOUT`]. A connection whose body
/// is not read to its end is closed.
struct BoundedBody {
    response: Response,
    /// How many bytes may still be read.
    left: usize,
    deadline: Instant,
}

impl BoundedBody {
    fn new(response: Response) -> Self {
        Self { response, left: DRAIN_BYTES, deadline: Instant::now() + DRAIN_TIMEOUT }
    }

    /// The next part; `None` at the end, at a bound, or if the connection breaks.
    async fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let part = timeout_at(self.deadline, self.response.chunk()).await.ok()?.ok()??;
        self.left = self.left.saturating_sub(part.len());
        Some(part)
    }

    /// The first [`DETAIL_BYTES`], or as much of them as comes in time.
    async fn read_start(&mut self) -> String {
        let mut start = Vec::new();
        while start.len() < DETAIL_BYTES
            && let Some(part) = self.next().await
        {
            start.extend_from_slice(&part[..part.len().min(DETAIL_BYTES - start.len())]);
        }
        String::from_utf8_lossy(&start).trim().to_owned()
    }
}

/// Why an attempt failed, in plain words and without the URL, whose query may hold a token.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let what = if error.is_connect() { "cannot connect" } else { "no answer" };
    let reason = match std::error::Error::source(error).map(Fault::of) {
        None => return what.to_owned(),
        Some(Fault::NotTls) => {
            "the port does not speak TLS; if the target speaks plain text there, use http:// in its URL".to_owned()
        }
        Some(Fault::NotHttp) => {
            "the port does not speak HTTP; if the target expects TLS there, use https:// in its URL, else check the port".to_owned()
        }
        Some(Fault::Closed) => {
            "the target closed the connection; check the port, and use https:// in the URL if it expects TLS".to_owned()
        }
        Some(fault) => fault.to_string(),
    };
    format!("{what}: {reason}")
}

/// Looks up the target's host, with errors that [`Fault`] knows.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The client puts the URL's port in place of 0.
            let addresses: Addrs =
                Box::new(explain::resolve(name.as_str(), 0).await?.collect::<Vec<_>>().into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests;
