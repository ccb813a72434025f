use std::net::IpAddr;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
const PACE: Duration = Duration::from_secs(8);

/// 64 MiB as by default: 16 MiB of it are for small requests, and 8 MiB of each pool for one caller.
fn budget() -> InflightBudget {
    InflightBudget::new(64 * MIB, 25 * MIB)
}

fn address(caller: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, caller], port))
}

fn begin(budget: &InflightBudget, bytes: u64, caller: u8) -> Reservation {
    begin_on(budget, bytes, address(caller, fastrand::u16(..)))
}

fn begin_on(budget: &InflightBudget, bytes: u64, peer: SocketAddr) -> Reservation {
    budget.begin(bytes, pace_of(bytes, PACE), Some(peer))
}

/// A body of which so many bytes have arrived, and hold memory.
fn arrived(budget: &InflightBudget, bytes: u64, received: u64, caller: u8) -> Reservation {
    let body = begin(budget, bytes, caller);
    assert!(body.grow_to(received).is_none(), "there is memory for {received} of {bytes}");
    body
}

type Granted = BoxFuture<'static, Result<(), TooManyWaiting>>;

fn wait(body: &Reservation, received: u64) -> Granted {
    Box::pin(body.grow_to(received).expect("it waits").granted())
}

fn is_granted(waiting: &mut Granted) -> bool {
    waiting.now_or_never().map(Result::unwrap).is_some()
}

