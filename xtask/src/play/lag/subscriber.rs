//! A subscriber of one repository, over gRPC and a connection of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::Stream;
use gitstafette_core::secret::Secret;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{
    Acknowledgement, Acknowledgements, Event, Outcome, OutcomeResult, SubscribeRequest, SubscribeResponse,
    Subscription,
};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};

use crate::{relay, webhooks};

/// How long a subscriber waits for something that it needs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Acknowledgements go out when there are so many …
const BATCH: usize = 32;
/// … or when nothing came for so long.
const LINGER: Duration = Duration::from_millis(10);
/// What a subscriber that does not read is sent, in bytes: HTTP/2's own initial window (RFC 9113 §6.9.2). hyper's, of
/// megabytes, would hold all that it asked for, and the server would never notice that it sleeps.
pub(crate) const WINDOW: u32 = 65_535;
/// How many messages may wait for the connection.
const REQUESTS: usize = 4;

/// It reads only while [`read_all`](Self::read_all) runs: until then it is asleep.
#[derive(Debug)]
pub(crate) struct Subscriber {
    repository: String,
    requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
    /// The last event that came.
    newest: u64,
    received: u64,
    confirmed: u64,
    /// Events that came and are not acknowledged.
    done: Vec<u64>,
}

impl Subscriber {
    /// Subscribes to a repository, and reads no more than that the subscription stands.
    pub(crate) async fn start(
        server: SocketAddr,
        token: &Secret,
        number: usize,
        repository: usize,
    ) -> anyhow::Result<Self> {
        let subscribed = Self::subscribe(server, token, number, repository);
        tokio::time::timeout(PATIENCE, subscribed).await.context("no subscription in time")?
    }

    async fn subscribe(
        server: SocketAddr,
        token: &Secret,
        number: usize,
        repository: usize,
    ) -> anyhow::Result<Self> {
        let repository = webhooks::repository_name(repository);
        let endpoint = Endpoint::from_shared(format!("http://{server}"))?
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let channel = endpoint.connect().await?;
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let subscription = Subscription {
            client_id: format!("lag-{number}"),
            repositories: vec![repository.clone()],
            ..Subscription::default()
        };
        requests.try_send(SubscribeRequest { request: Some(Wire::Subscription(subscription)) })?;
        let mut request = Request::new(stream(receiver));
        let bearer = format!("Bearer {}", relay::text(token)).parse()?;
        request.metadata_mut().insert("authorization", bearer);
        let mut responses = GitstafetteClient::new(channel).subscribe(request).await?.into_inner();
        let first = responses.message().await?.and_then(|message| message.response);
        ensure!(matches!(first, Some(Response::Started(_))), "{first:?} came instead of the start");
        Ok(Self { repository, requests, responses, newest: 0, received: 0, confirmed: 0, done: Vec::new() })
    }

    /// Reads and acknowledges until `expected` events have come and all acknowledgements are confirmed.
    pub(crate) async fn read_all(mut self, expected: u64) -> anyhow::Result<Self> {
        let mut progress = Instant::now();
        while self.confirmed < expected {
            let wait = if self.done.is_empty() { PATIENCE } else { LINGER };
            match tokio::time::timeout(wait, self.responses.message()).await {
                Ok(message) => {
                    let message = message?.context("the server ended a stream")?;
                    if self.take(message)? {
                        progress = Instant::now();
                    }
                    if self.done.len() >= BATCH {
                        self.acknowledge().await?;
                    }
                }
                Err(_) => self.acknowledge().await?,
            }
            // Heartbeats come meanwhile: they are no progress.
            if progress.elapsed() > PATIENCE {
                let (received, confirmed) = (self.received, self.confirmed);
                bail!(
                    "of {expected} events a subscriber got {received}, {confirmed} confirmed, and then none"
                );
            }
        }
        ensure!(self.received == expected, "{} events came instead of {expected}", self.received);
        Ok(self)
    }

    /// Takes one message. Whether it brought what is waited for.
    fn take(&mut self, message: SubscribeResponse) -> anyhow::Result<bool> {
        match message.response {
            Some(Response::Event(event)) => {
                self.check(&event)?;
                self.newest = event.sequence;
                self.received += 1;
                self.done.push(event.sequence);
            }
            Some(Response::Receipt(receipt)) => self.confirmed += receipt.sequences.len() as u64,
            Some(Response::GoAway(go_away)) => bail!("the server ends a stream: {}", go_away.message),
            Some(Response::Heartbeat(_) | Response::Started(_)) | None => return Ok(false),
        }
        Ok(true)
    }

    /// Each event comes once and in order, and no other repository's.
    fn check(&self, event: &Event) -> anyhow::Result<()> {
        ensure!(event.sequence > self.newest, "{} came after {}", event.sequence, self.newest);
        let name = event.repository_name.as_deref();
        ensure!(name == Some(&self.repository), "an event of {name:?} came for {}", self.repository);
        Ok(())
    }

    async fn acknowledge(&mut self) -> anyhow::Result<()> {
        let outcome = Outcome {
            target: "lag".into(),
            result: OutcomeResult::Delivered.into(),
            attempts: 1,
            ..Outcome::default()
        };
        let acknowledgements = self
            .done
            .drain(..)
            .map(|sequence| Acknowledgement { sequence, outcomes: vec![outcome.clone()] })
            .collect();
        let request = Some(Wire::Acknowledgements(Acknowledgements { acknowledgements }));
        let sent = tokio::time::timeout(PATIENCE, self.requests.send(SubscribeRequest { request })).await;
        sent.context("the server takes no acknowledgements")?.context("the server ended a stream")
    }
}

fn stream(mut receiver: mpsc::Receiver<SubscribeRequest>) -> impl Stream<Item = SubscribeRequest> {
    futures_util::stream::poll_fn(move |context| receiver.poll_recv(context))
}
