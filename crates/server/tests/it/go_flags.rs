//! The Go implementation's command line, as its compose file has it, starts this server.

use std::path::Path;
use std::sync::Arc;

use gitstafette_client::tls::{IdentityFiles, PemFiles};
use gitstafette_client::{ClientOptions, ServerAddress};
use http::StatusCode;

use crate::programs::Program;
use crate::support::{Sender, TOKEN, TestClient, TestTarget, http_client, options, payload, soon};
use crate::tls::{Authority, free_port};

/// The compose file's flags, with one dash or two, and then these.
async fn start(
    dashes: &str,
    ports: [u16; 2],
    authority: &Authority,
    folder: &Path,
    more: &[&str],
) -> Program {
    let IdentityFiles { certificate, key } = authority.sign("server");
    let [http, grpc] = ports;
    let flags = [
        "repositories=537845873,478599060".to_owned(),
        format!("grpcPort={grpc}"),
        format!("port={http}"),
        format!("grpcHealthPort={grpc}"),
        format!("caFileLocation={}", authority.ca().display()),
        format!("certFileLocation={}", certificate.display()),
        format!("certKeyFileLocation={}", key.display()),
    ];
    let flags: Vec<String> = flags.iter().map(|flag| format!("{dashes}{flag}")).collect();
    let arguments: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let environment = [
        ("OAUTH_TOKEN", TOKEN),
        ("SENTRY_DSN", ""),
        ("OTEL_ENABLED", "false"),
        ("STATE_DIRECTORY", folder.to_str().unwrap()),
        ("GITSTAFETTE_LOG_FORMAT", "json"),
    ];
    Program::run(&arguments, &environment).await
}

#[tokio::test]
async fn the_compose_files_command_line_starts_a_server() {
    for dashes in ["-", "--"] {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let ports = [free_port().await, free_port().await];
        let _program = start(dashes, ports, &authority, folder.path(), &[]).await;
        let [http, grpc] = ports;

        // Load balancers ask at the root, over TLS or, behind Envoy, without.
        let plain = http_client().get(format!("http://127.0.0.1:{http}/")).send();
        assert_eq!(soon(plain).await.unwrap().status(), StatusCode::OK);
        let secure = authority.https().get(format!("https://localhost:{http}/")).send();
        assert_eq!(soon(secure).await.unwrap().status(), StatusCode::OK);

        // The token is the hooks' secret, too.
        let sender = Sender::to(format!("http://127.0.0.1:{http}/v1/github/"));
        let refused = sender.send("push", "delivery-0", &payload("x")).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        sender.signing_with(TOKEN).push("delivery-1").await;

        // A client shows a certificate of the CA, and the token.
        let mut target = TestTarget::start().await;
        let files = PemFiles { ca: Some(authority.ca()), identity: Some(authority.sign("client")) };
        let plain = options(([127, 0, 0, 1], grpc).into(), target.target());
        let tls = Some(Arc::new(files.client_config().unwrap()));
        let server = ServerAddress { tls, ..plain.server };
        let client = TestClient::start(ClientOptions { server, ..plain });
        assert_eq!(target.next_ids(1).await, ["delivery-1"]);
        client.stop().await;
    }
}

#[tokio::test]
async fn redis_is_passed_over_with_one_line_and_without_its_password() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let ports = [free_port().await, free_port().await];
    let redis = ["-redisHost", "redis", "-redisPort=6379", "--redisDatabase=0", "--redisPassword", "hunter2"];
    let mut program = start("--", ports, &authority, folder.path(), &redis).await;
    program.terminate();
    assert_eq!(program.exit_code().await, Some(0));
    let log = program.rest_of_log().await;
    assert_eq!(log.matches("Redis is not used").count(), 1, "{log}");
    assert!(!log.contains("hunter2") && !log.contains(TOKEN), "{log}");
}
