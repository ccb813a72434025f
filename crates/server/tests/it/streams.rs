//! The `Subscribe` stream as a client of any language sees it: statuses, heartbeats, receipts, reasons to end.

use gitstafette_core::event::Sequence;
use gitstafette_proto::info::info_client::InfoClient;
use gitstafette_proto::info::{GetInfoRequest, InstanceType};
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{
    Acknowledgement, Acknowledgements, GoAwayReason, Outcome, OutcomeResult, SubscribeRequest,
    SubscribeResponse, Subscription,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Sender, TOKEN, TestClient, TestServer, TestTarget, options, soon};

/// A raw stream.
pub struct Raw {
    requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
}

pub async fn channel(server: &TestServer) -> Channel {
    Channel::from_shared(format!("http://{}", server.addresses.grpc)).unwrap().connect().await.unwrap()
}

pub fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

pub async fn open(server: &TestServer, token: Option<&str>, first: Option<Wire>) -> Result<Raw, Status> {
    open_on(channel(server).await, token, first).await
}

pub async fn open_on(channel: Channel, token: Option<&str>, first: Option<Wire>) -> Result<Raw, Status> {
    let (requests, receiver) = mpsc::channel(16);
    requests.send(SubscribeRequest { request: first }).await.unwrap();
    let request = with_token(ReceiverStream::new(receiver), token);
    let responses = soon(GitstafetteClient::new(channel).subscribe(request)).await?.into_inner();
    Ok(Raw { requests, responses })
}

pub fn subscription(client_id: &str) -> Subscription {
    Subscription { client_id: client_id.to_owned(), ..Subscription::default() }
}

pub async fn subscribe(server: &TestServer, client_id: &str) -> Raw {
    open(server, Some(TOKEN), Some(Wire::Subscription(subscription(client_id)))).await.unwrap()
}

async fn refusal(server: &TestServer, token: Option<&str>, first: Option<Wire>) -> Status {
    open(server, token, first).await.err().expect("it was not refused")
}

pub fn acknowledgement(sequence: u64) -> Wire {
    let outcome = Outcome {
        target: "t".into(),
        result: OutcomeResult::Delivered.into(),
        attempts: 1,
        ..Outcome::default()
    };
    let acknowledgements = vec![Acknowledgement { sequence, outcomes: vec![outcome] }];
    Wire::Acknowledgements(Acknowledgements { acknowledgements })
}

impl Raw {
    pub async fn send(&self, request: Wire) {
        self.requests.send(SubscribeRequest { request: Some(request) }).await.unwrap();
    }

    /// The next message that is no heartbeat.
    pub async fn next(&mut self) -> Result<Response, Status> {
        loop {
            match soon(self.responses.message()).await? {
                Some(SubscribeResponse { response: Some(Response::Heartbeat(_)) }) => {}
                Some(SubscribeResponse { response }) => return Ok(response.unwrap()),
                None => return Err(Status::ok("the end")),
            }
        }
    }

    pub async fn event(&mut self) -> u64 {
        loop {
            match self.next().await.unwrap() {
                Response::Event(event) => return event.sequence,
                Response::Started(_) | Response::Receipt(_) => {}
                other => panic!("{other:?} instead of an event"),
            }
        }
    }

    /// Waits for the next receipt.
    pub async fn receipt(&mut self) {
        while !matches!(self.next().await.unwrap(), Response::Receipt(_)) {}
    }

    /// Waits for the end that the server announces.
    pub async fn go_away(&mut self) -> GoAwayReason {
        loop {
            match self.next().await.unwrap() {
                Response::GoAway(go_away) => return go_away.reason(),
                Response::Started(_) | Response::Receipt(_) | Response::Event(_) | Response::Missed(_) => {}
                Response::Heartbeat(_) => unreachable!("next passes over them"),
            }
        }
    }
}

