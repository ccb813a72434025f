//! The server of Gitstafette, a webhook relay: takes webhooks over HTTP, checks their signature, drops what is not on
//! its watchlist, stores the rest durably and streams it over gRPC.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use gitstafette_core::store::{MemoryStore, Options};
//! use gitstafette_server::{Server, config};
//! use tokio_util::sync::CancellationToken;
//!
//! // Checked settings, as the binary has them, on loopback without secrets.
//! let settings = config::Config::from_toml("repositories = [\"octo/*\"]\nport = 0\ngrpc-port = 0")?;
//! let store = Arc::new(MemoryStore::new(Options::default()));
//! let server = Server::bind(settings.server, store).await?;
//! println!("webhooks at {}", server.local_addrs().http);
//! server.run(CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Read on in the order a webhook travels: `listen`, `ingest`, `subscribe`, `relay` and `publish` between
//! servers; then `admin`, which looks on. [`app`] puts
//! them together.

/// The target of log lines that anybody may cause, such as those about refused requests. Their rate is bounded
/// (`gitstafette_client::logging`).
const REFUSALS: &str = "gitstafette_server::refusals";

mod admin;
mod answers;
pub mod app;
mod auth;
mod caller;
pub mod cli;
mod compat;
pub mod config;
mod info;
mod ingest;
mod listen;
mod message_memory;
mod metrics;
mod open_files;
mod publish;
mod relay;
mod service;
mod streaming;
mod subscribe;
mod tls;
mod watchlist;
mod whole_number;

pub use app::{Addresses, Listeners, RunError, Server, ServerOptions};
pub use auth::ClientAuth;
pub use ingest::IngestLimits;
pub use listen::{Address, BindError};
pub use relay::{Neighbour, RelayOptions};
pub use subscribe::StreamOptions;
pub use tls::{PlainWebhooks, ServerTls};
