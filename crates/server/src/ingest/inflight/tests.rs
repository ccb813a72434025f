use std::net::Ipv4Addr;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// 64 MiB as by default: 4 MiB of it are for small requests.
fn budget() -> InflightBudget {
    InflightBudget::new(64 * MIB, 25 * MIB)
}

type Reserving = BoxFuture<'static, Result<Reservation, TooManyWaiting>>;

/// A request on a connection of its own number.
fn request_from(budget: &InflightBudget, bytes: u64, port: u16) -> Reserving {
    let budget = budget.clone();
    let connection = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Box::pin(async move { budget.reserve(bytes, Some(connection)).await })
}

fn request(budget: &InflightBudget, bytes: u64) -> Reserving {
    request_from(budget, bytes, fastrand::u16(..))
}

/// What a request gets without waiting.
fn now(reserving: &mut Reserving) -> Option<Reservation> {
    reserving.now_or_never().map(Result::unwrap)
}

fn used(budget: &InflightBudget) -> u64 {
    let state = budget.state();
    state.small.used + state.large.used
}

#[test]
fn twenty_large_requests_are_served_three_at_a_time_in_order_of_arrival() {
    let budget = budget();
    let mut arriving: Vec<_> = (0..20).map(|_| request(&budget, 20 * MIB)).collect();
    let mut held: VecDeque<_> = arriving.iter_mut().filter_map(now).collect();
    assert_eq!(held.len(), 3);
    for next in 3..20 {
        assert_eq!(used(&budget), 60 * MIB);
        for later in arriving[next..].iter_mut().rev() {
            assert!(now(later).is_none());
        }
        held.pop_front();
        held.extend(now(&mut arriving[next]));
        assert_eq!(held.len(), 3, "{next} is the next");
    }
    held.clear();
    assert_eq!(used(&budget), 0);
}

#[test]
fn small_requests_do_not_wait_behind_large_ones() {
    let budget = budget();
    let large: Vec<_> = (0..3).map(|_| now(&mut request(&budget, 20 * MIB)).unwrap()).collect();
    let mut next = request(&budget, 25 * MIB);
    assert!(now(&mut next).is_none());
    let small: Vec<_> = (0..16).map(|_| now(&mut request(&budget, SMALL_BYTES)).unwrap()).collect();
    let mut one_more = request(&budget, SMALL_BYTES);
    assert!(now(&mut one_more).is_none(), "their share is used up");
    drop(small);
    assert!(now(&mut one_more).is_some());
    drop(large);
    assert!(now(&mut next).is_some());
    assert_eq!(used(&budget), 0);
}

#[test]
fn small_requests_cannot_starve_large_ones() {
    let budget = budget();
    let mut small: Vec<_> = (0..256).map(|_| now(&mut request(&budget, SMALL_BYTES)).unwrap()).collect();
    assert_eq!(used(&budget), 64 * MIB, "small requests may use all memory");
    let mut large = request(&budget, 20 * MIB);
    assert!(now(&mut large).is_none());
    // Small requests come and go: while a large one waits, they keep to their share.
    for _ in 0..100 {
        small.truncate(small.len().saturating_sub(4));
        small.extend((0..4).filter_map(|_| now(&mut request(&budget, SMALL_BYTES))));
    }
    assert!(now(&mut large).is_some());
}

#[test]
fn a_request_that_stops_waiting_leaves_its_queue() {
    let budget = budget();
    let held = now(&mut request(&budget, 25 * MIB)).unwrap();
    let _other = now(&mut request(&budget, 25 * MIB)).unwrap();
    let mut first = request(&budget, 25 * MIB);
    let mut second = request(&budget, 5 * MIB);
    assert!(now(&mut first).is_none() && now(&mut second).is_none());
    assert!(budget.is_contended());
    drop(first);
    let second = now(&mut second).expect("nobody is before it any more");
    assert!(!budget.is_contended());
    // Granted, and gone before it noticed.
    let mut third = request(&budget, 25 * MIB);
    assert!(now(&mut third).is_none());
    drop(held);
    assert_eq!(used(&budget), 55 * MIB);
    drop(third);
    assert_eq!(used(&budget), 30 * MIB);
    drop(second);
    assert_eq!(used(&budget), 25 * MIB);
}

