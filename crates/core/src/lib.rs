//! The core of Gitstafette, a webhook relay: what an event is, whether it may be believed, where it is kept and who
//! wants it. It knows no wire: neither HTTP nor gRPC.
//!
//! # The way of one webhook
//!
//! ```text
//! headers + body ─ verify ─ classify ─ Watchlist::admits ─ EventStore::append ─ sequence
//!                                                              │ head
//!                       Filter::matches ◄─ EventStore::read(after cursor)
//!                             │
//!                       Flow (window, cursor) ─ Target::attempt ─ Outcome ─ EventStore::acknowledge
//! ```
//!
//! Read on in that order: [`event`], [`headers`], [`hop`], [`repository`], [`verify`], [`classify`], [`store`], [`filter`],
//! [`subscription`], [`target`], [`outcomes`].

pub mod backoff;
pub mod classify;
pub mod event;
pub mod filter;
pub mod headers;
pub mod hop;
pub mod outcomes;
pub mod ranges;
pub mod repository;
pub mod secret;
pub mod store;
pub mod subscription;
pub mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod verify;
