//! The server and the client, who are killed and come back.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context;

use crate::process::{Process, Processes};
use crate::relay::{self, Ports, Programs, Secrets, Server};

/// Where ports are chosen. Below those from which the system takes the near ends of connections (RFC 6335 §6: from
/// 49152, Linux: from 32768): one of these could be taken while the server is dead.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Server,
    Client,
    Both,
}

impl Victim {
    /// One of them.
    pub(crate) fn random() -> Self {
        match fastrand::u8(..3) {
            0 => Self::Server,
            1 => Self::Client,
            _ => Self::Both,
        }
    }
}

/// Both programs over one store, always on the same ports.
pub(crate) struct Cast<'a> {
    programs: &'a Programs,
    folder: &'a Path,
    secrets: &'a Secrets,
    ports: Ports,
    server: Option<Process>,
    client: Option<Process>,
}

impl<'a> Cast<'a> {
    /// Nobody runs yet.
    pub(crate) fn new(
        programs: &'a Programs,
        folder: &'a Path,
        secrets: &'a Secrets,
    ) -> anyhow::Result<Self> {
        let (http, grpc) = free_ports()?;
        let ports = Ports { http, grpc };
        Ok(Self { programs, folder, secrets, ports, server: None, client: None })
    }

    /// Where the server takes webhooks.
    pub(crate) fn http(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.http).into()
    }

    /// Starts who was killed; at first, both. The server listens then, the client may still be on its way to it.
    pub(crate) async fn start(&mut self, target: &str) -> anyhow::Result<()> {
        if self.server.is_none() {
            let program = &self.programs.server;
            let server = Server::start_with(program, self.folder, self.secrets, self.ports, &[]).await?;
            self.server = Some(server.process);
        }
        if self.client.is_none() {
            let server = (Ipv4Addr::LOCALHOST, self.ports.grpc).into();
            let program = &self.programs.client;
            let mut client = relay::spawn_client(program, self.folder, self.secrets, server, target)?;
            client.ignore_log();
            self.client = Some(client);
        }
        Ok(())
    }

    /// kill -9. An error if one of them had ended by itself.
    pub(crate) async fn kill(&mut self, victim: Victim) -> anyhow::Result<()> {
        let server = if victim == Victim::Client { None } else { self.server.take() };
        let client = if victim == Victim::Server { None } else { self.client.take() };
        for process in [server, client].into_iter().flatten() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Ends both as a user would.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let mut running = Processes::default();
        for process in [self.server.take(), self.client.take()].into_iter().flatten() {
            running.add(process);
        }
        running.stop().await
    }
}

/// Two ports that are free, and stay so for a server that comes back.
fn free_ports() -> anyhow::Result<(u16, u16)> {
    const TRIES: usize = 1_000;
    let candidates = (0..TRIES).map(|_| fastrand::u16(PORTS));
    let mut held = candidates.filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    let one = held.next().context("no port of loopback is free")?;
    let other = held.next().context("no second port of loopback is free")?;
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let (one, other) = free_ports().unwrap();
        assert_ne!(one, other);
        assert!([one, other].iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn everybody_is_killed_at_times() {
        let victims: Vec<_> = (0..200).map(|_| Victim::random()).collect();
        for victim in [Victim::Server, Victim::Client, Victim::Both] {
            assert!(victims.contains(&victim), "{victim:?}");
        }
    }
}
