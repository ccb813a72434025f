//! Points and spans of time on the wire.

use std::time::Duration;

use gitstafette_core::event::Timestamp;

use super::WireError;

/// A span of time on the wire.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// A span of time from the wire.
///
/// # Errors
/// It is negative.
pub fn from_duration(field: &'static str, wire: prost_types::Duration) -> Result<Duration, WireError> {
    Duration::try_from(wire).map_err(|_| WireError::new(field, "a negative duration"))
}

/// A point in time on the wire.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let millis = time.as_millis();
    prost_types::Timestamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap_or_default(),
    }
}

pub(super) fn from_timestamp(
    field: &'static str,
    wire: prost_types::Timestamp,
) -> Result<Timestamp, WireError> {
    let out_of_range = || WireError::new(field, "a time before 1970 or out of range");
    let seconds = u64::try_from(wire.seconds).map_err(|_| out_of_range())?;
    let nanos =
        u64::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(out_of_range)?;
    let millis = seconds.checked_mul(1000).and_then(|millis| millis.checked_add(nanos / 1_000_000));
    millis.map(Timestamp::from_millis).ok_or_else(out_of_range)
}

/// A time that was sent and is one.
pub(super) fn readable_time(wire: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    from_timestamp("time", wire?).ok()
}
