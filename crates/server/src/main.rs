//! The server's binary: parse, configure, log, open, bind, run, drain.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use gitstafette_client::logging::Log;
use gitstafette_client::{arguments, cli, logging, open_files, shutdown};
use gitstafette_core::store::{EventStore, MemoryStore, SqliteStore};
use gitstafette_server::cli::Cli;
use gitstafette_server::config::{Config, KNOWN, StoreLocation};
use gitstafette_server::{Server, ServerOptions};
use tracing::{info, warn};

fn main() -> ExitCode {
    start().unwrap_or_else(|error| cli::fail(&error))
}

fn start() -> anyhow::Result<ExitCode> {
    #[cfg(unix)]
    gitstafette_client::allocator::give_back_large_buffers(env!("CARGO_BIN_NAME"));
    let Cli { command, config: file, flags } = Cli::parse_from(arguments::typed());
    let config = match cli::configure(KNOWN, command, file, &flags, Config::read, |config| &config.remarks) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let log = logging::start(config.log_format, &config.log_level)?;
    open_files::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(config, &log));
    // A call that blocks (a dead disk, a slow name server) must not hold up the end.
    runtime.shutdown_timeout(shutdown::BLOCKING_TIMEOUT);
    ended?;
    Ok(ExitCode::SUCCESS)
}

async fn run(config: Config, log: &Log) -> anyhow::Result<()> {
    let stop = shutdown::on_signal(log.clone())?;
    let store: Arc<dyn EventStore> = match &config.store {
        StoreLocation::Memory => Arc::new(MemoryStore::new(config.store_options)),
        StoreLocation::Folder(folder) => Arc::new(SqliteStore::open(folder, config.store_options)?),
    };
    let head = *store.head().borrow();
    let server = Server::bind(config.server.clone(), store).await?;
    announce(&server, &config, head.get());
    server.run(stop).await?;
    info!("stopped");
    Ok(())
}

/// The first screen: where it listens, where it stores, what is missing.
fn announce(server: &Server, Config { server: options, store, remarks, .. }: &Config, head: u64) {
    let addresses = server.local_addrs();
    let ServerOptions { name, watchlist, tls, .. } = options;
    let store = match store {
        StoreLocation::Memory => "memory: (events end with the process)".to_owned(),
        StoreLocation::Folder(folder) => folder.display().to_string(),
    };
    info!(server.name = name, store, head, "gitstafette-server {}", env!("CARGO_PKG_VERSION"));
    let tls = tls.is_some();
    let watchlist = watchlist.patterns().len();
    info!(http.address = %addresses.http, tls, watchlist, "taking webhooks at POST /v1/github/");
    info!(grpc.address = %addresses.grpc, tls, "serving clients over gRPC");
    if let Some(address) = addresses.health {
        info!(health.address = %address, "serving gRPC health, always in plain text");
    }
    if let Some(address) = addresses.admin {
        info!(admin.address = %address, "serving operators, and GET /metrics");
    }
    for remark in remarks {
        warn!("{remark}");
    }
}
