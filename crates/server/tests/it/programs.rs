//! The server's program: its command line, its first screen, its end.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::support::{SECRET, Sender, TOKEN, soon};

/// A running server program.
pub struct Program {
    child: tokio::process::Child,
    /// `None` once nobody reads it.
    log: Option<tokio::io::Lines<BufReader<tokio::process::ChildStderr>>>,
    /// Copies the log to a file until the process has ended.
    copying: Option<tokio::task::JoinHandle<()>>,
    pub http: String,
    pub grpc: std::net::SocketAddr,
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_gitstafette-server");

/// The command, without anything of this machine's environment.
fn command(arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The same for a process that may have so many files open.
fn command_with_files(files: u32, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\""), PROGRAM]);
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let output = command(arguments).envs(environment.iter().copied()).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

impl Program {
    /// Starts a server on ports that the system chooses and waits until it listens.
    pub async fn start(folder: &Path, more: &[&str]) -> Self {
        Self::watching("octo-harbor/*", folder, more).await
    }

    /// Likewise, in a process that may have so many files open.
    pub async fn with_files(files: u32, folder: &Path, more: &[&str]) -> Self {
        let arguments = Self::arguments("octo-harbor/*", folder, more);
        let mut command = command_with_files(files, &arguments);
        command.envs([("GITSTAFETTE_WEBHOOK_HMAC", SECRET), ("OAUTH_TOKEN", TOKEN)]);
        Self::listening(command).await
    }

    /// Likewise, with another watchlist.
    pub async fn watching(repositories: &str, folder: &Path, more: &[&str]) -> Self {
        let arguments = Self::arguments(repositories, folder, more);
        Self::run(&arguments, &[("GITSTAFETTE_WEBHOOK_HMAC", SECRET), ("OAUTH_TOKEN", TOKEN)]).await
    }

