//! The memory of one class of bodies, and the order in which they get it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::super::pace::Pace;
use super::{MAX_WAITING_PER_CONNECTION, UNREAD_BYTES};
use crate::caller::caller_of;

/// What all requests of one pool that wait may have sent unread, in bytes.
const MAX_UNREAD_BYTES: u64 = 16 << 20;
/// The requests of one pool that may wait.
const MAX_WAITING: usize = 1024;
/// The bodies of one pool that may arrive at once, with or without memory: each takes a task and a buffer of its connection. If there
/// are more, the one that has made no progress for the longest time gives up.
const MAX_ARRIVING: usize = 1024;
/// The first and the largest step in which a large body reserves its memory, in bytes.
const FIRST_STEP: u64 = 32 << 10;
const LARGEST_STEP: u64 = 1 << 20;
/// How much later a small body is served for each KiB that it has: a slow one of 256 KiB does not hold up smaller ones.
const DELAY_PER_KIB: Duration = Duration::from_millis(8);
/// The least time between two searches for bodies that are too slow: each looks at all bodies.
const RELIEF_INTERVAL: Duration = Duration::from_millis(10);

/// How bodies use a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// They reserve their whole size at once.
    Small,
    /// They reserve their memory step by step.
    Large,
}

/// The memory of one class of bodies.
#[derive(Debug)]
pub(super) struct Pool {
    class: Class,
    capacity: u64,
    /// What the bodies of one caller may need together. A single body may need more.
    caller_share: u64,
    /// What all bodies hold, and what those that hold something need in all.
    held: u64,
    needed: u64,
    /// What the bodies of each caller need that hold something.
    callers: HashMap<Option<IpAddr>, u64>,
    bodies: BTreeMap<u64, Body>,
    /// Those of which nothing has arrived, in the order in which they began.
    silent: BTreeSet<u64>,
    /// Those that were told to give up because too many others arrive.
    excess: usize,
    next: u64,
    /// Those that wait, in the order in which they are served.
    waiting: BTreeSet<(Instant, u64)>,
    relieved: Option<Instant>,
}

#[derive(Debug)]
struct Body {
    connection: Option<SocketAddr>,
    need: u64,
    held: u64,
    is_complete: bool,
    /// Whether it is to give up because too many others arrive.
    is_excess: bool,
    pace: Pace,
    /// Its place among those that wait, since its first bytes arrived.
    rank: Option<Instant>,
    wanted: Option<Wanted>,
    late: Arc<Notify>,
}

/// What a body waits for.
#[derive(Debug)]
struct Wanted {
    /// What it holds then.
    bytes: u64,
    since: Instant,
    granted: oneshot::Sender<()>,
}

/// Whose memory a body waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    /// That of any body.
    ByPool,
    /// That of its own caller's bodies.
    ByCaller,
}

impl Body {
    fn caller(&self) -> Option<IpAddr> {
        self.connection.map(|address| caller_of(address.ip()))
    }

    /// What the sender may send at most while the body waits.
    fn unread(&self) -> u64 {
        self.need.min(UNREAD_BYTES.into())
    }
}

