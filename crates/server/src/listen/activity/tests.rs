use std::io;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};

use super::*;
use crate::listen::watched::{PART_BYTES, Watched};

const TIMEOUTS: Timeouts = Timeouts {
    head: Duration::from_secs(10),
    stalled: Duration::from_secs(60),
    idle: Duration::from_secs(650),
    close: Duration::from_secs(10),
};

fn activity() -> Arc<Activity> {
    Arc::new(Activity::new(Arc::new(ConnectionLimit::new(100)), [192, 0, 2, 1].into()))
}

/// How long the connection may be silent from now, in seconds. The time is paused.
async fn seconds(activity: &Activity) -> u64 {
    let begin = Instant::now();
    activity.silence(TIMEOUTS).await;
    begin.elapsed().as_secs()
}

#[tokio::test]
async fn a_large_frame_passes_in_parts() {
    let activity = activity();
    let whole = Bytes::from(vec![7; 3 * PART_BYTES + 1]);
    let mut body =
        Watched::response(Full::new(whole.clone()), activity.begin_request(Version::HTTP_11), None);
    let mut left = whole.len() as u64;
    let mut sizes = Vec::new();
    while !body.is_end_stream() {
        assert_eq!(body.size_hint().exact(), Some(left));
        let part = body.frame().await.unwrap().unwrap().into_data().unwrap();
        left -= part.len() as u64;
        sizes.push(part.len());
    }
    assert_eq!(sizes, [PART_BYTES, PART_BYTES, PART_BYTES, 1]);
    assert!(body.frame().await.is_none());
}

fn pending() -> impl Body<Data = Bytes, Error = io::Error> + Unpin {
    StreamBody::new(futures_util::stream::pending::<io::Result<Frame<Bytes>>>())
}

#[tokio::test(start_paused = true)]
async fn a_response_that_waits_for_this_server_may_be_silent() {
    let activity = activity();
    let mut body = Watched::response(pending(), activity.begin_request(Version::HTTP_11), None);
    assert!(body.frame().now_or_never().is_none());
    let long = tokio::time::timeout(Duration::from_secs(86_400), activity.silence(TIMEOUTS));
    assert!(long.await.is_err(), "the response was not reckoned with");
    drop(body);
    assert_eq!(seconds(&activity).await, 650);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_waits_for_the_peer_may_not() {
    let activity = activity();
    let handler = activity.begin_request(Version::HTTP_11);
    let mut request = Watched::request(pending(), handler.another());
    let _unread = Watched::response(pending(), handler, None);
    assert!(request.frame().now_or_never().is_none());
    assert_eq!(seconds(&activity).await, 60);
}

#[tokio::test(start_paused = true)]
async fn the_first_head_must_come_in_time_whatever_moves() {
    let activity = activity();
    tokio::time::advance(Duration::from_secs(4)).await;
    activity.bytes_came();
    assert_eq!(seconds(&activity).await, 6);
    assert!(activity.awaits_head());
}

#[tokio::test(start_paused = true)]
async fn the_limit_for_a_later_head_starts_with_its_first_byte() {
    let activity = activity();
    drop(activity.begin_request(Version::HTTP_11));
    tokio::time::advance(Duration::from_secs(600)).await;
    assert!(!activity.awaits_head());
    let silence = activity.silence(TIMEOUTS);
    let mut silence = std::pin::pin!(silence);
    assert!(silence.as_mut().now_or_never().is_none());
    activity.bytes_came();
    tokio::time::advance(Duration::from_secs(5)).await;
    activity.bytes_came();
    let begin = Instant::now();
    silence.await;
    assert_eq!(begin.elapsed().as_secs(), 5, "it does not start again with each byte");
    assert!(activity.awaits_head());
}

#[tokio::test(start_paused = true)]
async fn bytes_between_requests_begin_no_head_over_http2() {
    let activity = activity();
    drop(activity.begin_request(Version::HTTP_2));
    activity.bytes_came();
    assert_eq!(seconds(&activity).await, 650);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_the_end_of_a_response_is_not_idle() {
    let activity = activity();
    drop(activity.begin_request(Version::HTTP_11));
    activity.wrote(true);
    assert_eq!(seconds(&activity).await, 60);
    activity.wrote(false);
    assert_eq!(seconds(&activity).await, 650);
}