    fn arguments<'a>(repositories: &'a str, folder: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let store = folder.to_str().unwrap();
        let mut arguments = vec!["--store", store, "--repositories", repositories, "--bind", "127.0.0.1"];
        arguments.extend([
            "--port",
            "0",
            "--grpc-port",
            "0",
            "--grpc-health-port",
            "0",
            "--log-format",
            "json",
        ]);
        arguments.extend(more);
        arguments
    }

    /// Starts a server that logs JSON and waits until it listens.
    pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(arguments);
        command.envs(environment.iter().copied());
        Self::listening(command).await
    }

    async fn listening(mut command: tokio::process::Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let http = field(&mut log, "http.address").await;
        let grpc = field(&mut log, "grpc.address").await.parse().unwrap();
        Self { child, log: Some(log), copying: None, http: format!("http://{http}/v1/github/"), grpc }
    }

    /// Starts a server whose settings are in one file and waits until it listens. What it logs from then on is added to
    /// another file.
    pub async fn configured(settings: &Path, log: &Path) -> Self {
        let mut program = Self::run(&["--config", settings.to_str().unwrap()], &[]).await;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut lines = program.log.take().unwrap();
        program.copying = Some(tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                writeln!(file, "{line}").unwrap();
            }
        }));
        program
    }

    /// Kills it as a power cut would.
    pub async fn kill_9(mut self) {
        self.child.kill().await.unwrap();
        self.log_is_copied().await;
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(mut self) {
        self.terminate();
        assert_eq!(self.exit_code().await, Some(0));
        self.log_is_copied().await;
    }

    /// The log ends with the process.
    async fn log_is_copied(&mut self) {
        if let Some(copying) = self.copying.take() {
            soon(copying).await.unwrap();
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The URL of its admin listener, which it was started with. It logs the address after those of the others.
    pub async fn admin_url(&mut self) -> String {
        format!("http://{}", field(self.log.as_mut().unwrap(), "admin.address").await)
    }

    /// Closes the log: a pipe that nobody reads would fill.
    pub fn ignore_log(&mut self) {
        self.log = None;
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let status = std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success());
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        soon(self.child.wait()).await.unwrap().code()
    }

    /// The next line that it logs.
    pub async fn next_line(&mut self) -> String {
        soon(self.log.as_mut().unwrap().next_line()).await.unwrap().expect("the program ended")
    }

    /// What it logged from here to its end.
    pub async fn rest_of_log(&mut self) -> String {
        let mut text = String::new();
        while let Some(line) = soon(self.log.as_mut().unwrap().next_line()).await.unwrap() {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

/// The value of a field in the next log line that has it.
async fn field(log: &mut tokio::io::Lines<BufReader<tokio::process::ChildStderr>>, name: &str) -> String {
    loop {
        let line = soon(log.next_line()).await.unwrap().expect("the program ended before it listened");
        let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { panic!("no JSON: {line}") };
        if let Some(value) = line[name].as_str() {
            return value.to_owned();
        }
    }
}

#[tokio::test]
async fn three_mistakes_are_three_messages_and_exit_code_2() {
    let arguments = ["--port", "abc", "--repositories", "octo", "--retention-age", "soon"];
    let (code, _, errors) = output(&arguments, &[("HOME", "/tmp")]).await;
    assert_eq!(code, 2);
    assert_eq!(errors.lines().count(), 3, "{errors}");
    for (line, start) in
        errors.lines().zip(["repositories: \"octo\"", "port: \"abc\"", "retention-age: \"soon\""])
    {
        assert!(line.starts_with(start), "{errors}");
    }
    let (code, _, errors) =
        output(&["config", "check"], &[("GITSTAFETTE_PORT", "x"), ("HOME", "/tmp")]).await;
    assert_eq!((code, errors.lines().count()), (2, 1), "{errors}");
}

#[tokio::test]
async fn the_default_configuration_is_printed_and_is_valid() {
    let (code, printed, _) = output(&["config", "default"], &[]).await;
    assert_eq!((code, printed.as_str()), (0, gitstafette_server::config::DEFAULTS));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), printed).unwrap();
    let path = file.path().to_str().unwrap();
    for check in [&["config", "check", "--config", path][..], &["config", "check", path]] {
        let misspelt = [("HOME", "/tmp"), ("GITSTAFETTE_BODY_LIMITS", "1MiB"), ("GITSTAFETTE_TARGET", "x")];
        let (code, answer, errors) = output(check, &misspelt).await;
        assert_eq!((code, answer.as_str()), (0, "the configuration is fine\n"), "{errors}");
        let expected = "warning: the environment variable GITSTAFETTE_BODY_LIMITS is not a setting; did you mean GITSTAFETTE_BODY_LIMIT?\n";
        assert!(errors.ends_with(expected) && !errors.contains("GITSTAFETTE_TARGET"), "{errors}");
    }
}

#[tokio::test]
async fn nothing_opens_beyond_loopback_unasked() {
    let open = ["--bind", "0.0.0.0", "--store", "memory:"];
    let (code, _, errors) = output(&open, &[]).await;
    assert_eq!(code, 2);
    assert!(errors.contains("--allow-unsigned") && errors.contains("--allow-anonymous"), "{errors}");
    let (code, _, errors) = output(&open, &[("GITSTAFETTE_WEBHOOK_HMAC", "secret")]).await;
    assert_eq!(code, 2);
    assert!(!errors.contains("--allow-unsigned") && errors.contains("--allow-anonymous"), "{errors}");
    let check = ["config", "check"];
    let waived = [
        ("GITSTAFETTE_BIND", "0.0.0.0"),
        ("GITSTAFETTE_ALLOW_UNSIGNED", "true"),
        ("GITSTAFETTE_ALLOW_ANONYMOUS", "true"),
        ("HOME", "/tmp"),
    ];
    assert_eq!(output(&check, &waived).await.0, 0);
    let by_token =
        [("GITSTAFETTE_BIND", "0.0.0.0"), ("OAUTH_TOKEN", "verifies and authenticates"), ("HOME", "/tmp")];
    assert_eq!(output(&check, &by_token).await.0, 0);
}

#[tokio::test]
async fn a_store_in_use_is_an_error_that_names_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let first = Program::start(folder.path(), &[]).await;
    let store = folder.path().to_str().unwrap();
    let ports = ["--port", "0", "--grpc-port", "0", "--grpc-health-port", "0"];
    let (code, _, errors) = output(&[&["--store", store], &ports[..]].concat(), &[]).await;
    assert_eq!(code, 1);
    let holder = format!("in use by another process (process id {})", first.child.id().unwrap());
    assert!(errors.contains(&holder), "{errors}");
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, errors) = output(&["--store", "memory:", "--port", &port], &[]).await;
    assert_eq!(code, 1);
    assert!(errors.contains(&format!("127.0.0.1, port {port} for webhooks")), "{errors}");
}

#[tokio::test]
async fn sigterm_drains_and_a_second_start_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &[]).await;
    Sender::to(program.http.clone()).push("delivery-1").await;
    program.terminate();
    assert_eq!(program.exit_code().await, Some(0));
    let log = program.rest_of_log().await;
    assert!(log.contains("drained") && log.contains("stopped"), "{log}");
    assert!(!log.contains(SECRET) && !log.contains(TOKEN), "{log}");

    let again = Program::start(folder.path(), &[]).await;
    let answer =
        Sender::to(again.http.clone()).send("push", "delivery-2", &crate::support::payload("x")).await;
    assert!(answer.text().await.unwrap().starts_with(r#"{"sequence":2,"#));
}

#[tokio::test]
async fn it_works_on_when_nobody_reads_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &[]).await;
    drop(program.log.take());
    let sender = Sender::to(program.http.clone());
    for number in 0..3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    program.terminate();
    assert_eq!(program.exit_code().await, Some(0));
}

