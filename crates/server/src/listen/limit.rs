//! How many connections a listener serves at once, in all and for one caller, and which of them end when they are scarce.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::caller::caller_of;

/// A connection may take this long for its handshake and its first request before it counts as one that asks nothing.
const FIRST_REQUEST_TIME: Duration = Duration::from_secs(2);
/// A request may take this long before it counts as one that is not authenticated: the server has looked at its token by then.
const UNPROVEN_TIME: Duration = Duration::from_secs(1);
/// The connections that have shown nothing, between requests or during one. If there are more, the one that has been there for the
/// longest time ends: over HTTP/2, each takes some 45 KiB.
const MAX_UNPROVEN: usize = 128;
/// One in so many places is for connections that are that new, while there are free places.
const SPARED_DIVISOR: usize = 20;
/// The places that one caller may have at least, so that a small listener serves one proxy.
const LEAST_SHARE: usize = 32;

/// The answers to requests that are not authenticated that may wait for their peers at once: a peer that reads nothing holds each
/// in memory.
const MAX_ANSWERS: usize = 1024;
/// The same for each connection of a small listener.
const ANSWERS_PER_CONNECTION: usize = 4;

/// The connections of one listener. One more waits accepted, the others wait in the system's queue.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    most: usize,
    /// Of one caller.
    most_of_caller: usize,
    places: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The connections that may end, in the order in which they do.
    queue: BTreeMap<Key, Queued>,
    next: u64,
    /// How many of the queue have shown nothing.
    unproven: usize,
    /// How many connections each caller has.
    callers: HashMap<IpAddr, usize>,
}

/// A connection that may end.
#[derive(Debug)]
struct Queued {
    since: Instant,
    caller: IpAddr,
    evicted: CancellationToken,
}

/// Which connections end first if they are scarce. Of two with the same rank, the one that has had it for longer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It never made a request.
    New,
    /// Its requests are not authenticated, and bring no webhook.
    Unproven,
    /// It has no request under way, and none was authenticated or brought a webhook that was accepted.
    IdleUnproven,
    /// It has no request under way.
    Idle,
    /// It brings a webhook, or a request begins or ends on it. It ends only if there is no other place at all.
    Busy,
}

impl Rank {
    fn is_unproven(self) -> bool {
        matches!(self, Self::Unproven | Self::IdleUnproven)
    }
}

/// A connection's place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) rank: Rank,
    number: u64,
}

