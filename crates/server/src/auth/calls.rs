//! How many calls each caller may have in progress. A call is in progress until its response has ended.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Peer;

/// The calls without a token in progress on one connection.
pub(crate) const MOST_OF_CONNECTION: usize = 8;
/// All of them, except for health subscriptions. If there are more, the oldest ends.
const MOST_WITHOUT_TOKEN: usize = 256;
/// All `Watch` streams of health.
const MOST_WATCHES: usize = 64;
/// How long a `Watch` stream lives.
const WATCH_TIME: Duration = Duration::from_secs(600);
/// What one token may have beside two calls for each of its client ids.
const BESIDE_CLIENT_IDS: usize = 64;

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallOf {
    /// The token with this place among all tokens of the server.
    Token(usize),
    /// Anybody: the server asks for no token.
    Anonymous,
    /// A caller that has shown no token, and brings a webhook or asks for health.
    Nobody,
    /// The same, for a subscription to health.
    Watch,
}

/// The calls in progress. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct CallLimits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most_of_token: usize,
    watches: Arc<Semaphore>,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    /// How many each token has.
    of_tokens: HashMap<CallOf, usize>,
    /// Those without a token, and what ends them.
    without_token: BTreeMap<u64, CancellationToken>,
    next: u64,
}

/// The place of one call, until this is dropped.
#[derive(Debug)]
pub(crate) struct CallInProgress {
    limits: CallLimits,
    whose: CallOf,
    number: u64,
    ended: CancellationToken,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl CallLimits {
    /// The limits of a server whose tokens may use so many client ids each.
    pub(crate) fn new(max_client_ids: usize) -> Self {
        Self(Arc::new(Shared {
            most_of_token: max_client_ids.saturating_mul(2).saturating_add(BESIDE_CLIENT_IDS),
            watches: Arc::new(Semaphore::new(MOST_WATCHES)),
            calls: Mutex::default(),
        }))
    }

    /// Begins a call.
    pub(crate) fn begin(&self, whose: CallOf, peer: Option<&Peer>) -> Result<CallInProgress, Status> {
        let mut permits = Vec::new();
        if matches!(whose, CallOf::Nobody | CallOf::Watch) {
            if let Some(peer) = peer {
                permits.push(permit(&peer.calls_without_token, || {
                    format!("more than {MOST_OF_CONNECTION} calls without a token on one connection; wait for the others")
                })?);
            }
            if whose == CallOf::Watch {
                permits.push(permit(&self.0.watches, || {
                    format!("the server serves {MOST_WATCHES} Watch streams at once; use Check, or try again later")
                })?);
            }
        }
        let mut calls = self.calls();
        let (number, ended) = (calls.next, CancellationToken::new());
        calls.next += 1;
        match whose {
            CallOf::Token(_) | CallOf::Anonymous => {
                let most = self.0.most_of_token;
                let count = calls.of_tokens.entry(whose).or_default();
                if *count >= most {
                    return Err(Status::resource_exhausted(format!(
                        "the callers with this token have {most} calls in progress; end some, use another token, or raise the server's --max-client-ids"
                    )));
                }
                *count += 1;
            }
            CallOf::Nobody => {
                if calls.without_token.len() >= MOST_WITHOUT_TOKEN
                    && let Some((_, oldest)) = calls.without_token.pop_first()
                {
                    oldest.cancel();
                }
                calls.without_token.insert(number, ended.clone());
            }
            CallOf::Watch => {}
        }
        drop(calls);
        Ok(CallInProgress { limits: self.clone(), whose, number, ended, _permits: permits })
    }

    /// Never held across a wait.
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn permit(of: &Arc<Semaphore>, refusal: impl Fn() -> String) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(of).try_acquire_owned().map_err(|_| Status::resource_exhausted(refusal()))
}

impl CallInProgress {
    /// Answers the call. It is in progress until the body of the response has ended.
    pub(crate) async fn answer(self, answering: impl Future<Output = Response>) -> Response {
        let mut end = self.end();
        tokio::select! {
            biased;
            response = answering => {
                response.map(|body| Body::new(Answer { body, end: Some(end), _call: self }))
            }
            status = &mut end => status.into_http(),
        }
    }

