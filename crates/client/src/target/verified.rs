//! A target behind a check: only webhooks whose signature holds get there.

use std::sync::Arc;

use async_trait::async_trait;
use gitstafette_core::event::Event;
use gitstafette_core::target::{Attempt, Target, Verdict};
use gitstafette_core::verify::{GitHubSignature, INLINE_BYTES, SignatureError};

/// Checks each webhook's signature before the target gets it: for whoever trusts the sender and not all between it and
/// here. What does not hold is refused for good and not sent.
#[derive(Debug)]
pub struct VerifiedTarget {
    target: Arc<dyn Target>,
    signature: GitHubSignature,
}

impl VerifiedTarget {
    /// `target`, behind a check of `signature`.
    pub fn new(target: Arc<dyn Target>, signature: GitHubSignature) -> Self {
        Self { target, signature }
    }

    async fn check(&self, event: &Event) -> Result<Result<(), SignatureError>, tokio::task::JoinError> {
        if event.webhook.body.len() <= INLINE_BYTES {
            return Ok(self.signature.check(&event.webhook.headers, &event.webhook.body));
        }
        let signature = self.signature.clone();
        let (headers, body) = (event.webhook.headers.clone(), event.webhook.body.clone());
        tokio::task::spawn_blocking(move || signature.check(&headers, &body)).await
    }
}

#[async_trait]
impl Target for VerifiedTarget {
    fn name(&self) -> &str {
        self.target.name()
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        match self.check(event).await {
            Ok(Ok(())) => self.target.attempt(event).await,
            Ok(Err(error)) => {
                let detail = format!("the client's own check of the signature, nothing was sent: {error}");
                Attempt { verdict: Verdict::Final, code: None, detail }
            }
            Err(error) => {
                let detail = format!("the signature could not be checked, nothing was sent: {error}");
                Attempt { verdict: Verdict::Retry(None), code: None, detail }
            }
        }
    }

    async fn is_reachable(&self) -> bool {
        self.target.is_reachable().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::event::{Address, Sequence};
    use gitstafette_core::headers::Headers;
    use gitstafette_core::secret::Secret;
    use gitstafette_core::testing;
    use tokio::sync::Mutex;

    /// Records the deliveries it gets, and cannot be reached.
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<Event>>);

    #[async_trait]
    impl Target for Recorder {
        fn name(&self) -> &str {
            "recorder"
        }

        async fn attempt(&self, event: &Event) -> Attempt {
            self.0.lock().await.push(event.clone());
            Attempt { verdict: Verdict::Delivered, code: Some(200), detail: "recorded".into() }
        }

        async fn is_reachable(&self) -> bool {
            false
        }
    }

    fn event(body: Vec<u8>, secret: Option<&str>) -> Event {
        let mut webhook = testing::webhook(1, "octo/hello", 0);
        webhook.body = body.into();
        let signature = secret.map(|secret| GitHubSignature::sign(&Secret::new(secret), &webhook.body));
        webhook.headers =
            signature.into_iter().map(|value| ("x-hub-signature-256", value)).collect::<Headers>();
        Event { sequence: Sequence::new(1), redelivery: false, address: Address::default(), webhook }
    }

    #[tokio::test]
    async fn only_what_holds_gets_there() {
        let recorder = Arc::new(Recorder::default());
        let secrets = ["old", "new"].map(Secret::new).into();
        let target =
            VerifiedTarget::new(Arc::clone(&recorder) as Arc<dyn Target>, GitHubSignature::new(secrets));
        assert_eq!(target.name(), "recorder");
        assert!(!target.is_reachable().await);
        for secret in ["old", "new"] {
            for size in [2, INLINE_BYTES + 1] {
                let attempt = target.attempt(&event(vec![b'x'; size], Some(secret))).await;
                assert_eq!((attempt.verdict, attempt.code), (Verdict::Delivered, Some(200)));
            }
        }
        assert_eq!(recorder.0.lock().await.len(), 4);
        for (size, secret) in [(2, Some("other")), (2, None), (INLINE_BYTES + 1, Some("other"))] {
            let attempt = target.attempt(&event(vec![b'x'; size], secret)).await;
            assert_eq!((attempt.verdict, attempt.code), (Verdict::Final, None));
            assert!(attempt.detail.contains("nothing was sent"), "{}", attempt.detail);
            assert!(attempt.detail.contains("x-hub-signature-256"), "{}", attempt.detail);
        }
        assert_eq!(recorder.0.lock().await.len(), 4);
    }
}
