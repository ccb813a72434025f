use super::*;
use crate::classify;
use crate::secret::Secret;
use crate::verify::{GitHubSignature, Unverified};

const SECRET: &str = "kai 7 & 100% tåke";

fn hook(format: Format) -> Hook {
    Hook { id: 395_841_207, format, secret: Some(Secret::new(SECRET)) }
}

fn receive(request: Request) -> Webhook {
    let headers = request.headers.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
    let verified = Unverified { headers, body: request.body }
        .verify(&GitHubSignature::new(vec![Secret::new(SECRET)]))
        .expect("the signature is right");
    classify::github(verified, Timestamp::from_millis(1)).expect("a GitHub webhook")
}

fn sample(name: &str) -> &'static Sample {
    SAMPLES.iter().find(|sample| sample.name == name).expect("a sample of this name")
}

#[test]
fn samples_are_what_they_are_called() {
    // The sample, how its event type prints, the repository's number (0: none), the App's installation.
    let expected: [(&str, &str, u64, Option<u64>); 20] = [
        ("ping", "ping", 537_845_873, None),
        ("push", "push", 537_845_873, None),
        ("push.tag", "push", 537_845_873, None),
        ("push.deleted", "push", 478_599_060, None),
        ("pull_request.opened", "pull_request.opened", 537_845_873, None),
        ("pull_request.synchronize", "pull_request.synchronize", 537_845_873, None),
        ("pull_request.closed", "pull_request.closed", 478_599_060, None),
        ("workflow_job.queued", "workflow_job.queued", 537_845_873, None),
        ("workflow_job.completed", "workflow_job.completed", 537_845_873, None),
        ("workflow_run.completed", "workflow_run.completed", 537_845_873, None),
        ("release.published", "release.published", 537_845_873, None),
        ("issues.opened", "issues.opened", 537_845_873, None),
        ("issue_comment.created", "issue_comment.created", 537_845_873, None),
        ("create", "create", 537_845_873, None),
        ("delete", "delete", 478_599_060, None),
        ("check_run.completed", "check_run.completed", 537_845_873, Some(38_774_126)),
        ("status", "status", 537_845_873, None),
        ("registry_package.published", "registry_package.published", 537_845_873, None),
        ("organization.member_added", "organization.member_added", 0, None),
        ("installation.created", "installation.created", 0, Some(38_774_126)),
    ];
    let names: Vec<_> = SAMPLES.iter().map(|sample| sample.name).collect();
    assert_eq!(names, expected.map(|(name, ..)| name), "every sample is expected, and none twice");
    for (sample, (name, event_type, repository, installation_id)) in SAMPLES.iter().zip(expected) {
        let repository_name = match repository {
            537_845_873 => Some("octo-harbor/lighthouse"),
            478_599_060 => Some("octo-harbor/anchor"),
            _ => None,
        };
        for format in [Format::Json, Format::Form] {
            let request = hook(format).deliver(sample, "6f9619ff-8b86-11d0-b42d-00c04fc964ff");
            let body = request.body.clone();
            let Webhook { facts, body: received, .. } = receive(request);
            assert_eq!(received, body, "{name} {format:?}");
            assert_eq!(facts.event_type.to_string(), event_type, "{name} {format:?}");
            assert_eq!(facts.event_type.name.as_ref(), sample.event, "{name} {format:?}");
            assert_eq!(facts.repository_id.map_or(0, |id| id.0), repository, "{name} {format:?}");
            assert_eq!(
                facts.repository_name.as_ref().map(|name| name.as_str()),
                repository_name,
                "{name} {format:?}"
            );
            assert_eq!(facts.owner.as_deref(), Some("octo-harbor"), "{name} {format:?}");
            assert_eq!(facts.installation_id, installation_id, "{name} {format:?}");
            assert_eq!(facts.hook_id.as_ref().map(|id| id.as_str()), Some("395841207"), "{name} {format:?}");
        }
    }
}

#[test]
fn samples_do_not_survive_being_written_anew() {
    let changed = SAMPLES.iter().filter(|sample| {
        let value: serde_json::Value = serde_json::from_str(sample.payload).unwrap();
        let anew = value.to_string();
        anew != sample.payload
    });
    assert_eq!(changed.count(), SAMPLES.len());
    let holds = |name: &str, text: &str| assert!(sample(name).payload.contains(text), "{name}: {text:?}");
    holds("push", r"line\u2028separator");
    holds("status", "line\u{2028}separator");
    holds("pull_request.closed", r#""repo":null"#);
    holds("push.deleted", r#""head_commit":null"#);
    holds("check_run.completed", r#""id":9007199254740993"#);
    holds("issue_comment.created", r"\ud83d\udc4d\ud83c\udffd");
    holds("installation.created", "{\r\n  \"action\": \"created\"");
}

#[test]
fn hooks_say_where_they_are_set_up() {
    let target = |name: &str| {
        let request = hook(Format::Json).deliver(sample(name), "1");
        let values =
            request.headers.into_iter().filter(|(name, _)| name.contains("-Target-")).map(|(_, value)| value);
        values.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(target("push"), "537845873 repository");
    assert_eq!(target("push.deleted"), "478599060 repository");
    assert_eq!(target("organization.member_added"), "90415873 organization");
    assert_eq!(target("installation.created"), "318274 integration");
}

#[test]
fn large_pushes_have_the_promised_size() {
    let shortest = sample("push").payload.len();
    assert_eq!(large_push(0), sample("push").payload);
    assert!(large_push(shortest + 1).len() < shortest + 1024);
    for bytes in [shortest + 1024, 32 << 10, 1_000_003, (25 << 20) + 1] {
        let push = large_push(bytes);
        assert_eq!(push.len(), bytes);
        assert_eq!(push, large_push(bytes));
        let value: serde_json::Value = serde_json::from_str(&push).unwrap();
        let commits = value["commits"].as_array().unwrap();
        assert!((4..=2048).contains(&commits.len()), "{} commits in {bytes} bytes", commits.len());
        assert_eq!(commits.last(), Some(&value["head_commit"]));
    }
    let facts = receive(hook(Format::Form).request("push", "1", &large_push(1 << 20))).facts;
    assert_eq!(facts.repository_label(), "octo-harbor/lighthouse");
}