/// The place of one connection, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    limit: Arc<ConnectionLimit>,
    caller: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl ConnectionLimit {
    /// At most so many at once, of which one caller may have half.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        let most_of_caller = (most / 2).max(LEAST_SHARE);
        let answers = most.saturating_mul(ANSWERS_PER_CONNECTION).min(MAX_ANSWERS);
        Self {
            most,
            most_of_caller,
            places: Arc::new(Semaphore::new(most)),
            answers: Arc::new(Semaphore::new(answers)),
            state: Mutex::default(),
        }
    }

    /// Waits for a place. A connection that may end does so if places are scarce then, or if there is none.
    pub(super) async fn acquire(&self) -> OwnedSemaphorePermit {
        if self.places.available_permits() == 0 {
            self.relieve();
        }
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return std::future::pending().await; // never closed
        };
        self.relieve();
        place
    }

    /// Gives a place to a connection from this address. If its caller has too many, one of them ends; `None` if none of them may.
    pub(super) fn admit(self: &Arc<Self>, place: OwnedSemaphorePermit, address: IpAddr) -> Option<Place> {
        let caller = caller_of(address);
        let mut state = self.state();
        let count = state.callers.entry(caller).or_default();
        *count += 1;
        let count = *count;
        let is_over = count > self.most_of_caller;
        let mut has_room = true;
        if is_scarce(count, self.most_of_caller) {
            let (spared, last) = if is_over { (0, Rank::Busy) } else { self.spared(self.most_of_caller) };
            let evicted = state.next_to_end(spared, last, Some(caller));
            has_room = evicted.is_some() || !is_over;
            evicted.inspect(|connection| connection.evicted.cancel());
        }
        drop(state);
        let place = Place { limit: Arc::clone(self), caller, _place: place };
        has_room.then_some(place)
    }

    /// A place for the body of an answer to a request that is not authenticated.
    pub(super) fn answer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.answers).try_acquire_owned().ok()
    }

    /// Whether more than 80 % of the places are taken.
    fn is_scarce(&self) -> bool {
        is_scarce(self.most - self.places.available_permits(), self.most)
    }

    /// Whether more than 80 % of the places are taken, of all or of those that the caller at this address may have.
    pub(super) fn is_scarce_for(&self, address: IpAddr) -> bool {
        let count = self.state().callers.get(&caller_of(address)).copied().unwrap_or(0);
        self.is_scarce() || is_scarce(count, self.most_of_caller)
    }

    /// Ends one connection that may end, if places are scarce.
    pub(super) fn relieve(&self) {
        if !self.is_scarce() {
            return;
        }
        let is_full = self.places.available_permits() == 0;
        let (spared, last) = if is_full { (0, Rank::Busy) } else { self.spared(self.most) };
        if let Some(connection) = self.state().next_to_end(spared, last, None) {
            connection.evicted.cancel();
        }
    }

    /// How many new connections go on while places are free, and the last rank that ends then.
    fn spared(&self, places: usize) -> (usize, Rank) {
        (places / SPARED_DIVISOR, Rank::Idle)
    }

    /// The connection may end if places are scarce.
    pub(super) fn enqueue(&self, rank: Rank, address: IpAddr, evicted: CancellationToken) -> Key {
        let mut state = self.state();
        let key = Key { rank, number: state.next };
        state.next += 1;
        let queued = Queued { since: Instant::now(), caller: caller_of(address), evicted };
        state.queue.insert(key, queued);
        state.unproven += usize::from(rank.is_unproven());
        if state.unproven > MAX_UNPROVEN
            && let Some(longest) = state.longest_unproven()
        {
            longest.evicted.cancel();
        }
        key
    }

    /// The connection may not end any more.
    pub(super) fn dequeue(&self, key: Key) {
        self.state().remove(key);
    }

    /// Never held across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_scarce(taken: usize, most: usize) -> bool {
    taken.saturating_mul(5) > most.saturating_mul(4)
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        if let Some(count) = state.callers.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                state.callers.remove(&self.caller);
            }
        }
    }
}

impl State {
    /// Takes out the connection that ends next, of all or of this caller. So many new ones are spared: the first request of one
    /// may be a webhook that is on its way. More of them are a flood.
    fn next_to_end(&mut self, spared: usize, last: Rank, caller: Option<IpAddr>) -> Option<Queued> {
        let is_of_caller = |queued: &Queued| caller.is_none_or(|caller| queued.caller == caller);
        let mut connections = self.queue.iter().filter(|(_, queued)| is_of_caller(queued)).peekable();
        let first_new = connections.peek().filter(|(key, _)| key.rank == Rank::New);
        let is_flood = first_new.is_some_and(|(_, first)| first.since.elapsed() >= FIRST_REQUEST_TIME)
            || connections.clone().take(spared + 1).filter(|(key, _)| key.rank == Rank::New).count() > spared;
        let next = connections.find(|(key, queued)| match key.rank {
            Rank::New => is_flood,
            Rank::Unproven => queued.since.elapsed() >= UNPROVEN_TIME,
            Rank::IdleUnproven | Rank::Idle | Rank::Busy => key.rank <= last,
        });
        let key = *next?.0;
        self.remove(key)
    }

    /// Takes out the connection that has shown nothing for the longest time, also an idle one.
    fn longest_unproven(&mut self) -> Option<Queued> {
        let unproven = self.queue.iter().filter(|(key, _)| key.rank.is_unproven());
        let (key, longest) = unproven.min_by_key(|(_, queued)| queued.since)?;
        let key = (longest.since.elapsed() >= UNPROVEN_TIME).then_some(*key)?;
        self.remove(key)
    }

