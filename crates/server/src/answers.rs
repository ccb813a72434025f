//! Memory for answers to operators: from the time when they are made until they are sent.
//!
//! A caller may read slowly or not at all, so an answer may be on its way for as long as its connection stays open. All answers
//! share one room. An answer that has no room waits, and is refused after a bounded time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Status;

use crate::ingest::Problem;

/// How long a call waits for room.
const WAIT: Duration = Duration::from_secs(10);
/// How long a call may take to send its request and to have its answer made.
const MAKING: Duration = Duration::from_secs(30);
/// What an answer takes beside its bytes.
const OVERHEAD: usize = 4 << 10;

/// The room for answers.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    room: Arc<Semaphore>,
    /// The bytes of an answer that is being made.
    reserved: u32,
}

/// Why a call gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NoAnswer {
    #[error("too many answers wait to be read; read those first, or try again in a minute")]
    NoRoom,
    #[error("the request was not complete, or its answer not made, within {} s; ask for less", MAKING.as_secs())]
    TooSlow,
}

impl Answers {
    /// Room for so many bytes of answers, of which each reserves `reserved` while it is made.
    pub(crate) fn new(bytes: usize, reserved: u32) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes)), reserved }
    }

    /// Counts the answers of these routes. They must be complete when they begin, so no streams.
    pub(crate) fn hold<S: Clone + Send + Sync + 'static>(self, router: Router<S>) -> Router<S> {
        router.route_layer(from_fn_with_state(self, answer))
    }

    /// Counts the answers of these gRPC methods, each with one message.
    pub(crate) fn hold_methods(self, methods: &'static [&'static str], router: Router) -> Router {
        router.route_layer(from_fn_with_state((self, methods), answer_method))
    }

    async fn answer(&self, request: Request, next: Next) -> Result<Response, NoAnswer> {
        let room = timeout(WAIT, Arc::clone(&self.room).acquire_many_owned(self.reserved)).await;
        let room = room.ok().and_then(Result::ok).ok_or(NoAnswer::NoRoom)?;
        let made = async {
            let (parts, body) = next.run(request).await.into_parts();
            body.collect().await.map(|body| (parts, body))
        };
        // Only a body that is read from somewhere could fail.
        let (parts, body) = timeout(MAKING, made).await.ok().and_then(Result::ok).ok_or(NoAnswer::TooSlow)?;
        let trailers = body.trailers().cloned();
        let data = body.to_bytes();
        let room = self.fit(room, data.len()).ok_or(NoAnswer::NoRoom)?;
        Ok(Response::from_parts(parts, Body::new(Held { data: Some(data), trailers, _room: room })))
    }

    /// Gives back what an answer of this size does not need, or takes what it needs beyond its reservation.
    fn fit(&self, mut room: OwnedSemaphorePermit, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let needed = bytes.saturating_add(OVERHEAD);
        match needed.checked_sub(room.num_permits()) {
            Some(more) => {
                let more = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(more).ok()?).ok()?;
                room.merge(more);
            }
            None => drop(room.split(room.num_permits() - needed)),
        }
        Some(room)
    }
}

async fn answer(State(answers): State<Answers>, request: Request, next: Next) -> Response {
    answers.answer(request, next).await.unwrap_or_else(|error| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
    })
}

async fn answer_method(
    State((answers, methods)): State<(Answers, &'static [&'static str])>,
    request: Request,
    next: Next,
) -> Response {
    if !methods.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    answers
        .answer(request, next)
        .await
        .unwrap_or_else(|error| Status::resource_exhausted(error.to_string()).into_http())
}

/// An answer that holds its room. However slowly it is read, it is on its way until its body is dropped.
pub(crate) struct Held {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
    _room: OwnedSemaphorePermit,
}

impl Held {
    /// A body of these bytes.
    pub(crate) fn new(data: Bytes, room: OwnedSemaphorePermit) -> Self {
        Self { data: Some(data), trailers: None, _room: room }
    }
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let data = self.data.take().filter(|data| !data.is_empty()).map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    /// hyper drops a body at its end, although the peer has not read the last bytes. So it must ask for a frame that does not
    /// come, which it does when it has room for one.
    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    /// Answers of so many bytes, with room for 100 KiB.
    fn router(bytes: usize) -> (Answers, Router) {
        let answers = Answers::new(100 << 10, 50 << 10);
        let router = Router::new().route("/", get(move || async move { "x".repeat(bytes) }));
        (answers.clone(), answers.hold(router))
    }

    async fn ask(router: &Router) -> Response {
        router.clone().oneshot(Request::new(Body::empty())).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_reads_are_counted() {
        let (answers, router) = router(16 << 10);
        let mut unread = Vec::new();
        for _ in 0..3 {
            unread.push(ask(&router).await);
        }
        assert_eq!(answers.room.available_permits(), 40 << 10);
        assert_eq!(ask(&router).await.status(), StatusCode::SERVICE_UNAVAILABLE, "after a wait");
        let waiting = tokio::spawn({
            let router = router.clone();
            async move { ask(&router).await.status() }
        });
        tokio::task::yield_now().await;
        let read = unread.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(read.len(), 16 << 10);
        assert_eq!(waiting.await.unwrap(), StatusCode::OK, "what is read gives its room to the next");
        drop(unread);
        assert_eq!(answers.room.available_permits(), 100 << 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_larger_than_all_room_is_refused() {
        for (bytes, status) in [(90 << 10, StatusCode::OK), (200 << 10, StatusCode::SERVICE_UNAVAILABLE)] {
            let (answers, router) = router(bytes);
            let response = ask(&router).await;
            assert_eq!(response.status(), status);
            drop(response);
            assert_eq!(answers.room.available_permits(), 100 << 10);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_end_gives_its_room_back() {
        let answers = Answers::new(100 << 10, 50 << 10);
        let router = Router::new().route("/", get(async || std::future::pending::<String>().await));
        let router = answers.clone().hold(router);
        assert_eq!(ask(&router).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answers.room.available_permits(), 100 << 10);
    }
}
