//! `cargo xtask deny`: whether the dependencies keep to `deny.toml` (licences, sources, bans), and whether an advisory of the
//! RustSec database concerns one of them.

use std::process::Stdio;

use anyhow::bail;

use crate::cargo;

/// Checks with cargo-deny. Where it is not installed, or there is no copy of the database, a line says so and nothing fails.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut version = cargo::command();
    version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !version.status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: cargo-deny is not installed; install it with `cargo install cargo-deny --locked`");
        return Ok(());
    }
    if !deny(&["check", "--hide-inclusion-graph", "licenses", "bans", "sources"])? {
        bail!("the dependencies break a rule of deny.toml");
    }
    // A database that cannot be fetched is no fault of the dependencies. An earlier copy serves, too.
    if !deny(&["fetch", "db"])? && !has_database() {
        println!("SKIPPED: the database of advisories cannot be fetched, and there is no copy of it");
        return Ok(());
    }
    if !deny(&["--offline", "check", "--hide-inclusion-graph", "advisories"])? {
        bail!("an advisory concerns a dependency");
    }
    Ok(())
}

fn deny(arguments: &[&str]) -> anyhow::Result<bool> {
    Ok(cargo::command().args(["deny", "--locked"]).args(arguments).status()?.success())
}

/// Whether cargo-deny has a copy of the database, in the folder that it takes by default.
fn has_database() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(Into::into);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let folders = home.and_then(|home| std::fs::read_dir(home.join("advisory-dbs")).ok());
    folders.is_some_and(|folders| folders.flatten().any(|folder| folder.path().is_dir()))
}