impl Pool {
    pub(super) fn new(class: Class, capacity: u64, caller_share: u64) -> Self {
        Self {
            class,
            capacity,
            caller_share,
            held: 0,
            needed: 0,
            callers: HashMap::new(),
            bodies: BTreeMap::new(),
            silent: BTreeSet::new(),
            excess: 0,
            next: 0,
            waiting: BTreeSet::new(),
            relieved: None,
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Adds a body that holds nothing.
    pub(super) fn begin(
        &mut self,
        need: u64,
        pace: Duration,
        connection: Option<SocketAddr>,
    ) -> (u64, Arc<Notify>) {
        if self.bodies.len() - self.excess >= MAX_ARRIVING {
            self.end_slowest();
        }
        let (number, late) = (self.next, Arc::<Notify>::default());
        self.next += 1;
        let body = Body {
            connection,
            need: need.min(self.capacity),
            held: 0,
            is_complete: false,
            is_excess: false,
            pace: Pace::new(need, pace),
            rank: None,
            wanted: None,
            late: Arc::clone(&late),
        };
        self.bodies.insert(number, body);
        self.silent.insert(number);
        (number, late)
    }

    /// So many bytes of a body have arrived. Returns the wait for their memory, if there is not enough now.
    pub(super) fn grow(&mut self, number: u64, received: u64) -> Option<oneshot::Receiver<()>> {
        let class = self.class;
        let body = self.bodies.get_mut(&number)?;
        if body.rank.is_none() {
            body.pace.begin();
            self.silent.remove(&number);
        }
        body.pace.arrive(received);
        let received = received.min(body.need);
        if received <= body.held {
            return None;
        }
        let bytes = match class {
            Class::Small => body.need,
            Class::Large => (2 * received).clamp(FIRST_STEP, received + LARGEST_STEP).min(body.need),
        };
        let now = Instant::now();
        let delay = match class {
            Class::Small => DELAY_PER_KIB * u32::try_from(body.need >> 10).unwrap_or(u32::MAX),
            Class::Large => Duration::ZERO,
        };
        let rank = *body.rank.get_or_insert(now + delay);
        let (granted, receiver) = oneshot::channel();
        body.wanted = Some(Wanted { bytes, since: now, granted });
        let connection = body.connection;
        self.waiting.insert((rank, number));
        self.serve();
        self.bodies.get(&number)?.wanted.as_ref()?;
        self.refuse_excess(connection);
        self.relieve();
        Some(receiver)
    }

    /// A body is complete.
    pub(super) fn complete(&mut self, number: u64, bytes: u64) {
        let Some(body) = self.bodies.get_mut(&number) else { return };
        body.is_complete = true;
        self.silent.remove(&number);
        if body.held == 0 {
            return;
        }
        let (held, need, caller) = (body.held, body.need, body.caller());
        body.held = held.min(bytes);
        body.need = body.held;
        let (kept, is_gone) = (body.held, body.held == 0);
        self.held -= held - kept;
        self.release(caller, need - kept, is_gone);
        self.serve();
    }

    /// Removes a body.
    pub(super) fn end(&mut self, number: u64) {
        self.stop_waiting(number);
        self.silent.remove(&number);
        let Some(body) = self.bodies.remove(&number) else { return };
        self.excess -= usize::from(body.is_excess);
        if body.held > 0 {
            self.held -= body.held;
            self.release(body.caller(), body.need, true);
            self.serve();
        }
    }

    /// A body waits no longer.
    pub(super) fn stop_waiting(&mut self, number: u64) {
        let Some(body) = self.bodies.get_mut(&number) else { return };
        if body.wanted.take().is_some()
            && let Some(rank) = body.rank
        {
            self.waiting.remove(&(rank, number));
            self.serve();
        }
    }

    /// Whether a body is too slow.
    pub(super) fn is_late(&self, number: u64) -> bool {
        self.bodies.get(&number).is_some_and(Body::is_late)
    }

    /// Tells bodies that are too slow that others need their memory.
    pub(super) fn relieve(&mut self) {
        if self.relieved.is_some_and(|relieved| relieved.elapsed() < RELIEF_INTERVAL) {
            return;
        }
        self.relieved = Some(Instant::now());
        let (mut is_pool_blocked, mut callers) = (false, HashSet::new());
        for (_, number) in &self.waiting {
            let body = &self.bodies[number];
            match self.blocked(body) {
                Some(Blocked::ByPool) => {
                    is_pool_blocked = true;
                    break;
                }
                Some(Blocked::ByCaller) => {
                    callers.insert(body.caller());
                }
                None => {}
            }
        }
        for body in self.bodies.values().filter(|body| body.is_late()) {
            if is_pool_blocked || callers.contains(&body.caller()) {
                body.late.notify_one();
            }
        }
    }

    /// Tells the body that has made no progress for the longest time to give up, first one of which nothing has arrived.
    fn end_slowest(&mut self) {
        let slowest = self.silent.pop_first().or_else(|| {
            let arriving = self
                .bodies
                .iter()
                .filter(|(_, body)| !body.is_complete && !body.is_excess && body.wanted.is_none());
            arriving.min_by_key(|(_, body)| body.pace.last_progress()).map(|(number, _)| *number)
        });
        if let Some(body) = slowest.and_then(|number| self.bodies.get_mut(&number)) {
            body.is_excess = true;
            self.excess += 1;
            body.late.notify_one();
        }
    }

    /// Takes needs back.
    fn release(&mut self, caller: Option<IpAddr>, need: u64, is_last: bool) {
        self.needed -= need;
        if let Some(needed) = self.callers.get_mut(&caller) {
            *needed -= need;
            if *needed == 0 && is_last {
                self.callers.remove(&caller);
            }
        }
    }

    /// Gives memory to those whose turn it is. While one waits for the pool, no other body begins; those that have begun go on.
    fn serve(&mut self) {
        let mut is_blocked = false;
        for (rank, number) in self.waiting.iter().copied().collect::<Vec<_>>() {
            let body = &self.bodies[&number];
            if is_blocked && body.held == 0 {
                continue;
            }
            match self.blocked(body) {
                None => self.grant(rank, number),
                Some(Blocked::ByPool) => is_blocked = true,
                Some(Blocked::ByCaller) => {}
            }
        }
    }

    /// Why a body that waits gets no memory now.
    fn blocked(&self, body: &Body) -> Option<Blocked> {
        let begins = body.held == 0;
        let needed = self.needed + if begins { body.need } else { 0 };
        if begins
            && let Some(others) = self.callers.get(&body.caller())
            && others + body.need > self.caller_share
        {
            return Some(Blocked::ByCaller);
        }
        let wanted = body.wanted.as_ref().map_or(body.held, |wanted| wanted.bytes);
        let is_free = needed <= self.capacity
            || self.held + (wanted - body.held) <= self.capacity && self.is_safe_with(body, wanted);
        (!is_free).then_some(Blocked::ByPool)
    }

    /// Whether all bodies that have begun can be completed one after the other if this one holds so much (the banker's
    /// algorithm for one resource: first the one that needs the least, whose memory then helps the next).
    fn is_safe_with(&self, grown: &Body, bytes: u64) -> bool {
        let mut free = self.capacity - self.held - (bytes - grown.held);
        let others = self.bodies.values().filter(|body| body.held > 0 && !std::ptr::eq(*body, grown));
        let mut bodies: Vec<(u64, u64)> = others.map(|body| (body.need - body.held, body.held)).collect();
        bodies.push((grown.need - bytes, bytes));
        bodies.sort_unstable();
        bodies.into_iter().all(|(rest, held)| {
            let fits = rest <= free;
            free += held;
            fits
        })
    }

    fn grant(&mut self, rank: Instant, number: u64) {
        self.waiting.remove(&(rank, number));
        let Some(body) = self.bodies.get_mut(&number) else { return };
        let Some(Wanted { bytes, since, granted }) = body.wanted.take() else { return };
        if body.held == 0 {
            self.needed += body.need;
            *self.callers.entry(body.caller()).or_default() += body.need;
        }
        self.held += bytes - body.held;
        body.held = bytes;
        body.pace.resume(since);
        // A receiver that has gone has dropped its body.
        granted.send(()).unwrap_or_default();
    }

    /// Refuses requests while too many wait, of this connection or in all.
    fn refuse_excess(&mut self, connection: Option<SocketAddr>) {
        const OF_CONNECTION: u64 = (MAX_WAITING_PER_CONNECTION * UNREAD_BYTES) as u64;
        if connection.is_some() && self.unread(|body| body.connection == connection) > OF_CONNECTION {
            self.refuse_one(|body| body.connection == connection);
        }
        while self.waiting.len() > MAX_WAITING || self.unread(|_| true) > MAX_UNREAD_BYTES {
            self.refuse_one(|_| true);
        }
    }

    fn waiters(&self, which: impl Fn(&Body) -> bool) -> impl Iterator<Item = ((Instant, u64), &Body)> {
        let waiters = self.waiting.iter().map(|key| (*key, &self.bodies[&key.1]));
        waiters.filter(move |(_, body)| which(body))
    }

    fn unread(&self, which: impl Fn(&Body) -> bool) -> u64 {
        self.waiters(which).map(|(_, body)| body.unread()).sum()
    }

    /// Refuses one request that waits: of the caller with the most, of its connection with the most, the largest, and the newest.
    fn refuse_one(&mut self, which: impl Fn(&Body) -> bool) {
        let (mut callers, mut connections) = (HashMap::<_, usize>::new(), HashMap::<_, usize>::new());
        for (_, body) in self.waiters(|_| true) {
            *callers.entry(body.caller()).or_default() += 1;
            *connections.entry(body.connection).or_default() += 1;
        }
        let of_most = self.waiters(which).max_by_key(|(key, body)| {
            (body.held == 0, callers[&body.caller()], connections[&body.connection], body.need, *key)
        });
        let Some((key, _)) = of_most else { return };
        self.waiting.remove(&key);
        if let Some(body) = self.bodies.get_mut(&key.1) {
            body.wanted = None;
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    #[cfg(test)]
    pub(super) fn is_contended(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Body {
    /// Whether it is to give up: it holds memory, waits for its sender, and is too slow, or too many others arrive.
    fn is_late(&self) -> bool {
        let is_slow = self.held > 0 && self.wanted.is_none() && self.pace.is_late();
        !self.is_complete && (is_slow || self.is_excess)
    }
}
