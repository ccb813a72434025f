//! `cargo xtask demo`: a webhook's whole way, on this machine: sender, server, client, target.
//!
//! The server and the client are the real programs, in processes of their own. The sender and the target are here, so
//! that what was sent can be compared with what arrived, byte for byte.

mod table;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use gitstafette_core::secret::Secret;
use gitstafette_core::testing::{Format, Hook, Request, SAMPLES, large_push};
use gitstafette_core::verify::GitHubSignature;
use hyper::StatusCode;

use crate::delivery::{self, Delivery};
use crate::http::Connection;
use crate::process::{Interrupts, Processes};
use crate::relay::{self, Programs, Secrets, Server};
use crate::target::{Arrival, Target};
use crate::text::{self, Colours};

/// The size of the largest webhook that is sent, in bytes. GitHub's own limit is 25 MB.
const LARGE: usize = 5_000_000;

/// What a demo does when all samples are through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It ends.
    End,
    /// It stays up for the reader's own webhooks.
    Stay,
}

/// Shows the demo, and ends the programs whatever comes of it. An error if a webhook did not arrive as it was sent.
pub(crate) async fn run(programs: &Programs, then: Then) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("gitstafette-demo-").tempdir()?;
    let mut processes = Processes::default();
    let shown = show(programs, folder.path(), &mut processes, then, Colours::detect()).await;
    let stopped = processes.stop().await;
    let result = shown.and(stopped);
    if result.is_err() {
        println!("\nLogs and store are kept in {}", folder.keep().display());
    }
    result
}

async fn show(
    programs: &Programs,
    folder: &Path,
    processes: &mut Processes,
    then: Then,
    colours: Colours,
) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::catch()?;
    let mut stage = tokio::select! {
        stage = Stage::set(programs, folder, processes, colours) => stage?,
        () = interrupts.next() => bail!("interrupted"),
    };
    let tally = tokio::select! {
        tally = stage.send_all() => tally,
        error = processes.ended() => return Err(error),
        () = interrupts.next() => bail!("interrupted"),
    };
    let summary = tally.summary();
    if !tally.all_well() {
        println!("\n{}", processes.tails());
        bail!("{summary}");
    }
    println!("\n{}", colours.good(&summary));
    if then == Then::End {
        return Ok(());
    }
    stage.invite();
    tokio::select! {
        never = stage.watch() => never,
        error = processes.ended() => Err(error),
        () = interrupts.next() => {
            println!();
            Ok(())
        }
    }
}

/// Everything that runs.
struct Stage {
    secret: Secret,
    server: std::net::SocketAddr,
    target: Target,
    colours: Colours,
}

impl Stage {
    async fn set(
        programs: &Programs,
        folder: &Path,
        processes: &mut Processes,
        colours: Colours,
    ) -> anyhow::Result<Self> {
        let secrets = Secrets::random();
        println!("\n{}", colours.heading("Starting them, on free ports of this machine"));
        let target = Target::start(&secrets.webhook).await?;
        let server = Server::start(&programs.server, folder, &secrets).await?;
        processes.add(server.process);
        println!("server   takes webhooks at http://{}{}", server.http, relay::PATH);
        println!("         and serves clients over gRPC at {}", server.grpc);
        processes
            .add(relay::start_client(&programs.client, folder, &secrets, server.grpc, &target.url()).await?);
        println!("client   subscribed to the server, delivers to the target");
        println!("target   checks GitHub's signature at {}", target.url());
        Ok(Self { secret: secrets.webhook, server: server.http, target, colours })
    }

    /// Sends every sample, and says what became of each.
    async fn send_all(&mut self) -> Tally {
        println!("\n{}", self.colours.heading("Sending webhooks as GitHub does, and comparing what arrives"));
        println!(
            "ms: from sending to the arrival at the target; body and headers: compared with what was sent\n"
        );
        println!("{}", table::titles(self.colours));
        let mut tally = Tally::default();
        for request in requests(&self.secret) {
            let facts = match delivery::facts(delivery::headers(&request), request.body.clone()) {
                Ok(facts) => facts,
                Err(error) => {
                    tally.count(&Shown::default());
                    println!("{}", self.colours.bad(&format!("a sample is no webhook: {error:#}")));
                    continue;
                }
            };
            let sent = self.send(&request).await;
            let shown = Shown::of(&request, sent);
            println!("{}", table::row(&facts, &shown, self.colours));
            for problem in &shown.problems {
                println!("  {}", self.colours.bad(problem));
            }
            tally.count(&shown);
        }
        tally
    }