#[test]
fn the_number_of_waiting_requests_is_bounded() {
    let budget = budget();
    let held = now(&mut request(&budget, 60 * MIB)).unwrap();
    let mut large: Vec<_> =
        (0..MAX_WAITING_LARGE).map(|port| request_from(&budget, MIB, u16::try_from(port).unwrap())).collect();
    assert!(large.iter_mut().all(|waiting| now(waiting).is_none()));
    let refused = request(&budget, MIB).now_or_never().unwrap();
    assert_eq!(refused.unwrap_err(), TooManyWaiting);
    drop(large);
    let mut of_one: Vec<_> =
        (0..MAX_WAITING_PER_CONNECTION).map(|_| request_from(&budget, 20 * MIB, 1)).collect();
    assert!(of_one.iter_mut().all(|waiting| now(waiting).is_none()));
    let refused = request_from(&budget, MIB, 1).now_or_never().unwrap();
    assert_eq!(refused.unwrap_err(), TooManyWaiting);
    assert!(now(&mut request_from(&budget, 1, 1)).is_some(), "it need not wait");
    drop(held);
    assert!(now(&mut of_one[0]).is_some());
}

#[test]
fn unused_bytes_are_given_back() {
    let budget = budget();
    let mut unknown_length = now(&mut request(&budget, 25 * MIB)).unwrap();
    let _other = now(&mut request(&budget, 25 * MIB)).unwrap();
    let mut next = request(&budget, 25 * MIB);
    assert!(now(&mut next).is_none());
    unknown_length.shrink_to(10_000);
    assert!(now(&mut next).is_some());
    assert_eq!(used(&budget), 25 * MIB + 10_000);
}

#[test]
fn a_budget_for_one_body_serves_one_after_the_other() {
    let budget = InflightBudget::new(MIB, MIB);
    let first = now(&mut request(&budget, MIB)).unwrap();
    let mut second = request(&budget, 10);
    let mut third = request(&budget, 2 * MIB);
    assert!(now(&mut second).is_none() && now(&mut third).is_none());
    drop(first);
    let second = now(&mut second).unwrap();
    assert!(now(&mut third).is_none());
    drop(second);
    let all = now(&mut third).expect("more than there is counts as all");
    assert_eq!(used(&budget), MIB);
    drop(all);
    assert_eq!(used(&budget), 0);
}

proptest! {
    /// Whatever comes, goes, and gives up: the budget holds, nobody is forgotten, and all comes back.
    #[test]
    fn every_request_is_served_and_no_byte_is_lost(
        total in 1_000_u64..1_000_000,
        steps in prop::collection::vec((0_u8..4, 0.0_f64..1.0, any::<prop::sample::Index>()), 1..200),
    ) {
        let budget = InflightBudget::new(total, total / 2);
        let mut waiting: Vec<Reserving> = Vec::new();
        let mut held = Vec::new();
        for (step, share, index) in steps {
            match step {
                0 => waiting.push(request(&budget, (share * total as f64 / 2.0) as u64)),
                1 => waiting.push(request(&budget, (share * total as f64 / 20.0) as u64)),
                2 if !held.is_empty() => drop(held.swap_remove(index.index(held.len()))),
                3 if !waiting.is_empty() => drop(waiting.remove(index.index(waiting.len()))),
                _ => {}
            }
            waiting.retain_mut(|request| match request.now_or_never() {
                Some(reserved) => {
                    held.extend(reserved.ok());
                    false
                }
                None => true,
            });
            prop_assert!(used(&budget) <= total);
            prop_assert_eq!(used(&budget), held.iter().map(|held: &Reservation| held.bytes).sum::<u64>());
        }
        while !(waiting.is_empty() && held.is_empty()) {
            held.clear();
            let before = waiting.len();
            waiting.retain_mut(|request| match request.now_or_never() {
                Some(reserved) => {
                    held.extend(reserved.ok());
                    false
                }
                None => true,
            });
            prop_assert!(waiting.len() < before || before == 0);
        }
        prop_assert_eq!(used(&budget), 0);
        prop_assert!(!budget.is_contended());
    }
}