/// A request that holds the drain: its body does not come.
async fn hold_the_drain(program: &Program) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(program.http.split('/').nth(2).unwrap()).await.unwrap();
    let head = "POST /v1/github/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\
                X-GitHub-Event: push\r\nX-GitHub-Delivery: 1\r\n";
    let signature = format!("X-Hub-Signature-256: sha256={}\r\n\r\n", "0".repeat(64));
    stream.write_all(format!("{head}{signature}").as_bytes()).await.unwrap();
    // An answer to another request shows that the first was read: they go through the same listener in order.
    Sender::to(program.http.clone()).push("delivery-1").await;
    stream
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (first, second, code) in
        [("TERM", "TERM", 143), ("INT", "INT", 130), ("INT", "TERM", 143), ("TERM", "INT", 130)]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::start(folder.path(), &["--drain-timeout", "1h"]).await;
        let _held = hold_the_drain(&program).await;
        program.signal(first);
        loop {
            let line = soon(program.log.as_mut().unwrap().next_line()).await.unwrap().unwrap();
            if line.contains("a second signal stops at once") {
                break;
            }
        }
        program.signal(second);
        assert_eq!(program.exit_code().await, Some(code), "{first}, {second}");
    }
}

#[tokio::test]
async fn one_signal_ends_it_with_0_if_the_shutdown_is_complete_and_with_1_if_not() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut complete = Program::start(folder.path(), &[]).await;
        complete.signal(signal);
        assert_eq!(complete.exit_code().await, Some(0), "{signal}");
        let mut cut = Program::start(folder.path(), &["--drain-timeout", "10ms"]).await;
        let _held = hold_the_drain(&cut).await;
        cut.signal(signal);
        assert_eq!(cut.exit_code().await, Some(1), "{signal}");
        let log = cut.rest_of_log().await;
        assert!(
            log.ends_with(
                "error: the shutdown is not complete: what took longer than --drain-timeout was cut\n"
            ),
            "{log}"
        );
    }
}

#[tokio::test]
async fn no_mistake_prints_a_backtrace() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "port = {").unwrap();
    let file = file.to_str().unwrap();
    let backtraces = [("RUST_BACKTRACE", "full"), ("RUST_LIB_BACKTRACE", "1"), ("HOME", "/tmp")];
    for (arguments, code) in [
        (&["--store", "memory:", "--port", &port][..], 1),
        (&["--store", file], 1),
        (&["--store", "memory"], 2),
        (&["--config", file], 2),
        (&["--config", "/does/not/exist"], 2),
        (&["--port", "70000"], 2),
        (&["--prot", "1"], 2),
        (&["confg"], 2),
        (&["config", "check", "/does/not/exist"], 2),
        (&["config", "check", "a", "--config", "b"], 2),
    ] {
        let (exit, _, errors) = output(arguments, &backtraces).await;
        assert_eq!(exit, code, "{arguments:?}: {errors}");
        for words in ["backtrace", "panicked", "main.rs", "Caused by", "os error"] {
            assert!(!errors.contains(words), "{arguments:?}: {errors}");
        }
    }
    let (_, _, errors) = output(&["--store", "memory:", "--port", &port], &backtraces).await;
    let expected = format!(
        "error: cannot listen on 127.0.0.1, port {port} for webhooks: another program uses the port; stop it, or choose another port\n"
    );
    assert!(errors.ends_with(&expected), "{errors}");
}

#[tokio::test]
async fn the_help_lists_the_exit_codes() {
    for flag in ["--help", "-h"] {
        let (code, help, _) = output(&[flag], &[]).await;
        assert_eq!(code, 0);
        assert!(help.ends_with(&format!("{}\n", gitstafette_client::cli::EXIT_CODES)), "{help}");
    }
}

#[tokio::test]
async fn a_reader_of_the_default_configuration_may_go_away() {
    let mut child =
        command(&["config", "default"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = soon(child.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// The files of this name below `examples`, each with its secrets' folder replaced by one that exists.
fn example_files(name: &str, secrets: &Path) -> Vec<String> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let folders = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path());
    folders
        .filter_map(|folder| std::fs::read_to_string(folder.join(name)).ok())
        .map(|text| text.replace("/etc/gitstafette", secrets.to_str().unwrap()))
        .collect()
}

#[test]
fn the_examples_are_valid() {
    use gitstafette_client::config as client;
    use gitstafette_client::settings::Settings;
    let secrets = tempfile::tempdir().unwrap();
    for file in ["webhook.secret", "client.token"] {
        std::fs::write(secrets.path().join(file), "secret").unwrap();
    }
    let servers = example_files("server.toml", secrets.path());
    let clients = example_files("client.toml", secrets.path());
    assert!(!servers.is_empty() && !clients.is_empty());
    for text in servers {
        gitstafette_server::config::Config::from_toml(&text)
            .unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
    for text in clients {
        client::Config::read(Settings::from_toml(client::DEFAULTS, &text))
            .unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
}
