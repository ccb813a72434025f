//! A secret that cannot be printed, compared carelessly or left behind in freed memory.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A shared secret: a webhook's HMAC key or a client's bearer token.
///
/// `Debug` prints `***`, there is no `Display`, comparison tells nothing about the secret, not even its length, and the
/// memory is wiped when the value is dropped.
#[derive(Clone)]
pub struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    /// The SHA-256 digest of the bytes.
    digest: Zeroizing<[u8; 32]>,
}

impl Secret {
    /// Takes the secret's bytes. Surrounding white space counts: trim a file's last line before.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = Zeroizing::new(bytes.into());
        let digest = Zeroizing::new(Sha256::digest(&*bytes).into());
        Self { bytes, digest }
    }

    /// The bytes, for the one place that computes with them.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `other` is this secret. Digests are compared, so that the time depends on `other` alone: neither on where
    /// the two differ nor on how long the secret is.
    pub fn matches(&self, other: &[u8]) -> bool {
        self.digest.ct_eq(Sha256::digest(other).as_slice()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints_itself() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some(***)");
    }

    #[test]
    fn matches_only_itself() {
        let secret = Secret::new("hunter2");
        assert!(secret.matches(b"hunter2"));
        assert!(!secret.matches(b"hunter3"));
        assert!(!secret.matches(b"hunter22"));
        assert!(!secret.matches(b""));
        assert!(Secret::new("").matches(b""));
    }

    #[test]
    fn digests_are_compared_and_not_the_bytes() {
        // A secret with the digest of another is that other: nothing else is looked at, neither bytes nor length.
        let mixed = Secret { digest: Secret::new("hunter2").digest, bytes: Zeroizing::new(b"x".to_vec()) };
        assert!(mixed.matches(b"hunter2") && !mixed.matches(b"x"));
        assert_eq!(format!("{mixed:?}"), "***");
    }
}
