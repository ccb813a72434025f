//! Whether a webhook was sent by whom it claims: signatures over the raw bytes, one scheme a file.

mod github;

pub use github::GitHubSignature;

use bytes::Bytes;

use crate::headers::{HeaderError, Headers};

/// Above this size, in bytes, a body is better verified on a thread of its own: 1 MiB takes some milliseconds, during which
/// nothing else would move on an asynchronous thread.
pub const INLINE_BYTES: usize = 256 << 10;

/// A request as it was received: nothing in it may be believed.
#[derive(Clone, Debug)]
pub struct Unverified {
    /// Every end-to-end header field.
    pub headers: Headers,
    /// The raw body.
    pub body: Bytes,
}

/// A request whose signature is right, or whose signature nobody asked for.
#[derive(Clone, Debug)]
pub struct Verified(Unverified);

impl Unverified {
    /// Checks the signature.
    ///
    /// # Errors
    /// [`SignatureError`]: it is missing, malformed or wrong.
    pub fn verify(self, signature: &GitHubSignature) -> Result<Verified, SignatureError> {
        signature.check(&self.headers, &self.body)?;
        Ok(Verified(self))
    }

    /// Goes without: the operator allowed unsigned webhooks.
    pub fn waive(self) -> Verified {
        Verified(self)
    }
}

impl Verified {
    /// Its header fields.
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// The request.
    pub fn into_inner(self) -> Unverified {
        self.0
    }
}

/// Why a signature does not hold. The sender's fault; sending the same again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The header that carries it is not usable.
    #[error("{0}; set the hook's secret at the sender")]
    Header(#[from] HeaderError),
    /// The header does not have the scheme's form.
    #[error("the header {header} is not {form}")]
    Malformed {
        /// The header's name.
        header: &'static str,
        /// What it should look like.
        form: &'static str,
    },
    /// No secret gives this signature.
    #[error("the signature in {header} does not match the body; the hook's secret and the receiver's differ")]
    Wrong {
        /// The header's name.
        header: &'static str,
    },
}
