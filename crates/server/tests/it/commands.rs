//! The operator's commands of the client's program, against a server: from the command line to what is printed.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::IntoResponse;
use clap::Parser;
use gitstafette_client::cli::{Cli, ClientCommand};
use gitstafette_client::operate::{self, Access, Console, OperateError};
use gitstafette_client::settings::Settings;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::*;

mod asking;
mod follow;
mod redeliver;
mod relays;
mod show;
mod subscriptions;

/// What was printed so far.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Printed {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn sequences(&self) -> Vec<u64> {
        self.json().iter().map(|line| line["sequence"].as_u64().unwrap()).collect()
    }
}

/// The operator at the command line.
struct Operator {
    server: SocketAddr,
    token: &'static str,
    /// What is typed when a question is asked; `None`: nobody can be asked.
    answer: Option<&'static str>,
}

/// What a command printed, and what it said beside that.
struct Done {
    output: Printed,
    remarks: String,
    result: Result<(), OperateError>,
}

impl Operator {
    fn of(server: &TestServer) -> Self {
        Self { server: server.addresses.grpc, token: TOKEN, answer: None }
    }

    /// Runs a command line to its end.
    async fn run(&self, line: &str) -> Done {
        let (output, remarks) = (Printed::default(), Printed::default());
        let result = soon(self.command(line, output.clone(), remarks.clone())).await;
        Done { output, remarks: remarks.text(), result }
    }

    /// Runs a command line that must succeed.
    async fn prints(&self, line: &str) -> Printed {
        let done = self.run(line).await;
        done.result.unwrap_or_else(|error| panic!("{line}: {error}"));
        done.output
    }

    /// Runs a command line that does not end by itself.
    fn start(&self, line: &str) -> (Printed, JoinHandle<Result<(), OperateError>>) {
        let output = Printed::default();
        let command = self.command(line, output.clone(), Printed::default());
        (output, tokio::spawn(command))
    }

    fn command(
        &self,
        line: &str,
        output: impl Write + Send + 'static,
        remarks: Printed,
    ) -> impl Future<Output = Result<(), OperateError>> + Send + 'static {
        let server = self.server.to_string();
        let connection = ["--server", server.as_str(), "--token", self.token];
        let cli = Cli::parse_from(
            ["gitstafette-client"].into_iter().chain(line.split_whitespace()).chain(connection),
        );
        let none = std::iter::empty::<(String, String)>();
        let settings = Settings::load(gitstafette_client::config::KNOWN, None, none, &cli.flags);
        let access = Access::read(settings, &cli.flags).unwrap();
        let Some(ClientCommand::Operate(operation)) = cli.command else { panic!("{line}: no operation") };
        let answers = self.answer.map(|answer| Box::new(answer.as_bytes()) as _);
        let mut console =
            Console { output: Box::new(output), is_terminal: false, remarks: Box::new(remarks), answers };
        async move { operate::run(&operation, &access.server, &mut console).await }
    }
}

/// Waits until the last line printed is the event with this delivery id.
async fn until_printed(printed: &Printed, delivery_id: &str) {
    let last = async {
        while printed.json().last().is_none_or(|entry| entry["deliveryId"] != delivery_id) {
            tokio::time::sleep(Duration::from_millis(5)).await; // a writer has nothing to wait on
        }
    };
    soon(last).await;
}

const OTHER: &str = r#"{"action":"opened","repository":{"id":478599060,"full_name":"octo-harbor/anchor"}}"#;

/// A server with four pushes of one repository and an issue of another.
async fn five_events() -> TestServer {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=4 {
        sender.push(&format!("delivery-{number}")).await;
    }
    assert_eq!(sender.send("issues", "delivery-5", OTHER).await.status(), StatusCode::CREATED);
    server
}

#[tokio::test]
async fn lists_by_filter_and_page() {
    let server = five_events().await;
    let operator = Operator::of(&server);
    for (flags, expected) in [
        ("", vec![5, 4, 3, 2, 1]),
        ("--limit 2", vec![5, 4]),
        ("--oldest-first --limit 2 --first 2", vec![2, 3]),
        ("--last 3", vec![3, 2, 1]),
        ("--repo octo-harbor/anchor", vec![5]),
        ("--event push,issues.closed", vec![4, 3, 2, 1]),
        ("--delivery delivery-2", vec![2]),
        ("--since 1h --fate pending --limit 1", vec![5]),
        ("--since 2999-01-01", vec![]),
        ("--fate delivered --client test", vec![]),
    ] {
        let printed = operator.prints(&format!("events list --json {flags}")).await;
        assert_eq!(printed.sequences(), expected, "{flags}");
    }
    let table = operator.prints("events list --limit 1").await.text();
    let lines: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["SEQUENCE", "TIME", "EVENT", "REPOSITORY", "DELIVERY", "SIZE", "FATE"]);
    assert_eq!(lines[1][0], "5");
    assert_eq!(lines[1][2..5], ["issues.opened", "octo-harbor/anchor", "delivery-5"]);
    assert_eq!(lines[1].last(), Some(&"pending"));
    let none = operator.run("events list --first 6").await;
    assert_eq!((none.output.text().as_str(), none.remarks.as_str()), ("", "no such events\n"));
}

