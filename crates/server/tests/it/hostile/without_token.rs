//! Attacks without a token.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use super::attacker::{Call, Connection, connections, prefix, raw_message, stalled_webhook};
use super::server::Attacked;

const WATCH: &str = "/grpc.health.v1.Health/Watch";
const PUSH: &str = "/gitstafette.v1.Gitstafette/WebhookEventPush";
/// How long an attack lasts once all of it is there.
const LASTING: Duration = Duration::from_secs(4);

/// Opens connections, each with so many streams that watch the health of the server.
async fn watch_health(
    address: SocketAddr,
    connections: usize,
    streams: usize,
) -> Vec<(Connection, Vec<Call>)> {
    let mut opening = JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..connections {
        if opening.len() >= 64 {
            held.extend(opening.join_next().await.unwrap().unwrap());
        }
        opening.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut calls = Vec::new();
            for _ in 0..streams {
                let Some(call) = connection.call(WATCH, None, raw_message(&[])).await else { break };
                calls.push(call);
            }
            Some((connection, calls))
        });
    }
    while let Some(opened) = opening.join_next().await {
        held.extend(opened.unwrap());
    }
    held
}

#[tokio::test]
async fn connections_that_watch_health_leave_room_for_webhooks() {
    let server = Attacked::start(&[]).await;
    let held = watch_health(server.grpc(), connections(4096), 1).await;
    server.hold(LASTING).await;
    drop(held);
    server.end().await;
}

#[tokio::test]
async fn connections_that_watch_health_on_the_port_for_webhooks() {
    // One port serves webhooks and gRPC, as on Cloud Run.
    let server = Attacked::start_on_one_port().await;
    assert_eq!(server.http(), server.grpc());
    let held = watch_health(server.grpc(), connections(4096), 1).await;
    server.hold(LASTING).await;
    drop(held);
    server.end().await;
}

#[tokio::test]
async fn streams_that_announce_webhooks_and_send_nothing() {
    let server = Attacked::start(&[]).await;
    let mut opening = JoinSet::new();
    for _ in 0..connections(300) {
        let address = server.http();
        opening.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut calls = Vec::new();
            for _ in 0..200 {
                let call = connection.announce_webhook(200_000);
                let Ok(Some(call)) = tokio::time::timeout(LASTING, call).await else { break };
                calls.push(call);
            }
            Some((connection, calls))
        });
    }
    let held = opening.join_all().await;
    server.hold(LASTING).await;
    drop(held);
    server.end().await;
}

#[tokio::test]
async fn streams_that_watch_health_are_limited() {
    let server = Attacked::start(&[]).await;
    let held = watch_health(server.grpc(), 62, 256).await;
    server.hold(LASTING).await;
    drop(held);
    server.end().await;
}

/// Keeps so many stalled webhooks open. A new one takes the place of one that the server has ended.
async fn stall_webhooks(address: SocketAddr, count: usize, announced: usize, sent: usize) {
    let mut stalled = JoinSet::new();
    for _ in 0..count {
        stalled.spawn(async move {
            loop {
                let Some(mut tcp) = stalled_webhook(address, announced, sent).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                // Until the server ends it.
                while tcp.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {}
            }
        });
    }
    stalled.join_all().await;
}

/// Runs an attack that does not end by itself.
async fn attack(server: &Attacked, attack: impl Future<Output = ()>) {
    tokio::select! {
        () = server.hold(2 * LASTING) => {}
        () = attack => panic!("the attack ended"),
    }
}

#[tokio::test]
async fn large_webhooks_that_stall_at_their_start() {
    let server = Attacked::start(&[]).await;
    attack(&server, stall_webhooks(server.http(), 4, 16 << 20, 1 << 10)).await;
    server.end().await;
}

#[tokio::test]
async fn large_webhooks_that_stall_before_their_end() {
    let server = Attacked::start(&[]).await;
    attack(&server, stall_webhooks(server.http(), 4, 16 << 20, (16 << 20) - (64 << 10))).await;
    server.end().await;
}

#[tokio::test]
async fn small_webhooks_that_stall_before_their_end() {
    let server = Attacked::start(&[]).await;
    attack(&server, stall_webhooks(server.http(), 200, 256 << 10, 255 << 10)).await;
    server.end().await;
}

/// Keeps so many stalled messages open, each on a connection of its own.
async fn stall_messages(address: SocketAddr, count: usize, announced: usize, sent: usize) {
    let mut stalled = JoinSet::new();
    for _ in 0..count {
        stalled.spawn(async move {
            loop {
                let first = Bytes::copy_from_slice(&prefix(announced));
                if let Some(mut connection) = Connection::open(address).await
                    && let Some(mut call) = connection.call(PUSH, None, first).await
                {
                    let _stopped = call.send(vec![0; sent].into()).await;
                    if let Ok(response) = call.response.await {
                        assert_eq!(response.status(), StatusCode::OK);
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }
    stalled.join_all().await;
}

#[tokio::test]
async fn pushed_messages_that_stall_at_their_start() {
    let server = Attacked::start(&[]).await;
    attack(&server, stall_messages(server.grpc(), 4, 16 << 20, 1 << 10)).await;
    server.end().await;
}

#[tokio::test]
async fn pushed_messages_that_stall_before_their_end() {
    let server = Attacked::start(&[]).await;
    attack(&server, stall_messages(server.grpc(), 4, 16 << 20, 15 << 20)).await;
    server.end().await;
}
