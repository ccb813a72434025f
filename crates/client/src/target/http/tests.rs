use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gitstafette_core::event::{Address, Sequence};
use gitstafette_core::testing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

fn tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

#[test]
fn names_hide_paths_queries_and_passwords() {
    let url = "https://user:password@jenkins.example:8443/hook/?token=secret";
    let target = HttpTarget::try_new(url, Duration::from_secs(1), tls()).unwrap();
    assert_eq!(target.name(), "jenkins.example:8443");
    let debug = format!("{target:?}");
    assert!(!debug.contains("secret") && !debug.contains("password"), "{debug}");
    for wrong in ["", "jenkins", "ftp://a/", "http://"] {
        assert!(HttpTarget::try_new(wrong, Duration::from_secs(1), tls()).is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_unreachable() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let target = HttpTarget::try_new(&url, Duration::from_secs(10), tls()).unwrap();
    assert!(target.is_reachable().await);
    drop(listener);
    assert!(!target.is_reachable().await);
    assert_eq!(target.attempt(&event()).await.verdict, Verdict::Unreachable);
}

fn event() -> Event {
    Event {
        sequence: Sequence::new(1),
        redelivery: false,
        address: Address::default(),
        webhook: testing::webhook(1, "octo/hello", 3),
    }
}

/// A target whose attempts have so much time that a test notices when one waits for more than the answer.
fn patient_target(listener: &TcpListener) -> HttpTarget {
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    HttpTarget::try_new(&url, Duration::from_secs(3600), tls()).unwrap()
}

/// Waits for a future that must complete.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it takes too long")
}

/// Reads one request of [`event`]; `false` if the connection was closed instead.
async fn read_request(stream: &mut TcpStream) -> bool {
    let body = event().webhook.body;
    let mut request = Vec::new();
    while !(request.ends_with(&body) && request.windows(4).any(|part| part == b"\r\n\r\n")) {
        let mut part = [0; 4096];
        match stream.read(&mut part).await.unwrap_or(0) {
            0 => return false,
            read => request.extend_from_slice(&part[..read]),
        }
    }
    true
}

/// Accepts connections, answers one request on each with `answer`, and stays silent. Reports when a connection is closed.
fn stalling_after(listener: TcpListener, answer: &'static str) -> mpsc::UnboundedReceiver<()> {
    let (closed, closes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let closed = closed.clone();
            tokio::spawn(async move {
                read_request(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
                assert!(!read_request(&mut stream).await, "a second request on a connection that stalls");
                closed.send(()).unwrap_or_default();
            });
        }
    });
    closes
}