#[tokio::test]
async fn what_is_refused_leaves_the_server_unharmed() {
    let server = TestServer::start("").await;
    let valid = || Some(Wire::Subscription(subscription("a")));
    let unauthenticated = refusal(&server, None, valid()).await;
    assert_eq!(unauthenticated.code(), Code::Unauthenticated);
    assert!(unauthenticated.message().contains("set the client's token"), "{unauthenticated}");
    assert_eq!(refusal(&server, Some("wrong"), valid()).await.code(), Code::Unauthenticated);
    assert_eq!(refusal(&server, Some(TOKEN), None).await.code(), Code::InvalidArgument);
    assert_eq!(refusal(&server, Some(TOKEN), Some(acknowledgement(1))).await.code(), Code::InvalidArgument);

    let malformed = [
        subscription(""),
        subscription("a b"),
        Subscription { repositories: vec!["octo".into()], ..subscription("a") },
        Subscription { events: vec!["pu sh".into()], ..subscription("a") },
    ];
    for first in malformed {
        let status = refusal(&server, Some(TOKEN), Some(Wire::Subscription(first))).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let unknown = Subscription { repositories: vec!["octo/hello".into()], ..subscription("a") };
    let status = refusal(&server, Some(TOKEN), Some(Wire::Subscription(unknown))).await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("octo/hello is not on the server's watchlist"), "{status}");

    Sender::new(&server).push("delivery-1").await;
    assert_eq!(subscribe(&server, "a").await.event().await, 1);
}

#[tokio::test]
async fn malformed_messages_later_end_the_stream_alone() {
    let server = TestServer::start("").await;
    Sender::new(&server).push("delivery-1").await;
    let empty =
        Acknowledgements { acknowledgements: vec![Acknowledgement { sequence: 1, outcomes: vec![] }] };
    for second in [Wire::Acknowledgements(empty), Wire::Subscription(subscription("a"))] {
        let mut raw = subscribe(&server, "a").await;
        assert_eq!(raw.event().await, 1);
        raw.send(second).await;
        let status = raw.next().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let client = "a".parse().unwrap();
    let progress = server.store.progress(&client).await.unwrap().unwrap();
    assert_eq!((progress.cursor, progress.ahead.is_empty()), (Sequence::ZERO, true), "no cursor was moved");
}

#[tokio::test]
async fn acknowledgements_get_receipts_and_move_the_cursor() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let mut raw = subscribe(&server, "a").await;
    let Response::Started(started) = raw.next().await.unwrap() else { panic!("Started comes first") };
    assert_eq!((started.cursor, started.head), (0, 3));
    for expected in 1..=3 {
        assert_eq!(raw.event().await, expected);
    }
    for sequence in [3, 1, 99, 1] {
        raw.send(acknowledgement(sequence)).await;
        let Response::Receipt(receipt) = raw.next().await.unwrap() else { panic!("no receipt") };
        assert_eq!(receipt.sequences, [sequence]);
    }
    let progress = server.store.progress(&"a".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(progress.cursor, Sequence::new(1));
    assert_eq!(progress.ahead, [Sequence::new(3)].into_iter().collect());
    drop(raw);

    let mut again = subscribe(&server, "a").await;
    let Response::Started(started) = again.next().await.unwrap() else { panic!("Started comes first") };
    assert_eq!(started.cursor, 1);
    assert_eq!(again.event().await, 2);
    sender.push("delivery-4").await;
    assert_eq!(again.event().await, 4, "3 was acknowledged");
}

#[tokio::test]
async fn what_is_acknowledged_before_it_is_sent_again_is_not_sent_again() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let mut first = subscribe(&server, "a").await;
    assert_eq!((first.event().await, first.event().await), (1, 2));
    drop(first);
    // The target answered for 2 between the streams; the window lets only 1 through before that is heard.
    let narrow = Subscription { max_unacknowledged_events: 1, ..subscription("a") };
    let mut second = open(&server, Some(TOKEN), Some(Wire::Subscription(narrow))).await.unwrap();
    assert_eq!(second.event().await, 1);
    for sequence in [2, 1] {
        second.send(acknowledgement(sequence)).await;
        let Response::Receipt(receipt) = second.next().await.unwrap() else { panic!("no receipt") };
        assert_eq!(receipt.sequences, [sequence]);
    }
    assert_eq!(second.event().await, 3);
    assert_eq!(server.store.reports(Sequence::new(2)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_start_may_be_for_new_ids_only() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    use gitstafette_proto::v1::subscription::Start;
    let latest = || Subscription {
        start: Some(Start::Latest(gitstafette_proto::v1::Latest {})),
        keep_cursor: true,
        ..subscription("a")
    };
    let mut new = open(&server, Some(TOKEN), Some(Wire::Subscription(latest()))).await.unwrap();
    sender.push("delivery-2").await;
    assert_eq!(new.event().await, 2, "the start of a new id");
    drop(new);
    sender.push("delivery-3").await;
    let mut known = open(&server, Some(TOKEN), Some(Wire::Subscription(latest()))).await.unwrap();
    assert_eq!((known.event().await, known.event().await), (2, 3), "a known id goes on");
}

#[tokio::test]
async fn the_window_holds_back_until_something_is_acknowledged() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=4 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let narrow = Subscription { max_unacknowledged_events: 2, ..subscription("a") };
    let mut raw = open(&server, Some(TOKEN), Some(Wire::Subscription(narrow))).await.unwrap();
    assert_eq!((raw.event().await, raw.event().await), (1, 2));
    raw.send(acknowledgement(2)).await;
    assert_eq!(raw.event().await, 3);
    raw.send(acknowledgement(1)).await;
    assert_eq!(raw.event().await, 4);
}

#[tokio::test]
async fn a_stream_may_start_elsewhere() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    use gitstafette_proto::v1::subscription::Start;
    let start = |start| Some(Wire::Subscription(Subscription { start: Some(start), ..subscription("a") }));
    let mut second = open(&server, Some(TOKEN), start(Start::AfterSequence(1))).await.unwrap();
    assert_eq!(second.event().await, 2);
    let mut earliest = open(&server, Some(TOKEN), start(Start::AfterSequence(0))).await.unwrap();
    assert_eq!(earliest.event().await, 1);
    let epoch = Start::ReceivedSince(prost_types::Timestamp::default());
    let mut since = open(&server, Some(TOKEN), start(epoch)).await.unwrap();
    assert_eq!(since.event().await, 1);
    let beyond = open(&server, Some(TOKEN), start(Start::AfterSequence(1000))).await;
    sender.push("delivery-4").await;
    assert_eq!(beyond.unwrap().event().await, 4, "a start beyond the head skips nothing that comes");
}

