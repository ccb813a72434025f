//! Gitstafette itself, started as a user would: the server and a client of it, on free ports of loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use gitstafette_core::secret::Secret;
use serde_json::Value;

use crate::process::Process;

/// Where the server takes webhooks.
pub(crate) const PATH: &str = "/v1/github/";
/// The owner of all samples.
pub(crate) const WATCHLIST: &str = "octo-harbor/*";

/// Where the programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) server: PathBuf,
    pub(crate) client: PathBuf,
}

/// What both programs and the sender share.
#[derive(Debug)]
pub(crate) struct Secrets {
    /// Of the webhooks.
    pub(crate) webhook: Secret,
    /// Of the client.
    pub(crate) token: Secret,
}

impl Secrets {
    /// New ones. They protect a server on loopback for some minutes: they need not be hard to guess.
    pub(crate) fn random() -> Self {
        let secret = || Secret::new(format!("{:032x}", fastrand::u128(..)));
        Self { webhook: secret(), token: secret() }
    }
}

/// Where a server listens on loopback. 0 is a free port.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) grpc: u16,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
}

impl Server {
    /// Starts the server on free ports with its store in `folder` and waits until it listens.
    pub(crate) async fn start(program: &Path, folder: &Path, secrets: &Secrets) -> anyhow::Result<Self> {
        Self::start_with(program, folder, secrets, Ports::default(), &[]).await
    }

    /// The same on given ports, and with more flags.
    pub(crate) async fn start_with(
        program: &Path,
        folder: &Path,
        secrets: &Secrets,
        ports: Ports,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let mut command = Self::command(program, folder, secrets, ports);
        command.args(flags);
        Self::run(command, folder).await
    }

    /// The command that starts the server.
    pub(crate) fn command(program: &Path, folder: &Path, secrets: &Secrets, ports: Ports) -> Command {
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1", "--port", &ports.http.to_string()])
            .args(["--grpc-port", &ports.grpc.to_string(), "--grpc-health-port", "0"])
            .args(["--repositories", WATCHLIST, "--log-format", "json", "--store"])
            .arg(folder.join("store"))
            .env("GITSTAFETTE_WEBHOOK_HMAC", text(&secrets.webhook))
            .env("GITSTAFETTE_CLIENT_TOKEN", text(&secrets.token));
        command
    }

    /// Runs such a command, logs to `folder`, and waits until the server listens.
    pub(crate) async fn run(command: Command, folder: &Path) -> anyhow::Result<Self> {
        let mut process = Process::start("gitstafette-server", command, folder)?;
        let http = process.line("listening for webhooks", |line| address(line, "http.address")).await?;
        let grpc = process.line("listening for clients", |line| address(line, "grpc.address")).await?;
        process.ignore_log();
        Ok(Self { process, http, grpc })
    }
}

/// Starts a client of the server that delivers to `target`, and waits until it is subscribed.
pub(crate) async fn start_client(
    program: &Path,
    folder: &Path,
    secrets: &Secrets,
    server: SocketAddr,
    target: &str,
) -> anyhow::Result<Process> {
    let mut process = spawn_client(program, folder, secrets, server, target)?;
    process.line("subscribed", subscribed).await?;
    process.ignore_log();
    Ok(process)
}

/// The same without waiting.
pub(crate) fn spawn_client(
    program: &Path,
    folder: &Path,
    secrets: &Secrets,
    server: SocketAddr,
    target: &str,
) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command
        .args(["--server", &server.ip().to_string(), "--port", &server.port().to_string()])
        .args(["--client-id", "xtask", "--target", target, "--health-check-port", "0"])
        .args(["--log-format", "json"])
        .env("GITSTAFETTE_TOKEN", text(&secrets.token));
    Process::start("gitstafette-client", command, folder)
}

/// A secret as text, which those made here are.
pub(crate) fn text(secret: &Secret) -> String {
    String::from_utf8_lossy(secret.expose()).into_owned()
}

/// An address in a line of a log.
pub(crate) fn address(line: &Value, field: &str) -> Option<SocketAddr> {
    line.get(field)?.as_str()?.parse().ok()
}

fn subscribed(line: &Value) -> Option<()> {
    (line.get("message")?.as_str()? == "subscribed").then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_programs_log_is_understood() {
        let line = json!({"message": "taking webhooks", "http.address": "127.0.0.1:1323"});
        assert_eq!(address(&line, "http.address"), Some(([127, 0, 0, 1], 1323).into()));
        assert_eq!(address(&line, "grpc.address"), None);
        assert_eq!(subscribed(&line), None);
        assert_eq!(subscribed(&json!({"message": "subscribed", "cursor": 0})), Some(()));
    }

    #[test]
    fn secrets_are_new_each_time() {
        let (one, two) = (Secrets::random(), Secrets::random());
        assert_ne!(text(&one.webhook), text(&two.webhook));
        assert_ne!(text(&one.webhook), text(&one.token));
    }
}
