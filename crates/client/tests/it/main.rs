//! The client's program: real processes, real sockets.
#![expect(clippy::unwrap_used, reason = "tests")]

mod exit_codes;
mod go_flags;
