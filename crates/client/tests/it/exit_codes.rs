//! How the client's program ends.

use std::process::Stdio;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use gitstafette_client::cli::EXIT_CODES;
use gitstafette_core::event::{Address, Event, Sequence};
use gitstafette_proto::v1;
use gitstafette_proto::v1::subscribe_response::Response;
use prost::Message;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr, Command};

/// Waits for what must come.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it did not come")
}

/// The command, without anything of this machine's environment, and with all the backtraces that one can ask for.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gitstafette-client"));
    command.args(arguments).env_clear().env("RUST_BACKTRACE", "full").env("RUST_LIB_BACKTRACE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn output(arguments: &[&str]) -> (i32, String, String) {
    let output = soon(command(arguments).stdout(Stdio::piped()).output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn framed(response: Response) -> Bytes {
    let message = v1::SubscribeResponse { response: Some(response) }.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len().try_into().unwrap());
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// Answers every call as a stream of `Subscribe` that brings one event.
async fn send_one_event(stream: TcpStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let mut calls = Vec::new();
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut sender = answer.send_response(head, false).unwrap();
        let started = v1::Started {
            heartbeat_interval: Some(Duration::from_secs(3600).try_into().unwrap()),
            max_unacknowledged_events: 10,
            max_unacknowledged_bytes: 1 << 20,
            head: 1,
            store_id: "1".repeat(32),
            ..v1::Started::default()
        };
        let event = Event {
            sequence: Sequence::new(1),
            redelivery: false,
            address: Address::default(),
            webhook: gitstafette_core::testing::webhook(1, "octo/hello", 3),
        };
        for response in [Response::Started(started), Response::Event(v1::Event::from(&event))] {
            sender.send_data(framed(response), false).unwrap();
        }
        calls.push((request, sender));
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    (listener, port)
}

fn signal(child: &Child, name: &str) {
    let id = child.id().unwrap().to_string();
    let status = std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap();
    assert!(status.success());
}

async fn until_logged(log: &mut Lines<BufReader<ChildStderr>>, text: &str) {
    while !soon(log.next_line()).await.unwrap().expect("the program ended").contains(text) {}
}

fn log_of(child: &mut Child) -> Lines<BufReader<ChildStderr>> {
    BufReader::new(child.stderr.take().unwrap()).lines()
}

#[tokio::test]
async fn a_second_signal_cuts_an_attempt_short() {
    for (first, second, code) in [("TERM", "INT", 130), ("INT", "TERM", 143)] {
        let (server, server_port) = listener().await;
        let serving = tokio::spawn(async move { send_one_event(server.accept().await.unwrap().0).await });
        let (target, target_port) = listener().await;
        let url = format!("http://127.0.0.1:{target_port}/");
        let run = ["--port", &server_port, "--target", &url, "--health-check-port", "0", "--client-id", "a"];
        let mut child = command(&run).spawn().unwrap();
        let mut log = log_of(&mut child);
        // The attempt is under way, and is never answered.
        let (mut attempt, _) = soon(target.accept()).await.unwrap();
        assert_ne!(soon(attempt.read(&mut [0; 1024])).await.unwrap(), 0);
        signal(&child, first);
        until_logged(&mut log, "a second signal stops at once").await;
        signal(&child, second);
        assert_eq!(soon(child.wait()).await.unwrap().code(), Some(code), "{first}, {second}");
        serving.abort();
    }
}

#[tokio::test]
async fn one_signal_ends_it_with_0() {
    for name in ["TERM", "INT"] {
        let (_silent, port) = listener().await;
        let mut child = command(&["--port", &port, "--health-check-port", "0"]).spawn().unwrap();
        let mut log = log_of(&mut child);
        until_logged(&mut log, "gitstafette-client ").await;
        signal(&child, name);
        assert_eq!(soon(child.wait()).await.unwrap().code(), Some(0), "{name}");
    }
}

#[tokio::test]
async fn mistakes_and_failures_differ_and_none_prints_a_backtrace() {
    let (_taken, taken) = listener().await;
    let (nobody, free) = listener().await;
    drop(nobody);
    let redeliver = ["events", "redeliver", "--first", "1", "--last", "2", "--port", &free];
    for (arguments, code, expected) in [
        (&["--health-check-port", &taken][..], 1, "another program uses the port"),
        (&["--info-port", &taken, "--health-check-port", "0"], 1, "another program uses the port"),
        (&["events", "list", "--port", &free], 1, "nothing listens on the port"),
        (&redeliver, 2, "give --yes"),
        (&["--port", "70000"], 2, "\"70000\" is not a port"),
        (&["--prot", "1"], 2, "'--port'"),
        (&["event", "list"], 2, "'events'"),
        (&["events", "show", "18446744073709551616"], 2, "not a sequence: a whole number"),
        (&["events", "list", "--limit", "x"], 2, "not a whole number"),
        (&["--token-file", "/does/not/exist"], 2, "there is no such file"),
        (&["config", "check", "/does/not/exist"], 2, "there is no such file"),
    ] {
        let (exit, _, errors) = output(arguments).await;
        assert_eq!(exit, code, "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
        for words in
            ["backtrace", "panicked", "main.rs", "Caused by", "os error", "target type", "invalid digit"]
        {
            assert!(!errors.contains(words), "{arguments:?}: {errors}");
        }
    }
}

#[tokio::test]
async fn a_file_is_checked_by_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), gitstafette_client::config::DEFAULTS).unwrap();
    let path = file.path().to_str().unwrap();
    for check in [&["config", "check", path][..], &["config", "check", "--config", path]] {
        let (code, printed, errors) = output(check).await;
        assert_eq!((code, printed.as_str()), (0, "the configuration is fine\n"), "{errors}");
    }
    assert_eq!(output(&["config", "check", path, "--config", path]).await.0, 2);
}

#[tokio::test]
async fn the_help_lists_them() {
    let (code, help, _) = output(&["--help"]).await;
    assert_eq!(code, 0);
    assert!(help.ends_with(&format!("{EXIT_CODES}\n")), "{help}");
}
