//! Where events are delivered to: one implementation of [`gitstafette_core::target::Target`] a file.

mod http;
pub(crate) mod print;
mod server;
mod verified;

pub use http::{HttpTarget, HttpTargetError};
pub use print::PrintTarget;
pub use server::{PeerLog, ServerTarget};
pub use verified::VerifiedTarget;
