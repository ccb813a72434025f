//! The command line. Every flag is a setting of the same name; what it means is decided in [`crate::config`].

use std::path::PathBuf;

use clap::{Args, Parser};
use gitstafette_client::cli::{Command, CommonFlags, EXIT_CODES};
use serde::Serialize;

/// Takes webhooks, stores them durably and streams them to clients behind firewalls.
#[derive(Parser)]
#[command(name = "gitstafette-server", version, args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do other than running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// A configuration file (TOML); `config default` prints one with every setting
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings that were typed.
    #[command(flatten)]
    pub flags: Flags,
}

/// The settings, as typed. They are not to be printed: secrets are among them.
#[derive(Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Flags {
    /// The watchlist: ids, owner/name, owner/* or *; separated by commas or repeated
    #[arg(long, value_name = "REPOSITORIES", help_heading = "What is accepted")]
    pub repositories: Vec<String>,
    /// A hook's secret; better in GITSTAFETTE_WEBHOOK_HMAC or a file; repeatable
    #[arg(long, alias = "webhookHMAC", value_name = "SECRET", help_heading = "What is accepted")]
    pub webhook_hmac: Vec<String>,
    /// A file that holds a hook's secret; repeatable
    #[arg(long, value_name = "FILE", help_heading = "What is accepted")]
    pub webhook_hmac_file: Vec<String>,
    /// What a redelivery is: deliver or drop [default: deliver]
    #[arg(long, value_name = "WHAT", help_heading = "What is accepted")]
    pub redelivery: Option<String>,
    /// Take webhooks without a signature, also beyond loopback
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "What is accepted")]
    pub allow_unsigned: Option<String>,

    /// A token for clients; better in GITSTAFETTE_CLIENT_TOKEN, OAUTH_TOKEN or a file; repeatable
    #[arg(long, value_name = "TOKEN", help_heading = "Who may subscribe")]
    pub client_token: Vec<String>,
    /// A file that holds a token for clients; repeatable
    #[arg(long, value_name = "FILE", help_heading = "Who may subscribe")]
    pub client_token_file: Vec<String>,
    /// A token for operators; better in GITSTAFETTE_ADMIN_TOKEN or a file; repeatable
    #[arg(long, value_name = "TOKEN", help_heading = "Who may subscribe")]
    pub admin_token: Vec<String>,
    /// A file that holds a token for operators; repeatable [default: client tokens do]
    #[arg(long, value_name = "FILE", help_heading = "Who may subscribe")]
    pub admin_token_file: Vec<String>,
    /// Serve clients that show neither token nor certificate, also beyond loopback
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Who may subscribe")]
    pub allow_anonymous: Option<String>,

    /// The address for all listeners [default: all if everything is authenticated, else loopback]
    #[arg(long, value_name = "ADDRESS", help_heading = "Where it listens")]
    pub bind: Option<String>,
    /// Webhooks [default: 1323]
    #[arg(long, value_name = "PORT", help_heading = "Where it listens")]
    pub port: Option<String>,
    /// gRPC; the same as --port serves both on one [default: 50051]
    #[arg(long, alias = "grpcPort", value_name = "PORT", help_heading = "Where it listens")]
    pub grpc_port: Option<String>,
    /// gRPC health alone, in plain text; 0: not apart [default: 50052]
    #[arg(long, alias = "grpcHealthPort", value_name = "PORT", help_heading = "Where it listens")]
    pub grpc_health_port: Option<String>,
    /// The admin interface and GET /metrics [default: not served]
    #[arg(long, value_name = "PORT", help_heading = "Where it listens")]
    pub admin_port: Option<String>,
    /// The address of the admin interface [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", help_heading = "Where it listens")]
    pub admin_bind: Option<String>,

    /// The webhook port with a certificate: detect or required [default: detect]
    #[arg(long, value_name = "WHAT", help_heading = "TLS")]
    pub http_tls: Option<String>,

    /// The database's folder, or memory: [default: $STATE_DIRECTORY, else in the XDG state folder]
    #[arg(long, value_name = "FOLDER", help_heading = "Store")]
    pub store: Option<String>,
    /// Keep events so long at most [default: 7d]
    #[arg(long, value_name = "DURATION", help_heading = "Store")]
    pub retention_age: Option<String>,
    /// Keep so many bytes of events at most [default: 1GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Store")]
    pub retention_bytes: Option<String>,
    /// Keep so many events at most [default: 1000000]
    #[arg(long, value_name = "COUNT", help_heading = "Store")]
    pub retention_count: Option<String>,

    /// The largest webhook [default: 25MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub body_limit: Option<String>,
    /// Use at most this memory for webhooks in flight; more of them wait [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub inflight_limit: Option<String>,
    /// All large webhooks that are on their way to clients at once [default: 32MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub outgoing_limit: Option<String>,
    /// Answer a webhook within this time: wait for memory, read the body, commit [default: 8s]
    #[arg(long, value_name = "DURATION", help_heading = "Limits")]
    pub request_timeout: Option<String>,
    /// Serve so many connections at once on each port [default: 1024]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    pub max_connections: Option<String>,
    /// Keep a connection open for so long between two requests [default: 650s]
    #[arg(long, value_name = "DURATION", help_heading = "Limits")]
    pub idle_timeout: Option<String>,
    /// Events one subscription may have unacknowledged [default: 1024]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    pub max_unacknowledged_events: Option<String>,
    /// Bytes one subscription may have unacknowledged [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub max_unacknowledged_bytes: Option<String>,
    /// Client ids that the holders of one token may use [default: 100]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    pub max_client_ids: Option<String>,
    /// Forget client ids not seen for this long; 0: never [default: 90d]
    #[arg(long, value_name = "DURATION", help_heading = "Limits")]
    pub forget_clients: Option<String>,

    /// How often a heartbeat goes out on streams [default: 10s]
    #[arg(long, value_name = "DURATION", help_heading = "Streams")]
    pub heartbeat_interval: Option<String>,
    /// How long one stream lives [default: for ever]
    #[arg(long, value_name = "DURATION", help_heading = "Streams")]
    pub stream_window: Option<String>,

    /// Hand events on to one other server; more in the configuration file
    #[arg(long, alias = "relayEnabled", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Relaying")]
    pub relay_enabled: Option<String>,
    /// grpc (a Gitstafette server), http or https [default: grpc]
    #[arg(long, alias = "relayProtocol", value_name = "PROTOCOL", help_heading = "Relaying")]
    pub relay_protocol: Option<String>,
    /// The other server [default: 127.0.0.1]
    #[arg(long, alias = "relayHost", value_name = "HOST", help_heading = "Relaying")]
    pub relay_host: Option<String>,
    /// Its port [default: 50051]
    #[arg(long, alias = "relayPort", value_name = "PORT", help_heading = "Relaying")]
    pub relay_port: Option<String>,
    /// The path that webhooks are posted to, with http and https [default: /]
    #[arg(long, alias = "relayPath", value_name = "PATH", help_heading = "Relaying")]
    pub relay_path: Option<String>,
    /// The path that tells whether the endpoint is up, with http and https
    #[arg(long, alias = "relayHealthCheckPath", value_name = "PATH", help_heading = "Relaying")]
    pub relay_health_check_path: Option<String>,
    /// Plain text, with grpc, also beyond loopback
    #[arg(long, alias = "relayInsecure", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Relaying")]
    pub relay_insecure: Option<String>,
    /// The token that the other server asks for; better in GITSTAFETTE_RELAY_TOKEN or a file
    #[arg(long, value_name = "TOKEN", help_heading = "Relaying")]
    pub relay_token: Option<String>,
    /// A file that holds it
    #[arg(long, value_name = "FILE", help_heading = "Relaying")]
    pub relay_token_file: Option<String>,
    /// A token for servers that publish here; better in GITSTAFETTE_PUBLISHER_TOKEN or a file; repeatable
    #[arg(long, value_name = "TOKEN", help_heading = "Who may subscribe")]
    pub publisher_token: Vec<String>,
    /// A file that holds a token for servers that publish here; repeatable [default: client tokens do]
    #[arg(long, value_name = "FILE", help_heading = "Who may subscribe")]
    pub publisher_token_file: Vec<String>,

    /// The server's name [default: the machine's]
    #[arg(long, value_name = "NAME", help_heading = "Process")]
    pub name: Option<String>,
    /// How long requests under way may take after SIGTERM [default: 8s]
    #[arg(long, value_name = "DURATION", help_heading = "Process")]
    pub drain_timeout: Option<String>,
    /// What both programs have.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonFlags,
    /// What only the Go implementation has.
    #[command(flatten)]
    #[serde(flatten)]
    pub redis: RedisFlags,
}

/// Flags of the Go implementation that mean nothing here: they are taken, so that its command lines work, and the operator
/// is told once where events are kept instead. No keys of a configuration file.
#[derive(Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RedisFlags {
    /// Not used.
    #[arg(long = "redisDatabase", hide = true)]
    pub redis_database: Option<String>,
    /// Not used.
    #[arg(long = "redisHost", hide = true)]
    pub redis_host: Option<String>,
    /// Not used.
    #[arg(long = "redisPort", hide = true)]
    pub redis_port: Option<String>,
    /// Not used, and not shown.
    #[arg(long = "redisPassword", hide = true)]
    pub redis_password: Option<String>,
}
