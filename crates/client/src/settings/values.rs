//! Values as they are typed, with errors in plain words: those of the standard library name its types.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// A TCP port.
pub(super) struct Port(pub(super) u16);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = text.trim().parse().map(Self);
        port.map_err(|_| format!("{text:?} is not a port: a whole number from 0 to {}", u16::MAX))
    }
}

/// A number of things.
pub(super) struct Number(pub(super) u64);

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().parse().map(Self);
        number.map_err(|_| format!("{text:?} is not a whole number from 0 to {}", u64::MAX))
    }
}

/// An IP address.
pub(super) struct Ip(pub(super) IpAddr);

impl FromStr for Ip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.trim().parse().map(Self);
        address.map_err(|_| format!("{text:?} is not an IP address such as 0.0.0.0, 127.0.0.1 or ::1"))
    }
}

/// A number of bytes with a unit: `512`, `64KiB`, `25MiB`, `1GiB`, `10MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteSize(pub(super) u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a number of bytes such as 512, 64KiB, 25MiB or 1GiB");
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(error()),
        };
        let number: u64 = number.parse().map_err(|_| error())?;
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

/// The longest duration of a setting: ten years. Any point in time that much later can be computed.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A duration with a unit: `20s`, `5m`, `7d`; plain digits are seconds, as in the Go implementation's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.trim().parse().map(Duration::from_secs);
        let duration = seconds
            .or_else(|_| humantime::parse_duration(text))
            .map_err(|_| format!("{text:?} is not a duration such as 500ms, 20s, 5m or 7d"))?;
        if duration > MAX_DURATION {
            return Err(format!("{text:?} is more than 3650d, the longest duration"));
        }
        Ok(Self(duration))
    }
}

/// On or off, in every spelling that Go's `flag` package takes (strconv.ParseBool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switch(pub(super) bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(Self(true)),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(Self(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }
}
