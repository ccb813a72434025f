//! The streams that carry webhooks: `Subscribe` and `FetchWebhookEvents`, each message in a buffer of its own.
//!
//! They stand beside the generated service, whose encoder has one buffer for each stream: that grows to twice the largest
//! message, and stays as long as the stream lives. Fifty subscribers that had received a large webhook each kept it in memory.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use gitstafette_proto::MAX_REQUEST_BYTES;
use gitstafette_proto::v1::gitstafette_server::Gitstafette;
use gitstafette_proto::v1::{WebhookEventsRequest, WebhookEventsResponse};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use tonic::codec::{Codec, Decoder};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::auth::{FETCH, SUBSCRIBE};
use crate::message_memory::MessageMemory;
use crate::service::Service;
use crate::subscribe::{RequestDecoder, SendProgress};

/// The largest part of a message that the connection is given at once.
const PART_BYTES: usize = 64 << 10;
/// What stands before each message: whether it is compressed, and its length (gRPC over HTTP2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The two methods, at their paths.
pub(crate) fn router(service: Arc<Service>) -> Router {
    let streams = Streams { service, memory: MessageMemory::new() };
    Router::new().route(SUBSCRIBE, post(subscribe)).route(FETCH, post(fetch)).with_state(streams)
}

/// What the two methods need.
#[derive(Clone, Debug)]
struct Streams {
    service: Arc<Service>,
    memory: MessageMemory,
}

async fn subscribe(
    State(Streams { service, memory }): State<Streams>,
    mut request: http::Request<Body>,
) -> http::Response<tonic::body::Body> {
    let progress = progress(&mut request);
    let request = requests(request, &memory, RequestDecoder);
    respond(service.subscribe(request).await, progress)
}

async fn fetch(
    State(Streams { service, memory }): State<Streams>,
    mut request: http::Request<Body>,
) -> http::Response<tonic::body::Body> {
    let progress = progress(&mut request);
    let decoder = ProstCodec::<WebhookEventsResponse, WebhookEventsRequest>::default().decoder();
    let request = requests(request, &memory, decoder);
    let (metadata, extensions, mut messages) = request.into_parts();
    match messages.message().await {
        Ok(Some(message)) => {
            let request = Request::from_parts(metadata, extensions, message);
            respond(service.fetch_webhook_events(request).await, progress)
        }
        Ok(None) => Status::invalid_argument("the request has no message").into_http(),
        Err(status) => status.into_http(),
    }
}

/// How the connection takes the response, for the method that gives it.
fn progress(request: &mut http::Request<Body>) -> Arc<SendProgress> {
    let progress = Arc::<SendProgress>::default();
    request.extensions_mut().insert(Arc::clone(&progress));
    progress
}

/// The messages of a request.
fn requests<D>(
    request: http::Request<Body>,
    memory: &MessageMemory,
    decoder: D,
) -> Request<Streaming<D::Item>>
where
    D: Decoder<Error = Status> + Send + 'static,
{
    let decode = |body| Streaming::new_request(decoder, memory.bound(body), None, Some(MAX_REQUEST_BYTES));
    Request::from_http(request.map(decode))
}

pub(crate) fn respond<M: Message + 'static>(
    response: Result<Response<impl Stream<Item = Result<M, Status>> + Send + Unpin + 'static>, Status>,
    progress: Arc<SendProgress>,
) -> http::Response<tonic::body::Body> {
    match response {
        Ok(response) => {
            let frames = frames(response.into_inner(), progress);
            let mut response = http::Response::new(tonic::body::Body::new(StreamBody::new(frames)));
            let content_type = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            response
        }
        Err(status) => status.into_http(),
    }
}

/// The messages, and at the end the status as trailers. A message is asked for when the connection has taken the one before.
/// A large message goes in parts, so that a peer that reads slowly can be told from one that does not read.
fn frames<M: Message>(
    messages: impl Stream<Item = Result<M, Status>> + Send + Unpin,
    progress: Arc<SendProgress>,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    stream::unfold((Some(messages), Bytes::new()), move |(messages, mut rest)| {
        let progress = Arc::clone(&progress);
        async move {
            let mut messages = messages?;
            if rest.is_empty() {
                rest = match messages.next().await {
                    Some(Ok(message)) => encode(&message),
                    Some(Err(status)) => return Some((trailers(&status), (None, rest))),
                    None => return Some((trailers(&Status::ok("")), (None, rest))),
                };
            } else {
                progress.part();
            }
            let part = if rest.len() <= PART_BYTES {
                std::mem::take(&mut rest)
            } else {
                // A slice would keep the whole message in memory for as long as it waits in a buffer of the connection.
                Bytes::copy_from_slice(&rest.split_to(PART_BYTES))
            };
            Some((Ok(Frame::data(part)), (Some(messages), rest)))
        }
    })
}

fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).expect("messages are far smaller"));
    message.encode(&mut buffer).expect("the buffer grows");
    buffer.freeze()
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_takes_no_more_than_its_own_length() {
        let message = WebhookEventsRequest { client_id: "x".repeat(100_000), ..Default::default() };
        let buffer = encode(&message);
        assert_eq!(buffer.len(), PREFIX_BYTES + message.encoded_len());
        assert_eq!(buffer.try_into_mut().unwrap().capacity(), PREFIX_BYTES + message.encoded_len());
        let responses = stream::iter([Ok(message.clone()), Err(Status::unavailable("later"))]);
        let frames: Vec<_> = frames(responses, Arc::default()).map(Result::unwrap).collect().await;
        let [first, second, end] = <[_; 3]>::try_from(frames).unwrap();
        let [first, second] = [first, second].map(|frame| frame.into_data().unwrap());
        assert_eq!(first[..PREFIX_BYTES], [0, 0, 1, 0x86, 0xa4]);
        assert_eq!(
            (first.len(), second.len()),
            (PART_BYTES, PREFIX_BYTES + message.encoded_len() - PART_BYTES)
        );
        assert_eq!(first.try_into_mut().unwrap().capacity(), PART_BYTES);
        assert_eq!(end.into_trailers().unwrap()["grpc-status"], "14");
    }
}
