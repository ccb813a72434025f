//! Points and spans of time on the wire. A peer's clock may be wrong, so no time is a reason to refuse a message.

use std::time::Duration;

use gitstafette_core::event::Timestamp;

/// The longest span of time that is taken from the wire: 100 years.
const MAX_DURATION: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A span of time on the wire.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// A span of time from the wire. A negative one counts as zero, and one of more than 100 years as 100 years: with either end,
/// arithmetic with times cannot overflow.
pub fn from_duration(wire: prost_types::Duration) -> Duration {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) else {
        return Duration::ZERO;
    };
    Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())).min(MAX_DURATION)
}

/// A point in time on the wire.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let millis = time.as_millis();
    prost_types::Timestamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap_or_default(),
    }
}

/// A point in time from the wire. One before 1970 counts as the beginning of 1970, and one after 9999 as the end of 9999.
pub(super) fn from_timestamp(wire: prost_types::Timestamp) -> Timestamp {
    if wire.seconds < 0 {
        return Timestamp::default();
    }
    let millis = u64::from(wire.nanos.clamp(0, 999_999_999).unsigned_abs()) / 1_000_000;
    Timestamp::from_millis(wire.seconds.unsigned_abs().saturating_mul(1000).saturating_add(millis))
}

/// A time that was sent and is one: between 1970 and 9999.
pub(super) fn readable_time(wire: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let wire = wire?;
    (timestamp(from_timestamp(wire)).seconds == wire.seconds && (0..1_000_000_000).contains(&wire.nanos))
        .then(|| from_timestamp(wire))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seconds: i64, nanos: i32) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds, nanos }
    }

    #[test]
    fn points_beyond_the_calendar_are_cut() {
        for (seconds, nanos, millis) in [
            (i64::MIN, i32::MIN, 0),
            (-1, 999_999_999, 0),
            (0, -1, 0),
            (1, i32::MAX, 1999),
            (253_402_300_799, 999_999_999, 253_402_300_799_999),
            (253_402_300_800, 0, 253_402_300_799_999),
            (i64::MAX, i32::MAX, 253_402_300_799_999),
        ] {
            assert_eq!(from_timestamp(point(seconds, nanos)).as_millis(), millis, "{seconds} {nanos}");
        }
        assert_eq!(readable_time(Some(point(7, 1_000_000))).map(Timestamp::as_millis), Some(7001));
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (253_402_300_800, 0), (i64::MAX, 0)] {
            assert_eq!(readable_time(Some(point(seconds, nanos))), None, "{seconds} {nanos}");
        }
        assert_eq!(readable_time(None), None);
    }

    #[test]
    fn spans_have_an_end() {
        let span = |seconds, nanos| from_duration(prost_types::Duration { seconds, nanos });
        assert_eq!(span(1, 5), Duration::new(1, 5));
        assert_eq!(span(-1, 0), Duration::ZERO);
        assert_eq!(span(i64::MIN, i32::MIN), Duration::ZERO);
        assert_eq!(span(i64::MAX, i32::MAX), MAX_DURATION);
    }
}
