//! The servers and the client of a chaos run, which are killed and started again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};

use super::faults::{Faults, Library};
use crate::process::{Process, Processes};
use crate::relay::{self, Ports, Programs, Secrets, Server};

/// Where ports are chosen. Below those from which the system takes the near ends of connections (RFC 6335 §6: from
/// 49152, Linux: from 32768): one of these could be taken while the server is dead.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// How the servers are connected. The client subscribes to the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One server.
    Single,
    /// Three servers, each pushes to the next. Webhooks are sent to all of them.
    Ring,
    /// Webhooks are sent to the first server. Two servers relay them to the last: one by push, one by pull.
    Diamond,
}

/// One relay from the server with the number `from` to the server with the number `to`.
#[derive(Clone, Copy, Debug)]
enum Relay {
    Push { from: usize, to: usize },
    Pull { from: usize, to: usize },
}

/// Which processes a kill ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The server with this number.
    Server(usize),
    /// The client.
    Client,
    /// All servers and the client.
    All,
}

/// One server. Its ports and its store outlive its processes.
struct Node {
    folder: PathBuf,
    ports: Ports,
    process: Option<Process>,
}

/// All servers and the client, always on the same ports.
pub(crate) struct Cluster<'a> {
    programs: &'a Programs,
    folder: &'a Path,
    secrets: &'a Secrets,
    shape: Shape,
    library: Option<Library>,
    nodes: Vec<Node>,
    client: Option<Process>,
    /// How many writes power cuts have taken back.
    pub(crate) unsynced_writes: u64,
}

impl Shape {
    /// How many servers there are.
    pub(crate) fn servers(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Ring => 3,
            Self::Diamond => 4,
        }
    }

    /// The server that a sender sends to.
    pub(crate) fn entry(self, sender: usize) -> usize {
        match self {
            Self::Single | Self::Diamond => 0,
            Self::Ring => sender % 3,
        }
    }

    fn relays(self) -> &'static [Relay] {
        match self {
            Self::Single => &[],
            Self::Ring => &[
                Relay::Push { from: 0, to: 1 },
                Relay::Push { from: 1, to: 2 },
                Relay::Push { from: 2, to: 0 },
            ],
            Self::Diamond => &[
                Relay::Push { from: 0, to: 1 },
                Relay::Pull { from: 0, to: 2 },
                Relay::Push { from: 1, to: 3 },
                Relay::Pull { from: 2, to: 3 },
            ],
        }
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "single" => Ok(Self::Single),
            "ring" => Ok(Self::Ring),
            "diamond" => Ok(Self::Diamond),
            _ => bail!("expected single, ring or diamond, not {text:?}"),
        }
    }
}

impl Victim {
    /// One of them.
    pub(crate) fn random(shape: Shape) -> Self {
        match fastrand::u8(..3) {
            0 => Self::Server(fastrand::usize(..shape.servers())),
            1 => Self::Client,
            _ => Self::All,
        }
    }
}

