//! Which client ids a store knows, whose they are, and how many of them one owner may have.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::StoreId;

/// The owner of client ids, as the server recognises it by its token. Without a bound on them, a caller could make the
/// store grow with names that it makes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Identifies the owner. It must not reveal the token.
    pub label: String,
    /// How many client ids it may have.
    pub max_ids: usize,
    /// The labels of all owners that the server knows now. The client ids of any other owner pass to the first owner that uses
    /// them: the token of that owner was replaced.
    pub current: Arc<[String]>,
}

impl Owner {
    /// The label of a token's holder: four bytes of a hash of the token, salted with the store. They are enough to tell a
    /// handful of tokens apart, and too little to learn one from it.
    pub fn label_of_token(token: &[u8], store: StoreId) -> String {
        let salted = Sha256::new_with_prefix(store.get().to_be_bytes()).chain_update(token).finalize();
        format!("token-{}", hex::encode(&salted[..4]))
    }

    /// Whether a client id of the owner with this label passes to this owner: it has none, or the server does not know it any
    /// more.
    pub(super) fn inherits_from(&self, label: Option<&str>) -> bool {
        label.is_none_or(|label| label == self.label || !self.current.iter().any(|known| known == label))
    }
}

/// Whether a client was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// The store knows the client now, or knew it before.
    Registered,
    /// The client is new, and its owner has as many client ids as it may have.
    LimitReached,
    /// The client belongs to another owner.
    OwnedByAnother,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_tokens_are_told_apart() {
        let owner = |token: &str, store| Owner::label_of_token(token.as_bytes(), StoreId::new(store));
        assert_eq!(owner("one", 1), owner("one", 1));
        assert_ne!(owner("one", 1), owner("two", 1));
        assert_ne!(owner("one", 1), owner("one", 2), "a hash is of use in its store only");
        assert_eq!(owner("one", 1).len(), "token-00000000".len());
    }
}
