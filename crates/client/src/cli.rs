//! The command line. Every flag is a setting of the same name; what it means is decided in [`crate::config`].

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::operate::Operation;
use crate::settings::{self, ConfigError, Known, Settings};

/// The exit code for wrong usage and for a configuration that cannot be used; clap has the same for unknown flags.
const MISCONFIGURED: u8 = 2;

/// The exit codes of both programs, for their help.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    Success, or a complete shutdown after SIGINT or SIGTERM
  1    Failure
  2    Wrong usage or configuration
  130  A second SIGINT cut the shutdown short
  143  A second SIGTERM cut the shutdown short";

/// Receives webhooks from a Gitstafette server and delivers them to a local target.
#[derive(Parser)]
#[command(name = "gitstafette-client", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do other than running.
    #[command(subcommand)]
    pub command: Option<ClientCommand>,
    /// A configuration file (TOML); `config default` prints one with every setting
    #[arg(long, global = true, value_name = "FILE", help_heading = "Process")]
    pub config: Option<PathBuf>,
    /// The settings that were typed.
    #[command(flatten)]
    pub flags: Flags,
}

/// What the client's program does other than running.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// What both programs do.
    #[command(flatten)]
    Process(Command),
    /// What an operator does on the server.
    #[command(flatten)]
    Operate(Operation),
}

