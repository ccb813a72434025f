//! A secret that cannot be printed, compared carelessly or left behind in freed memory.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A shared secret: a webhook's HMAC key or a client's bearer token.
///
/// `Debug` prints `***`, there is no `Display`, comparison takes constant time for equal lengths, and the memory
/// is wiped when the value is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the secret's bytes. Surrounding white space counts: trim a file's last line before.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes, for the one place that computes with them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether `other` is this secret, in time that does not depend on where they differ.
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
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
    }
}
