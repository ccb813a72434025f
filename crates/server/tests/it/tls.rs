//! TLS from PEM files on every listener, client certificates, and one port for everything.

use std::path::PathBuf;
use std::sync::Arc;

use gitstafette_client::tls::{IdentityFiles, PemFiles};
use gitstafette_client::{ClientOptions, ServerAddress};
use gitstafette_server::config::Config;
use http::StatusCode;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    Sender, TestClient, TestServer, TestTarget, all_acknowledged, http_client, options, payload, settings,
    soon,
};

/// A CA of the test, and files with what it signed.
pub struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Signs a certificate for localhost.
    pub fn sign(&self, name: &str) -> IdentityFiles {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = IdentityFiles {
            certificate: self.folder.path().join(format!("{name}.pem")),
            key: self.folder.path().join(format!("{name}.key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// The server's settings: its certificate, and the CA if clients need certificates.
    fn settings(&self, client_certificates: bool) -> String {
        let IdentityFiles { certificate, key } = self.sign("server");
        let ca =
            if client_certificates { format!("ca-file-location = {:?}\n", self.ca()) } else { String::new() };
        format!("cert-file-location = {certificate:?}\ncert-key-file-location = {key:?}\n{ca}")
    }

    /// Options of a client that trusts the CA and shows this identity.
    fn client(
        &self,
        server: &TestServer,
        target: &TestTarget,
        identity: Option<IdentityFiles>,
    ) -> ClientOptions {
        let files = PemFiles { ca: Some(self.ca()), identity };
        let plain = options(server.addresses.grpc, target.target());
        let tls = Some(Arc::new(files.client_config().unwrap()));
        ClientOptions { server: ServerAddress { tls, ..plain.server }, ..plain }
    }

    pub fn https(&self) -> reqwest::Client {
        let tls = PemFiles { ca: Some(self.ca()), identity: None }.client_config().unwrap();
        reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
    }
}

/// Whether a client with these options gets a subscription rather than being turned away twice.
async fn is_let_in(options: ClientOptions) -> bool {
    let mut client = TestClient::start(options);
    let subscribed =
        tokio::time::timeout(std::time::Duration::from_millis(700), client.subscribed()).await.is_ok();
    client.kill();
    subscribed
}

#[tokio::test]
async fn both_listeners_speak_tls() {
    let authority = Authority::new();
    let server = TestServer::start(&authority.settings(false)).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(authority.client(&server, &target, None));
    let url = format!("https://localhost:{}/v1/github/", server.addresses.http.port());
    let request = crate::support::hook(gitstafette_core::testing::Format::Json).request(
        "push",
        "delivery-1",
        &payload("x"),
    );
    let mut builder = authority.https().post(url).body(request.body);
    for (name, value) in request.headers {
        builder = builder.header(name, value);
    }
    assert_eq!(builder.send().await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(target.next_ids(1).await, ["delivery-1"]);
    all_acknowledged(&*server.store).await;

    // A proxy in front of the webhook port may still speak plain text.
    Sender::new(&server).push("delivery-2").await;
    assert_eq!(target.next_ids(1).await, ["delivery-2"]);
    client.stop().await;
}

#[tokio::test]
async fn plain_text_can_be_refused_and_is_never_taken_for_grpc() {
    let authority = Authority::new();
    let more = format!("{}http-tls = \"required\"\n", authority.settings(false));
    let server = TestServer::start(&more).await;
    assert!(http_client().get(server.url("/healthz")).send().await.is_err());
    let target = TestTarget::start().await;
    assert!(!is_let_in(options(server.addresses.grpc, target.target())).await);
}

#[tokio::test]
async fn client_certificates() {
    let authority = Authority::new();
    let server = TestServer::start(&authority.settings(true)).await;
    let target = TestTarget::start().await;
    assert!(is_let_in(authority.client(&server, &target, Some(authority.sign("client")))).await);
    assert!(!is_let_in(authority.client(&server, &target, None)).await, "no certificate");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = TestServer::start(&authority.settings(true)).await;
    let target = TestTarget::start().await;
    assert!(!is_let_in(authority.client(&server, &target, Some(other.sign("client")))).await);
    // GitHub shows no certificate: the webhook port asks for none.
    let url = format!("https://localhost:{}/healthz", server.addresses.http.port());
    assert_eq!(authority.https().get(url).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn one_port_serves_everything() {
    for tls in [false, true] {
        let authority = Authority::new();
        let port = free_port().await;
        let more = if tls { authority.settings(false) } else { String::new() };
        let text = settings(&format!("port = {port}\ngrpc-port = {port}\n{more}"));
        let config = Config::from_toml(&text).unwrap();
        let store = Arc::new(gitstafette_core::store::MemoryStore::new(config.store_options));
        let server = TestServer::run(config, store).await;
        assert_eq!(server.addresses.http, server.addresses.grpc);
        let mut target = TestTarget::start().await;
        let plain = options(server.addresses.grpc, target.target());
        let client = TestClient::start(if tls { authority.client(&server, &target, None) } else { plain });
        if tls {
            let url = format!("https://localhost:{port}/healthz");
            assert_eq!(authority.https().get(url).send().await.unwrap().status(), StatusCode::OK);
            let plain_http = http_client().get(server.url("/healthz")).send().await;
            assert!(plain_http.is_err(), "a port that serves gRPC takes TLS only");
        } else {
            Sender::new(&server).push("delivery-1").await;
            assert_eq!(target.next_ids(1).await, ["delivery-1"]);
            assert!(speaks_http2_by_prior_knowledge(server.addresses.http).await);
        }
        client.kill();
    }
}

/// A port that was free a moment ago.
pub async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Whether the HTTP/2 preface (RFC 9113 §3.4) and an empty SETTINGS frame are answered with a SETTINGS frame.
async fn speaks_http2_by_prior_knowledge(address: std::net::SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    soon(stream.read_exact(&mut frame)).await.unwrap();
    frame[3] == 4
}
