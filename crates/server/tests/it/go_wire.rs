//! The Go implementation's wire, spoken to a running server by a strict client: `strict_client.py`, made from that
//! contract alone. It shares no code with the server, so no mistake of ours is on both ends.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use gitstafette_core::headers::Headers;
use gitstafette_core::secret::Secret;
use gitstafette_core::verify::GitHubSignature;

use crate::programs::Program;
use crate::support::{Arrived, PATIENCE, SECRET, TOKEN, TestClient, TestTarget, options, soon};

const NAME: &str = "strict-server";
/// By number, as users of the Go implementation have it: then the number of another repository is known to be none of them.
const WATCHED: &str = "537845873,478599060";
/// What the strict client pushes and the server takes.
const PUSHED: [&str; 2] = ["pushed-1", "pushed-2"];

#[tokio::test]
async fn a_strict_client_of_the_go_wire_finds_no_fault() {
    let Some(python) = python().await else { return };
    let folder = tempfile::tempdir().unwrap();
    // A heartbeat a second, so that a stream of a few seconds has some.
    let settings = ["--name", NAME, "--admin-port", "0", "--heartbeat-interval", "1s"];
    let mut program = Program::watching(WATCHED, folder.path(), &settings).await;
    let admin = program.admin_url().await;
    program.ignore_log();

    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new(&python)
        .arg(here.join("tests/it/strict_client.py"))
        .arg("--contract")
        .arg(here.join("../proto/baseline/go-0.3"))
        .args(["--grpc", &program.grpc.to_string(), "--http", &program.http])
        .args(["--admin", &admin, "--name", NAME])
        .envs([("GITSTAFETTE_WEBHOOK_HMAC", SECRET), ("OAUTH_TOKEN", TOKEN)])
        // No proxy of this machine's for an address of this machine's; nothing written beside the script.
        .envs([("no_proxy", "127.0.0.1"), ("PYTHONDONTWRITEBYTECODE", "1"), ("PYTHONIOENCODING", "utf-8")])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    // It waits for streams that last whole seconds, twenty in all.
    let output =
        tokio::time::timeout(5 * PATIENCE, output).await.expect("the strict client has hung").unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}\n{errors}");
    assert!(output.status.success(), "{}", output.status);
    assert!(number_of_checks(&said).is_some_and(|checks| checks > 0), "no check was made");

    subscribers_get_what_was_pushed(&program).await;
}

/// What came over the old wire is an event as any other.
async fn subscribers_get_what_was_pushed(program: &Program) {
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(program.grpc, target.target()));
    let mut waited_for = PUSHED.to_vec();
    while !waited_for.is_empty() {
        let arrived = target.next().await;
        if waited_for.first() == Some(&arrived.delivery_id()) {
            waited_for.remove(0);
            assert_as_pushed(&arrived);
        }
    }
    client.stop().await;
}

fn assert_as_pushed(arrived: &Arrived) {
    let repeated: Vec<_> = arrived.headers.get_all("x-repeated").iter().collect();
    assert_eq!(repeated, ["one", "two"]);
    let name = "x-hub-signature-256";
    let mut headers = Headers::new();
    headers.append(name, arrived.headers[name].as_bytes().to_vec());
    GitHubSignature::new(vec![Secret::new(SECRET)]).check(&headers, &arrived.body).unwrap();
}

/// How many checks the last line says were passed.
fn number_of_checks(said: &str) -> Option<u32> {
    said.lines().last()?.strip_suffix(" checks passed")?.parse().ok()
}

/// A Python that can speak gRPC: `$GITSTAFETTE_TEST_PYTHON`, else `python3`. Without one the test cannot be made, which is
/// written where it is seen although the test passes.
async fn python() -> Option<String> {
    let python = std::env::var("GITSTAFETTE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut tried = tokio::process::Command::new(&python);
    tried.args(["-c", "import grpc, grpc_tools.protoc"]).stdin(Stdio::null());
    let reason = match soon(tried.output()).await {
        Ok(output) if output.status.success() => return Some(python),
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("{python}: {}", errors.lines().last().unwrap_or("it failed without a word"))
        }
        Err(error) => format!("{python}: {error}"),
    };
    let advice =
        "install Python with grpcio and grpcio-tools, or name one that has them in GITSTAFETTE_TEST_PYTHON";
    // Not by a macro, whose output is shown for tests that fail only.
    let line = format!("SKIPPED: the strict client of the Go wire: {reason}; {advice}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}
