//! Relaying: this server hands its events on to others (push), and draws events from others (pull).
//!
//! A relay is a client, with its retries, order and memory bounds. One that pushes subscribes to this server's own log
//! like any client, under the id `relay.push.NAME`, and its target is the other server: an outcome is stored when the
//! event is durable there. One that pulls subscribes to the other server, and its target is this server's store. So a
//! neighbour that is dead costs a cursor, and its events wait on the disk like those of any client that is away.

mod config;
mod draw;
mod intake;
mod pulling;
mod pushing;
mod state;

use std::sync::Arc;

use gitstafette_client::config::Place;
use gitstafette_client::target::ServerTarget;
use gitstafette_client::{
    Client, ClientState, DeliveryPolicy, Feed, LocalFeed, Route, ServerAddress, Start, Subscription,
};
use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::store::{EventStore, StoreError};
use gitstafette_core::target::Target;
use gitstafette_proto::convert::{RelayDirection, RelayState};
use gitstafette_proto::info::{RelayInfo, ServerInfo};
use serde::{Serialize, Serializer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{Instrument, Span, info_span};

use crate::metrics::lag;
use crate::subscribe::{Subscriber, Subscriptions};
use draw::StoreTarget;
use pushing::Pushing;

pub(crate) use config::relays as configured;
pub(crate) use intake::{Intake, Taken};

/// How the ids begin under which relays subscribe to their own server's log. No other client may have such a one.
pub(crate) const RELAY_CLIENTS: &str = "relay.push.";

/// A relay as it is configured.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// Its name, among those of its direction.
    pub name: String,
    /// The other server, and which way events go.
    pub neighbour: Neighbour,
    /// What is handed on, from where, and under which client id: of this server's log, or of the other's.
    pub subscription: Subscription,
    /// How often and how long to try.
    pub policy: DeliveryPolicy,
}

impl RelayOptions {
    /// Whether it draws under an id that was made of this name for its server.
    pub(crate) fn is_pull_under(&self, name: &str) -> bool {
        matches!(self.neighbour, Neighbour::PullFrom(_))
            && self.subscription.client_id.as_str() == config::pull_id(name, &self.name)
    }
}

/// The other server of a relay.
#[derive(Clone, Debug)]
pub enum Neighbour {
    /// Events go there.
    PushTo {
        /// The other server, or an HTTP endpoint.
        target: Arc<dyn Target>,
        /// The same if it is another Gitstafette server, whose store the relay keeps account of.
        server: Option<Arc<ServerTarget>>,
        /// Where it is, for people.
        place: Place,
    },
    /// Events come from there.
    PullFrom(ServerAddress),
}

/// All relays of a server, to look at.
#[derive(Debug)]
pub(crate) struct Relays {
    store: Arc<dyn EventStore>,
    relays: Vec<Relay>,
}

#[derive(Debug)]
struct Relay {
    name: String,
    direction: RelayDirection,
    place: Place,
    client_id: ClientId,
    filter: Filter,
    state: watch::Receiver<ClientState>,
}

/// A relay's client before it runs.
#[derive(Debug)]
pub(crate) struct Relaying {
    client: Client,
    store: Arc<dyn EventStore>,
    /// Its label, which its state is stored under.
    label: String,
    direction: RelayDirection,
    start: Start,
    /// The receiver, if it pushes to another Gitstafette server.
    server: Option<Arc<ServerTarget>>,
    span: Span,
}

impl Relaying {
    /// Relays until `stop` is cancelled; then tries under way are finished.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { client, store, label: relay, direction, start, server, span } = self;
        let running = async {
            match (direction, server) {
                (RelayDirection::Pull, _) => pulling::run(client, store, &relay, start, stop).await,
                (RelayDirection::Push, Some(server)) => {
                    Pushing { client, server, store, relay, start }.run(stop).await;
                }
                (RelayDirection::Push, None) => client.run(stop).await,
            }
        };
        running.instrument(span).await;
    }
}

