//! The Go implementation's command line starts this client, and it tells of itself where that one does.

use std::process::Stdio;
use std::time::Duration;

use gitstafette_proto::info::info_client::InfoClient;
use gitstafette_proto::info::{GetInfoRequest, InstanceType};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Endpoint;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A port that was free a moment ago.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Starts the client and gives back its log from the line on that says where it listens.
async fn start(arguments: &[String]) -> (tokio::process::Child, BufReader<tokio::process::ChildStderr>) {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_gitstafette-client"))
        .args(arguments)
        .env_clear()
        .env("OAUTH_TOKEN", "hunter1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("gitstafette-client ") {
        line.clear();
        let read = tokio::time::timeout(PATIENCE, log.read_line(&mut line)).await.unwrap().unwrap();
        assert_ne!(read, 0, "the program ended");
    }
    (child, log)
}

#[tokio::test]
async fn every_flag_of_the_go_implementation_starts_a_client() {
    for dashes in ["-", "--"] {
        let (info_port, health_port, nobody) = (free_port().await, free_port().await, free_port().await);
        let flags = [
            "name=laptop".to_owned(),
            format!("port={nobody}"),
            "server=127.0.0.1".to_owned(),
            "insecure".to_owned(),
            "secure=false".to_owned(),
            "repo=537845873".to_owned(),
            format!("infoPort={info_port}"),
            "relayEnabled=true".to_owned(),
            "relayHost=jenkins.example".to_owned(),
            "relayPath=/github-webhook/?token=hunter2".to_owned(),
            "relayHealthCheckPath=/login".to_owned(),
            "relayPort=8080".to_owned(),
            "relayProtocol=http".to_owned(),
            "relayInsecure".to_owned(),
            "caFileLocation=".to_owned(),
            "certFileLocation=".to_owned(),
            "certKeyFileLocation=".to_owned(),
            "clientId=homelab".to_owned(),
            "streamWindow=180".to_owned(),
            format!("healthCheckPort={health_port}"),
            "webhookHMAC=hunter3".to_owned(),
        ];
        let flags: Vec<String> = flags.iter().map(|flag| format!("{dashes}{flag}")).collect();
        let (mut child, mut log) = start(&flags).await;

        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{info_port}")).unwrap();
        let mut info = InfoClient::new(endpoint.connect().await.unwrap());
        let info = info.get_info(GetInfoRequest::default()).await.unwrap().into_inner();
        assert_eq!((info.name.as_str(), info.instance_type()), ("laptop", InstanceType::Relay));
        assert_eq!(info.server.as_ref().unwrap().port, health_port.to_string());
        let relay = info.relay.as_ref().unwrap();
        assert_eq!((relay.hostname.as_str(), relay.port.as_str()), ("jenkins.example", "8080"));
        assert!(!format!("{info:?}").contains("hunter"), "{info:?}");

        let mut stream = TcpStream::connect(("127.0.0.1", health_port)).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut health = String::new();
        stream.read_to_string(&mut health).await.unwrap();
        assert!(health.starts_with("HTTP/1.1 200 ") && health.contains("jenkins.example:8080"), "{health}");

        child.kill().await.unwrap();
        let mut rest = String::new();
        log.read_to_string(&mut rest).await.unwrap();
        assert!(!rest.contains("hunter"), "{rest}");
    }
}
