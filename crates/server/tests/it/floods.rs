//! Floods from anybody: what they cost the server's files and its log.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::programs::Program;
use crate::support::{Sender, http_client, payload, soon};

/// The lines of a log with this message, and the sum of a number in them.
fn lines(log: &str, message: &str, number: &str) -> (u64, u64) {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines: Vec<_> =
        lines.filter(|line| line["message"].as_str().is_some_and(|text| text.contains(message))).collect();
    (lines.len() as u64, lines.iter().filter_map(|line| line[number].as_u64()).sum())
}

#[tokio::test]
async fn idle_connections_leave_files_for_webhooks() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::with_files(48, folder.path(), &[]).await;
    let address: std::net::SocketAddr =
        program.http.split('/').nth(2).and_then(|address| address.parse().ok()).unwrap();
    let mut held = Vec::new();
    for number in 0..60 {
        // Every second one asks something first.
        let mut stream = soon(TcpStream::connect(address)).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            assert_ne!(soon(stream.read(&mut [0; 4096])).await.unwrap(), 0, "{number}");
        }
        held.push(stream);
    }
    for number in 0..40 {
        let sender = Sender::to(program.http.clone());
        let answer = soon(sender.send("push", &format!("delivery-{number}"), &payload("x"))).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    drop(held);
    program.terminate();
    let log = program.rest_of_log().await;
    assert_eq!(program.exit_code().await, Some(0));
    assert_eq!(lines(&log, "webhook stored", "").0, 40);
    assert_eq!(lines(&log, "cannot accept", "").0, 0, "{log}");
    assert!(log.lines().count() < 100, "{log}");
}

#[tokio::test]
async fn refused_requests_are_logged_at_a_bounded_rate() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &[]).await;
    let http = http_client();
    let signed = Sender::to(program.http.clone());
    for number in 0..500 {
        let request = http.post(&program.http).header("X-GitHub-Delivery", format!("unsigned-{number}"));
        let request = request.header("X-GitHub-Event", "push").header("Content-Type", "application/json");
        assert_eq!(soon(request.body("{}").send()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
        if number % 100 == 0 {
            let answer = signed.send("push", &format!("signed-{number}"), r#"{"repository":{"id":1}}"#).await;
            assert_eq!(answer.status(), StatusCode::NOT_ACCEPTABLE);
        }
    }
    program.terminate();
    let log = program.rest_of_log().await;
    assert_eq!(program.exit_code().await, Some(0));
    let (refused, _) = lines(&log, "webhook refused", "status");
    let (_, suppressed) = lines(&log, "similar log lines suppressed", "log.suppressed");
    let signed = log.lines().filter(|line| line.contains("\"signed-") && line.contains("406")).count();
    assert_eq!(signed, 5, "an unsigned flood hides no signed webhook");
    // The line that tells the number has the same words in it.
    let told = lines(&log, "similar log lines suppressed: webhook refused", "").0;
    assert_eq!(refused - told + suppressed, 505, "{log}");
    assert!(log.lines().count() < 200, "{}", log.lines().count());
}

/// Sends webhooks whose log lines are more than the pipe (64 KiB) and the server (256 KiB) keep together.
async fn fill_log(program: &Program) {
    let mut senders = JoinSet::new();
    for sender in 0..8 {
        let url = program.http.clone();
        senders.spawn(async move {
            let http = Sender::to(url);
            for number in 0..200 {
                let delivery_id = format!("{sender}-{number}-{}", "x".repeat(100));
                let answer = soon(http.send("push", &delivery_id, &payload("x"))).await;
                assert_eq!(answer.status(), StatusCode::CREATED);
            }
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent.unwrap();
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_blocks_nothing_and_tells_what_it_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &[]).await;
    fill_log(&program).await;
    let reading = async {
        loop {
            let line = program.next_line().await;
            if lines(&line, "log lines dropped", "log.dropped").1 > 0 {
                return;
            }
        }
    };
    soon(reading).await;
    program.terminate();
    program.rest_of_log().await;
    assert_eq!(program.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_hold_up_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &[]).await;
    fill_log(&program).await;
    program.terminate();
    assert_eq!(program.exit_code().await, Some(0));
}
