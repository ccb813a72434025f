//! What each server that a webhook passes on its way adds, and how much a chain of three carries.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::load::Load;
use super::{Bench, MEASURED, catch_up};
use crate::figures::{self, Figures};
use crate::process::Process;
use crate::relay::{self, Ports, Server};
use crate::target::Target;
use crate::{text, webhooks};

/// The repositories of a load on a chain. Each is handed on in order, so one alone would show the latency again.
const REPOSITORIES: usize = 64;

/// How servers hand webhooks on.
#[derive(Clone, Copy, Debug)]
enum Direction {
    Push,
    Pull,
}

/// Running servers, the first that webhooks come to at the front, and a client of the last.
struct Chain {
    servers: Vec<Server>,
    client: Process,
    target: Target,
}

impl Chain {
    async fn stop(self) -> anyhow::Result<()> {
        self.client.stop().await?;
        for server in self.servers {
            server.process.stop().await?;
        }
        Ok(())
    }
}

impl Bench {
    /// One webhook after another through chains, and then as many as a chain takes.
    pub(super) async fn chains(&self, figures: &Figures) -> anyhow::Result<()> {
        let size = text::bytes(self.webhook.body.len());
        figures.heading(&format!("one webhook of {size} over several servers, from sending to the target"));
        let alone = self.over(figures, "one server", Direction::Push, 1, None).await?;
        self.over(figures, "two, pushing", Direction::Push, 2, Some(alone)).await?;
        self.over(figures, "three, pushing", Direction::Push, 3, Some(alone)).await?;
        self.over(figures, "two, pulling", Direction::Pull, 2, Some(alone)).await?;

        figures.heading(&format!("webhooks of {size} of {REPOSITORIES} repositories through three servers"));
        self.load_chain(figures).await
    }

    /// Shows the latency over so many servers, and what each but the first adds to the median.
    async fn over(
        &self,
        figures: &Figures,
        label: &str,
        direction: Direction,
        servers: usize,
        alone: Option<Duration>,
    ) -> anyhow::Result<Duration> {
        let folder = self.folder.join(label.replace(", ", "-").replace(' ', "-"));
        let mut chain = self.chain(&folder, direction, servers).await?;
        let latencies = self.one_by_one(chain.servers[0].http, &mut chain.target).await?;
        let [median, p99] = [0.5, 0.99].map(|share| text::quantile(&latencies, share).unwrap_or_default());
        let added = alone.map_or_else(String::new, |alone| {
            let hops = u32::try_from(servers - 1).unwrap_or(1);
            format!("{} ms more for each hop", text::millis(median.saturating_sub(alone) / hops))
        });
        figures.row(&format!("{label}: median of {MEASURED}"), text::millis(median), "ms", &added);
        figures.row("  99th percentile", text::millis(p99), "ms", "");
        chain.stop().await?;
        Ok(median)
    }

    /// As many webhooks as the first server takes: what arrives meanwhile, and what all that is left afterwards.
    async fn load_chain(&self, figures: &Figures) -> anyhow::Result<()> {
        let mut chain = self.chain(&self.folder.join("chain"), Direction::Push, 3).await?;
        let size = self.webhook.body.len();
        let webhooks: Vec<_> = (0..REPOSITORIES)
            .map(|repository| webhooks::webhook(&self.secrets.webhook, "", repository, size))
            .collect();
        let (started, mut delivered) = (Instant::now(), 0_u64);
        let load = {
            let mut load = std::pin::pin!(Load::run(chain.servers[0].http, &webhooks, self.duration));
            loop {
                tokio::select! {
                    load = &mut load => break load?,
                    Some(_) = chain.target.arrivals.recv() => delivered += 1,
                }
            }
        };
        let per_second = delivered as f64 / started.elapsed().as_secs_f64();
        figures.row("accepted by the first", load.rate(), "/s", &load.remark());
        let remark = format!("{:.2} of those accepted", per_second / load.per_second());
        figures.row("  and at the last one's target meanwhile", text::thousands(per_second), "/s", &remark);
        let left = load.accepted.saturating_sub(delivered);
        let (caught_up, elapsed) = catch_up(&mut chain.target, left).await;
        let per_second = caught_up as f64 / elapsed.as_secs_f64();
        figures.row("  and afterwards, without load", text::thousands(per_second), "/s", "");
        for (server, place) in chain.servers.iter().zip(["first", "second", "last"]) {
            if let Some(peak) = figures::memory(server.process.id()?, "VmHWM") {
                let label = format!("memory of the {place} at most (RSS)");
                figures.row(&label, figures::mebibytes(peak), "MiB", "");
            }
        }
        chain.stop().await
    }

    /// Starts so many servers in a chain. Who relays is started after the neighbour that it calls.
    async fn chain(&self, folder: &Path, direction: Direction, count: usize) -> anyhow::Result<Chain> {
        let mut servers: Vec<Server> = Vec::new();
        for number in 0..count {
            let folder = folder.join(number.to_string());
            std::fs::create_dir_all(&folder)?;
            let settings = folder.join("server.toml");
            let neighbour = servers.last().map(|server| server.grpc);
            std::fs::write(&settings, self.relay_settings(direction, neighbour))?;
            let flags = ["--name", &format!("server-{number}"), "--config", &settings.to_string_lossy()];
            let Bench { programs, secrets, .. } = self;
            let server =
                Server::start_with(&programs.server, &folder, secrets, Ports::default(), &flags).await?;
            servers.push(server);
        }
        if matches!(direction, Direction::Push) {
            servers.reverse();
        }
        let target = Target::start(&self.secrets.webhook).await?;
        let last = servers[count - 1].grpc;
        let client = self.client(folder, last, &target).await?;
        Ok(Chain { servers, client, target })
    }

    fn relay_settings(&self, direction: Direction, neighbour: Option<SocketAddr>) -> String {
        let Some(neighbour) = neighbour else { return String::new() };
        let direction = match direction {
            Direction::Push => "push",
            Direction::Pull => "pull",
        };
        let token = relay::text(&self.secrets.token);
        format!("[relay.{direction}.neighbour]\nserver = \"{neighbour}\"\ntoken = \"{token}\"\n")
    }
}
