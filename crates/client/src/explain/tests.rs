use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::event::{Address, Event, Sequence};
use gitstafette_core::target::Target;
use gitstafette_proto::v1::ShowStatisticsRequest;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::connect::ServerAddress;
use crate::target::HttpTarget;
use crate::tls::provider;

/// What a port does with a connection.
#[derive(Clone, Copy, Debug)]
enum Port {
    /// Answers every request with 400 in HTTP/1.1, as plain-text web servers do.
    PlainHttp,
    /// Greets first, as SSH servers do. That may come before a request, or after it.
    Banner,
    /// Answers a request in another protocol.
    Babble,
    /// Takes TLS only, and offers HTTP/1.1 only.
    Tls,
    /// Closes the connection.
    Mute,
}

impl Port {
    /// Listens, and returns the number of the port.
    async fn open(self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let acceptor = acceptor();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(self.answer(stream, acceptor.clone()));
            }
        });
        port
    }

    async fn answer(self, mut stream: TcpStream, acceptor: TlsAcceptor) {
        let mut bytes = [0; 4096];
        match self {
            Self::PlainHttp => {
                let read = stream.read(&mut bytes).await.unwrap();
                assert_ne!(read, 0);
                let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
            Self::Babble => {
                let read = stream.read(&mut bytes).await.unwrap();
                assert_ne!(read, 0);
                stream.write_all(b"-ERR unknown command\r\n").await.unwrap();
            }
            Self::Banner => stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.unwrap(),
            Self::Tls => {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                drop(stream.read(&mut bytes).await);
                drop(stream.shutdown().await);
                return;
            }
            Self::Mute => {
                drop(stream.read(&mut bytes).await);
                return;
            }
        }
        // Until the other side has seen it all.
        while let Ok(1..) = stream.read(&mut bytes).await {}
    }
}

