//! The ids of stores and of their runs: random numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Tells stores apart: a random number that a store is given when it is made. A sequence means an event only together
/// with the store that gave it: one that was begun anew begins at 1 again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(u64);

impl StoreId {
    /// The id with this number, for a store that keeps it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// A random id.
    pub fn random() -> Self {
        Self(random_number())
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for StoreId {
    type Err = StoreIdError;

    fn from_str(text: &str) -> Result<Self, StoreIdError> {
        hexadecimal(text).map(Self).ok_or(StoreIdError)
    }
}

impl Serialize for StoreId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A random number. The standard library seeds its hashers from the system's randomness, which is all that is needed
/// here: nobody must be unable to guess it.
fn random_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// A number from exactly 16 hexadecimal digits.
fn hexadecimal(text: &str) -> Option<u64> {
    let is_hexadecimal = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hexadecimal.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The text names no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a store or of a run is 16 hexadecimal digits")]
pub struct StoreIdError;

/// Tells the runs of a store apart: a random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunId(u64);

impl RunId {
    /// The id with this number, for a store that keeps it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// A random id.
    pub fn random() -> Self {
        Self(random_number())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for RunId {
    type Err = StoreIdError;

    fn from_str(text: &str) -> Result<Self, StoreIdError> {
        hexadecimal(text).map(Self).ok_or(StoreIdError)
    }
}
