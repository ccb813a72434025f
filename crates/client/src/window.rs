//! The subscription's window as the client sees it: what it holds of it, and how much of it one lane may have.

use gitstafette_proto::convert::Subscription;

/// A lane may hold so much as is one part in so many of what is free. So what one lane may have shrinks as others fill up,
/// and however many are blocked, there is room left for those that are not (Choudhury and Hahne, "Dynamic Queue Length
/// Thresholds", 1998).
const PARTS: u64 = 4;
/// The window of a subscription that leaves it to the server: a careful guess, only used for the lanes' shares.
const DEFAULT: Load = Load { events: 256, bytes: 32 << 20 };

/// Events and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
}

impl Load {
    /// The whole of the window that a subscription asks for.
    pub(crate) fn asked_for(subscription: &Subscription) -> Self {
        let events = subscription.max_events.map_or(DEFAULT.events, u64::from);
        let bytes = subscription.max_bytes.unwrap_or(DEFAULT.bytes);
        Self { events, bytes }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.events += 1;
        self.bytes += bytes;
    }

    pub(crate) fn remove(&mut self, bytes: u64) {
        debug_assert!(self.events > 0 && self.bytes >= bytes, "{bytes} bytes are removed from {self:?}");
        // A mistake in the count must not wrap: a lane's share would be nothing for ever.
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The window, and what is taken of it: the events whose bodies are here, or on their way because they were recalled.
#[derive(Debug)]
pub(crate) struct Window {
    whole: Load,
    pub(crate) taken: Load,
}

impl Window {
    pub(crate) fn of(subscription: &Subscription) -> Self {
        Self { whole: Load::asked_for(subscription), taken: Load::default() }
    }

    /// Takes note of what the server granted, where it says so: it may be less than what was asked for.
    pub(crate) fn granted(&mut self, events: u32, bytes: u64) {
        if events > 0 && bytes > 0 {
            self.whole = Load { events: events.into(), bytes };
        }
    }

    /// How many events the window has.
    pub(crate) fn events(&self) -> usize {
        usize::try_from(self.whole.events).unwrap_or(usize::MAX)
    }

    /// Whether a lane that holds `held` may have one more event, of this size. It may always have one.
    pub(crate) fn admits(&self, held: Load, size: u64) -> bool {
        let share = self.share();
        held.events == 0 || (held.events < share.events && held.bytes + size <= share.bytes)
    }

    /// Whether a lane has more than its share.
    pub(crate) fn is_over(&self, held: Load) -> bool {
        let share = self.share();
        held.events > 1 && (held.events > share.events || held.bytes > share.bytes)
    }

    /// Whether a lane has more than twice its share, which has shrunk since: only then is something taken from it again.
    pub(crate) fn is_exceeded(&self, held: Load) -> bool {
        let share = self.share();
        held.events > 1 && (held.events > 2 * share.events || held.bytes > 2 * share.bytes)
    }

    fn share(&self) -> Load {
        let Load { events, bytes } = self.taken;
        Load {
            events: self.whole.events.saturating_sub(events) / PARTS,
            bytes: self.whole.bytes.saturating_sub(bytes) / PARTS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(events: u32, bytes: u64) -> Window {
        let subscription = Subscription {
            max_events: Some(events),
            max_bytes: Some(bytes),
            ..Subscription::new("test".parse().unwrap())
        };
        Window::of(&subscription)
    }

    /// Fills a lane; returns how much it took.
    fn fill(window: &mut Window, size: u64) -> Load {
        let mut held = Load::default();
        while window.admits(held, size) {
            held.add(size);
            window.taken.add(size);
        }
        held
    }

    #[test]
    fn blocked_lanes_leave_room_however_many_they_are() {
        let mut window = window(256, u64::MAX);
        let mut lanes = vec![fill(&mut window, 10)];
        assert_eq!(lanes[0].events, 51);
        for _ in 0..200 {
            lanes.push(fill(&mut window, 10));
            for lane in &mut lanes {
                let is_exceeded = window.is_exceeded(*lane);
                while is_exceeded && window.is_over(*lane) {
                    lane.remove(10);
                    window.taken.remove(10);
                }
            }
            assert!(window.taken.events < 256, "{:?}", window.taken);
        }
    }

    #[test]
    fn bytes_count_as_well_and_the_first_always_fits() {
        let mut window = window(256, 1000);
        assert_eq!(fill(&mut window, 100).events, 2);
        let large = fill(&mut window, 5000);
        assert!(large.events == 1 && !window.is_over(large));
        assert_eq!(fill(&mut window, 10).events, 1);
    }
}
