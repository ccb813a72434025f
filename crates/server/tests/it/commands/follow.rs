//! `events follow` over a connection that dies without a word.

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
