//! The store's clock, on which the age of events is counted.
//!
//! Age is counted from acceptance, not from when the first server received the event: one that was relayed late must
//! not be removed before anybody could take it. The store's clock never goes back, and it does not follow jumps of the
//! system's clock:
//!
//! - While the store is open, it runs with the monotonic clock. The difference to the system's clock is stored as the
//!   `skew`, so that a jump is known after a restart.
//! - When the store is opened again after the same boot of the system, it goes on with the time since that boot. The store
//!   may have been closed while the system's clock jumped.
//! - After another boot nothing but the system's clock can tell how long the store was closed. A machine without a battery
//!   boots with an old date: the clock then goes on at the newest event.

use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, OptionalExtension, params};

use super::codec;
use crate::event::Timestamp;

/// How far the system's clock and this one may part before it counts as a jump, in milliseconds.
const JUMP: i64 = 60_000;

/// The store's clock: see the module.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    started: Instant,
    base: i64,
    /// By how much the system's clock is ahead of this one, in milliseconds.
    skew: i64,
}

/// A boot of the system.
#[derive(Clone, Debug)]
struct Boot {
    /// The id that the system gives to each of its boots.
    id: String,
    /// The time since then, in milliseconds. It includes the time in which the machine slept.
    elapsed: i64,
}

impl Clock {
    /// The clock, which goes on from where the store left it.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        Self::load_at(connection, system_time(), boot().as_ref())
    }

    fn load_at(connection: &Connection, system: i64, boot: Option<&Boot>) -> rusqlite::Result<Self> {
        let newest: Option<i64> = connection
            .query_row("SELECT accepted_at FROM events ORDER BY sequence DESC LIMIT 1", (), |row| row.get(0))
            .optional()?;
        let (skew, booted): (i64, Option<i64>) = connection.query_row(
            "SELECT skew, CASE WHEN boot_id = ?1 THEN booted_at END FROM position",
            [boot.map(|boot| &boot.id)],
            |row| row.try_into(),
        )?;
        let now = match (boot, booted) {
            (Some(boot), Some(booted)) => booted.saturating_add(boot.elapsed),
            _ => system.saturating_sub(skew),
        };
        let base = now.max(newest.unwrap_or_default()).max(0);
        if let (Some(boot), None) = (boot, booted) {
            let booted = base.saturating_sub(boot.elapsed);
            let update = "UPDATE position SET boot_id = ?1, booted_at = ?2";
            // A full disk must not keep the store from opening. The next start records the boot then.
            if let Err(error) = connection.execute(update, params![boot.id, booted]) {
                tracing::warn!(%error, "cannot record the system's boot in the store");
            }
        }
        Ok(Self { started: Instant::now(), base, skew })
    }

    /// The time.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.millis().unsigned_abs())
    }

    fn millis(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.base.saturating_add(elapsed)
    }

    /// Stores the difference to the system's clock if that has jumped.
    pub(super) fn record_jump(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if let Some(skew) = self.jump(system_time()) {
            connection.execute("UPDATE position SET skew = ?1", params![skew])?;
            self.skew = skew;
        }
        Ok(())
    }

    /// The new skew, if the system's clock has jumped.
    fn jump(&self, system: i64) -> Option<i64> {
        let skew = system.saturating_sub(self.millis());
        (skew.saturating_sub(self.skew).saturating_abs() > JUMP).then_some(skew)
    }
}

fn system_time() -> i64 {
    codec::signed(Timestamp::from(SystemTime::now()).as_millis())
}

/// This boot of the system; `None` where the system does not tell (proc(5): `boot_id`, `uptime`).
fn boot() -> Option<Boot> {
    let read = |path| std::fs::read_to_string(path).ok();
    let id = read("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let seconds = read("/proc/uptime")?.split_whitespace().next()?.parse().ok()?;
    let elapsed = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Boot { id, elapsed: i64::try_from(elapsed.as_millis()).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema;

    const YEAR: i64 = 31_536_000_000;

    fn boot(id: &str, elapsed: i64) -> Boot {
        Boot { id: id.to_owned(), elapsed }
    }

    #[test]
    fn the_store_s_clock_takes_no_part_in_a_jump() {
        let mut clock = Clock { started: Instant::now(), base: 1_000_000_000, skew: 500_000 };
        let before = clock.now();
        let even = clock.millis() + clock.skew;
        for drift in [-30_000, 0, 30_000] {
            assert_eq!(clock.jump(even + drift), None);
        }
        // Set right after it booted in 1970, and set back by a year.
        for jump in [1_700_000_000_000, -YEAR] {
            let skew = clock.jump(even + jump).expect("a jump");
            assert!((skew - clock.skew - jump).abs() < 30_000, "{skew}");
        }
        assert!(clock.jump(i64::MAX).is_some() && clock.jump(i64::MIN).is_some());
        clock.skew = clock.jump(1_700_000_000_000).expect("a jump");
        assert!(clock.now() >= before && clock.now().as_millis() < 1_000_100_000);
    }

    #[test]
    fn a_jump_while_the_store_is_closed_is_no_age() {
        let connection = schema::in_memory();
        let first = Clock::load_at(&connection, 10 * YEAR, Some(&boot("a", 5_000))).unwrap();
        assert!(first.base == 10 * YEAR);
        for jump in [YEAR, -YEAR, 0] {
            let later = Clock::load_at(&connection, 10 * YEAR + jump, Some(&boot("a", 8_000))).unwrap();
            assert_eq!(later.base, 10 * YEAR + 3_000, "three seconds after the first");
        }
        let other = Clock::load_at(&connection, 11 * YEAR, Some(&boot("b", 1_000))).unwrap();
        assert_eq!(other.base, 11 * YEAR, "after another boot the system's clock counts");
        let unknown = Clock::load_at(&connection, 12 * YEAR, None).unwrap();
        assert_eq!(unknown.base, 12 * YEAR);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_which_boot_it_is() {
        let (one, two) = (super::boot().expect("a boot"), super::boot().expect("a boot"));
        assert_eq!(one.id, two.id);
        assert!(0 < one.elapsed && one.elapsed <= two.elapsed);
    }
}
