//! Header fields as they travel: ordered, repeated where the sender repeated them, values as bytes.

use bytes::Bytes;

/// The header fields of one webhook, in order: the values of a repeated field as they were sent. (HTTP libraries keep
/// the fields of one name together; between fields of different names the order means nothing, RFC 9110 §5.3.)
///
/// Names are stored in lower case (field names are case-insensitive, RFC 9110 §5.1; HTTP/2 allows only lower
/// case). A field that was sent twice stands here twice: joining values would break receivers that check how
/// often a field occurs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Box<str>, Bytes)>);

impl Headers {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field after all others; `name` is lower-cased.
    pub fn append(&mut self, name: &str, value: impl Into<Bytes>) {
        self.0.push((name.to_ascii_lowercase().into_boxed_str(), value.into()));
    }

    /// All fields in order, a repeated one as often as it was sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The values of the field `name` (lower case), in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(other, _)| *other == name).map(|(_, value)| value)
    }

    /// The value of the field `name` (lower case) if it was sent exactly once and is visible UTF-8 text.
    ///
    /// # Errors
    /// [`HeaderError`] says whether it was missing, empty, repeated or not text.
    pub fn single(&self, name: &'static str) -> Result<&str, HeaderError> {
        let mut values = self.all(name);
        let first = values.next().ok_or(HeaderError::Missing(name))?;
        if values.next().is_some() {
            return Err(HeaderError::Repeated(name));
        }
        let text = std::str::from_utf8(first).map_err(|_| HeaderError::NotText(name))?.trim();
        if text.is_empty() {
            return Err(HeaderError::Empty(name));
        }
        Ok(text)
    }

    /// How many fields there are, repeats counted.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all names and values together.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl<N: AsRef<str>, V: Into<Bytes>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in fields {
            headers.append(name.as_ref(), value);
        }
        headers
    }
}

/// Why a header that must be there once, as text, cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It was not sent.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// It was sent with nothing in it.
    #[error("the header {0} is empty")]
    Empty(&'static str),
    /// It was sent more than once.
    #[error("the header {0} is sent more than once")]
    Repeated(&'static str),
    /// Its value is not UTF-8.
    #[error("the header {0} is not valid UTF-8")]
    NotText(&'static str),
}

/// Fields that belong to one connection or one message framing and are never stored or forwarded: the hop-by-hop
/// fields of RFC 9110 §7.6.1, those of HTTP/2 upgrades (RFC 7540 §3.2.1), and what the next sender computes anew.
///
/// Fields that `Connection` names come on top: the receiver of the request knows them.
pub fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&name)
}

/// Fields with which a sender on the Internet could speak to systems behind the firewall: credentials, the
/// addresses that proxies vouch for, path overrides, and parameters that Jenkins plugins read from headers
/// (Generic Webhook Trigger's `token` and `jobQuietPeriod`, the GitHub plugin's `X-Jenkins-Validation`, which
/// makes Jenkins answer 200 without processing). They are stored with the event and not sent to targets.
pub fn is_unsafe_to_forward(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "authorization",
        "cookie",
        "forwarded",
        "jobquietperiod",
        "token",
        "x-jenkins-validation",
        "x-original-url",
        "x-real-ip",
        "x-rewrite-url",
    ];
    NAMES.contains(&name) || name.starts_with("x-forwarded-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_repeats() {
        let headers: Headers = [("X-A", "1"), ("x-b", "2"), ("x-A", "3")].into_iter().collect();
        assert_eq!(headers.all("x-a").collect::<Vec<_>>(), [b"1", b"3"]);
        assert_eq!(
            headers.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            ["x-a", "x-b", "x-a"],
            "a repeated field stays where it was"
        );
        assert_eq!(headers.size(), 12);
    }

    #[test]
    fn single_wants_exactly_one_text() {
        let mut headers: Headers = [("a", &b"x"[..]), ("b", b" "), ("c", b"\xff")].into_iter().collect();
        headers.append("d", "1");
        headers.append("d", "2");
        assert_eq!(headers.single("a"), Ok("x"));
        assert_eq!(headers.single("b"), Err(HeaderError::Empty("b")));
        assert_eq!(headers.single("c"), Err(HeaderError::NotText("c")));
        assert_eq!(headers.single("d"), Err(HeaderError::Repeated("d")));
        assert_eq!(headers.single("e"), Err(HeaderError::Missing("e")));
    }

    #[test]
    fn names_that_stay_behind() {
        for name in ["transfer-encoding", "host", "connection"] {
            assert!(is_hop_by_hop(name), "{name}");
        }
        for name in ["authorization", "x-forwarded-for", "x-forwarded-anything", "cookie"] {
            assert!(is_unsafe_to_forward(name), "{name}");
        }
        for name in ["content-type", "user-agent", "x-hub-signature-256", "x-github-event", "accept"] {
            assert!(!is_hop_by_hop(name) && !is_unsafe_to_forward(name), "{name}");
        }
    }
}
