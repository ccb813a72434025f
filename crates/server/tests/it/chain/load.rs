//! Webhooks of many repositories from several senders at once, and the book of what came of them at the target.

use std::collections::BTreeSet;
use std::sync::Arc;

use gitstafette_core::headers::Headers;
use gitstafette_core::secret::Secret;
use gitstafette_core::verify::GitHubSignature;
use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::station::Order;
use crate::support::{Arrived, SECRET, Sender, TestTarget, soon};

/// How many senders there are at once.
const SENDERS: usize = 6;
/// Over how many repositories each sends: so webhooks of one repository come from several senders.
const REPOSITORIES: usize = 10;

/// Senders at work.
pub struct Load {
    /// What may be sent before more arrived: so there is load as long as the chain works.
    ahead: Arc<Semaphore>,
    sending: JoinSet<()>,
}

/// The payload of a delivery id: whoever knows the id knows the body.
fn payload(delivery_id: &str) -> String {
    let (rest, number) = delivery_id.rsplit_once('-').unwrap();
    let number: usize = number.parse().unwrap();
    let (id, repository) = (number % REPOSITORIES, number % REPOSITORIES);
    let filling = "⚓".repeat((number * 37 + rest.len()) % 700);
    format!(
        r#"{{"text":"{delivery_id} {filling}","repository":{{"id":{id},"full_name":"octo-harbor/r{repository}"}}}}"#
    )
}

impl Load {
    /// Sends so many webhooks to a server, each of which must be stored; `ahead` is how many may be on their way.
    pub fn start(url: &str, prefix: &'static str, events: usize, ahead: usize) -> Self {
        let permits = Arc::new(Semaphore::new(ahead));
        let mut sending = JoinSet::new();
        for sender in 0..SENDERS {
            let (http, permits) = (Sender::to(url.to_owned()), Arc::clone(&permits));
            sending.spawn(async move {
                for number in (sender..events).step_by(SENDERS) {
                    permits.acquire().await.unwrap().forget();
                    let id = format!("{prefix}-{sender}-{number}");
                    assert_eq!(
                        soon(http.send("push", &id, &payload(&id))).await.status(),
                        StatusCode::CREATED,
                        "{id}"
                    );
                }
            });
        }
        Self { ahead: permits, sending }
    }

    /// One more has arrived.
    pub fn arrived(&self) {
        self.ahead.add_permits(1);
    }

    /// Waits until all are sent.
    pub async fn sent(mut self) {
        while let Some(sent) = self.sending.join_next().await {
            sent.unwrap();
        }
    }
}

/// What arrived at a target: everything as it was sent, and once.
pub struct Book {
    signature: GitHubSignature,
    seen: BTreeSet<String>,
    order: Order,
}

impl Book {
    pub fn new() -> Self {
        let signature = GitHubSignature::new(vec![Secret::new(SECRET)]);
        Self { signature, seen: BTreeSet::new(), order: Order::new() }
    }

    /// Waits for the next one and looks at it. An error is the id of one that came before.
    pub async fn next(&mut self, target: &mut TestTarget) -> Result<(), String> {
        let arrived = target.next().await;
        self.note(&arrived)
    }

    fn note(&mut self, arrived: &Arrived) -> Result<(), String> {
        let id = arrived.delivery_id().to_owned();
        assert_eq!(arrived.body, payload(&id).as_bytes(), "{id}");
        let headers: Headers =
            arrived.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec())).collect();
        self.signature.check(&headers, &arrived.body).unwrap();
        if !self.seen.insert(id.clone()) {
            return Err(id);
        }
        let number: usize = id.rsplit_once('-').unwrap().1.parse().unwrap();
        self.order.entry(format!("octo-harbor/r{}", number % REPOSITORIES)).or_default().push(id);
        Ok(())
    }

    /// What arrived, by repository.
    pub fn order(&self) -> &Order {
        &self.order
    }
}