    fn remove(&mut self, key: Key) -> Option<Queued> {
        let removed = self.queue.remove(&key)?;
        self.unproven -= usize::from(key.rank.is_unproven());
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_is_spared_while_places_are_free() {
        let limit = ConnectionLimit::new(40);
        let tokens: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        limit.enqueue(Rank::Idle, ADDRESS, tokens[0].clone());
        limit.enqueue(Rank::New, ADDRESS, tokens[1].clone());
        limit.enqueue(Rank::New, ADDRESS, tokens[2].clone());
        let mut places = Vec::new();
        for _ in 0..39 {
            places.push(limit.acquire().await);
        }
        limit.relieve();
        assert!(tokens[0].is_cancelled() && !tokens[1].is_cancelled());
        places.push(limit.acquire().await);
        assert!(tokens[1].is_cancelled() && !tokens[2].is_cancelled(), "no place is free");
        places.pop();
        limit.relieve();
        assert!(!tokens[2].is_cancelled());
        tokio::time::advance(FIRST_REQUEST_TIME).await;
        limit.relieve();
        assert!(tokens[2].is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_ends_first_and_only_when_places_are_scarce() {
        let limit = ConnectionLimit::new(10);
        let tokens: Vec<_> = (0..4).map(|_| CancellationToken::new()).collect();
        let ended = |tokens: &[CancellationToken]| {
            tokens.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>()
        };
        let first = limit.enqueue(Rank::Idle, ADDRESS, tokens[0].clone());
        limit.enqueue(Rank::Idle, ADDRESS, tokens[1].clone());
        limit.enqueue(Rank::Idle, ADDRESS, tokens[2].clone());
        limit.enqueue(Rank::New, ADDRESS, tokens[3].clone());
        limit.dequeue(first);
        tokio::time::advance(FIRST_REQUEST_TIME).await;
        let mut places = Vec::new();
        for _ in 0..8 {
            places.push(limit.acquire().await);
        }
        limit.relieve();
        assert_eq!(ended(&tokens), [false; 4], "8 of 10 places are taken");
        places.push(limit.acquire().await);
        assert!(limit.is_scarce());
        assert_eq!(ended(&tokens), [false, false, false, true], "it never made a request");
        limit.relieve();
        assert_eq!(ended(&tokens), [false, true, false, true]);
        drop(places);
        limit.relieve();
        assert_eq!(ended(&tokens), [false, true, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_has_half_of_the_places_and_its_own_connections_end_for_new_ones() {
        let limit = Arc::new(ConnectionLimit::new(100));
        let other = limit.enqueue(Rank::Unproven, [192, 0, 2, 9].into(), CancellationToken::new());
        let mut places = Vec::new();
        for _ in 0..50 {
            places.push(limit.admit(limit.acquire().await, ADDRESS).unwrap());
        }
        assert!(limit.admit(limit.acquire().await, ADDRESS).is_none(), "none of its connections may end");
        assert!(limit.admit(limit.acquire().await, [192, 0, 2, 1].into()).is_some());
        let tokens: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        for (token, rank) in tokens.iter().zip([Rank::Busy, Rank::Idle, Rank::Unproven]) {
            limit.enqueue(rank, ADDRESS, token.clone());
        }
        tokio::time::advance(UNPROVEN_TIME).await;
        let mut over = Vec::new();
        for ended in [2, 1, 0] {
            assert!(!tokens[ended].is_cancelled());
            over.push(limit.admit(limit.acquire().await, ADDRESS).unwrap());
            assert!(tokens[ended].is_cancelled());
        }
        limit.dequeue(other);
        drop((places, over));
        assert!(limit.state().callers.is_empty());
        assert_eq!(limit.places.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_have_shown_nothing_are_few() {
        let limit = ConnectionLimit::new(4096);
        let tokens: Vec<_> = (0..=MAX_UNPROVEN).map(|_| CancellationToken::new()).collect();
        let proven = CancellationToken::new();
        limit.enqueue(Rank::Idle, ADDRESS, proven.clone());
        for (number, token) in tokens.iter().enumerate() {
            let rank = if number % 2 == 0 { Rank::IdleUnproven } else { Rank::Unproven };
            limit.enqueue(rank, ADDRESS, token.clone());
            tokio::time::advance(Duration::from_micros(1)).await;
        }
        assert!(!tokens.iter().any(CancellationToken::is_cancelled), "they are new");
        tokio::time::advance(UNPROVEN_TIME).await;
        for ended in 0..2 {
            limit.enqueue(Rank::Unproven, ADDRESS, CancellationToken::new());
            assert!(tokens[ended].is_cancelled() && !tokens[ended + 1].is_cancelled());
        }
        assert!(!proven.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_a_moment_to_show_its_token() {
        let limit = Arc::new(ConnectionLimit::new(40));
        let token = CancellationToken::new();
        limit.enqueue(Rank::Unproven, ADDRESS, token.clone());
        let mut places = Vec::new();
        for _ in 0..40 {
            places.push(limit.acquire().await);
        }
        assert!(!token.is_cancelled());
        tokio::time::advance(UNPROVEN_TIME).await;
        limit.relieve();
        assert!(token.is_cancelled());
    }
}
