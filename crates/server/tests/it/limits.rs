//! How many calls a caller may have in progress, and what a publisher may call.

use gitstafette_core::store::{MemoryStore, Options};
use gitstafette_proto::info::GetInfoRequest;
use gitstafette_proto::info::info_client::InfoClient;
use gitstafette_proto::v1::FollowEventsRequest;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_server::config::Config;
use std::sync::Arc;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::streams::{channel, with_token};
use crate::support::{Sender, TOKEN, TestServer, soon};

#[tokio::test]
async fn health_subscriptions_are_few_per_connection_and_in_all() {
    let server = TestServer::start("").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut health = HealthClient::new(channel(&server).await);
        for _ in 0..8 {
            held.push(soon(health.watch(HealthCheckRequest::default())).await.unwrap());
        }
        let refused = soon(health.watch(HealthCheckRequest::default())).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("on one connection"), "{refused}");
    }
    let mut health = HealthClient::new(channel(&server).await);
    let refused = soon(health.watch(HealthCheckRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    soon(health.check(HealthCheckRequest::default())).await.unwrap();
    drop(held.pop());
    let again = async {
        while health.watch(HealthCheckRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(again).await;
}

#[tokio::test]
async fn one_token_has_a_number_of_calls_in_progress() {
    let server = TestServer::start("max-client-ids = 1\nadmin-token = \"operator\"").await;
    let mut client = GitstafetteClient::new(channel(&server).await);
    let mut held = Vec::new();
    let follow = || with_token(FollowEventsRequest::default(), Some("operator"));
    for _ in 0..66 {
        held.push(soon(client.follow_events(follow())).await.unwrap());
    }
    let refused = soon(client.follow_events(follow())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("--max-client-ids"), "{refused}");
    let mut info = InfoClient::new(channel(&server).await);
    soon(info.get_info(with_token(GetInfoRequest::default(), Some(TOKEN)))).await.unwrap();
    Sender::new(&server).push("delivery-1").await;
}

#[tokio::test]
async fn a_publisher_may_not_ask_for_the_watchlist_where_clients_need_no_token() {
    let text = "repositories = [\"octo-harbor/*\"]\npublisher-token = \"publisher\"\nport = 0\ngrpc-port = 0\ngrpc-health-port = 0";
    let store = Arc::new(MemoryStore::new(Options::default()));
    let server = TestServer::run(Config::from_toml(text).unwrap(), store).await;
    let mut info = InfoClient::new(channel(&server).await);
    let refused = soon(info.get_info(with_token(GetInfoRequest::default(), Some("publisher")))).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    soon(info.get_info(GetInfoRequest::default())).await.unwrap();
}
