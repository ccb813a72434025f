//! Requests shaped exactly as GitHub's: headers, content types, signatures.

use bytes::Bytes;

use crate::secret::Secret;
use crate::verify::GitHubSignature;

/// A payload written for this project in GitHub's shape.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Names it in a test's output: the event and what is particular about it. Also its file's name.
    pub name: &'static str,
    /// The event's name, as `X-GitHub-Event` has it.
    pub event: &'static str,
    /// The kind of hook that sends it.
    pub level: Level,
    /// The JSON payload.
    pub payload: &'static str,
}

/// Where a hook is set up, with its number there: GitHub says both in `X-GitHub-Hook-Installation-Target-*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A repository's own hook.
    Repository(u64),
    /// An organisation's hook: all its repositories, and the organisation itself.
    Organization(u64),
    /// A GitHub App's hook.
    App(u64),
}

impl Level {
    fn kind_and_id(self) -> (&'static str, u64) {
        match self {
            Self::Repository(id) => ("repository", id),
            Self::Organization(id) => ("organization", id),
            Self::App(id) => ("integration", id),
        }
    }
}

const LIGHTHOUSE: Level = Level::Repository(537_845_873);
const ANCHOR: Level = Level::Repository(478_599_060);
const OCTO_HARBOR: Level = Level::Organization(90_415_873);
const HARBOR_PILOT: Level = Level::App(318_274);

macro_rules! sample {
    ($name:literal, $event:literal, $level:expr) => {
        Sample {
            name: $name,
            event: $event,
            level: $level,
            payload: include_str!(concat!("payloads/", $name, ".json")),
        }
    };
}

/// One sample of each event that the usual tools listen to, all of the owner `octo-harbor`: of its repositories
/// `octo-harbor/lighthouse` (537845873) and `octo-harbor/anchor` (478599060), of the organisation, and of an App.
///
/// Between them they hold what a relay that parses and writes JSON anew would change: several layouts, CRLF, raw and
/// escaped text beyond ASCII, line separators, `+ & %` for the form encoding, and a number beyond 2^53.
pub const SAMPLES: &[Sample] = &[
    sample!("ping", "ping", LIGHTHOUSE),
    PUSH,
    sample!("push.tag", "push", LIGHTHOUSE),
    sample!("push.deleted", "push", ANCHOR),
    sample!("pull_request.opened", "pull_request", LIGHTHOUSE),
    sample!("pull_request.synchronize", "pull_request", LIGHTHOUSE),
    sample!("pull_request.closed", "pull_request", ANCHOR),
    sample!("workflow_job.queued", "workflow_job", OCTO_HARBOR),
    sample!("workflow_job.completed", "workflow_job", OCTO_HARBOR),
    sample!("workflow_run.completed", "workflow_run", LIGHTHOUSE),
    sample!("release.published", "release", LIGHTHOUSE),
    sample!("issues.opened", "issues", LIGHTHOUSE),
    sample!("issue_comment.created", "issue_comment", LIGHTHOUSE),
    sample!("create", "create", LIGHTHOUSE),
    sample!("delete", "delete", ANCHOR),
    sample!("check_run.completed", "check_run", HARBOR_PILOT),
    sample!("status", "status", LIGHTHOUSE),
    sample!("registry_package.published", "registry_package", LIGHTHOUSE),
    sample!("organization.member_added", "organization", OCTO_HARBOR),
    sample!("installation.created", "installation", HARBOR_PILOT),
];

/// The push of three commits to `main`, from which [`large_push`] is made.
const PUSH: Sample = sample!("push", "push", LIGHTHOUSE);

