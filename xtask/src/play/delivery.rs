//! One webhook, from the sender to the target: what was sent, and what became of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use gitstafette_core::classify;
use gitstafette_core::event::Facts;
use gitstafette_core::headers::{Headers, is_hop_by_hop};
use gitstafette_core::testing::Request;
use gitstafette_core::verify::Unverified;
use hyper::StatusCode;

use crate::http::Connection;
use crate::relay;
use crate::target::{Arrival, Target};

/// How long a webhook may be on its way.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of a webhook.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The server's answer.
    pub(crate) answer: StatusCode,
    /// What the answer says, if it is not that the webhook was stored.
    pub(crate) refusal: Option<String>,
    /// What came to the target, and how long after it was sent.
    pub(crate) arrival: Option<(Arrival, Duration)>,
    /// How many others came to the target meanwhile.
    pub(crate) strays: usize,
}

/// Sends a webhook, and waits until it is at the target.
pub(crate) async fn deliver(
    server: &mut Connection,
    target: &mut Target,
    request: &Request,
) -> anyhow::Result<Delivery> {
    let headers = request.headers.iter().map(|(name, value)| (*name, value.as_str()));
    let sent = Instant::now();
    let answered = tokio::time::timeout(PATIENCE, server.post(relay::PATH, headers, request.body.clone()));
    let (answer, text) = answered.await.context("the server does not answer")??;
    let mut delivery = Delivery { answer, refusal: None, arrival: None, strays: 0 };
    if answer != StatusCode::CREATED {
        delivery.refusal = Some(String::from_utf8_lossy(&text).into_owned());
        return Ok(delivery);
    }
    let id = delivery_id(request);
    let arrived = async {
        while let Some(arrival) = target.arrivals.recv().await {
            if arrival.delivery_id() == id {
                let latency = arrival.at.saturating_duration_since(sent);
                delivery.arrival = Some((arrival, latency));
                return;
            }
            delivery.strays += 1;
        }
    };
    // What has not come by then shows as an arrival that is missing.
    drop(tokio::time::timeout(PATIENCE, arrived).await);
    Ok(delivery)
}

fn delivery_id(request: &Request) -> &str {
    let found = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-github-delivery"));
    found.map_or("", |(_, value)| value)
}

/// An id as GitHub gives to deliveries.
pub(crate) fn new_delivery_id() -> String {
    let digits = format!("{:032x}", fastrand::u128(..));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// The headers of a request, as core has them.
pub(crate) fn headers(request: &Request) -> Headers {
    request.headers.iter().map(|(name, value)| (*name, value.clone())).collect()
}

/// What can be read from a webhook: the event, the action, the repository.
pub(crate) fn facts(headers: Headers, body: bytes::Bytes) -> anyhow::Result<Facts> {
    let request = Unverified { headers, body }.waive();
    Ok(classify::github(request, SystemTime::now().into())?.facts)
}

/// The first difference between the end-to-end headers of two requests. The order of different names has no meaning
/// in HTTP (RFC 9110 §5.3), the order of one name's values has.
pub(crate) fn difference(sent: &Headers, arrived: &Headers) -> Option<String> {
    let (sent, arrived) = (end_to_end(sent), end_to_end(arrived));
    let changed = sent.iter().find(|(name, values)| arrived.get(*name).is_some_and(|other| other != *values));
    let missing = sent.keys().find(|name| !arrived.contains_key(*name));
    let added = arrived.keys().find(|name| !sent.contains_key(*name));
    let changed = changed.map(|(name, _)| format!("the header {name} arrived with another value"));
    changed
        .or_else(|| missing.map(|name| format!("the header {name} did not arrive")))
        .or_else(|| added.map(|name| format!("the header {name} arrived and was not sent")))
}

fn end_to_end(headers: &Headers) -> BTreeMap<&str, Vec<&[u8]>> {
    let mut fields: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| !is_hop_by_hop(name)) {
        fields.entry(name).or_default().push(value);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &str)]) -> Headers {
        fields.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn headers_differ_by_name_and_value_and_not_by_the_connection() {
        let sent = fields(&[("A", "1"), ("b", "2"), ("a", "3"), ("host", "server")]);
        let same = fields(&[("b", "2"), ("a", "1"), ("a", "3"), ("host", "target"), ("content-length", "4")]);
        assert_eq!(difference(&sent, &same), None);
        let differs = |arrived: &[(&str, &str)], what: &str| {
            let found = difference(&sent, &fields(arrived)).unwrap();
            assert!(found.contains(what), "{found}");
        };
        differs(&[("a", "3"), ("a", "1"), ("b", "2")], "header a arrived with another value");
        differs(&[("a", "1"), ("b", "2")], "header a arrived with another value");
        differs(&[("a", "1"), ("a", "3")], "header b did not arrive");
        differs(&[("a", "1"), ("a", "3"), ("b", "2"), ("c", "")], "header c arrived and was not sent");
    }

    #[test]
    fn delivery_ids_look_like_githubs() {
        let id = new_delivery_id();
        let lengths: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_ne!(id, new_delivery_id());
    }
}
