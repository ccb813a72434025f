//! Programs that are started, watched by their log, and always ended.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::select_all;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long a program may take until its log says what is waited for.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a program may take to end after SIGTERM: the server gives requests under way 8 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How much of a log is shown when something failed, in lines.
const TAIL: usize = 12;
/// The longest that a log becomes, in bytes: then its file starts over.
const LONGEST_LOG: usize = 32 << 20;
/// The signal that cannot be caught.
const SIGKILL: i32 = 9;

/// A running program whose log, one JSON object a line on standard error, is copied to a file.
///
/// Dropping it kills it; [`stop`](Self::stop) is the orderly end.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    lines: Option<mpsc::UnboundedReceiver<Value>>,
    copying: JoinHandle<()>,
}

impl Process {
    /// Starts a program, whose log goes on where that of an earlier one of this name ended, in a process group of its own: Ctrl-C in a terminal goes to the whole group, and the order in
    /// which programs end is decided here.
    pub(crate) fn start(name: &str, command: std::process::Command, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::from(command);
        forget_settings(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} did not start"))?;
        let stderr = child.stderr.take().context("the log is not there")?;
        let (sender, lines) = mpsc::unbounded_channel();
        let copying = tokio::spawn(copy(stderr, file, sender));
        Ok(Self { name: name.to_owned(), child, log, lines: Some(lines), copying })
    }

    /// Waits for a line of the log in which `find` finds something. Lines are only looked at once.
    pub(crate) async fn line<T>(
        &mut self,
        what: &str,
        find: impl Fn(&Value) -> Option<T>,
    ) -> anyhow::Result<T> {
        let Some(lines) = &mut self.lines else { bail!("the log of {} is no longer read", self.name) };
        let found = async {
            loop {
                let line = lines.recv().await?;
                if let Some(found) = find(&line) {
                    return Some(found);
                }
            }
        };
        match tokio::time::timeout(START_TIMEOUT, found).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => bail!("{} ended before it was {what}\n{}", self.name, self.tail()),
            Err(_) => {
                bail!("{} is not {what} after {} s\n{}", self.name, START_TIMEOUT.as_secs(), self.tail())
            }
        }
    }

    /// Enough was read: from here on the log is only copied.
    pub(crate) fn ignore_log(&mut self) {
        self.lines = None;
    }

    /// Its process id, as long as it runs.
    pub(crate) fn id(&self) -> anyhow::Result<u32> {
        self.child.id().with_context(|| format!("{} has ended\n{}", self.name, self.tail()))
    }

    /// The last lines of the log, under a heading.
    pub(crate) fn tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        format!("the end of the log of {}:\n{}", self.name, last_lines(&log, TAIL))
    }

    /// Asks it to end, waits until it has, and kills it if it does not. Says whether it ended well.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let Some(id) = self.child.id() else {
            let status = self.child.wait().await?;
            return self.ended_well(status);
        };
        // The shell's own `kill`: the program of that name is not on every machine.
        let asked = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id.to_string()]).status().await;
        if asked.is_ok_and(|status| status.success())
            && let Ok(status) = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await
        {
            // The log ends with the process.
            drop((&mut self.copying).await);
            return self.ended_well(status?);
        }
        self.child.kill().await?;
        bail!("{} did not end within {} s and was killed", self.name, STOP_TIMEOUT.as_secs())
    }

    /// Ends it without a warning: kill -9. An error if it had ended by itself.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        // One that has ended cannot be killed; its status tells.
        drop(self.child.start_kill());
        let status = self.child.wait().await?;
        drop((&mut self.copying).await);
        if status.signal() == Some(SIGKILL) {
            return Ok(());
        }
        bail!("{} ended by itself: {status}\n{}", self.name, self.tail())
    }

    fn ended_well(&self, status: ExitStatus) -> anyhow::Result<()> {
        if status.success() {
            return Ok(());
        }
        bail!("{} ended with {status}\n{}", self.name, self.tail())
    }
}

/// Programs of which none may end by itself.
#[derive(Debug, Default)]
pub(crate) struct Processes(Vec<Process>);

impl Processes {
    /// Takes a program into care.
    pub(crate) fn add(&mut self, process: Process) {
        self.0.push(process);
    }

    /// Waits until one of them ends: an error.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.0.iter_mut().map(|process| Box::pin(process.child.wait()));
        let (status, which, _) = select_all(waits).await;
        let process = &self.0[which];
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        anyhow::anyhow!("{} ended by itself: {how}\n{}", process.name, process.tail())
    }

    /// The ends of all logs.
    pub(crate) fn tails(&self) -> String {
        self.0.iter().map(Process::tail).collect::<Vec<_>>().join("\n")
    }

    /// Ends all, the last one started first. Says what went wrong with the first that did not end well.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for process in self.0.into_iter().rev() {
            let stopped = process.stop().await;
            result = result.and(stopped);
        }
        result
    }
}