/// A push to `octo-harbor/lighthouse` as after a merge of many commits: exactly `bytes` long where that is at least
/// 1 KiB more than the sample push, which is the shortest.
pub fn large_push(bytes: usize) -> String {
    // GitHub lists at most 2048 commits of a push; larger payloads come from commits of many files.
    const MAX_COMMITS: usize = 2000;
    const FILE: usize = r#""charts/fjord-00000/berth-00000/values.yaml","#.len();

    let (before, after) = PUSH.payload.split_once("\"commits\":[").expect("the sample push has commits");
    let room = bytes.saturating_sub(PUSH.payload.len());
    let files = 3 + room / MAX_COMMITS / FILE;
    let size = large_commit(0, files, 0).len();
    let commits = (room / size).max(usize::from(room > 0));
    let mut payload = String::with_capacity(PUSH.payload.len() + room.max(size));
    payload.push_str(before);
    payload.push_str("\"commits\":[");
    for number in 0..commits {
        let padding = if number == 0 { room.saturating_sub(commits * size) } else { 0 };
        payload.push_str(&large_commit(number, files, padding));
    }
    payload.push_str(after);
    payload
}

/// A commit with a comma after it, of the same length for every `number`.
fn large_commit(number: usize, files: usize, padding: usize) -> String {
    let modified: Vec<String> =
        (0..files).map(|file| format!("\"charts/fjord-{number:05}/berth-{file:05}/values.yaml\"")).collect();
    let person = r#"{"name":"Mira Kjølsen-O'Brien","email":"48213907+octo-mira-keel@users.noreply.github.com","date":"2026-03-14T08:11:27+01:00","username":"octo-mira-keel"}"#;
    format!(
        concat!(
            r#"{{"id":"{id:040x}","tree_id":"{tree:040x}","distinct":false,"#,
            r#""message":"Move berth {number:05} to the new pier ⚓{padding}","timestamp":"2026-03-14T08:11:27+01:00","#,
            r#""url":"https://github.com/octo-harbor/lighthouse/commit/{id:040x}","author":{person},"#,
            r#""committer":{person},"added":[],"removed":[],"modified":[{modified}]}},"#,
        ),
        number = number,
        person = person,
        id = 0x1000_0000 + number,
        tree = 0x2000_0000 + number,
        padding = ".".repeat(padding),
        modified = modified.join(","),
    )
}

/// How a hook sends its payload: its "Content type" setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
}

/// A hook as configured at GitHub.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Its number.
    pub id: u64,
    /// Its content type.
    pub format: Format,
    /// Its secret; without one nothing is signed.
    pub secret: Option<Secret>,
}

/// A request as GitHub would send it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Header fields, names spelled as GitHub does.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

impl Hook {
    /// The request with which this hook sends a sample.
    pub fn deliver(&self, sample: &Sample, delivery_id: &str) -> Request {
        self.request_of(sample.level, sample.event, delivery_id, sample.payload)
    }

    /// The request with which this hook, one of `octo-harbor/lighthouse`, sends `payload`.
    pub fn request(&self, event: &str, delivery_id: &str, payload: &str) -> Request {
        self.request_of(LIGHTHOUSE, event, delivery_id, payload)
    }

    fn request_of(&self, level: Level, event: &str, delivery_id: &str, payload: &str) -> Request {
        let (content_type, body) = match self.format {
            Format::Json => ("application/json", payload.to_owned()),
            Format::Form => (
                "application/x-www-form-urlencoded",
                form_urlencoded::Serializer::new(String::new()).append_pair("payload", payload).finish(),
            ),
        };
        let (target_type, target_id) = level.kind_and_id();
        // GitHub's order. It also sends X-Hub-Signature, the same with SHA-1, which nothing here reads.
        let mut headers = vec![
            ("Accept", "*/*".to_owned()),
            ("Content-Type", content_type.to_owned()),
            ("User-Agent", "GitHub-Hookshot/044aadd".to_owned()),
            ("X-GitHub-Delivery", delivery_id.to_owned()),
            ("X-GitHub-Event", event.to_owned()),
            ("X-GitHub-Hook-ID", self.id.to_string()),
            ("X-GitHub-Hook-Installation-Target-ID", target_id.to_string()),
            ("X-GitHub-Hook-Installation-Target-Type", target_type.to_owned()),
        ];
        if let Some(secret) = &self.secret {
            headers.push(("X-Hub-Signature-256", GitHubSignature::sign(secret, body.as_bytes())));
        }
        Request { headers, body: Bytes::from(body) }
    }
}