impl<'a> Cluster<'a> {
    /// Writes the configurations. Nothing runs yet.
    pub(crate) fn new(
        programs: &'a Programs,
        folder: &'a Path,
        secrets: &'a Secrets,
        shape: Shape,
        faults: Faults,
    ) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for (number, ports) in free_ports(shape.servers())?.into_iter().enumerate() {
            let folder = folder.join(format!("server-{number}"));
            std::fs::create_dir(&folder)?;
            nodes.push(Node { folder, ports, process: None });
        }
        for (number, node) in nodes.iter().enumerate() {
            std::fs::write(node.folder.join("server.toml"), configuration(number, shape, &nodes, secrets))?;
        }
        let library = Library::build(faults, folder)?;
        Ok(Self { programs, folder, secrets, shape, library, nodes, client: None, unsynced_writes: 0 })
    }

    /// Where a sender sends its webhooks.
    pub(crate) fn entry(&self, sender: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.nodes[self.shape.entry(sender)].ports.http).into()
    }

    /// The store of each server.
    pub(crate) fn stores(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.folder.join("store")).collect()
    }

    /// Starts what does not run. The servers listen then, the client may still be on its way to its server.
    pub(crate) async fn start(&mut self, target: &str) -> anyhow::Result<()> {
        self.start_servers().await?;
        if self.client.is_none()
            && let Some(last) = self.nodes.last()
        {
            let server = (Ipv4Addr::LOCALHOST, last.ports.grpc).into();
            let program = &self.programs.client;
            let mut client = relay::spawn_client(program, self.folder, self.secrets, server, target)?;
            client.ignore_log();
            self.client = Some(client);
        }
        Ok(())
    }

    /// Starts the servers that do not run.
    pub(crate) async fn start_servers(&mut self) -> anyhow::Result<()> {
        for node in self.nodes.iter_mut().filter(|node| node.process.is_none()) {
            let mut command = Server::command(&self.programs.server, &node.folder, self.secrets, node.ports);
            command.arg("--config").arg(node.folder.join("server.toml"));
            if let Some(library) = &self.library {
                library.load_into(&mut command, &node.folder)?;
            }
            node.process = Some(Server::run(command, &node.folder).await?.process);
        }
        Ok(())
    }

    /// Ends processes with kill -9, or as a power cut does. An error if one of them had ended by itself.
    pub(crate) async fn kill(&mut self, victim: Victim) -> anyhow::Result<()> {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            if victim != Victim::All && victim != Victim::Server(number) {
                continue;
            }
            if let Some(process) = node.process.take() {
                process.kill().await?;
                if let Some(library) = &self.library {
                    self.unsynced_writes += library.cut_power(&node.folder)?;
                }
            }
        }
        if !matches!(victim, Victim::Server(_))
            && let Some(client) = self.client.take()
        {
            client.kill().await?;
        }
        Ok(())
    }

    /// Sets the wall clock of all servers to another offset, if the run has clock jumps.
    pub(crate) fn jump_clock(&self) -> anyhow::Result<()> {
        self.library.as_ref().map_or(Ok(()), Library::jump)
    }

    /// Ends all processes as a user would.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let mut running = Processes::default();
        for process in
            self.nodes.iter_mut().map(|node| node.process.take()).chain([self.client.take()]).flatten()
        {
            running.add(process);
        }
        running.stop().await
    }
}

/// The configuration of one server: its name and its relays.
fn configuration(number: usize, shape: Shape, nodes: &[Node], secrets: &Secrets) -> String {
    let mut text = format!("name = \"server-{number}\"\n");
    for relay in shape.relays() {
        let (direction, peer) = match *relay {
            Relay::Push { from, to } if from == number => ("push", to),
            Relay::Pull { from, to } if to == number => ("pull", from),
            Relay::Push { .. } | Relay::Pull { .. } => continue,
        };
        let (port, token) = (nodes[peer].ports.grpc, relay::text(&secrets.token));
        text += &format!(
            "\n[relay.{direction}.server-{peer}]\nserver = \"127.0.0.1:{port}\"\ntoken = \"{token}\"\n\
             retry-most = \"100ms\"\n"
        );
    }
    text
}

/// Two ports for each of `count` servers that are free, and stay so for a server that is started again.
fn free_ports(count: usize) -> anyhow::Result<Vec<Ports>> {
    const TRIES: usize = 1_000;
    let candidates = (0..TRIES).map(|_| fastrand::u16(PORTS));
    let mut bound = candidates.filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    let listeners: Vec<_> = bound.by_ref().take(2 * count).collect();
    if listeners.len() < 2 * count {
        bail!("loopback has fewer than {} free ports", 2 * count);
    }
    let ports: Vec<u16> = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect::<std::io::Result<_>>()
        .context("cannot read a port")?;
    Ok(ports.chunks(2).map(|pair| Ports { http: pair[0], grpc: pair[1] }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let mut ports: Vec<u16> =
            free_ports(4).unwrap().iter().flat_map(|ports| [ports.http, ports.grpc]).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn every_process_is_killed_at_times() {
        for shape in [Shape::Single, Shape::Ring, Shape::Diamond] {
            let victims: Vec<_> = (0..400).map(|_| Victim::random(shape)).collect();
            let servers = (0..shape.servers()).map(Victim::Server);
            for victim in servers.chain([Victim::Client, Victim::All]) {
                assert!(victims.contains(&victim), "{victim:?}");
            }
        }
    }

    #[test]
    fn each_server_has_the_relays_of_the_shape() {
        let secrets = Secrets::random();
        let node =
            |port| Node { folder: PathBuf::new(), ports: Ports { http: 0, grpc: port }, process: None };
        let nodes = [node(1), node(2), node(3), node(4)];
        let relays = |number| {
            let text = configuration(number, Shape::Diamond, &nodes, &secrets);
            text.lines().filter(|line| line.starts_with('[')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(relays(0), ["[relay.push.server-1]"]);
        assert_eq!(relays(1), ["[relay.push.server-3]"]);
        assert_eq!(relays(2), ["[relay.pull.server-0]"]);
        assert_eq!(relays(3), ["[relay.pull.server-2]"]);
    }
}
