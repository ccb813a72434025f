//! What the fuzz targets do with their bytes, one target a module. The programs that libFuzzer drives are in
//! `fuzz_targets/` and do nothing but call `run` here, so that the tests can feed the seeds to the same code without a
//! fuzzer.

use gitstafette_core::text::is_steering;

pub mod convert;
pub mod filter;
pub mod payload;
pub mod sessions;
pub mod webhook;

/// Panics where text from outside could steer a terminal or forge a line of a log: errors are logged as they are.
fn assert_one_line(text: &str) {
    assert!(!text.chars().any(is_steering), "not for a log: {text:?}");
}

#[cfg(test)]
mod tests;
