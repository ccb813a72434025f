//! Attacks with raw HTTP on a server process with its default limits.
//!
//! Each test attacks a server while webhooks arrive. The server must answer all of them, nearly all within a second. It must use
//! less than 100 MiB, and give back what the attack took.

mod attacker;
mod operators;
mod server;
mod subscribers;
mod without_token;