#[tokio::test]
async fn a_response_counts_as_soon_as_its_head_has_arrived() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = patient_target(&listener);
    let mut closes = stalling_after(listener, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
    for _ in 0..3 {
        let attempt = soon(target.attempt(&event())).await;
        assert_eq!((attempt.verdict, attempt.code), (Verdict::Delivered, Some(200)));
        assert_eq!(attempt.detail, "200 OK");
    }
    for _ in 0..3 {
        soon(closes.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_response_keeps_as_much_of_its_body_as_comes_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = patient_target(&listener);
    let mut closes =
        stalling_after(listener, "HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\nqueue is full\n");
    let attempt = soon(target.attempt(&event())).await;
    assert_eq!((attempt.verdict, attempt.code), (Verdict::Retry(None), Some(500)));
    assert_eq!(attempt.detail, "queue is full");
    soon(closes.recv()).await.unwrap();
}

/// The detail of an attempt at this path, answered with 301 to `location`.
async fn redirected(path: &str, location: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://user:password@{}{path}", listener.local_addr().unwrap());
    let target = HttpTarget::try_new(&url, Duration::from_secs(3600), tls()).unwrap().set_by("--target");
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        let answer = format!(
            "HTTP/1.1 301 Moved\r\nlocation: {location}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nmove"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    });
    let attempt = soon(target.attempt(&event())).await;
    assert_eq!((attempt.verdict, attempt.code), (Verdict::Final, Some(301)));
    drop(soon(serving).await.unwrap());
    attempt.detail
}

#[tokio::test]
async fn a_redirect_names_the_setting_and_its_new_value() {
    let detail = redirected("/github-webhook", "https://ci.example/github-webhook/".into()).await;
    assert!(detail.starts_with("301 Moved Permanently: the target redirects"), "{detail}");
    assert!(detail.ends_with("; set --target to https://ci.example/github-webhook/"), "{detail}");
    let detail = redirected("/hook", "/hook/".into()).await;
    assert!(detail.contains("; set --target to http://127.0.0.1:") && detail.ends_with("/hook/"), "{detail}");
}

#[tokio::test]
async fn a_redirect_shows_no_secrets() {
    let leading = "https://me:secret@ci.example/hook/?token=secret#secret".to_owned();
    let detail = redirected("/hook?token=secret", leading).await;
    assert!(
        !detail.contains("secret") && !detail.contains("me:") && !detail.contains("password"),
        "{detail}"
    );
    assert!(detail.ends_with("https://ci.example/hook/ and its query, which is not shown here"), "{detail}");
    for odd in ["ftp://ci.example/".to_owned(), format!("/{}", "x".repeat(LOCATION_BYTES))] {
        assert_eq!(redirected("/hook", odd).await, "move");
    }
}

#[tokio::test]
async fn bodies_that_stall_occupy_a_bounded_number_of_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = patient_target(&listener);
    let _closes = stalling_after(listener, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n");
    for _ in 0..MAX_DRAINS + 8 {
        assert_eq!(soon(target.attempt(&event())).await.verdict, Verdict::Delivered);
        assert!(target.drains.lock().unwrap().len() <= MAX_DRAINS);
    }
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    for status in ["200 OK", "500 Oops"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = patient_target(&listener);
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            let head = format!("HTTP/1.1 {status}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let attempt = soon(target.attempt(&event())).await;
        match attempt.verdict {
            Verdict::Delivered => assert_eq!(attempt.detail, "200 OK"),
            _ => assert_eq!(attempt.detail, "x".repeat(DETAIL_BYTES)),
        }
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_whose_body_is_short_is_used_again() {
    const ATTEMPTS: usize = 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = patient_target(&listener);
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                while read_request(&mut stream).await {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfine\n";
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    for _ in 0..ATTEMPTS {
        assert_eq!(soon(target.attempt(&event())).await.verdict, Verdict::Delivered);
        let drains = std::mem::take(&mut *target.drains.lock().unwrap());
        soon(drains.join_all()).await;
    }
    let connections = connections.load(Ordering::Relaxed);
    // Two may take turns: the pool opens another connection when the first is not back yet.
    assert!(connections <= 3, "{connections} connections for {ATTEMPTS} attempts");
}

/// Answers one request after the other with these statuses, and gives back the request lines.
async fn answering(statuses: &'static [u16]) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?token=secret#part", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut lines = Vec::new();
        for status in statuses {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request[..read]);
            lines.push(text.lines().next().unwrap_or_default().to_owned());
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        lines
    });
    (url, serving)
}

#[tokio::test]
async fn a_path_to_look_at_is_asked_and_any_answer_below_500_will_do() {
    let (url, serving) = answering(&[200, 302, 403, 404, 500, 503]).await;
    let target = HttpTarget::try_new(&url, Duration::from_secs(10), tls()).unwrap();
    let target = target.probed_at("/login?from=relay");
    let mut back = Vec::new();
    for _ in 0..6 {
        back.push(target.is_reachable().await);
    }
    assert_eq!(back, [true, true, true, true, false, false]);
    let lines = serving.await.unwrap();
    assert!(lines.iter().all(|line| line == "GET /login?from=relay HTTP/1.1"), "{lines:?}");
    assert!(!target.is_reachable().await, "nobody is there any more");
}

#[test]
fn a_path_to_look_at_stays_at_the_targets_host() {
    let probe = |path: &str| {
        let target = HttpTarget::try_new("https://a.example:1/x?y#z", Duration::from_secs(1), tls());
        target.unwrap().probed_at(path).probe.unwrap().to_string()
    };
    assert_eq!(probe("/login"), "https://a.example:1/login");
    assert_eq!(probe("login"), "https://a.example:1/login");
    assert_eq!(probe("//b.example/"), "https://a.example:1//b.example/");
    assert_eq!(probe("http://b.example/"), "https://a.example:1/http://b.example/");
}

#[test]
fn dangerous_headers_stay_behind() {
    let headers: Headers = [
        ("content-type", "application/json"),
        ("x-repeated", "1"),
        ("authorization", "Bearer x"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-repeated", "2"),
        ("transfer-encoding", "chunked"),
    ]
    .into_iter()
    .collect();
    let map = forwarded(&headers).unwrap();
    assert_eq!(map.len(), 3);
    assert_eq!(map.get_all("x-repeated").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert!(forwarded(&[("a b", "1")].into_iter().collect()).is_err());
    assert!(forwarded(&[("a", "1\n2")].into_iter().collect()).is_err());
}

#[test]
fn retry_after_in_seconds_and_dates() {
    let of = |value: &str| {
        retry_after(&[(RETRY_AFTER, HeaderValue::from_str(value).unwrap())].into_iter().collect())
    };
    assert_eq!(of("120"), Some(Duration::from_secs(120)));
    let later = SystemTime::now() + Duration::from_secs(3600);
    assert!(of(&httpdate::fmt_http_date(later)).unwrap() > Duration::from_secs(3500));
    assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    assert_eq!(of("soon"), None);
    assert_eq!(of("-1"), None);
}
