//! The target of a relay that pulls: this server's own store.

use std::sync::Arc;

use async_trait::async_trait;
use gitstafette_core::event::Event;
use gitstafette_core::target::{Attempt, Target, Verdict};

use super::intake::{Intake, Taken};
use crate::auth::Publisher;

/// Appends what is drawn from another server.
#[derive(Debug)]
pub(super) struct StoreTarget {
    pub(super) intake: Arc<Intake>,
}

#[async_trait]
impl Target for StoreTarget {
    fn name(&self) -> &str {
        "store"
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let (verdict, detail) = match self.intake.take(event.clone(), Publisher::Believed).await {
            Ok(Taken::Stored(sequence)) => (Verdict::Delivered, format!("stored as {sequence}")),
            Ok(Taken::Repeat(sequence)) => (Verdict::Delivered, format!("was there as {sequence}")),
            Ok(Taken::Unwanted(unwanted)) => (Verdict::Unwanted, unwanted.to_string()),
            Ok(Taken::TooLarge { limit }) => {
                (Verdict::Final, format!("the body is larger than {limit} bytes, which --body-limit sets"))
            }
            Ok(Taken::TooLargeToSend(error)) => (Verdict::Final, error.to_string()),
            Ok(Taken::Unreadable(error)) => (Verdict::Final, error.to_string()),
            // A disk that is full or slow takes it later.
            Err(error) => (Verdict::Retry(None), error.to_string()),
        };
        Attempt { verdict, code: None, detail }
    }
}