impl Relays {
    /// The relays, and their clients, which do nothing until they run.
    pub(crate) fn new(
        options: &[RelayOptions],
        subscriptions: &Arc<Subscriptions>,
        intake: &Arc<Intake>,
    ) -> (Self, Vec<Relaying>) {
        let (mut relays, mut relaying) = (Vec::new(), Vec::new());
        for RelayOptions { name, neighbour, subscription, policy } in options {
            let (direction, place, feed, target): (_, _, _, Arc<dyn Target>) = match neighbour {
                Neighbour::PushTo { target, place, .. } => {
                    let feed = Feed::Local(own_log(Arc::clone(subscriptions), place.to_string()));
                    (RelayDirection::Push, place.clone(), feed, Arc::clone(target))
                }
                Neighbour::PullFrom(server) => {
                    let target = StoreTarget { intake: Arc::clone(intake) };
                    let place = Place::of_server(server);
                    (RelayDirection::Pull, place, Feed::Server(server.clone()), Arc::new(target))
                }
            };
            let route = Route { policy: *policy, ..Route::new(target) };
            let client = Client::of(feed, subscription.clone(), vec![route]);
            let relay = Relay {
                name: name.clone(),
                direction,
                place,
                client_id: subscription.client_id.clone(),
                filter: subscription.filter.clone(),
                state: client.state(),
            };
            let span = info_span!("relay", relay.name = relay.label());
            let server = match neighbour {
                Neighbour::PushTo { server, .. } => server.clone(),
                Neighbour::PullFrom(_) => None,
            };
            relaying.push(Relaying {
                client,
                store: Arc::clone(&intake.store),
                label: relay.label(),
                direction,
                start: subscription.start,
                server,
                span,
            });
            relays.push(relay);
        }
        relays.sort_by(|one, other| (one.direction, &one.name).cmp(&(other.direction, &other.name)));
        (Self { store: Arc::clone(&intake.store), relays }, relaying)
    }

    /// The client ids under which relays subscribe to this server's own log.
    pub(crate) fn own_client_ids(&self) -> Vec<ClientId> {
        let push = self.relays.iter().filter(|relay| relay.direction == RelayDirection::Push);
        push.map(|relay| relay.client_id.clone()).collect()
    }

    /// How all are doing.
    ///
    /// # Errors
    /// The store cannot say how far they have come.
    pub(crate) async fn states(&self) -> Result<Vec<RelayState>, StoreError> {
        let statistics = self.store.statistics().await?;
        let mut states = Vec::with_capacity(self.relays.len());
        for relay in &self.relays {
            let lag = match relay.direction {
                RelayDirection::Push => {
                    let progress = self.store.progress(&relay.client_id).await?;
                    lag(progress.map_or(Sequence::ZERO, |progress| progress.cursor), &statistics)
                }
                RelayDirection::Pull => relay.lag_there(),
            };
            states.push(relay.state(lag));
        }
        Ok(states)
    }

    /// What `GetInfo` tells: the server that the Go implementation's answer has room for, and all.
    pub(crate) async fn infos(&self) -> Result<(Option<ServerInfo>, Vec<RelayInfo>), StoreError> {
        let states = self.states().await?;
        let infos = self.relays.iter().zip(states).map(|(relay, state)| RelayInfo {
            name: relay.label(),
            server: Some(relay.info()),
            is_connected: state.connected,
            lag: state.lag,
        });
        let first = self.relays.iter().find(|relay| relay.direction == RelayDirection::Push);
        Ok((first.map(Relay::info), infos.collect()))
    }

    /// Whether each works, for `GET /readyz`.
    pub(crate) fn are_connected(&self) -> Connected<'_> {
        Connected(self)
    }

    /// Tells the health service of each relay, under its label, whenever that changes.
    pub(crate) fn report_health(
        &self,
        reporter: &HealthReporter,
    ) -> Vec<impl Future<Output = ()> + Send + use<>> {
        let report = |relay: &Relay| {
            let (label, mut state, reporter) = (relay.label(), relay.state.clone(), reporter.clone());
            async move {
                loop {
                    let is_connected = is_connected(&state.borrow_and_update());
                    let status =
                        if is_connected { ServingStatus::Serving } else { ServingStatus::NotServing };
                    reporter.set_service_status(&label, status).await;
                    let changed = state.wait_for(|state| is_connected != self::is_connected(state)).await;
                    if changed.is_err() {
                        return;
                    }
                }
            }
        };
        self.relays.iter().map(report).collect()
    }
}