#[tokio::test]
async fn heartbeats_carry_head_and_cursor() {
    let server = TestServer::start("heartbeat-interval = \"20ms\"").await;
    let mut raw = subscribe(&server, "a").await;
    Sender::new(&server).push("delivery-1").await;
    raw.event().await;
    raw.send(acknowledgement(1)).await;
    let beat = async {
        loop {
            if let Some(SubscribeResponse { response: Some(Response::Heartbeat(beat)) }) =
                raw.responses.message().await.unwrap()
                && beat.cursor == 1
            {
                return beat;
            }
        }
    };
    assert_eq!(soon(beat).await.head, 1);
}

#[tokio::test]
async fn a_newer_stream_takes_over() {
    let server = TestServer::start("").await;
    Sender::new(&server).push("delivery-1").await;
    let mut older = subscribe(&server, "a").await;
    assert_eq!(older.event().await, 1);
    let mut newer = subscribe(&server, "a").await;
    assert_eq!(older.go_away().await, GoAwayReason::TakenOver);
    assert_eq!(newer.event().await, 1, "what the older did not acknowledge");
}

#[tokio::test]
async fn what_a_client_has_seen_moves_the_cursor_back_only_if_it_asks() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path(), "").await;
    for number in 1..=3 {
        Sender::new(&server).push(&format!("delivery-{number}")).await;
    }
    let mut first = subscribe(&server, "a").await;
    let Response::Started(started) = first.next().await.unwrap() else { panic!("no start") };
    for sequence in 1..=3 {
        assert_eq!(first.event().await, sequence);
        first.send(acknowledgement(sequence)).await;
    }
    while soon(server.store.progress(&"a".parse().unwrap())).await.unwrap().unwrap().cursor.get() < 3 {
        first.receipt().await;
    }
    // Another process of the same client, which has seen less: a stream of it was taken over.
    let seen = Subscription {
        store_id: started.store_id,
        run_id: started.run_id,
        runs: started.runs,
        seen_sequence: Some(1),
        ..subscription("a")
    };
    let behind = open(&server, Some(TOKEN), Some(Wire::Subscription(seen.clone()))).await;
    let Response::Started(kept) = behind.unwrap().next().await.unwrap() else { panic!("no start") };
    assert_eq!(kept.cursor, 3, "the cursor stays");
    let resuming = Wire::Subscription(Subscription { resume_at_seen: true, ..seen });
    let mut back = open(&server, Some(TOKEN), Some(resuming)).await.unwrap();
    let Response::Started(moved) = back.next().await.unwrap() else { panic!("no start") };
    assert_eq!(moved.cursor, 1);
    assert_eq!(back.event().await, 2);
}

