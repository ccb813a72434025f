//! GitHub's scheme: `X-Hub-Signature-256: sha256=<hex>`, an HMAC-SHA256 of the raw body under the hook's secret.
//!
//! Source: GitHub Docs, "Validating webhook deliveries". The body is signed as sent: a form delivery's urlencoded
//! text, not the JSON in it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::SignatureError;
use crate::headers::Headers;
use crate::secret::Secret;

const HEADER: &str = "x-hub-signature-256";
const PREFIX: &str = "sha256=";
const FORM: &str = "sha256= followed by 64 lower-case hexadecimal digits";

/// Verifies GitHub's signature under any of several secrets, so that a secret can be changed while both are in use.
#[derive(Clone, Debug)]
pub struct GitHubSignature {
    secrets: Vec<Secret>,
}

impl GitHubSignature {
    /// A verifier for these secrets; with none, nothing verifies.
    pub fn new(secrets: Vec<Secret>) -> Self {
        Self { secrets }
    }

    /// Whether the request carries a signature of the right form: all that can be said before its body has come.
    ///
    /// # Errors
    /// [`SignatureError::Header`] or [`SignatureError::Malformed`].
    pub fn precheck(&self, headers: &Headers) -> Result<(), SignatureError> {
        signature(headers).map(drop)
    }

    /// Whether the signature in `headers` is one of `body`. The comparison takes constant time, and every secret
    /// is tried whichever matches.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn check(&self, headers: &Headers, body: &[u8]) -> Result<(), SignatureError> {
        let signature = signature(headers)?;
        let mut matched = false;
        for secret in &self.secrets {
            matched |= mac(secret, body).verify_slice(&signature).is_ok();
        }
        if matched { Ok(()) } else { Err(SignatureError::Wrong { header: HEADER }) }
    }

    /// The header's value that GitHub would send for `body` under `secret`.
    pub fn sign(secret: &Secret, body: &[u8]) -> String {
        format!("{PREFIX}{}", hex::encode(mac(secret, body).finalize().into_bytes()))
    }
}

fn mac(secret: &Secret, body: &[u8]) -> Hmac<Sha256> {
    let mac =
        Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes a key of any length (RFC 2104)");
    mac.chain_update(body)
}

fn signature(headers: &Headers) -> Result<[u8; 32], SignatureError> {
    let malformed = SignatureError::Malformed { header: HEADER, form: FORM };
    let digits = headers.single(HEADER)?.strip_prefix(PREFIX).ok_or(malformed)?;
    // Receivers compare the text, not the number: what passes here must pass there, so upper case is refused.
    if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(malformed);
    }
    let mut signature = [0; 32];
    hex::decode_to_slice(digits, &mut signature).map_err(|_| malformed)?;
    Ok(signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::HeaderError;

    // GitHub Docs, "Validating webhook deliveries": testing the webhook payload validation.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn check(secrets: &[&str], signature: Option<&[u8]>, body: &[u8]) -> Result<(), SignatureError> {
        let headers = signature.into_iter().map(|value| (HEADER, value.to_vec())).collect();
        GitHubSignature::new(secrets.iter().map(|secret| Secret::new(*secret)).collect())
            .check(&headers, body)
    }

    #[test]
    fn githubs_own_vector() {
        assert_eq!(GitHubSignature::sign(&Secret::new(SECRET), BODY), SIGNATURE);
        assert_eq!(check(&[SECRET], Some(SIGNATURE.as_bytes()), BODY), Ok(()));
    }

    #[test]
    fn any_of_several_secrets() {
        assert_eq!(check(&["old", SECRET], Some(SIGNATURE.as_bytes()), BODY), Ok(()));
        assert_eq!(check(&[SECRET, "new"], Some(SIGNATURE.as_bytes()), BODY), Ok(()));
        let wrong = Err(SignatureError::Wrong { header: HEADER });
        assert_eq!(check(&["old", "new"], Some(SIGNATURE.as_bytes()), BODY), wrong);
        assert_eq!(check(&[], Some(SIGNATURE.as_bytes()), BODY), wrong);
    }

    #[test]
    fn one_byte_off() {
        let wrong = Err(SignatureError::Wrong { header: HEADER });
        assert_eq!(check(&[SECRET], Some(SIGNATURE.as_bytes()), b"Hello, World?"), wrong);
        assert_eq!(check(&[SECRET], Some(SIGNATURE.replace("757", "758").as_bytes()), BODY), wrong);
    }

    #[test]
    fn missing_empty_repeated_malformed() {
        assert_eq!(check(&[SECRET], None, BODY), Err(HeaderError::Missing(HEADER).into()));
        assert_eq!(check(&[SECRET], Some(b""), BODY), Err(HeaderError::Empty(HEADER).into()));
        assert_eq!(check(&[SECRET], Some(b"sha256=\xff"), BODY), Err(HeaderError::NotText(HEADER).into()));
        let upper = SIGNATURE.to_uppercase().replace("SHA256", "sha256");
        let long = format!("{SIGNATURE}00");
        for malformed in ["sha256=", "sha256=7571", "sha1=01dc10", &SIGNATURE[7..], &upper, &long] {
            assert_eq!(
                check(&[SECRET], Some(malformed.as_bytes()), BODY),
                Err(SignatureError::Malformed { header: HEADER, form: FORM }),
                "{malformed}"
            );
        }
        let twice: Headers = [(HEADER, SIGNATURE), (HEADER, SIGNATURE)].into_iter().collect();
        assert_eq!(
            GitHubSignature::new(vec![Secret::new(SECRET)]).check(&twice, BODY),
            Err(HeaderError::Repeated(HEADER).into())
        );
    }
}
