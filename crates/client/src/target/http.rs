//! An HTTP endpoint: Jenkins, Argo CD, anything that takes the forge's own request.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gitstafette_core::event::Event;
use gitstafette_core::headers::{Headers, is_hop_by_hop, is_unsafe_to_forward};
use gitstafette_core::target::{Attempt, Target, Verdict};
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};

use crate::connect::{PROBE_TIMEOUT, is_reachable, root_cause};

/// How much of an answer is kept for people, in bytes.
const DETAIL_BYTES: usize = 2048;
/// How much of an answer is read at most, so that the connection can be used again.
const DRAIN_BYTES: usize = 64 << 10;
/// How long connecting may take. The whole try has the target's own time-out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept. Below the 5 s after which Node.js servers close theirs, because a request
/// on a connection that is just being closed fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Posts each event to one URL: the body byte for byte, with every end-to-end header that is safe to forward.
///
/// Redirects are not followed: a POST would arrive as something else. They are reported as final answers.
pub struct HttpTarget {
    name: String,
    url: Url,
    client: Client,
    /// What is asked for to learn whether the target is back; `None` only connects.
    probe: Option<Url>,
}

impl HttpTarget {
    /// A target for `url`, `http` or `https`, with a time-out for one whole try and the TLS for `https`.
    ///
    /// # Errors
    /// [`HttpTargetError`]: the URL cannot be posted to.
    pub fn try_new(url: &str, timeout: Duration, tls: rustls::ClientConfig) -> Result<Self, HttpTargetError> {
        let url = Url::parse(url).map_err(|error| HttpTargetError::Url(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(HttpTargetError::Url("the scheme is neither http nor https".into()));
        }
        let host = url.host_str().ok_or_else(|| HttpTargetError::Url("there is no host in it".into()))?;
        let name = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
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
        Ok(Self { name, url, client, probe: None })
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
            Ok(response) => answered(response).await,
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

async fn answered(response: Response) -> Attempt {
    let status = response.status();
    let verdict = match status {
        _ if status.is_success() => Verdict::Delivered,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Verdict::Retry(retry_after(response.headers()))
        }
        _ if status.is_server_error() => Verdict::Retry(retry_after(response.headers())),
        _ => Verdict::Final,
    };
    let reason = status.canonical_reason().unwrap_or_default();
    let redirect = if status.is_redirection() { location(&response) } else { None };
    let text = read_start(response).await;
    let detail = match redirect {
        Some(location) => format!("{} {reason}: not followed to {location}", status.as_u16()),
        None if text.is_empty() => format!("{} {reason}", status.as_u16()),
        None => text,
    };
    Attempt { verdict, code: Some(status.as_u16()), detail }
}

/// Where a redirect leads, without its query, which may hold a token.
fn location(response: &Response) -> Option<String> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    let mut url = response.url().join(text).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    // A URL without a host has no password.
    url.set_password(None).unwrap_or_default();
    Some(url.into())
}

/// `Retry-After`: whole seconds or an HTTP date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse().map(Duration::from_secs).ok();
    seconds.or_else(|| httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok())
}

/// The start of an answer's body. The status has come: if the rest does not, the verdict stands all the same.
async fn read_start(mut response: Response) -> String {
    let mut start = Vec::new();
    let mut read = 0;
    while read < DRAIN_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        read += chunk.len();
        start.extend_from_slice(&chunk[..chunk.len().min(DETAIL_BYTES - start.len())]);
    }
    String::from_utf8_lossy(&start).trim().to_owned()
}

