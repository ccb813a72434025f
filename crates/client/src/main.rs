//! The client's binary: parse, configure, log, connect, run, drain; or do what an operator asks for.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::{anyhow, ensure};
use clap::Parser;
use gitstafette_client::cli::{self, Cli, ClientCommand, Flags};
use gitstafette_client::config::{Config, HealthPort, KNOWN};
use gitstafette_client::logging::Log;
use gitstafette_client::operate::{self, Access, Console, Operation};
use gitstafette_client::{Client, arguments, explain, health, info, logging, open_files, shutdown};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::{info, warn};

fn main() -> ExitCode {
    start().unwrap_or_else(|error| cli::fail(&error))
}

fn start() -> anyhow::Result<ExitCode> {
    #[cfg(unix)]
    gitstafette_client::allocator::give_back_large_buffers(env!("CARGO_BIN_NAME"));
    let Cli { command, config: file, flags } = Cli::parse_from(arguments::typed());
    let command = match command {
        Some(ClientCommand::Operate(operation)) => return operate(&operation, file, &flags),
        Some(ClientCommand::Process(command)) => Some(command),
        None => None,
    };
    let config = match cli::configure(KNOWN, command, file, &flags, Config::read, |config| &config.remarks) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let log = logging::start(config.log_format, &config.log_level)?;
    open_files::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(config, &log));
    // A call that blocks (standard output that nobody reads, a slow name server) must not hold up the end.
    runtime.shutdown_timeout(shutdown::BLOCKING_TIMEOUT);
    ended?;
    Ok(ExitCode::SUCCESS)
}

fn operate(operation: &Operation, file: Option<PathBuf>, flags: &Flags) -> anyhow::Result<ExitCode> {
    let read = |settings| Access::read(settings, flags);
    let access = match cli::configure(KNOWN, None, file, flags, read, |access: &Access| &access.remarks) {
        Ok(access) => access,
        Err(code) => return Ok(code),
    };
    let _log = logging::start(access.log_format, &access.log_level)?;
    for remark in &access.remarks {
        warn!("{remark}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(operate::run(operation, &access.server, &mut Console::standard()));
    runtime.shutdown_timeout(shutdown::BLOCKING_TIMEOUT);
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            if !error.is_quiet() {
                cli::complain(&error);
            }
            Ok(error.exit_code().into())
        }
    }
}

async fn run(config: Config, log: &Log) -> anyhow::Result<()> {
    let stop = shutdown::on_signal(log.clone())?;
    let health = match config.health_port {
        None => None,
        Some(port) => listen(port).await?,
    };
    let info = match config.info_port {
        None => None,
        Some(port) => {
            let listener = everywhere(port).await;
            Some(listener.map_err(|error| cannot_listen("--info-port", port, &error))?)
        }
    };
    announce(&config, health.as_ref(), info.as_ref());
    let Config { client: options, output_closed, identity, .. } = config;
    let client = Client::new(options);
    let mut probes = JoinSet::new();
    if let Some(listener) = health {
        probes.spawn(health::serve(listener, client.state(), stop.clone()));
    }
    if let Some(listener) = info {
        probes.spawn(info::serve(listener, identity, stop.clone()));
    }
    let mut running = pin!(client.run(stop.clone()));
    tokio::select! {
        () = &mut running => {}
        () = output_closed.cancelled() => {
            stop.cancel();
            running.await;
        }
    }
    while let Some(ended) = probes.join_next().await {
        ended.map_err(|error| anyhow!("a task that answers probes failed: {error}"))?;
    }
    ensure!(!output_closed.is_cancelled(), "standard output was closed: what was not printed comes again");
    info!("stopped");
    Ok(())
}

/// The first screen: which server, which target, where it can be asked, what is missing.
fn announce(config: &Config, health: Option<&TcpListener>, info: Option<&TcpListener>) {
    let Config { client, identity, remarks, .. } = config;
    let address = |listener: Option<&TcpListener>| listener.and_then(|listener| listener.local_addr().ok());
    info!(
        server = client.server.url(),
        client.id = %client.subscription.client_id,
        client.name = identity.name,
        target.name = client.routes.first().map(|route| route.target.name()),
        health = address(health).map(tracing::field::display),
        info = address(info).map(tracing::field::display),
        "gitstafette-client {}", env!("CARGO_PKG_VERSION")
    );
    for remark in remarks {
        warn!("{remark}");
    }
}

async fn listen(port: HealthPort) -> anyhow::Result<Option<TcpListener>> {
    match port {
        HealthPort::Wanted(number) => {
            let listener = everywhere(number).await;
            listener.map(Some).map_err(|error| cannot_listen("--health-check-port", number, &error))
        }
        HealthPort::IfFree(number) => match TcpListener::bind((Ipv4Addr::LOCALHOST, number)).await {
            Ok(listener) => Ok(Some(listener)),
            Err(error) => {
                let reason = explain::listen_error(&error);
                warn!("GET /health is not served: --health-check-port {number}: {reason}, or 0 for none");
                Ok(None)
            }
        },
    }
}

fn cannot_listen(flag: &str, port: u16, error: &std::io::Error) -> anyhow::Error {
    anyhow!("{flag} {port}: {}", explain::listen_error(error))
}

/// A listener on all addresses.
async fn everywhere(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
}
