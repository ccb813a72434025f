//! A server and a client inside one program, with a target of its own: `cargo run -p example-embed`.
//!
//! A webhook is appended as if it had come over HTTP; the client receives it over gRPC and hands it to [`Greeter`].
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::sync::Arc;

use async_trait::async_trait;
use gitstafette_client::{Client, ClientOptions, Route, ServerAddress, Subscription};
use gitstafette_core::event::Event;
use gitstafette_core::filter::Filter;
use gitstafette_core::store::{EventStore, MemoryStore, Options};
use gitstafette_core::target::{Attempt, Target, Verdict};
use gitstafette_core::testing;
use gitstafette_server::Server;
use gitstafette_server::config::Config;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A target that is not an HTTP endpoint: what to do with an event is up to the program.
#[derive(Debug)]
struct Greeter {
    greeted: Notify,
}

#[async_trait]
impl Target for Greeter {
    fn name(&self) -> &str {
        "greeter"
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let facts = &event.webhook.facts;
        println!("{} of {}: {} bytes", facts.event_type, facts.repository_label(), event.webhook.body.len());
        self.greeted.notify_one();
        Attempt { verdict: Verdict::Delivered, code: None, detail: "greeted".into() }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config =
        Config::from_toml("repositories = [\"octo/*\"]\nport = 0\ngrpc-port = 0\ngrpc-health-port = 0")?;
    let store = Arc::new(MemoryStore::new(Options::default()));
    let server = Server::bind(config.server, Arc::clone(&store) as Arc<dyn EventStore>).await?;
    let address = server.local_addrs().grpc;

    let greeter = Arc::new(Greeter { greeted: Notify::new() });
    let client = Client::new(ClientOptions {
        server: ServerAddress {
            host: address.ip().to_string(),
            port: address.port(),
            tls: None,
            token: None,
        },
        subscription: Subscription {
            filter: Filter { repositories: vec!["octo/hello".parse()?], events: vec![] },
            ..Subscription::new("embedded".parse()?)
        },
        routes: vec![Route::new(Arc::clone(&greeter) as Arc<dyn Target>)],
        stream_window: None,
    });

    let (stop_server, stop_client) = (CancellationToken::new(), CancellationToken::new());
    let serving = tokio::spawn(server.run(stop_server.clone()));
    let receiving = tokio::spawn(client.run(stop_client.clone()));

    store.append(testing::webhook(1, "octo/hello", 1000)).await?;
    greeter.greeted.notified().await;

    stop_client.cancel();
    receiving.await?;
    stop_server.cancel();
    serving.await??;
    Ok(())
}