fn acceptor() -> TlsAcceptor {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// TLS that trusts nobody.
fn tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

/// What a person reads if the server is said to be here.
async fn as_server(host: &str, port: u16, is_tls: bool) -> String {
    let tls = is_tls.then(|| Arc::new(tls()));
    let address = ServerAddress { host: host.to_owned(), port, tls, token: None };
    let status = match address.connect().await {
        Err(status) => status,
        Ok(mut connection) => connection.calls.show_statistics(ShowStatisticsRequest {}).await.unwrap_err(),
    };
    status.message().to_owned()
}

/// What a person reads if the target is said to be here.
async fn as_target(host: &str, port: u16, is_tls: bool) -> String {
    let scheme = if is_tls { "https" } else { "http" };
    let url = format!("{scheme}://{host}:{port}/hook?token=hunter2");
    let target = HttpTarget::try_new(&url, Duration::from_secs(60), tls()).unwrap();
    let event = Event {
        sequence: Sequence::new(1),
        redelivery: false,
        address: Address::default(),
        webhook: gitstafette_core::testing::webhook(1, "octo/hello", 3),
    };
    target.attempt(&event).await.detail
}

/// No library's or system's words.
fn is_plain(text: &str) -> bool {
    let words = [
        "InvalidContentType",
        "corrupt message",
        "transport error",
        "invalid HTTP version",
        "h2 protocol",
        "FRAME_SIZE",
        "frame with invalid size",
        "os error",
        "hyper",
        "UnknownIssuer",
        "tls handshake eof",
        "dns error",
        "hunter2",
    ];
    !words.iter().any(|word| text.contains(word))
}

#[tokio::test]
async fn a_server_that_speaks_something_else() {
    for (port, is_tls, expected) in [
        (
            Port::PlainHttp,
            true,
            "does not speak TLS; if the server speaks plain text there, use --insecure or http://",
        ),
        (
            Port::Banner,
            true,
            "does not speak TLS; if the server speaks plain text there, use --insecure or http://",
        ),
        (Port::Mute, true, "the port closed the connection without an answer"),
        (Port::Tls, true, "no trusted CA signed its certificate; name the CA with --ca-file-location"),
        (Port::PlainHttp, false, "does not speak HTTP/2 in plain text"),
        (Port::Banner, false, "does not speak HTTP/2 in plain text"),
        (Port::Mute, false, "the port closed the connection without an answer"),
        (Port::Tls, false, "--secure or https://"),
    ] {
        let number = port.open().await;
        let text = as_server("127.0.0.1", number, is_tls).await;
        assert!(text.contains(expected) && is_plain(&text), "{port:?}, TLS {is_tls}: {text}");
        let scheme = if is_tls { "https" } else { "http" };
        assert!(text.contains(&format!("{scheme}://127.0.0.1:{number}")), "{text}");
    }
}

/// Answers each request over HTTP/2 with these, as web servers and proxies do.
async fn answer_over_http2(status: u16, content_type: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut answer))) = connection.accept().await {
            let head = http::Response::builder().status(status).header("content-type", content_type).body(());
            let mut body = answer.send_response(head.unwrap(), false).unwrap();
            body.send_data("<html>".into(), true).unwrap();
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_does_not_speak_grpc() {
    for (status, text) in [(200, "200 OK"), (404, "404 Not Found"), (502, "502 Bad Gateway")] {
        let port = answer_over_http2(status, "text/html").await;
        let expected = format!(
            "http://127.0.0.1:{port} answered with the HTTP status {text} and not with gRPC; is it the server's gRPC port, and does a proxy before it pass gRPC on?"
        );
        assert_eq!(as_server("127.0.0.1", port, false).await, expected);
    }
}

#[tokio::test]
async fn a_target_that_speaks_something_else() {
    for (port, is_tls, expected) in [
        (
            Port::Banner,
            true,
            "cannot connect: the port does not speak TLS; if the target speaks plain text there, use http://",
        ),
        (Port::PlainHttp, true, "cannot connect: the port does not speak TLS"),
        (Port::Mute, true, "cannot connect: the target closed the connection; check the port"),
        (
            Port::Tls,
            true,
            "cannot connect: no trusted CA signed its certificate; name the CA with --ca-file-location",
        ),
        (Port::Banner, false, "use https:// in"),
        (Port::Tls, false, "use https:// in"),
        (
            Port::Babble,
            false,
            "no answer: the port does not speak HTTP; if the target expects TLS there, use https:// in its URL",
        ),
        (
            Port::Mute,
            false,
            "no answer: the target closed the connection; check the port, and use https:// in the URL",
        ),
    ] {
        let text = as_target("127.0.0.1", port.open().await, is_tls).await;
        assert!(text.contains(expected) && is_plain(&text), "{port:?}, TLS {is_tls}: {text}");
    }
}

#[tokio::test]
async fn nothing_and_nobody() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let text = as_server("127.0.0.1", free, false).await;
    let expected = "nothing listens on the port (connection refused); is the server up, and are --server and --port right?";
    assert!(text.contains(expected) && is_plain(&text), "{text}");
    let text = as_target("127.0.0.1", free, false).await;
    assert_eq!(text, "cannot connect: nothing listens on the port (connection refused)");
    let name = "no-such-host.invalid"; // RFC 6761 §6.4: no name below .invalid exists
    let text = as_server(name, 1, false).await;
    assert!(text.contains("the name no-such-host.invalid has no address") && is_plain(&text), "{text}");
    assert_eq!(
        as_target(name, 1, false).await,
        "cannot connect: the name no-such-host.invalid has no address"
    );
}

#[test]
fn causes_are_found_inside_others() {
    let refused = || io::Error::from(ErrorKind::ConnectionRefused);
    let wrapped = io::Error::other(io::Error::other(refused()));
    assert_eq!(Fault::of(&wrapped), Fault::of(&refused()));
    let tls = io::Error::new(ErrorKind::InvalidData, rustls::Error::DecryptError);
    assert!(matches!(Fault::of(&tls), Fault::Tls(_)));
    let other = std::num::ParseIntError::clone(&"x".parse::<u8>().unwrap_err());
    assert_eq!(Fault::of(&other), Fault::Other("invalid digit found in string".to_owned()));
}

#[test]
fn files_and_ports() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &std::path::Path| file_error(&std::fs::read_to_string(path).unwrap_err());
    assert_eq!(error(&folder.path().join("missing")), "there is no such file");
    assert_eq!(error(folder.path()), "it is a folder; a file is needed");
    let odd = folder.path().join("odd");
    std::fs::write(&odd, b"\xff").unwrap();
    assert_eq!(error(&odd), "it is not UTF-8 text");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = std::net::TcpListener::bind(taken.local_addr().unwrap()).unwrap_err();
    assert_eq!(listen_error(&refused), "another program uses the port; stop it, or choose another port");
    let elsewhere = std::net::TcpListener::bind("192.0.2.1:0").unwrap_err();
    assert_eq!(listen_error(&elsewhere), "this machine does not have the address");
}
