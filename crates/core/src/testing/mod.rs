//! Webhooks to test with: small ones for stores, and requests shaped exactly as GitHub sends them.

mod github;

pub use github::{Format, Hook, Level, Request, SAMPLES, Sample, large_push};

use bytes::Bytes;

use crate::event::{EventType, Facts, Source, Timestamp, Webhook};
use crate::headers::Headers;
use crate::hop::Hops;
use crate::repository::RepositoryId;

/// A webhook of a repository with a delivery id made of `number` and a body of `size` bytes, all different.
pub fn webhook(number: u64, repository: &str, size: usize) -> Webhook {
    let body: Vec<u8> =
        (0..size).map(|at| (number as usize).wrapping_mul(31).wrapping_add(at) as u8).collect();
    let mut headers = Headers::new();
    headers.append("content-type", "application/json");
    headers.append("x-repeated", "one");
    headers.append("x-number", number.to_string());
    headers.append("x-repeated", &b"two \xff"[..]);
    Webhook {
        facts: Facts {
            source: Source::GITHUB,
            hook_id: Some("1".parse().expect("a valid id")),
            delivery_id: format!("delivery-{number}").parse().expect("a valid id"),
            event_type: EventType { name: "push".into(), action: None },
            repository_id: Some(RepositoryId(repository.bytes().map(u64::from).sum())),
            repository_name: Some(repository.parse().expect("owner/name")),
            owner: Some(repository.split('/').next().unwrap_or_default().into()),
            installation_id: None,
            received_at: Timestamp::from_millis(1_700_000_000_000 + number),
            hops: Hops::default(),
        },
        headers,
        body: Bytes::from(body),
    }
}

#[cfg(test)]
mod tests;
