//! The examples of chains: their files are valid, and their script runs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The shapes, and how many servers each has.
const SHAPES: [(&str, usize); 3] = [("cloud-run", 2), ("sites", 3), ("stages", 3)];

/// The file names of secrets stand below this folder.
const SECRETS: &str = "/etc/gitstafette/";

fn chain() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/chain")
}

/// The program of the server, without anything of this machine's environment but where programs are.
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// The configuration files of a shape.
fn files(shape: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(chain().join(shape)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

#[test]
fn every_file_is_valid() {
    for (shape, servers) in SHAPES {
        let files = files(shape);
        assert_eq!(files.len(), servers, "{shape}: {files:?}");
        for file in files {
            let folder = tempfile::tempdir().unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            for rest in text.split(SECRETS).skip(1) {
                std::fs::write(folder.path().join(rest.split('"').next().unwrap()), "secret").unwrap();
            }
            let copy = folder.path().join("copy.toml");
            std::fs::write(&copy, text.replace(SECRETS, &format!("{}/", folder.path().display()))).unwrap();
            let mut check = command(env!("CARGO_BIN_EXE_gitstafette-server"));
            check.args(["config", "check", "--config"]).arg(&copy).env("HOME", folder.path());
            // Cloud Run's way: the port and the secrets come in the environment.
            if text.contains("GITSTAFETTE_WEBHOOK_HMAC") {
                check.envs([("PORT", "8080"), ("GITSTAFETTE_BIND", "0.0.0.0")]);
                check.envs([("GITSTAFETTE_WEBHOOK_HMAC", "secret"), ("GITSTAFETTE_CLIENT_TOKEN", "token")]);
            }
            let output = check.output().unwrap();
            let errors = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{}: {errors}", file.display());
        }
    }
}

/// Whether the script can run here. What it needs beside the server is told to whoever reads the output.
fn can_run() -> bool {
    ["bash", "curl", "openssl"].into_iter().all(|tool| {
        let is_there = Command::new(tool).arg("--version").output().is_ok();
        if !is_there {
            println!("SKIPPED: {tool} is missing, so that examples/chain/run.sh was not run");
        }
        is_there
    })
}

/// Runs the script with the server of this build. It asks until everything has arrived, and fails after a minute.
fn run(shape: &str) {
    if !can_run() {
        return;
    }
    let (folder, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A client's program that lies beside the server's may be of another build.
    let server = env!("CARGO_BIN_EXE_gitstafette-server");
    std::os::unix::fs::symlink(server, programs.path().join("gitstafette-server")).unwrap();
    let mut script = command("bash");
    script.arg(chain().join("run.sh")).arg(shape);
    let output = script.env("PROGRAMS", programs.path()).env("TMPDIR", folder.path()).output().unwrap();
    let [said, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{shape}: {said}{errors}");
    assert!(said.ends_with("everything arrived where it should\n"), "{said}");
    assert!(said.contains("event of another server stored"), "its lines are shown: {said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it cleans up after itself");
}

#[test]
fn a_listener_in_memory_and_a_server_that_draws_from_it() {
    run("cloud-run");
}

#[test]
fn an_edge_and_two_sites() {
    run("sites");
}

#[test]
fn an_edge_that_feeds_staging_and_production() {
    run("stages");
}