/// The error with its causes and without the URL, whose query may hold a token.
fn describe(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() {
        "timed out"
    } else if error.is_connect() {
        "cannot connect"
    } else {
        "the connection broke"
    };
    match std::error::Error::source(error) {
        Some(source) => format!("{what}: {}", root_cause(source)),
        None => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn tls() -> rustls::ClientConfig {
        rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    }

    #[test]
    fn names_hide_paths_queries_and_passwords() {
        let url = "https://user:password@jenkins.example:8443/hook/?token=secret";
        let target = HttpTarget::try_new(url, Duration::from_secs(1), tls()).unwrap();
        assert_eq!(target.name(), "jenkins.example:8443");
        let debug = format!("{target:?}");
        assert!(!debug.contains("secret") && !debug.contains("password"), "{debug}");
        for wrong in ["", "jenkins", "ftp://a/", "http://"] {
            assert!(HttpTarget::try_new(wrong, Duration::from_secs(1), tls()).is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_does_not_come_about_is_unreachable() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let target = HttpTarget::try_new(&url, Duration::from_secs(10), tls()).unwrap();
        assert!(target.is_reachable().await);
        drop(listener);
        assert!(!target.is_reachable().await);
        let event = Event {
            sequence: gitstafette_core::event::Sequence::new(1),
            redelivery: false,
            address: gitstafette_core::event::Address::default(),
            webhook: gitstafette_core::testing::webhook(1, "octo/hello", 3),
        };
        assert_eq!(target.attempt(&event).await.verdict, Verdict::Unreachable);
    }

    /// Answers one request after the other with these statuses, and gives back the request lines.
    async fn answering(statuses: &'static [u16]) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=secret#part", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            let mut lines = Vec::new();
            for status in statuses {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..read]);
                lines.push(text.lines().next().unwrap_or_default().to_owned());
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            lines
        });
        (url, serving)
    }

    #[tokio::test]
    async fn a_path_to_look_at_is_asked_and_any_answer_below_500_will_do() {
        let (url, serving) = answering(&[200, 302, 403, 404, 500, 503]).await;
        let target = HttpTarget::try_new(&url, Duration::from_secs(10), tls()).unwrap();
        let target = target.probed_at("/login?from=relay");
        let mut back = Vec::new();
        for _ in 0..6 {
            back.push(target.is_reachable().await);
        }
        assert_eq!(back, [true, true, true, true, false, false]);
        let lines = serving.await.unwrap();
        assert!(lines.iter().all(|line| line == "GET /login?from=relay HTTP/1.1"), "{lines:?}");
        assert!(!target.is_reachable().await, "nobody is there any more");
    }

    #[test]
    fn a_path_to_look_at_stays_at_the_targets_host() {
        let probe = |path: &str| {
            let target = HttpTarget::try_new("https://a.example:1/x?y#z", Duration::from_secs(1), tls());
            target.unwrap().probed_at(path).probe.unwrap().to_string()
        };
        assert_eq!(probe("/login"), "https://a.example:1/login");
        assert_eq!(probe("login"), "https://a.example:1/login");
        assert_eq!(probe("//b.example/"), "https://a.example:1//b.example/");
        assert_eq!(probe("http://b.example/"), "https://a.example:1/http://b.example/");
    }

    #[test]
    fn dangerous_headers_stay_behind() {
        let headers: Headers = [
            ("content-type", "application/json"),
            ("x-repeated", "1"),
            ("authorization", "Bearer x"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-repeated", "2"),
            ("transfer-encoding", "chunked"),
        ]
        .into_iter()
        .collect();
        let map = forwarded(&headers).unwrap();
        assert_eq!(map.len(), 3);
        assert_eq!(map.get_all("x-repeated").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(forwarded(&[("a b", "1")].into_iter().collect()).is_err());
        assert!(forwarded(&[("a", "1\n2")].into_iter().collect()).is_err());
    }

    #[test]
    fn retry_after_in_seconds_and_dates() {
        let of = |value: &str| {
            retry_after(&[(RETRY_AFTER, HeaderValue::from_str(value).unwrap())].into_iter().collect())
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        let later = SystemTime::now() + Duration::from_secs(3600);
        assert!(of(&httpdate::fmt_http_date(later)).unwrap() > Duration::from_secs(3500));
        assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(of("soon"), None);
        assert_eq!(of("-1"), None);
    }
}
