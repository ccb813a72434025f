//! Cargo, called from here.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo, at the root of the workspace.
pub(crate) fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    // `cargo run` tells xtask its package's name, version and place. Build scripts that watch these variables would
    // run anew whenever cargo is called from here after it was called by hand.
    for (name, _) in std::env::vars_os() {
        let name_of_package = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if name.to_str().is_some_and(|name| name_of_package.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// The programs that a build made.
#[derive(Debug)]
pub(crate) struct Programs(Vec<PathBuf>);

impl Programs {
    /// Runs `cargo build` with these arguments. What cargo says goes to the terminal.
    pub(crate) fn build(arguments: &[&str]) -> anyhow::Result<Self> {
        let line = format!("cargo build {}", arguments.join(" "));
        let mut build = command()
            .arg("build")
            .args(arguments)
            .arg("--message-format=json-render-diagnostics")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{line} did not start"))?;
        let messages = build.stdout.take().context("cargo's output is not there")?;
        let mut programs = Vec::new();
        for message in BufReader::new(messages).lines() {
            programs.extend(executable(&message?));
        }
        let status = build.wait()?;
        if !status.success() {
            bail!("{line}: {status}");
        }
        Ok(Self(programs))
    }

    /// Where the program of this name is.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<&Path> {
        let found = self.0.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
        found.map(PathBuf::as_path).with_context(|| format!("cargo build made no {name}"))
    }
}

/// The executable that a message of cargo's tells of. So it is found wherever the target folder is.
fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargos_messages() {
        let artifact = r#"{"reason":"compiler-artifact","executable":"/somewhere/debug/gitstafette-server"}"#;
        assert_eq!(executable(artifact), Some("/somewhere/debug/gitstafette-server".into()));
        for other in [r#"{"reason":"compiler-artifact","executable":null}"#, r#"{"success":true}"#, "text"] {
            assert_eq!(executable(other), None, "{other}");
        }
    }

    #[test]
    fn programs_are_found_by_their_whole_name() {
        let programs = Programs(vec!["/t/gitstafette-server".into(), "/t/gitstafette-client.exe".into()]);
        assert_eq!(programs.find("gitstafette-client").unwrap(), Path::new("/t/gitstafette-client.exe"));
        assert!(programs.find("gitstafette").is_err());
    }
}