    /// Waits until the server ends the call.
    fn end(&self) -> BoxFuture<'static, Status> {
        match self.whose {
            CallOf::Token(_) | CallOf::Anonymous => Box::pin(std::future::pending()),
            CallOf::Nobody => {
                let ended = self.ended.clone();
                Box::pin(async move {
                    ended.cancelled().await;
                    Status::resource_exhausted(
                        "newer calls without a token needed the place of this one; try again",
                    )
                })
            }
            CallOf::Watch => Box::pin(async {
                tokio::time::sleep(WATCH_TIME).await;
                let minutes = WATCH_TIME.as_secs() / 60;
                Status::unavailable(format!("a Watch stream lives for {minutes} minutes; call again"))
            }),
        }
    }
}

impl Drop for CallInProgress {
    fn drop(&mut self) {
        let mut calls = self.limits.calls();
        calls.without_token.remove(&self.number);
        if let Some(count) = calls.of_tokens.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                calls.of_tokens.remove(&self.whose);
            }
        }
    }
}

/// The body of a response, which ends earlier if the server ends its call.
struct Answer {
    body: Body,
    /// `None` once it was reached.
    end: Option<BoxFuture<'static, Status>>,
    _call: CallInProgress,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        if let Poll::Ready(status) = end.as_mut().poll(context) {
            self.end = None;
            let mut trailers = std::mem::take(status.into_http::<()>().headers_mut());
            trailers.remove(header::CONTENT_TYPE);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tonic::Code;

    use super::*;
    use crate::auth::PeerCertificate;

    fn peer() -> Peer {
        Peer::new(([192, 0, 2, 1], 1).into(), PeerCertificate::None)
    }

    #[tokio::test(start_paused = true)]
    async fn each_token_has_its_calls_and_each_connection_without_one_its_own() {
        let limits = CallLimits::new(3);
        let (peer, other) = (peer(), peer());
        let begin = |whose, peer: &Peer| limits.begin(whose, Some(peer)).map_err(|status| status.code());
        let mut calls: Vec<_> = (0..70).map(|_| begin(CallOf::Token(1), &peer).unwrap()).collect();
        assert_eq!(begin(CallOf::Token(1), &other).unwrap_err(), Code::ResourceExhausted);
        calls.push(begin(CallOf::Token(2), &peer).unwrap());
        calls.push(begin(CallOf::Anonymous, &peer).unwrap());
        for _ in 0..MOST_OF_CONNECTION {
            calls.push(begin(CallOf::Nobody, &peer).unwrap());
        }
        assert_eq!(begin(CallOf::Nobody, &peer).unwrap_err(), Code::ResourceExhausted);
        calls.push(begin(CallOf::Nobody, &other).unwrap());
        calls.clear();
        assert!(begin(CallOf::Token(1), &peer).is_ok() && begin(CallOf::Nobody, &peer).is_ok());
        assert!(limits.calls().of_tokens.is_empty() && limits.calls().without_token.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn watch_streams_are_few_and_end_with_the_advice_to_call_again() {
        let limits = CallLimits::new(3);
        let mut calls = Vec::new();
        for _ in 0..MOST_WATCHES {
            calls.push(limits.begin(CallOf::Watch, Some(&peer())).unwrap());
        }
        assert!(limits.begin(CallOf::Watch, Some(&peer())).is_err());
        assert!(limits.begin(CallOf::Nobody, Some(&peer())).is_ok());
        let endless = Body::from_stream(futures_util::stream::pending::<Result<Bytes, axum::Error>>());
        let response = calls.remove(0).answer(async { Response::new(endless) }).await;
        let trailers = response.into_body().collect().await.unwrap().trailers().cloned().unwrap();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Unavailable);
        assert!(limits.begin(CallOf::Watch, Some(&peer())).is_ok(), "the ended stream left its place");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_call_without_a_token_ends_for_a_new_one() {
        let limits = CallLimits::new(3);
        let oldest = limits.begin(CallOf::Nobody, Some(&peer())).unwrap();
        let answer = tokio::spawn(oldest.answer(std::future::pending()));
        let mut calls = Vec::new();
        for _ in 0..MOST_WITHOUT_TOKEN {
            calls.push(limits.begin(CallOf::Nobody, Some(&peer())).unwrap());
        }
        let ended = Status::from_header_map(answer.await.unwrap().headers()).unwrap();
        assert_eq!(ended.code(), Code::ResourceExhausted);
    }
}
