//! The client of Gitstafette, a webhook relay: dials out from behind a firewall, subscribes, and replays every webhook
//! byte for byte to local targets.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use gitstafette_client::target::PrintTarget;
//! use gitstafette_client::{Client, ClientOptions, Route, ServerAddress, Subscription};
//! use gitstafette_core::filter::Filter;
//! use tokio_util::sync::CancellationToken;
//!
//! let client = Client::new(ClientOptions {
//!     server: ServerAddress { host: "127.0.0.1".into(), port: 50051, tls: None, token: None },
//!     subscription: Subscription {
//!         filter: Filter { repositories: vec!["octo/*".parse()?], events: vec![] },
//!         ..Subscription::new("example".parse()?)
//!     },
//!     routes: vec![Route::new(Arc::new(PrintTarget::new()))],
//!     stream_window: None,
//! });
//! client.run(CancellationToken::new()).await;
//! # Ok(())
//! # }
//! ```
//!
//! Read on in the order a webhook travels: [`ServerAddress`] (connect), [`Feed`], `session`, [`Route`], `deliveries` with its
//! `window`, `lanes` and `outbox`, `lane`, [`DeliveryPolicy`], `gate`, [`target`]. The operator's commands are in
//! [`operate`]. [`arguments`], [`settings`], [`explain`], [`logging`], [`open_files`], [`shutdown`], [`tls`] and
//! [`allocator`] serve both programs.

mod client;
mod connect;
mod deliveries;
mod feed;
mod gate;
mod lane;
mod lanes;
mod outbox;
mod pending;
mod policy;
mod probes;
mod queue;
mod route;
mod session;
mod state;
mod window;

#[cfg(unix)]
pub mod allocator;
pub mod arguments;
pub mod cli;
pub mod config;
pub mod explain;
pub mod health;
pub mod info;
pub mod logging;
pub mod open_files;
pub mod operate;
pub mod settings;
pub mod shutdown;
pub mod target;
pub mod tls;

pub use client::{Client, ClientOptions};
pub use connect::ServerAddress;
pub use feed::{Feed, LocalFeed, Requests, Responses};
pub use gitstafette_proto::convert::{ExistingCursor, Seen, Start, Subscription};
pub use policy::{DeliveryPolicy, MAX_RETRY_AFTER};
pub use route::Route;
pub use state::{ClientState, TargetState};
