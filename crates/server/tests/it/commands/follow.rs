//! `events follow` over a connection that goes silent, and at a store that is set back.

use std::path::Path;

use super::*;

/// A proxy whose first connection stops to carry bytes once `silence` is cancelled. It stays open.
async fn silent_proxy(server: SocketAddr, silence: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut is_first = true;
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(server).await.unwrap();
            let silence = if is_first { silence.clone() } else { CancellationToken::new() };
            is_first = false;
            tokio::spawn(async move {
                let carrying = tokio::io::copy_bidirectional(&mut near, &mut far);
                if silence.run_until_cancelled(carrying).await.is_none() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_silent_connection_is_given_up_and_nothing_is_missed() {
    let server = TestServer::start("heartbeat-interval = \"200ms\"").await;
    let (sender, silence) = (Sender::new(&server), CancellationToken::new());
    let address = silent_proxy(server.addresses.grpc, silence.clone()).await;
    let operator = Operator { server: address, ..Operator::of(&server) };
    let (printed, following) = operator.start("events follow --json");
    let mut number = 0;
    while printed.bytes().is_empty() {
        number += 1;
        sender.push(&format!("early-{number}")).await;
    }
    silence.cancel();
    sender.push("silent-1").await;
    sender.push("silent-2").await;
    until_printed(&printed, "silent-2").await;
    let sequences = printed.sequences();
    assert!(sequences.is_sorted_by(|a, b| a < b), "each once and in order: {sequences:?}");
    assert!(!following.is_finished());
    following.abort();
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn events_of_a_store_that_was_set_back_are_shown() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = folder.path().join("store");
    let server = TestServer::start_in(&store, "").await;
    let line = Line::to(&server).await;
    let operator = Operator { server: line.address, ..Operator::of(&server) };
    let (printed, following) = operator.start("events follow --json");
    let (sender, mut number) = (Sender::new(&server), 0);
    while printed.bytes().is_empty() {
        number += 1;
        sender.push(&format!("early-{number}")).await;
    }
    line.cut();
    server.stop().await;
    copy_files(&store, copy.path());

    let server = TestServer::start_in(&store, "").await;
    for number in 1..=5 {
        Sender::new(&server).push(&format!("lost-{number}")).await;
    }
    line.lay_to(&server);
    until_printed(&printed, "lost-5").await;
    line.cut();
    server.stop().await;
    std::fs::remove_dir_all(&store).unwrap();
    copy_files(copy.path(), &store);

    let server = TestServer::start_in(&store, "").await;
    Sender::new(&server).push("new-1").await;
    line.lay_to(&server);
    until_printed(&printed, "new-1").await;
    assert!(!following.is_finished());
    following.abort();
}
