//! How a relay is doing, as an operator is told.

use gitstafette_core::event::ClientId;
use serde::Serialize;

use super::{WireError, parse};
use crate::v1;

/// Which way events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayDirection {
    /// From this server to the other.
    Push,
    /// From the other server to this one.
    Pull,
}

impl RelayDirection {
    /// The word for configurations, listings and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
        }
    }
}

/// How a relay is doing. The counters start with the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayState {
    /// Its name in the configuration.
    pub name: String,
    /// Which way events go.
    pub direction: RelayDirection,
    /// The other server, as a URL without path.
    pub address: String,
    /// Under which client id it subscribes: here if it pushes, there if it pulls.
    pub client_id: ClientId,
    /// Whether it works: its subscription stands, and what it hands on is taken.
    pub connected: bool,
    /// How many events of the log it draws from lie beyond its cursor, wanted by it or not.
    pub lag: u64,
    /// Events that were handed on, or drawn.
    pub relayed: u64,
    /// Events that the receiving server did not want.
    pub unwanted: u64,
    /// Events that were given up.
    pub dead_letters: u64,
    /// Events, at most, that retention removed before they were handed on.
    pub missed: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

impl From<&RelayState> for v1::Relay {
    fn from(state: &RelayState) -> Self {
        let direction = match state.direction {
            RelayDirection::Push => v1::RelayDirection::Push,
            RelayDirection::Pull => v1::RelayDirection::Pull,
        };
        Self {
            name: state.name.clone(),
            direction: direction.into(),
            address: state.address.clone(),
            client_id: state.client_id.to_string(),
            is_connected: state.connected,
            lag: state.lag,
            relayed: state.relayed,
            unwanted: state.unwanted,
            dead_letters: state.dead_letters,
            missed: state.missed,
            last_error: state.last_error.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Relay> for RelayState {
    type Error = WireError;

    fn try_from(wire: v1::Relay) -> Result<Self, WireError> {
        Ok(Self {
            direction: match wire.direction() {
                v1::RelayDirection::Push => RelayDirection::Push,
                v1::RelayDirection::Pull => RelayDirection::Pull,
                v1::RelayDirection::Unspecified => {
                    return Err(WireError::new("direction", "a relay pushes or pulls"));
                }
            },
            client_id: parse("client_id", &wire.client_id)?,
            name: wire.name,
            address: wire.address,
            connected: wire.is_connected,
            lag: wire.lag,
            relayed: wire.relayed,
            unwanted: wire.unwanted,
            dead_letters: wire.dead_letters,
            missed: wire.missed,
            last_error: Some(wire.last_error).filter(|error| !error.is_empty()),
        })
    }
}