#[tokio::test]
async fn the_stream_window_ends_a_stream_and_loses_nothing() {
    let server = TestServer::start("stream-window = \"100ms\"").await;
    let mut raw = subscribe(&server, "a").await;
    assert_eq!(raw.go_away().await, GoAwayReason::Window);
    assert_eq!(raw.next().await.unwrap_err().code(), Code::Ok);

    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let sender = Sender::new(&server);
    for number in 0..200 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let expected: Vec<_> = (0..200).map(|number| format!("delivery-{number}")).collect();
    assert_eq!(target.next_ids(200).await, expected);
    client.stop().await;
    assert!(target.is_quiet(), "a planned end doubles nothing");
}

#[tokio::test]
async fn draining_says_go_away_and_refuses_new_streams() {
    let server = TestServer::start("").await;
    let mut raw = subscribe(&server, "a").await;
    Sender::new(&server).push("delivery-1").await;
    raw.event().await;
    server.drain();
    assert_eq!(raw.go_away().await, GoAwayReason::Drain);
    drop(raw);
    server.stop().await;
}

#[tokio::test]
async fn info_health_and_reflection() {
    let server = TestServer::start("name = \"harbour\"").await;
    let channel = channel(&server).await;
    let mut info = InfoClient::new(channel.clone());
    let unauthenticated = info.get_info(GetInfoRequest::default()).await.unwrap_err();
    assert_eq!(unauthenticated.code(), Code::Unauthenticated);
    let answer =
        info.get_info(with_token(GetInfoRequest::default(), Some(TOKEN))).await.unwrap().into_inner();
    assert!(answer.alive);
    assert_eq!((answer.name.as_str(), answer.instance_type()), ("harbour", InstanceType::Server));
    let at = answer.server.unwrap();
    assert_eq!(at.port, server.addresses.grpc.port().to_string());
    assert_eq!(at.repositories.as_deref(), Some("octo-harbor/*"));

    let mut health = HealthClient::new(channel.clone());
    for service in ["", "gitstafette.v1.Gitstafette", "info.Info"] {
        let check = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(check).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "without a token");
    }
    let unknown = health.check(HealthCheckRequest { service: "unknown".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let list = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let request = with_token(tokio_stream::once(list), Some(TOKEN));
    let mut answers = reflection.server_reflection_info(request).await.unwrap().into_inner();
    let answer = soon(answers.message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["gitstafette.v1.Gitstafette", "info.Info", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|other| other == name), "{names:?}");
    }
}

#[tokio::test]
async fn an_unknown_service_is_unimplemented() {
    let server = TestServer::start("").await;
    let mut grpc = tonic::client::Grpc::new(channel(&server).await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<GetInfoRequest, GetInfoRequest>::default();
    let path = http::uri::PathAndQuery::from_static("/gitstafette.v2.Gitstafette/Subscribe");
    let status = grpc.unary(Request::new(GetInfoRequest::default()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