/// The relays by their labels, each `connected` or `disconnected`.
#[derive(Debug)]
pub(crate) struct Connected<'a>(&'a Relays);

impl Connected<'_> {
    /// Whether there is no relay at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.relays.is_empty()
    }
}

impl Serialize for Connected<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.relays.iter().map(|relay| {
            let is_connected = is_connected(&relay.state.borrow());
            (relay.label(), if is_connected { "connected" } else { "disconnected" })
        }))
    }
}

impl Relay {
    /// `push.site`, `pull.edge`.
    fn label(&self) -> String {
        format!("{}.{}", self.direction.as_str(), self.name)
    }

    /// How far the other server's log is ahead. Between two heartbeats what came tells how far it goes, and if nothing waits,
    /// all that came is done.
    fn lag_there(&self) -> u64 {
        let state = self.state.borrow();
        let done = if state.waiting == 0 { state.cursor.max(state.received) } else { state.cursor };
        state.head.max(state.received).get().saturating_sub(done.get())
    }

    fn state(&self, lag: u64) -> RelayState {
        let state = self.state.borrow();
        let connected = is_connected(&state);
        RelayState {
            name: self.name.clone(),
            direction: self.direction,
            address: self.place.to_string(),
            client_id: self.client_id.clone(),
            connected,
            lag,
            relayed: state.delivered,
            unwanted: state.filtered,
            dead_letters: state.dead_letters,
            missed: state.missed,
            last_error: last_error(&state).map(str::to_owned),
        }
    }

    fn info(&self) -> ServerInfo {
        let patterns: Vec<_> = self.filter.repositories.iter().map(ToString::to_string).collect();
        ServerInfo {
            hostname: self.place.host.clone(),
            ip: String::new(),
            port: self.place.port.to_string(),
            protocol: self.place.protocol.as_str().to_owned(),
            repositories: Some(patterns.join(",")).filter(|patterns| !patterns.is_empty()),
        }
    }
}

/// Whether the subscription stands, and the other end takes what comes.
fn is_connected(state: &ClientState) -> bool {
    state.subscribed && !state.targets.iter().any(|target| target.failing)
}

/// What is wrong now: with the stream while none stands, else with the other end while it does not take what comes.
fn last_error(state: &ClientState) -> Option<&str> {
    if !state.subscribed {
        return state.last_error.as_deref();
    }
    let failing = state.targets.iter().find(|target| target.failing)?;
    failing.last_error.as_deref()
}

/// This server's log, as a relay to `to` subscribes to it.
fn own_log(subscriptions: Arc<Subscriptions>, to: String) -> LocalFeed {
    LocalFeed::new(move |requests| {
        let (subscriptions, to) = (Arc::clone(&subscriptions), to.clone());
        Box::pin(async move { subscriptions.subscribe(Subscriber::relay(to), requests).await })
    })
}

#[cfg(test)]
mod tests {
    use gitstafette_client::TargetState;

    use super::*;

    #[test]
    fn the_error_is_the_one_that_stops_it_now() {
        let target = TargetState {
            name: "store".into(),
            failing: true,
            last_error: Some("the disk is full".into()),
            last_outcome: None,
            last_outcome_at: None,
        };
        let refused = Some("wrong token".to_owned());
        let mut state = ClientState { targets: vec![target], last_error: refused, ..ClientState::default() };
        assert_eq!(last_error(&state), Some("wrong token"), "nothing comes that the disk could not take");
        (state.subscribed, state.last_error) = (true, None);
        assert_eq!(last_error(&state), Some("the disk is full"));
        state.targets[0].failing = false;
        assert_eq!(last_error(&state), None, "it was long ago");
    }
}
