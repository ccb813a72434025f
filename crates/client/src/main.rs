//! The client's binary: parse, configure, log, connect, run, drain; or do what an operator asks for.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;
use gitstafette_client::cli::{self, Cli, ClientCommand, Flags};
use gitstafette_client::config::{Config, HealthPort, KNOWN};
use gitstafette_client::operate::{self, Access, Console, Operation};
use gitstafette_client::{Client, health, logging, shutdown};
use tokio::net::TcpListener;
use tracing::{info, warn};

fn main() -> anyhow::Result<ExitCode> {
    #[cfg(unix)]
    gitstafette_client::allocator::give_back_large_buffers(env!("CARGO_BIN_NAME"));
    let Cli { command, config: file, flags } = Cli::parse();
    let command = match command {
        Some(ClientCommand::Operate(operation)) => return operate(&operation, file, &flags),
        Some(ClientCommand::Process(command)) => Some(command),
        None => None,
    };
    let config = match cli::configure(KNOWN, command, file, &flags, Config::read) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    logging::start(config.log_format, &config.log_level);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(config))?;
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "a command talks to whoever started it")]
fn operate(operation: &Operation, file: Option<PathBuf>, flags: &Flags) -> anyhow::Result<ExitCode> {
    let read = |settings| Access::read(settings, flags);
    let access = match cli::configure(KNOWN, None, file, flags, read) {
        Ok(access) => access,
        Err(code) => return Ok(code),
    };
    logging::start(access.log_format, &access.log_level);
    if let Some(remark) = access.remark {
        warn!("{remark}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(operate::run(operation, &access.server, &mut Console::standard())) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            if !error.is_quiet() {
                eprintln!("{error}");
            }
            Ok(error.exit_code().into())
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    let health = match config.health_port {
        None => None,
        Some(port) => listen(port).await?,
    };
    let Config { client: options, output_closed, remarks, .. } = config;
    info!(
        server = options.server.url(),
        client.id = %options.subscription.client_id,
        target.name = options.routes.first().map(|route| route.target.name()),
        health = health.as_ref().and_then(|listener| listener.local_addr().ok()).map(tracing::field::display),
        "gitstafette-client {}", env!("CARGO_PKG_VERSION")
    );
    for remark in remarks {
        warn!("{remark}");
    }
    let client = Client::new(options);
    let health = health.map(|listener| tokio::spawn(health::serve(listener, client.state(), stop.clone())));
    let mut running = pin!(client.run(stop.clone()));
    tokio::select! {
        () = &mut running => {}
        () = output_closed.cancelled() => {
            stop.cancel();
            running.await;
        }
    }
    if let Some(health) = health {
        health.await.context("the health check's task")?;
    }
    ensure!(!output_closed.is_cancelled(), "standard output was closed: what was not printed comes again");
    info!("stopped");
    Ok(())
}

async fn listen(port: HealthPort) -> anyhow::Result<Option<TcpListener>> {
    let (ip, number) = match port {
        HealthPort::IfFree(number) => (Ipv4Addr::LOCALHOST, number),
        HealthPort::Wanted(number) => (Ipv4Addr::UNSPECIFIED, number),
    };
    match (TcpListener::bind((ip, number)).await, port) {
        (Ok(listener), _) => Ok(Some(listener)),
        (Err(error), HealthPort::Wanted(_)) => Err(error).context(format!("--health-check-port {number}")),
        (Err(error), HealthPort::IfFree(_)) => {
            warn!(
                "GET /health is not served: port {number}: {error}; choose one with --health-check-port, or 0"
            );
            Ok(None)
        }
    }
}