    async fn send(&mut self, request: &Request) -> anyhow::Result<Delivery> {
        // GitHub opens a connection for each webhook, too.
        let mut connection = Connection::open(self.server).await?;
        delivery::deliver(&mut connection, &mut self.target, request).await
    }

    /// How the reader sends a webhook.
    fn invite(&self) {
        let url = format!("http://{}{}", self.server, relay::PATH);
        println!("\n{}\n", self.colours.heading("Your turn: paste this into another terminal"));
        println!("{}", invitation(&url, &self.secret));
        println!("\nFor a body of your own (--data-binary \"$body\"), this computes the signature:\n");
        println!("signature=sha256=$(printf %s \"$body\" |");
        println!("  openssl dgst -sha256 -hmac {} -r | cut -c1-64)", relay::text(&self.secret));
        println!("\n{}", self.colours.heading("What arrives at the target is shown here; Ctrl-C ends all."));
    }

    /// Shows what arrives.
    async fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            let arrival = self.target.arrivals.recv().await.context("the target has ended")?;
            match delivery::facts(arrival.headers.clone(), arrival.body.clone()) {
                Ok(facts) => println!("{}", table::row(&facts, &Shown::arrived(&arrival), self.colours)),
                Err(error) => println!("{}", self.colours.bad(&format!("no webhook: {error:#}"))),
            }
        }
    }
}

/// Every sample in both formats, and the large push.
fn requests(secret: &Secret) -> impl Iterator<Item = Request> + use<> {
    let hook = |format| Hook { id: 395_841_207, format, secret: Some(secret.clone()) };
    let hooks = [hook(Format::Json), hook(Format::Form)];
    let large_hooks = hooks.clone();
    let samples = SAMPLES
        .iter()
        .flat_map(move |sample| hooks.clone().map(|hook| hook.deliver(sample, &delivery::new_delivery_id())));
    let large = large_hooks
        .into_iter()
        .map(|hook| hook.request("push", &delivery::new_delivery_id(), &large_push(LARGE)));
    samples.chain(large)
}

/// A webhook for curl: small, signed, of a repository on the watchlist. Its delivery id is new in each second: the same
/// id would be a repeat.
fn invitation(url: &str, secret: &Secret) -> String {
    let body = r#"{"action":"opened","repository":{"id":1,"full_name":"octo-harbor/yours"}}"#;
    let signature = GitHubSignature::sign(secret, body.as_bytes());
    [
        &format!("curl -i {url} \\"),
        "-H 'Content-Type: application/json' \\",
        "-H 'X-GitHub-Event: issues' \\",
        "-H \"X-GitHub-Delivery: yours-$(date +%s)\" \\",
        &format!("-H 'X-Hub-Signature-256: {signature}' \\"),
        &format!("-d '{body}'"),
    ]
    .join("\n")
}

/// What the table shows of a webhook. `None` is what is not known.
#[derive(Debug, Default)]
struct Shown {
    format: &'static str,
    size: usize,
    answer: Option<StatusCode>,
    latency: Option<Duration>,
    same_body: Option<bool>,
    same_headers: Option<bool>,
    valid_signature: Option<bool>,
    problems: Vec<String>,
}

