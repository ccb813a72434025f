//! Webhooks of any number of repositories and of any size, no two alike.

use gitstafette_core::secret::Secret;
use gitstafette_core::testing::{Format, Hook, Request};

/// A signed webhook of a repository on the watchlist, with a body of `size` bytes.
pub(crate) fn webhook(secret: &Secret, delivery_id: &str, repository: usize, size: usize) -> Request {
    signed(secret, delivery_id, &payload(repository, size))
}

/// A webhook with this payload.
pub(crate) fn signed(secret: &Secret, delivery_id: &str, payload: &str) -> Request {
    let hook = Hook { id: 1, format: Format::Json, secret: Some(secret.clone()) };
    hook.request("push", delivery_id, payload)
}

/// The name of a repository, which is on the watchlist.
pub(crate) fn repository_name(repository: usize) -> String {
    format!("octo-harbor/berth-{repository}")
}

/// A payload of `size` bytes where its frame leaves room for that. What fills the room is random: a body that was mixed
/// with another one shows.
pub(crate) fn payload(repository: usize, size: usize) -> String {
    let (id, name) = (1_000 + repository, repository_name(repository));
    let head = format!(
        r#"{{"ref":"refs/heads/main","repository":{{"id":{id},"full_name":"{name}"}},"after":"{:032x}","message":""#,
        fastrand::u128(..)
    );
    let tail = r#""}"#;
    let end = size.saturating_sub(tail.len());
    let mut payload = String::with_capacity(size.max(head.len()) + 64);
    payload.push_str(&head);
    while payload.len() < end {
        payload.push_str(&format!("{:032x}", fastrand::u128(..)));
    }
    payload.truncate(end.max(head.len()));
    payload.push_str(tail);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery;

    #[test]
    fn they_are_as_long_as_wanted_and_understood() {
        for size in [500, 2_000, 10_001, 1_000_000] {
            let request = webhook(&Secret::new("s"), "id-1", 7, size);
            assert_eq!(request.body.len(), size);
            let facts = delivery::facts(delivery::headers(&request), request.body).unwrap();
            assert_eq!(facts.repository_name.unwrap().as_str(), repository_name(7));
        }
    }

    #[test]
    fn no_two_are_alike() {
        assert!(payload(1, 0).ends_with(r#""message":""}"#), "{}", payload(1, 0));
        assert_ne!(payload(1, 0), payload(1, 0));
    }
}