#[tokio::test]
async fn lists_beyond_one_page_of_the_server() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=1003 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let printed = Operator::of(&server).prints("events list --json --limit 1002").await;
    assert_eq!(printed.sequences(), (2..=1003).rev().collect::<Vec<_>>());
}

/// A line to a server that can be cut, and laid to another.
struct Line {
    address: SocketAddr,
    server: watch::Sender<Option<SocketAddr>>,
}

impl Line {
    async fn to(server: &TestServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Self {
            address: listener.local_addr().unwrap(),
            server: watch::Sender::new(Some(server.addresses.grpc)),
        };
        let server = line.server.subscribe();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(near, server.clone()));
            }
        });
        line
    }

    fn cut(&self) {
        self.server.send_replace(None);
    }

    fn lay_to(&self, server: &TestServer) {
        self.server.send_replace(Some(server.addresses.grpc));
    }
}

async fn carry(mut near: TcpStream, mut server: watch::Receiver<Option<SocketAddr>>) {
    let Some(address) = *server.borrow_and_update() else { return };
    let mut far = TcpStream::connect(address).await.unwrap();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _ = server.changed() => {}
    }
}

#[tokio::test]
async fn follows_over_broken_lines_and_restarts_and_misses_nothing() {
    let first = TestServer::start("").await;
    let (line, sender) = (Line::to(&first).await, Sender::new(&first));
    sender.push("before").await;
    let operator = Operator { server: line.address, ..Operator::of(&first) };
    let (printed, following) = operator.start("events follow --event push --json");
    // It stands as soon as one of these comes through.
    let mut number = 0;
    while printed.bytes().is_empty() {
        number += 1;
        sender.push(&format!("early-{number}")).await;
    }
    assert_eq!(sender.send("ping", "ping", &payload("x")).await.status(), StatusCode::CREATED);
    sender.push("live").await;
    until_printed(&printed, "live").await;

    line.cut();
    sender.push("between-1").await;
    sender.push("between-2").await;
    line.lay_to(&first);
    sender.push("again").await;
    until_printed(&printed, "again").await;
    let sequences = printed.sequences();
    assert!(sequences.is_sorted_by(|a, b| a < b), "each once and in order: {sequences:?}");

    // Another store: its numbers start anew.
    line.cut();
    first.stop().await;
    let second = TestServer::start("").await;
    Sender::new(&second).push("anew").await;
    line.lay_to(&second);
    until_printed(&printed, "anew").await;

    let ids: Vec<_> =
        printed.json().iter().map(|entry| entry["deliveryId"].as_str().unwrap().to_owned()).collect();
    let (early, later) = ids.split_at(ids.iter().position(|id| id == "live").unwrap());
    assert!(early.iter().all(|id| id.starts_with("early-")), "{ids:?}");
    assert_eq!(later, ["live", "between-1", "between-2", "again", "anew"]);
    assert!(!following.is_finished());
    following.abort();
}

#[tokio::test]
async fn one_a_range_and_a_delivery_id_arrive_again() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let sender = Sender::new(&server);
    for number in 1..=3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    target.next_ids(3).await;
    let operator = Operator::of(&server);

    let printed = operator.prints("events redeliver 2 --json").await;
    assert_eq!(printed.text(), "{\"sequence\":2,\"redeliveredAs\":4}\n");
    assert_eq!(target.next_ids(1).await, ["delivery-2"]);

    let printed =
        operator.prints("events redeliver --first 1 --last 1000 --to-client test --limit 2 --yes").await;
    let rows: Vec<_> = printed.text().split_whitespace().map(str::to_owned).collect();
    assert_eq!(rows, ["SEQUENCE", "REDELIVERED", "AS", "1", "5", "2", "6"]);
    assert_eq!(target.next_ids(2).await, ["delivery-1", "delivery-2"]);

    // What it appends has the same delivery id, and is not redelivered itself.
    let printed = operator.prints("events redeliver --delivery delivery-2 --json --yes").await;
    assert_eq!(printed.sequences(), [2, 4, 6]);
    assert_eq!(target.next_ids(3).await, ["delivery-2"; 3]);
    all_acknowledged(&*server.store).await;
    assert!(target.is_quiet());

    let missing = operator.run("events redeliver 99").await.result.unwrap_err();
    assert!(missing.to_string().starts_with("there is no event 99 in the store"), "{missing}");
    client.stop().await;
}