impl Shown {
    fn of(request: &Request, sent: anyhow::Result<Delivery>) -> Self {
        let headers = delivery::headers(request);
        let content_type = headers.single("content-type").unwrap_or("");
        let mut shown = Self { format: format_of(content_type), size: request.body.len(), ..Self::default() };
        let delivery = match sent {
            Ok(delivery) => delivery,
            Err(error) => {
                shown.problems.push(format!("{error:#}"));
                return shown;
            }
        };
        shown.answer = Some(delivery.answer);
        shown.problems.extend(delivery.refusal.map(|refusal| format!("the server refuses it: {refusal}")));
        if delivery.strays > 0 {
            shown.problems.push(format!("{} other webhooks came to the target meanwhile", delivery.strays));
        }
        match delivery.arrival {
            Some((arrival, latency)) => {
                let difference = delivery::difference(&headers, &arrival.headers);
                shown.latency = Some(latency);
                shown.same_body = Some(arrival.body == request.body);
                shown.same_headers = Some(difference.is_none());
                shown.valid_signature = Some(arrival.signature.is_ok());
                shown.problems.extend(difference);
                shown.problems.extend(arrival.signature.err().map(|error| error.to_string()));
            }
            None if delivery.answer == StatusCode::CREATED => {
                shown.problems.push("it did not arrive at the target".to_owned());
            }
            None => {}
        }
        shown
    }

    /// Of a webhook that somebody else sent: there is nothing to compare it with.
    fn arrived(arrival: &Arrival) -> Self {
        Self {
            format: format_of(arrival.header("content-type")),
            size: arrival.body.len(),
            valid_signature: Some(arrival.signature.is_ok()),
            ..Self::default()
        }
    }

    fn is_well(&self) -> bool {
        let checks = [self.same_body, self.same_headers, self.valid_signature];
        self.answer == Some(StatusCode::CREATED)
            && checks.iter().all(|check| *check == Some(true))
            && self.problems.is_empty()
    }
}

fn format_of(content_type: &str) -> &'static str {
    if content_type.starts_with("application/json") { "JSON" } else { "form" }
}

/// How many webhooks were sent, and how the good ones did.
#[derive(Debug, Default)]
struct Tally {
    sent: usize,
    latencies: Vec<Duration>,
}

impl Tally {
    fn count(&mut self, shown: &Shown) {
        self.sent += 1;
        self.latencies.extend(shown.latency.filter(|_| shown.is_well()));
    }

    fn all_well(&self) -> bool {
        self.sent > 0 && self.latencies.len() == self.sent
    }

    fn summary(&self) -> String {
        let median = text::quantile(&self.latencies, 0.5).map(text::millis);
        let median = median.map(|median| format!("; median {median} ms")).unwrap_or_default();
        let (well, sent) = (self.latencies.len(), self.sent);
        format!("{well} of {sent} webhooks arrived byte for byte, signatures valid{median}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived() -> Shown {
        Shown {
            answer: Some(StatusCode::CREATED),
            latency: Some(Duration::from_micros(3_100)),
            same_body: Some(true),
            same_headers: Some(true),
            valid_signature: Some(true),
            ..Shown::default()
        }
    }

    #[test]
    fn only_what_arrived_as_it_was_sent_counts() {
        let mut tally = Tally::default();
        assert!(!tally.all_well(), "nothing is not well");
        tally.count(&arrived());
        assert!(tally.all_well());
        assert_eq!(tally.summary(), "1 of 1 webhooks arrived byte for byte, signatures valid; median 3.1 ms");
        let wrong = [
            Shown { same_body: Some(false), ..arrived() },
            Shown { same_headers: None, ..arrived() },
            Shown { valid_signature: Some(false), ..arrived() },
            Shown { answer: Some(StatusCode::NO_CONTENT), ..arrived() },
            Shown { problems: vec!["a stray".into()], ..arrived() },
        ];
        for shown in &wrong {
            tally.count(shown);
        }
        assert!(!tally.all_well());
        assert!(tally.summary().starts_with("1 of 6 "), "{}", tally.summary());
    }

    #[test]
    fn every_sample_is_sent_in_both_formats_and_understood() {
        let secret = Secret::new("s");
        let requests: Vec<_> = requests(&secret).collect();
        assert_eq!(requests.len(), 2 * (SAMPLES.len() + 1));
        for request in &requests {
            let facts = delivery::facts(delivery::headers(request), request.body.clone()).unwrap();
            assert_eq!(facts.owner.as_deref(), Some("octo-harbor"));
        }
        assert!(requests[2 * SAMPLES.len()..].iter().all(|request| request.body.len() >= LARGE));
    }

    #[test]
    fn the_invitation_fits_a_terminal() {
        let text = invitation("http://127.0.0.1:65535/v1/github/", &Secret::new("s"));
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
}
