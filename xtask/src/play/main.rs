//! What `cargo xtask demo`, `bench`, `chaos`, `soak` and `lag` show. Not for people to call: xtask builds first.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

mod bench;
mod chaos;
mod delivery;
mod demo;
mod figures;
mod http;
mod lag;
mod process;
mod relay;
mod soak;
mod target;
mod text;
mod webhooks;

use relay::Programs;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let programs = |server: &str, client: &str| Programs { server: server.into(), client: client.into() };
    match arguments {
        ["demo", server, client] => demo::run(&programs(server, client), demo::Then::Stay).await,
        ["demo", server, client, "--once"] => demo::run(&programs(server, client), demo::Then::End).await,
        ["bench", server, client, seconds] => {
            bench::run(programs(server, client), Duration::from_secs(seconds.parse()?)).await
        }
        ["chaos", server, client, rounds, options @ ..] => {
            chaos::run(&programs(server, client), chaos::Plan::parse(rounds, options)?).await
        }
        ["soak", server, client, minutes] => soak::run(&programs(server, client), minutes.parse()?).await,
        ["lag", server, client, subscribers, events] => {
            let scale = lag::Scale { subscribers: subscribers.parse()?, events: events.parse()? };
            lag::run(&programs(server, client), scale).await
        }
        // A process of its own in the bench.
        ["bare-server"] => bench::bare::serve().await,
        _ => bail!("run cargo xtask instead"),
    }
}
