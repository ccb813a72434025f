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
    check(&["licenses", "bans", "sources"])?;
    // A database that cannot be fetched is no fault of the dependencies: an earlier copy serves, too.
    let is_fetched = deny(&["fetch", "db"])?;
    if !is_fetched {
        println!("the database of advisories cannot be fetched; looking for an earlier copy");
        if !deny(&["check", "--disable-fetch", "--hide-inclusion-graph", "advisories"])? {
            println!("SKIPPED: advisories: there is no copy of the database, or it has findings: see above");
        }
        return Ok(());
    }
    check(&["--disable-fetch", "advisories"])
}

fn check(what: &[&str]) -> anyhow::Result<()> {
    if !deny(&[&["check", "--hide-inclusion-graph"], what].concat())? {
        bail!("cargo deny check {} failed", what.join(" "));
    }
    Ok(())
}

fn deny(arguments: &[&str]) -> anyhow::Result<bool> {
    Ok(cargo::command().args(["deny", "--locked"]).args(arguments).status()?.success())
}
