//! The client of Gitstafette, a webhook relay: dials out from behind a firewall, subscribes, and replays every webhook
//! byte for byte to local targets.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{sync::Arc, time::Duration};
//! use gitstafette_client::target::PrintTarget;
//! use gitstafette_client::{Client, ClientOptions, RetryPolicy, Route, ServerAddress, Subscription};
//! use gitstafette_core::{backoff::Backoff, filter::Filter};
//! use tokio_util::sync::CancellationToken;
//!
//! let client = Client::new(ClientOptions {
//!     server: ServerAddress { host: "127.0.0.1".into(), port: 50051, tls: None, token: None },
//!     subscription: Subscription {
//!         filter: Filter { repositories: vec!["octo/*".parse()?], events: vec![] },
//!         ..Subscription::new("example".parse()?)
//!     },
//!     routes: vec![Route::new(Arc::new(PrintTarget::new()))],
//!     retry: RetryPolicy {
//!         backoff: Backoff { first: Duration::from_millis(500), most: Duration::from_secs(60) },
//!         give_up_after: Duration::from_secs(24 * 3600),
//!     },
//! });
//! client.run(CancellationToken::new()).await;
//! # Ok(())
//! # }
//! ```
//!
//! Read on in the order a webhook travels: [`ServerAddress`] (connect), `session`, [`Route`], `deliveries`, `lane`,
//! [`target`]. The operator's commands are in [`operate`]. [`settings`], [`logging`], [`shutdown`] and [`tls`] serve both
//! programs.

mod client;
mod connect;
mod deliveries;
mod lane;
mod route;
mod session;

pub mod cli;
pub mod config;
pub mod health;
pub mod logging;
pub mod operate;
pub mod settings;
pub mod shutdown;
pub mod target;
pub mod tls;

pub use client::{Client, ClientOptions, ClientState};
pub use connect::ServerAddress;
pub use gitstafette_proto::convert::{ExistingCursor, Start, Subscription};
pub use lane::RetryPolicy;
pub use route::Route;