/// What the reader's environment says about their own Gitstafette, or about proxies, is not meant for this one.
fn forget_settings(command: &mut Command) {
    let set: Vec<_> = command.as_std().get_envs().map(|(name, _)| name.to_owned()).collect();
    for (name, _) in std::env::vars_os() {
        if !set.contains(&name) && name.to_str().is_some_and(is_setting) {
            command.env_remove(name);
        }
    }
}

fn is_setting(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.starts_with("GITSTAFETTE_")
        || name.starts_with("OTEL_")
        || name.ends_with("_PROXY")
        || ["OAUTH_TOKEN", "PORT", "SENTRY_DSN", "STATE_DIRECTORY"].contains(&name.as_str())
}

/// Copies a log to its file, and its lines to whom they interest, as long as they do.
async fn copy(stderr: ChildStderr, mut file: File, lines: mpsc::UnboundedSender<Value>) {
    let mut stderr = BufReader::with_capacity(64 << 10, stderr);
    let mut line = Vec::new();
    while !lines.is_closed() {
        line.clear();
        match stderr.read_until(b'\n', &mut line).await {
            Ok(1..) if file.write_all(&line).is_ok() => {}
            _ => return,
        }
        if let Ok(line) = serde_json::from_slice(&line) {
            drop(lines.send(line));
        }
    }
    drop(lines);
    let mut written = 0;
    while let Ok(chunk) = stderr.fill_buf().await {
        let length = chunk.len();
        if length == 0 || file.write_all(chunk).is_err() {
            return;
        }
        stderr.consume(length);
        written += length;
        if written > LONGEST_LOG {
            if file.set_len(0).is_err() {
                return;
            }
            written = 0;
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(count)..];
    if shown.is_empty() {
        return "  (empty)".to_owned();
    }
    shown.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Ctrl-C, SIGTERM and the terminal's end.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    /// From here on they do not end this process: whoever waits for [`next`](Self::next) does.
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_short_and_never_nothing() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "  b\n  c");
        assert_eq!(last_lines("a", 2), "  a");
        assert_eq!(last_lines("", 2), "  (empty)");
    }

    #[test]
    fn the_readers_own_settings_are_known() {
        for name in ["GITSTAFETTE_WEBHOOK_HMAC", "OAUTH_TOKEN", "PORT", "http_proxy", "NO_PROXY"] {
            assert!(is_setting(name), "{name}");
        }
        for name in ["PATH", "HOME", "REPORT", "RUST_LOG"] {
            assert!(!is_setting(name), "{name}");
        }
    }

    fn shell(script: &str) -> (tempfile::TempDir, Process) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]);
        let process = Process::start("script", command, folder.path()).unwrap();
        (folder, process)
    }

    #[tokio::test]
    async fn a_line_of_the_log_is_waited_for() {
        let (_folder, mut process) = shell(r#"echo text >&2; echo '{"port":7}' >&2; exec tail -f /dev/null"#);
        let port = process.line("listening", |line| line.get("port")?.as_u64()).await.unwrap();
        assert_eq!(port, 7);
        assert!(process.tail().ends_with("  text\n  {\"port\":7}"), "{}", process.tail());
        process.ignore_log();
        assert!(process.line("asked again", |_| Some(())).await.is_err());
    }

    #[tokio::test]
    async fn an_early_end_shows_the_log() {
        let (_folder, mut process) = shell("echo 'no such folder' >&2; exit 3");
        let error = process.line("listening", |_| Some(())).await.unwrap_err().to_string();
        assert!(error.contains("before it was listening") && error.contains("no such folder"), "{error}");
        let error = process.stop().await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[tokio::test]
    async fn only_one_that_runs_is_killed_and_the_log_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let start = |script: &str| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", script]);
            Process::start("script", command, folder.path()).unwrap()
        };
        let mut lasting = start("echo '{}' >&2; exec tail -f /dev/null");
        lasting.line("running", |_| Some(())).await.unwrap();
        lasting.kill().await.unwrap();
        let mut ending = start("echo bye >&2");
        assert!(ending.line("running", |_| Some(())).await.is_err());
        let error = ending.kill().await.unwrap_err().to_string();
        assert!(error.contains("by itself: exit status: 0") && error.ends_with("{}\n  bye"), "{error}");
    }

    #[tokio::test]
    async fn one_that_ends_by_itself_is_noticed_and_all_are_stopped() {
        let mut processes = Processes::default();
        let (_one, lasting) = shell("exec tail -f /dev/null");
        let (_two, ending) = shell("echo oops >&2");
        processes.add(lasting);
        processes.add(ending);
        let error = processes.ended().await.to_string();
        assert!(error.contains("ended by itself: exit status: 0"), "{error}");
        let error = processes.stop().await.unwrap_err().to_string();
        assert!(error.contains("signal: 15"), "{error}");
    }
}
