//! Subscriptions: who is attached, and one session per stream.

mod forgetting;
mod message_limits;
mod outbox;
mod registry;
mod send_progress;
mod sending;
mod service;
mod session;
mod taking;
mod traffic;

use std::time::Duration;

use gitstafette_core::subscription::Window;

pub(crate) use message_limits::RequestDecoder;
pub(crate) use registry::{Registry, Standing};
pub(crate) use send_progress::{CHECK, SendProgress};
pub(crate) use service::{Subscriber, Subscriptions, malformed, status};
pub(crate) use traffic::{Share, Traffic};

/// How streams behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// How often a heartbeat goes out. Proxies cut streams that are silent for 60 s.
    pub heartbeat: Duration,
    /// How long one stream lives, for platforms that cut long requests.
    pub window: Option<Duration>,
    /// What one subscription may have unacknowledged at most; a client may ask for less.
    pub unacknowledged: Window,
    /// What all large events on their way to clients may have in bytes; one may exceed it alone. Small ones are bounded
    /// for each client.
    pub outgoing_bytes: u64,
    /// How many client ids the holders of one token may use.
    pub max_client_ids: usize,
    /// How long a client may stay away before its id is forgotten; `None` keeps it.
    pub forget_clients: Option<Duration>,
}