#[tokio::test]
async fn more_than_one_call_takes_are_redelivered_call_by_call() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=515 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let printed = Operator::of(&server).prints("events redeliver --first 1 --last 600 --json --yes").await;
    assert_eq!(printed.sequences(), (1..=515).collect::<Vec<_>>());
    assert_eq!(server.events().await, 1030);
}

#[tokio::test]
async fn dead_letters_arrive_again_where_they_are_dead() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::answering(|number| match number {
        1 => StatusCode::NOT_FOUND.into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    sender.push("delivery-2").await;
    target.next_ids(2).await;
    all_acknowledged(&*server.store).await;
    let operator = Operator::of(&server);
    let name = target.target().name().to_owned();
    let listed = operator.prints("events list").await.text();
    assert!(listed.contains(&format!("dead letter (404 at {name})")), "{listed}");

    let others = operator.run("events redeliver --dead-letters --target elsewhere --yes").await;
    assert_eq!(others.remarks, "no such events\n");
    let printed = operator.prints("events redeliver --dead-letters --client test --json --yes").await;
    assert_eq!(printed.text(), "{\"sequence\":1,\"redeliveredAs\":3}\n");
    assert_eq!(target.next_ids(1).await, ["delivery-1"]);
    all_acknowledged(&*server.store).await;
    assert!(operator.prints("events list --fate dead-letter").await.bytes().is_empty());
    let shown = operator.prints("events show 1").await.text();
    let report = shown.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(report[..4], ["test", name.as_str(), "failed", "404"]);
    let again = operator.prints("events show 3").await.text();
    let address = format!("a redelivery · only for client test · only for target {name}\n");
    assert!(again.contains(&address), "{again}");
    client.stop().await;
}

#[tokio::test]
async fn the_watchlist_grows_and_shrinks() {
    let server = TestServer::start("").await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    let payload = r#"{"repository":{"id":7,"full_name":"other/repository"}}"#;
    assert_eq!(sender.send("push", "delivery-1", payload).await.status(), StatusCode::NOT_ACCEPTABLE);
    let printed = operator.prints("watchlist add other/repository third/* --json").await.json();
    assert_eq!(printed[1], json!({"pattern": "other/repository", "origin": "added"}));
    assert_eq!(printed.len(), 3);
    assert_eq!(sender.send("push", "delivery-1", payload).await.status(), StatusCode::CREATED);

    let table = operator.prints("watchlist remove other/repository octo-harbor/*").await.text();
    let expected =
        "PATTERN        ORIGIN\nocto-harbor/*  configured, but removed: not accepted\nthird/*        added\n";
    assert_eq!(table, expected);
    assert_eq!(operator.prints("watchlist list").await.text(), expected);
    assert_eq!(sender.send("push", "delivery-2", payload).await.status(), StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test]
async fn statistics_tell_what_is_stored() {
    let server = five_events().await;
    let operator = Operator::of(&server);
    let json = &operator.prints("statistics --json").await.json()[0];
    assert_eq!((&json["events"], &json["head"], &json["writable"]), (&5.into(), &5.into(), &true.into()));
    assert_eq!(json["storeId"], server.store.id().to_string());
    let text = operator.prints("statistics").await.text();
    assert!(text.contains("events    5 (1 to 5)\n") && text.contains("writable  yes\n"), "{text}");
}

#[tokio::test]
async fn what_goes_wrong_is_one_line_that_says_what_to_change() {
    let server = TestServer::start("admin-token = \"a token for operators\"\n").await;
    let gone = TestServer::start("").await;
    let nowhere = Operator::of(&gone);
    gone.stop().await;
    let wrong = Operator { token: "wrong", ..Operator::of(&server) };
    let client = Operator::of(&server);
    for (operator, start) in [
        (wrong, "the server refuses: the bearer token is wrong; set the client's token"),
        (
            client,
            "the server refuses: the token is not an operator's; this call needs a token of the server's --admin",
        ),
        (nowhere, "cannot connect to http://127.0.0.1:"),
    ] {
        for line in ["events list", "events follow", "events redeliver 1", "watchlist list", "statistics"] {
            let done = operator.run(line).await;
            let error = done.result.unwrap_err();
            assert!(error.to_string().starts_with(start), "{line}: {error}");
            assert_eq!((error.to_string().lines().count(), error.exit_code()), (1, 1), "{line}");
            assert_eq!((done.output.bytes(), done.remarks.as_str()), (vec![], ""), "{line}");
        }
    }
    Operator { token: "a token for operators", ..Operator::of(&server) }.prints("events list").await;
}

/// A reader that has seen enough, as `head` has.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_has_enough_ends_it_quietly() {
    let server = five_events().await;
    for line in ["events list", "events show 1 --body", "watchlist list --json", "statistics"] {
        let result = soon(Operator::of(&server).command(line, Closed, Printed::default())).await;
        let error = result.unwrap_err();
        assert!(error.is_quiet() && error.exit_code() == 0, "{line}: {error}");
    }
}
