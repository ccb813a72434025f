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
use gitstafette_proto::v1::{
    SubscribeRequest, SubscribeResponse, WebhookEventsRequest, WebhookEventsResponse,
};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use tonic::codec::Codec;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::auth::{FETCH, SUBSCRIBE};
use crate::service::Service;

/// What stands before each message: whether it is compressed, and its length (gRPC over HTTP2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The two methods, at their paths.
pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new().route(SUBSCRIBE, post(subscribe)).route(FETCH, post(fetch)).with_state(service)
}

async fn subscribe(
    State(service): State<Arc<Service>>,
    request: http::Request<Body>,
) -> http::Response<tonic::body::Body> {
    let request = requests::<SubscribeResponse, SubscribeRequest>(request);
    respond(service.subscribe(request).await)
}

async fn fetch(
    State(service): State<Arc<Service>>,
    request: http::Request<Body>,
) -> http::Response<tonic::body::Body> {
    let request = requests::<WebhookEventsResponse, WebhookEventsRequest>(request);
    let (metadata, extensions, mut messages) = request.into_parts();
    match messages.message().await {
        Ok(Some(message)) => {
            let request = Request::from_parts(metadata, extensions, message);
            respond(service.fetch_webhook_events(request).await)
        }
        Ok(None) => Status::invalid_argument("the request has no message").into_http(),
        Err(status) => status.into_http(),
    }
}

/// The messages of a request.
fn requests<Out, In>(request: http::Request<Body>) -> Request<Streaming<In>>
where
    Out: Message + Default + 'static,
    In: Message + Default + Send + 'static,
{
    let decoder = ProstCodec::<Out, In>::default().decoder();
    let decode = |body| Streaming::new_request(decoder, body, None, Some(MAX_REQUEST_BYTES));
    Request::from_http(request.map(decode))
}

fn respond<M: Message + 'static>(
    response: Result<Response<impl Stream<Item = Result<M, Status>> + Send + Unpin + 'static>, Status>,
) -> http::Response<tonic::body::Body> {
    match response {
        Ok(response) => {
            let frames = frames(response.into_inner());
            let mut response = http::Response::new(tonic::body::Body::new(StreamBody::new(frames)));
            let content_type = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            response
        }
        Err(status) => status.into_http(),
    }
}

/// The messages, and at the end the status as trailers. A message is asked for when the connection has taken the one before.
fn frames<M: Message>(
    messages: impl Stream<Item = Result<M, Status>> + Send + Unpin,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    stream::unfold(Some(messages), |messages| async move {
        let mut messages = messages?;
        match messages.next().await {
            Some(Ok(message)) => Some((Ok(Frame::data(encode(&message))), Some(messages))),
            Some(Err(status)) => Some((trailers(&status), None)),
            None => Some((trailers(&Status::ok("")), None)),
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
        let responses = stream::iter([Ok(message.clone()), Err(Status::unavailable("later"))]);
        let frames: Vec<_> = frames(responses).map(Result::unwrap).collect().await;
        let [data, end] = <[_; 2]>::try_from(frames).unwrap();
        let data = data.into_data().unwrap();
        assert_eq!(data[..PREFIX_BYTES], [0, 0, 1, 0x86, 0xa4]);
        assert_eq!(data.len(), PREFIX_BYTES + message.encoded_len());
        assert_eq!(data.try_into_mut().unwrap().capacity(), PREFIX_BYTES + message.encoded_len());
        assert_eq!(end.into_trailers().unwrap()["grpc-status"], "14");
    }
}