#[tokio::test(start_paused = true)]
async fn a_body_holds_what_has_arrived_and_not_what_it_announces() {
    let budget = budget();
    let _silent: Vec<_> = (0..100).map(|_| begin(&budget, 16 * MIB, 1)).collect();
    assert_eq!(budget.held(), 0, "nothing has arrived");
    let body = arrived(&budget, 16 * MIB, 1, 1);
    assert_eq!(budget.held(), 32 * KIB);
    for megabyte in 1..16 {
        assert!(body.grow_to(megabyte * MIB).is_none());
        assert!((megabyte * MIB..=(megabyte + 1) * MIB).contains(&budget.held()));
    }
    let small = arrived(&budget, 100 * KIB, 1, 1);
    drop(body);
    assert_eq!(budget.held(), 100 * KIB, "a small one is reserved as a whole");
    small.complete(10 * KIB);
    assert_eq!(budget.held(), 10 * KIB);
    drop(small);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_caller_has_one_body_that_is_larger_than_its_share_and_others_are_not_held_up() {
    let budget = budget();
    let stalled = arrived(&budget, 16 * MIB, 15 * MIB, 1);
    let second = begin(&budget, 16 * MIB, 1);
    let mut second = (wait(&second, 1), second);
    let _other = arrived(&budget, 16 * MIB, 15 * MIB, 2);
    let _small: Vec<_> = (0..32).map(|_| arrived(&budget, 256 * KIB, 1, 1)).collect();
    let one_more = begin(&budget, 256 * KIB, 1);
    let mut one_more = (wait(&one_more, 1), one_more);
    let _small_of_other: Vec<_> = (0..32).map(|_| arrived(&budget, 256 * KIB, 1, 2)).collect();
    assert!(!is_granted(&mut second.0) && !is_granted(&mut one_more.0));
    drop(stalled);
    assert!(is_granted(&mut second.0));
    let _within: Vec<_> = (0..8).map(|_| arrived(&budget, MIB, MIB, 3)).collect();
    assert!(begin(&budget, MIB, 3).grow_to(1).is_some(), "more than its share");
}

#[tokio::test(start_paused = true)]
async fn twenty_large_requests_of_one_caller_are_served_in_order_of_arrival() {
    let budget = budget();
    let bodies: Vec<_> = (0..20).map(|_| begin(&budget, 20 * MIB, 1)).collect();
    assert!(bodies[0].grow_to(MIB).is_none());
    let mut waiting: Vec<_> = bodies[1..].iter().map(|body| wait(body, MIB)).collect();
    for body in bodies {
        assert!(waiting.iter_mut().all(|waiting| !is_granted(waiting)));
        assert!(body.grow_to(20 * MIB).is_none());
        body.complete(20 * MIB);
        drop(body);
        if !waiting.is_empty() {
            assert!(is_granted(&mut waiting.remove(0)));
        }
    }
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_have_begun_never_wait_for_each_other() {
    let budget = budget();
    let bodies: Vec<_> = (1..=4).map(|caller| arrived(&budget, 20 * MIB, 1, caller)).collect();
    // All arrive at the same rate. Some wait, and one of them can always be completed.
    let mut left: Vec<_> = bodies.into_iter().map(|body| (body, 0_u64, None::<Granted>)).collect();
    let mut turns = 0;
    while !left.is_empty() {
        turns += 1;
        assert!(turns < 1000, "they wait for each other");
        for (body, received, waiting) in &mut left {
            if waiting.as_mut().is_some_and(|waiting| !is_granted(waiting)) {
                continue;
            }
            *waiting = None;
            if *received < 20 * MIB {
                *received += MIB / 2;
                *waiting = body.grow_to(*received).map(|growing| Box::pin(growing.granted()) as Granted);
            }
        }
        assert!(budget.held() <= 48 * MIB);
        left.retain(|(_, received, waiting)| *received < 20 * MIB || waiting.is_some());
    }
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_body_does_not_begin_while_an_older_one_waits() {
    let budget = budget();
    let held = [arrived(&budget, 24 * MIB, 24 * MIB, 1), arrived(&budget, 23 * MIB, 23 * MIB, 2)];
    let (large, newer) = (begin(&budget, 24 * MIB, 3), begin(&budget, MIB, 4));
    let mut large = (wait(&large, 2 * MIB), large);
    let mut newer = (wait(&newer, 1), newer);
    assert!(!is_granted(&mut large.0) && !is_granted(&mut newer.0));
    drop(held);
    assert!(is_granted(&mut large.0) && is_granted(&mut newer.0));
}

#[tokio::test(start_paused = true)]
async fn smaller_ones_of_the_small_do_not_wait_behind_larger_ones() {
    let budget = budget();
    let held: Vec<_> = (0..32).map(|_| arrived(&budget, 256 * KIB, 1, 1)).collect();
    let large = begin(&budget, 256 * KIB, 1);
    let mut large = (wait(&large, 1), large);
    tokio::time::advance(Duration::from_secs(1)).await;
    let small = begin(&budget, 10 * KIB, 1);
    let mut small = (wait(&small, 1), small);
    let mut held = held.into_iter();
    held.next();
    assert!(is_granted(&mut small.0) && !is_granted(&mut large.0));
    held.next();
    assert!(is_granted(&mut large.0));
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_too_slow_make_room_while_others_wait_for_theirs() {
    let budget = budget();
    let slow: Vec<_> = (0..32).map(|_| arrived(&budget, 256 * KIB, 255 * KIB, 1)).collect();
    let slow_of_other = arrived(&budget, 256 * KIB, 255 * KIB, 2);
    let complete = arrived(&budget, 256 * KIB, 256 * KIB, 3);
    complete.complete(256 * KIB);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(slow[0].needed_by_others().now_or_never().is_none(), "nobody waits");
    let next = begin(&budget, 10 * KIB, 1);
    let begun = tokio::time::Instant::now();
    let granted = tokio::spawn(wait(&next, 1));
    slow[0].needed_by_others().await;
    assert!(begun.elapsed() < Duration::from_millis(100));
    assert!(slow_of_other.needed_by_others().now_or_never().is_none(), "only its own caller's bodies help");
    assert!(complete.needed_by_others().now_or_never().is_none());
    drop(slow);
    granted.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_goes_on_is_not_too_slow() {
    let budget = budget();
    let first = arrived(&budget, 16 * MIB, MIB, 1);
    let second = begin(&budget, 16 * MIB, 1);
    let _waiting = tokio::spawn(wait(&second, 1));
    for step in 2..=16 {
        let needed = tokio::time::timeout(Duration::from_millis(450), first.needed_by_others());
        assert!(needed.await.is_err(), "{step}");
        assert!(first.grow_to(step * MIB).is_none());
    }
    first.complete(16 * MIB);
    let needed = tokio::time::timeout(Duration::from_secs(60), first.needed_by_others());
    assert!(needed.await.is_err(), "it is complete");
}

#[tokio::test(start_paused = true)]
async fn if_too_many_bodies_arrive_the_slowest_gives_up() {
    let budget = budget();
    let silent: Vec<_> = (0..1024).map(|_| begin(&budget, 10 * KIB, 1)).collect();
    tokio::time::advance(Duration::from_millis(10)).await;
    assert!(silent[0].grow_to(KIB).is_none(), "it makes progress");
    assert!(silent[0].needed_by_others().now_or_never().is_none());
    silent[2].complete(0);
    let one_more = begin(&budget, 10 * KIB, 2);
    silent[1].needed_by_others().await;
    for other in [&silent[0], &silent[2], &silent[3], &one_more] {
        assert!(other.needed_by_others().now_or_never().is_none());
    }
    let _another = begin(&budget, 10 * KIB, 2);
    silent[3].needed_by_others().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_stops_waiting_leaves_its_queue() {
    let budget = budget();
    let held = arrived(&budget, 20 * MIB, 1, 1);
    let (first, second) = (begin(&budget, 20 * MIB, 1), begin(&budget, 20 * MIB, 1));
    let waiting = wait(&first, 1);
    let mut second = (wait(&second, 1), second);
    assert!(budget.is_contended());
    drop(waiting);
    drop(held);
    assert!(is_granted(&mut second.0));
    // Granted, and gone before it noticed.
    let waiting = wait(&first, 1);
    drop(second);
    drop((waiting, first));
    assert_eq!(budget.held(), 0);
    assert!(!budget.is_contended());
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_that_wait_are_refused_where_there_are_most() {
    let budget = budget();
    let _held = arrived(&budget, 20 * MIB, 1, 1);
    let other = arrived(&budget, 20 * MIB, 1, 2);
    let next = begin(&budget, 20 * MIB, 2);
    let mut next = (wait(&next, 1), next);
    let waiting: Vec<_> = (0..200)
        .map(|_| {
            let body = begin(&budget, MIB, 1);
            (body.grow_to(1).map(|growing| Box::pin(growing.granted()) as Granted), body)
        })
        .collect();
    let mut refused = 0;
    for (waiting, _) in waiting {
        refused += usize::from(matches!(waiting.unwrap().now_or_never(), Some(Err(TooManyWaiting))));
    }
    assert_eq!(refused, 200 - 127, "16 MiB are 128 windows");
    drop(other);
    assert!(is_granted(&mut next.0), "the other caller waits");
}

#[tokio::test(start_paused = true)]
async fn one_connection_has_so_many_requests_that_wait_with_full_windows() {
    let budget = budget();
    let _held: Vec<_> = (0..32).map(|_| arrived(&budget, 256 * KIB, 1, 1)).collect();
    let connection = address(1, 1);
    let mut waiting: Vec<_> = (0..250)
        .map(|_| begin_on(&budget, 10 * KIB, connection))
        .map(|body| (wait(&body, 1), body))
        .collect();
    assert!(waiting.iter_mut().all(|(waiting, _)| !is_granted(waiting)), "small ones wait all");
    drop(waiting);
    let mut waiting: Vec<_> = (0..MAX_WAITING_PER_CONNECTION)
        .map(|_| begin_on(&budget, 200 * KIB, connection))
        .map(|body| (wait(&body, 1), body))
        .collect();
    let smaller = begin_on(&budget, 10 * KIB, connection);
    let mut smaller = (wait(&smaller, 1), smaller);
    assert!(!is_granted(&mut smaller.0), "a larger one is refused for it");
    let refused = waiting.iter_mut().filter_map(|(waiting, _)| waiting.now_or_never()).count();
    assert_eq!(refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_budget_for_one_body_serves_one_after_the_other() {
    let budget = InflightBudget::new(MIB, MIB);
    let first = arrived(&budget, MIB, MIB, 1);
    let (second, third) = (begin(&budget, 10, 2), begin(&budget, 2 * MIB, 3));
    let mut second = (wait(&second, 10), second);
    let mut third = (wait(&third, 2 * MIB), third);
    assert!(!is_granted(&mut second.0) && !is_granted(&mut third.0));
    drop(first);
    assert!(is_granted(&mut second.0));
    assert!(!is_granted(&mut third.0));
    drop(second);
    assert!(is_granted(&mut third.0), "more than there is counts as all");
    assert_eq!(budget.held(), MIB);
    drop(third);
    assert_eq!(budget.held(), 0);
}

proptest! {
    /// Whatever comes, goes, and gives up: the budget holds, nobody is forgotten, and all comes back.
    #[test]
    fn every_body_is_completed_and_no_byte_is_lost(
        total in 1_000_000_u64..100_000_000,
        steps in prop::collection::vec((0_u8..5, 0.0_f64..1.0, any::<prop::sample::Index>()), 1..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.unwrap();
        let _context = runtime.enter();
        let budget = InflightBudget::new(total, total / 2);
        // Each with what it needs, what has arrived, and the wait for that.
        let mut bodies: Vec<(Reservation, u64, u64, Option<Granted>)> = Vec::new();
        let grow = |(body, need, received, waiting): &mut (Reservation, u64, u64, Option<Granted>), share: f64| {
            if waiting.as_mut().is_some_and(|waiting| !is_granted(waiting)) {
                return;
            }
            *received += ((*need - *received) as f64 * share).ceil() as u64;
            *waiting = body.grow_to(*received).map(|growing| Box::pin(growing.granted()) as Granted);
        };
        for (step, share, index) in steps {
            let caller = index.index(5) as u8;
            let most = if step == 0 { total / 2 } else { total / 40 };
            match step {
                0 | 1 => {
                    let need = (share * most as f64) as u64 + 1;
                    bodies.push((begin(&budget, need, caller), need, 0, None));
                }
                2 | 3 if !bodies.is_empty() => {
                    let at = index.index(bodies.len());
                    grow(&mut bodies[at], share);
                }
                4 if !bodies.is_empty() => drop(bodies.swap_remove(index.index(bodies.len()))),
                _ => {}
            }
            prop_assert!(budget.held() <= total);
        }
        for _ in 0..1000 {
            bodies.iter_mut().for_each(|body| grow(body, 1.0));
            bodies.retain_mut(|(_, need, received, waiting)| {
                *received < *need || waiting.as_mut().is_some_and(|waiting| !is_granted(waiting))
            });
        }
        prop_assert!(bodies.is_empty(), "{} wait for ever", bodies.len());
        prop_assert_eq!(budget.held(), 0);
        prop_assert!(!budget.is_contended());
    }
}

#[test]
fn addresses_of_one_network_are_one_caller() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _context = runtime.enter();
    let budget = budget();
    let peer = |text: &str| SocketAddr::new(text.parse::<IpAddr>().unwrap(), 1);
    let first = begin_on(&budget, 20 * MIB, peer("2001:db8::1"));
    assert!(first.grow_to(1).is_none());
    assert!(begin_on(&budget, 20 * MIB, peer("2001:db8::2")).grow_to(1).is_some());
    assert!(begin_on(&budget, 20 * MIB, peer("2001:db8:0:1::2")).grow_to(1).is_none());
}
