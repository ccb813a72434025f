//! `cargo xtask ci`: what a change must pass, one step after another, up to the first that fails.
//!
//! All steps build with the same profile and the same features, so that each crate is checked once and built once.

use std::process::Command;

use anyhow::{Context, bail};

use crate::cargo;

struct Step {
    name: &'static str,
    /// What rustup calls the part of the toolchain that the step needs beyond cargo and rustc.
    component: Option<&'static str>,
    /// Arguments of cargo.
    arguments: &'static [&'static str],
    environment: Option<(&'static str, &'static str)>,
}

/// The tests come last: whoever reads only the end of the output reads their result.
const STEPS: [Step; 11] = [
    Step {
        name: "format",
        component: Some("rustfmt"),
        arguments: &["fmt", "--all", "--", "--check"],
        environment: None,
    },
    Step {
        name: "contract",
        component: None,
        // Where buf is not to be had it says so and goes on.
        arguments: &["--locked", "xtask", "contract"],
        environment: None,
    },
    Step {
        name: "lints",
        component: Some("clippy"),
        arguments: &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        environment: None,
    },
    Step {
        // Not built here: that takes a C++ compiler. What the fuzz targets need follows the crates all the same.
        name: "lock file of the fuzz targets",
        component: None,
        arguments: &["tree", "--manifest-path", "fuzz/Cargo.toml", "--depth", "0", "--locked"],
        environment: None,
    },
    Step {
        name: "dependencies",
        component: None,
        // Says what it skips where cargo-deny or the database of advisories is missing.
        arguments: &["--locked", "xtask", "deny"],
        environment: None,
    },
    Step {
        name: "documentation",
        component: None,
        // With the examples come the features of dev-dependencies, and so the dependencies that the lints checked.
        arguments: &["doc", "--workspace", "--no-deps", "--lib", "--examples", "--locked"],
        environment: Some(("RUSTDOCFLAGS", "-D warnings")),
    },
    Step {
        name: "tests in the documentation",
        component: None,
        arguments: &["test", "--workspace", "--doc", "--locked"],
        environment: None,
    },
    // A few rounds of chaos. Run more before a release, and after changes to the store, to streams or to relays.
    Step {
        name: "chaos: power loss and clock jumps",
        component: None,
        arguments: &["--locked", "xtask", "chaos", "--rounds", "10", "--power-loss", "--clock-jumps"],
        environment: None,
    },
    Step {
        name: "chaos: a ring of servers",
        component: None,
        arguments: &["--locked", "xtask", "chaos", "--rounds", "5", "--shape", "ring"],
        environment: None,
    },
    Step {
        name: "chaos: a diamond of servers",
        component: None,
        arguments: &["--locked", "xtask", "chaos", "--rounds", "5", "--shape", "diamond", "--power-loss"],
        environment: None,
    },
    Step {
        name: "tests",
        component: None,
        arguments: &["test", "--workspace", "--all-targets", "--locked"],
        environment: None,
    },
];

/// Runs every step; an error names the one that failed.
pub(crate) fn run() -> anyhow::Result<()> {
    for step in &STEPS {
        let line = format!("cargo {}", step.arguments.join(" "));
        println!("\n== {}: {line}", step.name);
        if let Some(component) = step.component
            && !installed(component)
        {
            println!("SKIPPED: {component} is not installed, and rustup could not add it");
            continue;
        }
        let status = step.command().status().with_context(|| format!("{line} did not start"))?;
        if !status.success() {
            bail!("step failed: {} ({line}: {status})", step.name);
        }
    }
    Ok(())
}

/// The tests of faults that take time, at the length they have in life: a target away for a minute, a thousand
/// reconnects, a minute of short stream windows, ten thousand webhooks through servers that are killed. What they print
/// is shown.
pub(crate) fn faults() -> anyhow::Result<()> {
    let arguments = ["test", "--package", "gitstafette-server", "--test", "it", "--locked", "--"];
    let mut command = cargo::command();
    command.args(arguments).args(["network::", "targets::", "chain::", "--nocapture"]);
    let status = command.env("GITSTAFETTE_FAULTS_AT_LENGTH", "1").status().context("cargo did not start")?;
    if !status.success() {
        bail!("a fault was not survived: {status}");
    }
    Ok(())
}

/// `cargo xtask msrv`: whether the workspace builds with the oldest Rust that Cargo.toml promises. It installs that one if
/// rustup can, and builds beside the other builds.
pub(crate) fn msrv() -> anyhow::Result<()> {
    let manifest = std::fs::read_to_string(cargo::root().join("Cargo.toml"))?;
    let version = rust_version(&manifest).context("Cargo.toml has no rust-version")?;
    let install = ["toolchain", "install", version, "--profile", "minimal", "--no-self-update"];
    if !Command::new("rustup").args(install).status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: rustup cannot install Rust {version}");
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args(["run", version, "cargo", "check", "--workspace", "--all-targets", "--locked"]);
    command.current_dir(cargo::root()).env("CARGO_TARGET_DIR", cargo::root().join("target/msrv"));
    // Set by the cargo that runs this program, and meant for its toolchain.
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    let status = command.status().context("rustup did not start")?;
    if !status.success() {
        bail!("the workspace does not build with Rust {version}: {status}");
    }
    Ok(())
}

/// The value of `rust-version` in a manifest.
fn rust_version(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
}

impl Step {
    fn command(&self) -> Command {
        let mut command = cargo::command();
        command.args(self.arguments).envs(self.environment);
        command
    }
}

/// Whether the toolchain has the component, after an attempt to add it.
fn installed(component: &str) -> bool {
    let subcommand = component.trim_start_matches("rust");
    let works = || {
        cargo::command().args([subcommand, "--version"]).output().is_ok_and(|answer| answer.status.success())
    };
    if works() {
        return true;
    }
    let added = Command::new("rustup").args(["component", "add", component]).status();
    added.is_ok_and(|status| status.success()) && works()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_come_last() {
        assert_eq!(
            STEPS.last().map(|step| &step.arguments[..3]),
            Some(&["test", "--workspace", "--all-targets"][..])
        );
    }

    #[test]
    fn the_oldest_rust_is_read_from_the_manifest() {
        let manifest = std::fs::read_to_string(cargo::root().join("Cargo.toml")).unwrap();
        let version = rust_version(&manifest).unwrap();
        assert!(version.starts_with("1.") && version.len() > 2, "{version}");
        assert_eq!(rust_version("rust-version.workspace = true"), None);
    }

    #[test]
    fn no_step_changes_the_lock_file() {
        for step in STEPS.iter().filter(|step| step.arguments[0] != "fmt") {
            assert!(step.arguments.contains(&"--locked"), "{}", step.name);
        }
    }
}
