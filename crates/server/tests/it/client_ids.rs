//! Client ids: how many one token may use, removing one, and forgetting those that stay away.

use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::store::{EventStore, MemoryStore, Owner};
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::{RemoveSubscriptionRequest, WebhookEventsRequest};
use gitstafette_server::config::Config;
use tonic::Code;

use crate::streams::{Raw, acknowledgement, channel, open, subscribe, subscription, with_token};
use crate::support::{Sender, TOKEN, TestServer, settings, soon};

const OTHER_TOKEN: &str = "another token";

async fn connect(server: &TestServer, token: &str, client_id: &str) -> Result<Raw, tonic::Status> {
    open(server, Some(token), Some(Wire::Subscription(subscription(client_id)))).await
}

async fn remove(server: &TestServer, client_id: &str) -> Result<(), tonic::Status> {
    let request = RemoveSubscriptionRequest { client_id: client_id.to_owned() };
    let mut client = GitstafetteClient::new(channel(server).await);
    client.remove_subscription(with_token(request, Some(OTHER_TOKEN))).await.map(drop)
}

/// Waits until the server has noticed that the client is gone, and removes it.
async fn remove_when_gone(server: &TestServer, client_id: &str) {
    let removed = async {
        while let Err(status) = remove(server, client_id).await {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            tokio::task::yield_now().await;
        }
    };
    soon(removed).await;
}

#[tokio::test]
async fn a_token_has_so_many_client_ids() {
    let server = TestServer::start(&format!("max-client-ids = 2\nadmin-token = \"{OTHER_TOKEN}\"\n")).await;
    let one = connect(&server, TOKEN, "one").await.unwrap();
    let _two = connect(&server, TOKEN, "two").await.unwrap();
    let refused = connect(&server, TOKEN, "three").await.err().expect("there is no room for it");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for hint in ["client_id: three is new", "subscriptions remove ID", "--max-client-ids"] {
        assert!(refused.message().contains(hint), "{refused}");
    }
    // A client of the Go implementation has a cursor for each repository.
    let fetch = WebhookEventsRequest {
        client_id: "one".to_owned(),
        repository_id: "octo-harbor/lighthouse".to_owned(),
        ..WebhookEventsRequest::default()
    };
    let mut go_client = GitstafetteClient::new(channel(&server).await);
    let refused = go_client.fetch_webhook_events(with_token(fetch, Some(TOKEN))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("one/octo-harbor/lighthouse is new"), "{refused}");

    drop(connect(&server, TOKEN, "two").await.unwrap()); // a known id
    let _three = connect(&server, OTHER_TOKEN, "three").await.unwrap(); // of another token
    drop(one);
    remove_when_gone(&server, "one").await;
    drop(connect(&server, TOKEN, "four").await.unwrap()); // there is room again
}

#[tokio::test]
async fn a_removed_client_starts_anew() {
    let server = TestServer::start(&format!("admin-token = \"{OTHER_TOKEN}\"\n")).await;
    Sender::new(&server).push("delivery-1").await;
    let mut stream = subscribe(&server, "a").await;
    assert_eq!(stream.event().await, 1);
    stream.send(acknowledgement(1)).await;
    stream.receipt().await;
    let refused = remove(&server, "a").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("client a is connected; stop it"), "{refused}");
    let unknown = remove(&server, "b").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    assert_eq!(remove(&server, "b c").await.unwrap_err().code(), Code::InvalidArgument);
    drop(stream);
    remove_when_gone(&server, "a").await;
    assert_eq!(server.store.cursors().await.unwrap(), []);
    assert_eq!(subscribe(&server, "a").await.event().await, 1, "its acknowledgement is forgotten");
}

#[tokio::test]
async fn clients_that_stay_away_are_forgotten() {
    let relay = "[relay.push.configured]\nserver = \"127.0.0.1:1\"\n";
    let mut config = Config::from_toml(&settings(relay)).unwrap();
    assert_eq!(config.server.streams.forget_clients, Some(Duration::from_secs(90 * 24 * 3600)));
    config.server.streams.forget_clients = Some(Duration::from_millis(50));
    let store = Arc::new(MemoryStore::new(config.store_options));
    let owner = Owner { label: "test".to_owned(), max_ids: 100, current: Arc::default() };
    for name in ["here", "away", "relay.push.configured", "relay.push.removed"] {
        let client: ClientId = name.parse().unwrap();
        store.register_client(&client, &owner).await.unwrap();
        store.seek(&client, Sequence::ZERO).await.unwrap();
    }
    let server = TestServer::run(config, store).await;
    let _here = subscribe(&server, "here").await;
    let forgotten = async {
        loop {
            let cursors = server.store.cursors().await.unwrap();
            let ids: Vec<_> = cursors.iter().map(|(client, _)| client.as_str().to_owned()).collect();
            if !ids.iter().any(|id| id == "away" || id == "relay.push.removed") {
                return ids;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(soon(forgotten).await, ["here", "relay.push.configured"]);
}
