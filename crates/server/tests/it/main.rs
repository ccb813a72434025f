//! The server with real parts: real sockets on ports that the system chooses, real SQLite files, the real client, real
//! processes that are killed.
#![expect(unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod admin;
mod admission;
mod bounds;
mod chain;
mod client_ids;
mod commands;
mod compat;
mod content;
mod crash;
mod damage;
mod deferral;
mod delivery;
mod examples;
mod fake_server;
mod floods;
mod go_flags;
mod go_wire;
mod hostile;
mod ingest;
mod limits;
mod listening;
mod memory;
mod network;
mod old_server;
mod operators;
mod programs;
mod relay;
mod streams;
mod support;
mod targets;
mod tls;