/// What both programs do other than running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at the configuration
    Config {
        /// What to look at.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the default configuration, with every setting explained
    Default,
    /// Check the configuration that the environment and this file give
    Check {
        /// The configuration file
        #[arg(value_name = "FILE", conflicts_with = "config")]
        file: Option<PathBuf>,
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Does what the command asks for. If the program is to run then, returns the checked configuration.
///
/// # Errors
/// The exit code with which the program is to end now: all is done, or the configuration is wrong and it was said why.
pub fn configure<C>(
    known: Known,
    command: Option<Command>,
    file: Option<PathBuf>,
    flags: &impl Serialize,
    read: impl FnOnce(Settings) -> Result<C, ConfigError>,
    remarks: impl FnOnce(&C) -> &[String],
) -> Result<C, ExitCode> {
    let (file, check) = match command {
        None => (file, false),
        Some(Command::Config { command: ConfigCommand::Check { file: named, config } }) => {
            (named.or(config).or(file), true)
        }
        Some(Command::Config { command: ConfigCommand::Default }) => return Err(print(known.defaults)),
    };
    let settings = Settings::load(known, file.as_deref(), settings::environment(), flags);
    let config = read(settings).map_err(|error| {
        complain(&error);
        ExitCode::from(MISCONFIGURED)
    })?;
    if check {
        for remark in remarks(&config) {
            complain(&format!("warning: {remark}"));
        }
        return Err(print("the configuration is fine\n"));
    }
    Ok(config)
}

/// Tells why the program ends, in one line without a backtrace, and returns the exit code for a failure.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    // Not its causes: each error names its own where that helps.
    complain(&format!("error: {error}"));
    ExitCode::FAILURE
}

/// Tells something on standard error. Nobody is told if it is closed.
pub fn complain(text: &dyn fmt::Display) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Prints on standard output. A reader that goes away early (`| head`) is no error.
fn print(text: &str) -> ExitCode {
    let mut output = io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("error: standard output: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The flags that both programs have.
#[derive(Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommonFlags {
    /// The CA that signs the other side's certificates (PEM)
    #[arg(long, global = true, alias = "caFileLocation", value_name = "FILE", help_heading = "TLS")]
    pub ca_file_location: Option<String>,
    /// The own certificate chain (PEM)
    #[arg(long, global = true, alias = "certFileLocation", value_name = "FILE", help_heading = "TLS")]
    pub cert_file_location: Option<String>,
    /// Its key (PEM)
    #[arg(long, global = true, alias = "certKeyFileLocation", value_name = "FILE", help_heading = "TLS")]
    pub cert_key_file_location: Option<String>,
    /// text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Process")]
    pub log_format: Option<String>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Process")]
    pub log_level: Option<String>,
}

/// Where the server is and how to talk to it: for running, and for every command of an operator.
#[derive(Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServerFlags {
    /// The server: host, host:port or https://host:port [default: 127.0.0.1]
    #[arg(long, global = true, value_name = "HOST", help_heading = "Server")]
    pub server: Option<String>,
    /// The port of its gRPC listener [default: 50051]
    #[arg(long, global = true, value_name = "PORT", help_heading = "Server")]
    pub port: Option<String>,
    /// Use TLS [default: to all but loopback addresses]
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Server")]
    pub secure: Option<String>,
    /// Use plain text
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Server")]
    pub insecure: Option<String>,
    /// The bearer token; better in GITSTAFETTE_TOKEN, OAUTH_TOKEN or a file
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Server")]
    pub token: Option<String>,
    /// A file that holds the token
    #[arg(long, global = true, value_name = "FILE", help_heading = "Server")]
    pub token_file: Option<String>,
}

/// The settings, as typed. They are not to be printed: secrets are among them.
#[derive(Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Flags {
    /// The server.
    #[command(flatten)]
    #[serde(flatten)]
    pub server: ServerFlags,

    /// Names this client; its cursor is kept under this id [default: gitstafette-client-MACHINE]
    #[arg(long, alias = "clientId", value_name = "ID", help_heading = "Subscription")]
    pub client_id: Option<String>,
    /// Repositories: id, owner/name, owner/* or *; repeatable [default: all]
    #[arg(long, value_name = "REPOSITORY", help_heading = "Subscription")]
    pub repo: Vec<String>,
    /// Kinds of events: push, pull_request.opened; repeatable [default: all]
    #[arg(long, value_name = "EVENT", help_heading = "Subscription")]
    pub event: Vec<String>,
    /// Where a new client id starts: earliest, latest or a sequence [default: earliest]
    #[arg(long, value_name = "WHERE", help_heading = "Subscription")]
    pub start: Option<String>,
    /// Events on their way at once [default: 256]
    #[arg(long, value_name = "COUNT", help_heading = "Subscription")]
    pub max_unacknowledged_events: Option<String>,
    /// Bytes on their way at once [default: 32MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Subscription")]
    pub max_unacknowledged_bytes: Option<String>,
    /// How long one stream lives before the next [default: for ever]
    #[arg(long, alias = "streamWindow", value_name = "DURATION", help_heading = "Subscription")]
    pub stream_window: Option<String>,

    /// The URL to post webhooks to [default: print them]
    #[arg(long, value_name = "URL", help_heading = "Target")]
    pub target: Option<String>,
    /// Deliver to the URL that the other relay flags make up
    #[arg(long, alias = "relayEnabled", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Target")]
    pub relay_enabled: Option<String>,
    /// http, https, or grpc: another Gitstafette server [default: http]
    #[arg(long, alias = "relayProtocol", value_name = "PROTOCOL", help_heading = "Target")]
    pub relay_protocol: Option<String>,
    /// The target's host [default: 127.0.0.1]
    #[arg(long, alias = "relayHost", value_name = "HOST", help_heading = "Target")]
    pub relay_host: Option<String>,
    /// The target's port [default: 80]
    #[arg(long, alias = "relayPort", value_name = "PORT", help_heading = "Target")]
    pub relay_port: Option<String>,
    /// The target's path [default: /]
    #[arg(long, alias = "relayPath", value_name = "PATH", help_heading = "Target")]
    pub relay_path: Option<String>,
    /// The path that is asked whether the target is back [default: only connect]
    #[arg(long, alias = "relayHealthCheckPath", value_name = "PATH", help_heading = "Target")]
    pub relay_health_check_path: Option<String>,
    /// Plain text to the server of the protocol grpc, also beyond loopback
    #[arg(long, alias = "relayInsecure", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Target")]
    pub relay_insecure: Option<String>,
    /// The token for that server; better in GITSTAFETTE_RELAY_TOKEN or a file
    #[arg(long, value_name = "TOKEN", help_heading = "Target")]
    pub relay_token: Option<String>,
    /// A file that holds it
    #[arg(long, value_name = "FILE", help_heading = "Target")]
    pub relay_token_file: Option<String>,
    /// A hook's secret: signatures are checked here, too; better in a file; repeatable
    #[arg(long, alias = "webhookHMAC", value_name = "SECRET", help_heading = "Target")]
    pub webhook_hmac: Vec<String>,
    /// A file that holds a hook's secret; repeatable
    #[arg(long, value_name = "FILE", help_heading = "Target")]
    pub webhook_hmac_file: Vec<String>,
    /// How long one try may take [default: 30s]
    #[arg(long, value_name = "DURATION", help_heading = "Target")]
    pub target_timeout: Option<String>,
    /// Repositories delivered at once [default: 8]
    #[arg(long, value_name = "COUNT", help_heading = "Target")]
    pub target_parallel: Option<String>,
    /// The first wait between tries [default: 500ms]
    #[arg(long, value_name = "DURATION", help_heading = "Target")]
    pub retry_first: Option<String>,
    /// The longest wait between tries [default: 60s]
    #[arg(long, value_name = "DURATION", help_heading = "Target")]
    pub retry_most: Option<String>,
    /// When an event is given up [default: 24h]
    #[arg(long, value_name = "DURATION", help_heading = "Target")]
    pub give_up_after: Option<String>,
    /// After how many tries an event is given up; 0: any number [default: 0]
    #[arg(long, value_name = "COUNT", help_heading = "Target")]
    pub give_up_attempts: Option<String>,

    /// Where GET /health is served; 0: nowhere [default: 8080]
    #[arg(long, alias = "healthCheckPort", value_name = "PORT", help_heading = "Process")]
    pub health_check_port: Option<String>,
    /// Where gRPC info.Info and health are served, in plain text [default: nowhere]
    #[arg(long, alias = "infoPort", value_name = "PORT", help_heading = "Process")]
    pub info_port: Option<String>,
    /// The client's name, told there [default: the machine's]
    #[arg(long, value_name = "NAME", help_heading = "Process")]
    pub name: Option<String>,
    /// What both programs have.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonFlags,
}
