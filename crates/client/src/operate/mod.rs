//! The operator's commands: the log and what became of it, redelivery, subscriptions, relays, the watchlist. One command a file;
//! each asks the server over gRPC and shows its answer as a table for people or as JSON lines for programs.

mod commands;
mod console;
mod entries;
mod error;
mod follow;
mod list;
mod pages;
mod redeliver;
mod relays;
mod show;
mod statistics;
mod subscriptions;
mod table;
mod watchlist;

pub use show::ShownEvent;

use std::time::{Duration, SystemTime};

use tonic::{Response, Status};

use crate::cli::Flags;
use crate::config;
use crate::connect::ServerAddress;
use crate::logging::{LogFormat, LogLevel};
use crate::settings::{self, ConfigError, Settings};

pub use commands::{EventsCommand, Operation, WatchlistCommand};
pub use console::Console;
pub use error::OperateError;

/// How long the server may take for an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// What every command needs of the settings.
#[derive(Debug)]
pub struct Access {
    /// The server.
    pub server: ServerAddress,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged: warnings, unless something else is asked for.
    pub log_level: LogLevel,
    /// What the operator should know about these settings.
    pub remarks: Vec<String>,
}

impl Access {
    /// Checks the settings that say where the server is. Those of subscription and target are for running: in a file or
    /// in the environment they are passed over, as flags they are a mistake.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(mut settings: Settings, flags: &Flags) -> Result<Self, ConfigError> {
        for flag in misplaced(flags) {
            settings
                .problem(&flag, "is a flag for running the client; those of a command come after its name");
        }
        let files = config::pem_files(&mut settings);
        let server = config::server(&mut settings, &files);
        let warnings = LogLevel::warnings();
        let log_level =
            if settings.is_set("log-level") { settings.value("log-level", warnings) } else { warnings };
        let log_format = settings.value("log-format", LogFormat::Text);
        let mut remarks: Vec<_> = config::plain_text_remark(&server).into_iter().collect();
        remarks.extend_from_slice(settings.warnings());
        settings.finish(Self { server, log_format, log_level, remarks })
    }
}

/// The flags that were given and mean nothing to a command. Those that do stand at every command, too.
fn misplaced(flags: &Flags) -> Vec<String> {
    let command = <crate::cli::Cli as clap::CommandFactory>::command();
    let is_global = |key: &String| {
        command.get_arguments().any(|flag| flag.get_long() == Some(key) && flag.is_global_set())
    };
    settings::given(flags).into_iter().filter(|key| !is_global(key)).collect()
}

/// Does what an operator asks for.
///
/// # Errors
/// What the operator is to be told, in one line; see [`OperateError::exit_code`].
pub async fn run(
    operation: &Operation,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let now = SystemTime::now().into();
    match operation {
        Operation::Events { command: EventsCommand::List(asked) } => {
            list::list(&asked.listing(now)?, asked, server, console).await?;
        }
        Operation::Events { command: EventsCommand::Show(asked) } => {
            show::show(asked, server, console).await?;
        }
        Operation::Events { command: EventsCommand::Follow(asked) } => {
            follow::follow(asked, server, console).await?;
        }
        Operation::Events { command: EventsCommand::Redeliver(asked) } => {
            redeliver::redeliver(asked.request(now)?, asked, server, console).await?;
        }
        Operation::Subscriptions { command } => subscriptions::run(command, server, console).await?,
        Operation::Relays { command } => relays::run(command, server, console).await?,
        Operation::Watchlist { command } => watchlist::run(command, server, console).await?,
        Operation::Statistics { format } => statistics::show(*format, server, console).await?,
    }
    Ok(console.flush()?)
}

/// The answer to a call, within a time-out.
async fn answered<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    answered_within(ANSWER, call).await
}

async fn answered_within<T>(
    patience: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => {
            Err(Status::deadline_exceeded(format!("the server did not answer in {} s", patience.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests;
