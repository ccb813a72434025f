//! Streams that fall silent, on paused time.

use futures_util::FutureExt;
use gitstafette_proto::convert::duration;
use gitstafette_proto::v1::Heartbeat;
use tokio::sync::watch;

use super::*;
use crate::feed::{Feed, Keep, LocalFeed};
use crate::state::ClientState;
use crate::window::Window;

/// Runs a stream on which the server says this and then nothing more. Returns the end, and how long it took.
async fn run_silent(said: Vec<Response>) -> (End, Duration) {
    let feed = Feed::Local(LocalFeed::new(move |_requests| {
        let said =
            said.clone().into_iter().map(|response| Ok(SubscribeResponse { response: Some(response) }));
        let responses =
            futures_util::stream::iter(said.collect::<Vec<_>>()).chain(futures_util::stream::pending());
        async move { Ok(responses.boxed()) }.boxed()
    }));
    let line = feed.connect(&Keep::default()).await.unwrap();
    let subscription = Subscription::new("a".parse().unwrap());
    let window = Window::of(&subscription);
    let mut deliveries =
        Deliveries::new(Vec::new(), window, watch::Sender::new(ClientState::default()), None);
    let begin = Instant::now();
    let order = Order { subscription, window: None };
    let end = run(line, order, &mut deliveries, &CancellationToken::new(), |_| {}).await;
    (end, begin.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_broken_after_one_and_a_half_intervals() {
    let interval = Some(duration(Duration::from_secs(10)));
    let started = Response::Started(Started { heartbeat_interval: interval, ..Started::default() });
    for said in [vec![], vec![started.clone()], vec![started, Response::Heartbeat(Heartbeat::default())]] {
        let (end, elapsed) = run_silent(said).await;
        assert!(matches!(end, End::Broken(_)), "{end:?}");
        assert_eq!(elapsed.as_secs(), 15);
    }
}
