//! `info.Info` and `grpc.health.v1` over gRPC, in plain text: what this client is, for whoever asks. As the Go
//! implementation's client has it.

use std::pin::pin;
use std::time::Duration;

use gitstafette_proto::info::info_server::{Info, InfoServer};
use gitstafette_proto::info::{GetInfoRequest, GetInfoResponse, InstanceType, ServerInfo};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::{Response, Status};
use tower::Service;
use tracing::debug;

use crate::probes;

/// How long a connection may be silent at its start.
const FIRST_BYTE: Duration = Duration::from_secs(5);
/// How long a connection lives before its client is told to make another: so that none is held for ever. It is what the
/// Go implementation has.
const LIFE: Duration = Duration::from_secs(60);
/// How long what is under way may then take.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a client tells of itself. No secrets, and no paths of targets, which may hold one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// The repositories it asks for, separated by commas.
    pub repositories: String,
    /// Where `GET /health` is served.
    pub health_port: Option<u16>,
    /// The target's protocol, host and port, if there is one.
    pub target: Option<(&'static str, String, u16)>,
}

impl Identity {
    /// The answer, with the fields filled as the Go implementation's client fills them: `server` is the client itself,
    /// with the port of its HTTP health check; `relay` is its target.
    fn answer(&self) -> GetInfoResponse {
        let repositories = Some(self.repositories.clone());
        let relay = self.target.as_ref().map(|(protocol, host, port)| ServerInfo {
            hostname: host.clone(),
            ip: String::new(),
            port: port.to_string(),
            protocol: (*protocol).to_owned(),
            repositories: repositories.clone(),
        });
        let instance_type = if relay.is_some() { InstanceType::Relay } else { InstanceType::Client };
        GetInfoResponse {
            alive: true,
            instance_type: instance_type.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            server: Some(ServerInfo {
                hostname: gethostname::gethostname().to_string_lossy().into_owned(),
                ip: String::new(),
                port: self.health_port.map(|port| port.to_string()).unwrap_or_default(),
                protocol: "grpc".to_owned(),
                repositories,
            }),
            relay,
            relays: Vec::new(),
        }
    }
}

#[tonic::async_trait]
impl Info for Identity {
    async fn get_info(
        &self,
        request: tonic::Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let GetInfoRequest { client_id, client_endpoint } = request.into_inner();
        debug!(client.id = ?client_id, client.endpoint = ?client_endpoint, "asked for info");
        Ok(Response::new(self.answer()))
    }
}

/// Serves both until `stop` is cancelled. The health is that of the process: a server or a target that is away is no
/// reason to restart a client.
pub async fn serve(listener: TcpListener, identity: Identity, stop: CancellationToken) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<InfoServer<Identity>>().await;
    let routes = Routes::new(InfoServer::new(identity)).add_service(health);
    let calls = Calls { tasks: TaskTracker::new(), stop: stop.clone() };
    probes::serve(listener, stop, |stream| answer(stream, routes.clone(), calls.clone())).await;
    calls.tasks.close();
    calls.tasks.wait().await;
}

async fn answer(stream: TcpStream, routes: Routes, calls: Calls) {
    let first = tokio::time::timeout(FIRST_BYTE, stream.peek(&mut [0])).await;
    if !matches!(first, Ok(Ok(1))) {
        return;
    }
    let service = service_fn(move |request: Request<Incoming>| routes.clone().call(request));
    let mut builder = http2::Builder::new(calls);
    builder.timer(TokioTimer::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(LIFE) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the info port broke off");
    }
}

/// Runs the calls, which hyper does not run in the connection's own task.
#[derive(Clone, Debug)]
struct Calls {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Calls
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(call));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_proto::info::info_client::InfoClient;
    use tokio::io::AsyncReadExt;
    use tonic::transport::{Channel, Endpoint};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;

    fn identity() -> Identity {
        Identity {
            name: "homelab".into(),
            repositories: "537845873,octo/*".into(),
            health_port: Some(8080),
            target: Some(("http", "jenkins".into(), 8081)),
        }
    }

    async fn started() -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        (address, stop.clone(), tokio::spawn(serve(listener, identity(), stop)))
    }

    async fn channel(address: std::net::SocketAddr) -> Channel {
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
    }

    #[tokio::test]
    async fn tells_what_it_is_and_that_it_serves() {
        let (address, stop, serving) = started().await;
        let channel = channel(address).await;
        let info =
            InfoClient::new(channel.clone()).get_info(GetInfoRequest::default()).await.unwrap().into_inner();
        assert_eq!((info.alive, info.name.as_str()), (true, "homelab"));
        assert_eq!(info.instance_type(), InstanceType::Relay);
        let (server, relay) = (info.server.unwrap(), info.relay.unwrap());
        assert_eq!((server.port.as_str(), server.protocol.as_str()), ("8080", "grpc"));
        assert_eq!(server.repositories(), "537845873,octo/*");
        assert_eq!(
            (relay.hostname.as_str(), relay.port.as_str(), relay.protocol.as_str()),
            ("jenkins", "8081", "http")
        );

        let mut health = HealthClient::new(channel);
        for service in ["", "info.Info"] {
            let asked = HealthCheckRequest { service: service.into() };
            let status = health.check(asked).await.unwrap().into_inner().status();
            assert_eq!(status, ServingStatus::Serving, "{service:?}");
        }
        // One that watches does not hold up the end.
        let mut watching = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(watching.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        stop.cancel();
        serving.await.unwrap();
    }

    #[test]
    fn a_client_that_prints_is_no_relay() {
        let answer = Identity { target: None, health_port: None, ..identity() }.answer();
        assert_eq!(answer.instance_type(), InstanceType::Client);
        assert!(answer.relay.is_none() && answer.server.unwrap().port.is_empty());
    }

    #[tokio::test]
    async fn who_says_nothing_is_left() {
        let (address, _stop, _serving) = started().await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        tokio::time::pause();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    }
}
