use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use gitstafette_core::event::Address;
use gitstafette_core::filter::Filter;
use gitstafette_core::target::{Attempt, OutcomeResult, Target, Verdict};
use gitstafette_core::testing;
use gitstafette_proto::convert::{Subscription, sequences};
use gitstafette_proto::v1;
use tokio::sync::Semaphore;

use super::without_target::NO_TARGET;
use super::*;
use crate::route::Route;
use crate::window::Load;

mod log;

mod first_attempts;

/// Takes everything but what belongs to blocked repositories, and notes it.
#[derive(Debug, Default)]
struct Shop {
    blocked: Mutex<BTreeSet<String>>,
    /// Repository and sequence of every delivery.
    taken: Mutex<Vec<(String, u64)>>,
    /// How often in 16 it fails by chance.
    moody: usize,
}

impl Shop {
    fn block(&self, repository: &str) {
        self.blocked.lock().unwrap().insert(repository.to_owned());
    }

    fn unblock(&self) {
        self.blocked.lock().unwrap().clear();
    }

    fn taken(&self, repository: &str) -> Vec<u64> {
        let taken = self.taken.lock().unwrap();
        taken.iter().filter(|(name, _)| name == repository).map(|(_, sequence)| *sequence).collect()
    }
}

#[async_trait]
impl Target for Shop {
    fn name(&self) -> &str {
        "shop"
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let repository = event.webhook.facts.repository_label().into_owned();
        let fails = fastrand::usize(0..16) < self.moody || self.blocked.lock().unwrap().contains(&repository);
        let verdict = if fails { Verdict::Retry(None) } else { Verdict::Delivered };
        if !fails {
            self.taken.lock().unwrap().push((repository, event.sequence.get()));
        }
        Attempt {
            verdict,
            code: Some(500),
            detail: format!("{} blocked", self.blocked.lock().unwrap().len()),
        }
    }
}

fn route(shop: &Arc<Shop>) -> Route {
    Route::new(Arc::clone(shop) as Arc<dyn Target>)
}

fn only(shop: &Arc<Shop>, pattern: &str) -> Route {
    Route { filter: Filter { repositories: vec![pattern.parse().unwrap()], events: vec![] }, ..route(shop) }
}

fn deliveries(routes: Vec<Route>, window: u32) -> Deliveries {
    let subscription =
        Subscription { max_events: Some(window), ..Subscription::new("test".parse().unwrap()) };
    Deliveries::new(Destination::all(routes), Window::of(&subscription), watch::Sender::default(), None)
}

fn event(sequence: u64, repository: &str) -> Arc<Event> {
    let webhook = testing::webhook(sequence, repository, 3);
    Arc::new(Event {
        sequence: Sequence::new(sequence),
        redelivery: false,
        address: Address::default(),
        webhook,
    })
}

/// The next acknowledgement on its way to the server.
async fn acknowledged(deliveries: &mut Deliveries) -> v1::Acknowledgement {
    loop {
        while let Some(request) = deliveries.next_news() {
            if let Request::Acknowledgements(mut message) = request {
                assert_eq!(message.acknowledgements.len(), 1);
                return message.acknowledgements.remove(0);
            }
        }
        deliveries.progress().await;
    }
}

/// A server with one client: its window, what it keeps back, and its cursor.
struct Server {
    log: Vec<Arc<Event>>,
    window: usize,
    sent: usize,
    outstanding: BTreeSet<u64>,
    deferred: BTreeSet<u64>,
    recalled: VecDeque<u64>,
    done: HashMap<u64, Vec<v1::Outcome>>,
    has_reconnected: bool,
}

impl Server {
    fn new(repositories: &[&str], window: usize) -> Self {
        let log = (1..).zip(repositories).map(|(sequence, repository)| event(sequence, repository)).collect();
        Self {
            log,
            window,
            sent: 0,
            outstanding: BTreeSet::new(),
            deferred: BTreeSet::new(),
            recalled: VecDeque::new(),
            done: HashMap::new(),
            has_reconnected: false,
        }
    }

    fn hear(&mut self, request: Request) {
        match request {
            Request::Acknowledgements(message) => {
                for one in message.acknowledgements {
                    self.outstanding.remove(&one.sequence);
                    self.deferred.remove(&one.sequence);
                    self.done.entry(one.sequence).or_insert(one.outcomes);
                }
            }
            Request::Deferral(message) => {
                for sequence in message.sequences {
                    // What was not sent on this stream yet is sent first, and put down again.
                    let known = self.outstanding.remove(&sequence);
                    assert!(known || self.has_reconnected, "{sequence} was not sent");
                    self.deferred.extend(known.then_some(sequence));
                }
                assert!(self.deferred.len() + self.recalled.len() <= MAX_DEFERRED);
            }
            Request::Recall(message) => {
                for sequence in sequences(&message.sequences) {
                    let known = self.deferred.remove(&sequence.get());
                    assert!(known || self.has_reconnected, "{sequence} was not deferred");
                    self.recalled.extend(known.then_some(sequence.get()));
                }
            }
            Request::FirstAttempts(_) => {}
            Request::Subscription(_) => unreachable!("not made by deliveries"),
        }
    }

    /// Says and hears all that can be said now; at most `most` events are sent.
    fn exchange(&mut self, deliveries: &mut Deliveries, most: usize) {
        let mut budget = most;
        loop {
            while let Some(request) = deliveries.next_news() {
                self.hear(request);
            }
            if self.outstanding.len() >= self.window || budget == 0 {
                return;
            }
            budget -= 1;
            let next = self.recalled.pop_front().or_else(|| {
                let kept =
                    |sequence: &u64| self.done.contains_key(sequence) || self.deferred.contains(sequence);
                let next = (self.sent as u64 + 1..=self.log.len() as u64).find(|sequence| !kept(sequence))?;
                self.sent = usize::try_from(next).unwrap();
                Some(next)
            });
            let Some(next) = next else { return };
            self.outstanding.insert(next);
            deliveries.accept(&self.log[usize::try_from(next).unwrap() - 1], &[]);
        }
    }

    /// The stream breaks, and what was under way on it is lost.
    fn reconnect(&mut self, deliveries: &mut Deliveries) {
        self.outstanding.clear();
        self.recalled.clear();
        self.deferred = deliveries.resume().into_iter().map(Sequence::get).collect();
        self.sent = 0;
        self.has_reconnected = true;
    }

    async fn until(&mut self, deliveries: &mut Deliveries, done: impl Fn(&Self) -> bool) {
        let all = async {
            loop {
                self.exchange(deliveries, usize::MAX);
                if done(self) {
                    return;
                }
                deliveries.progress().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(1_000_000), all).await.expect("it goes on");
    }

    async fn until_all_is_done(&mut self, deliveries: &mut Deliveries) {
        self.until(deliveries, |server| server.done.len() == server.log.len()).await;
        assert!(
            deliveries.pending.is_empty() && deliveries.absent.is_empty() && deliveries.parked.is_empty()
        );
        assert_eq!((deliveries.deferred, deliveries.window.taken), (0, Load::default()));
        assert_eq!(deliveries.lanes.count(), 0, "an empty lane is closed");
    }
}

/// A log of this store that nothing is known of.
fn log(store: &str) -> Seen {
    Seen { store: store.to_owned(), ..Seen::default() }
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_again_is_not_delivered_again() {
    let shop = Arc::new(Shop::default());
    let mut deliveries = deliveries(vec![route(&shop)], 8);
    let one = event(1, "octo/hello");
    assert!(deliveries.accept(&one, &[]));
    assert!(!deliveries.accept(&one, &[]), "it is in its lane");
    let first = acknowledged(&mut deliveries).await;
    assert_eq!(first.outcomes.len(), 1);
    assert!(!deliveries.accept(&one, &[]));
    assert_eq!(acknowledged(&mut deliveries).await, first, "the server has not heard of it");
    deliveries.resume();
    assert_eq!(acknowledged(&mut deliveries).await, first, "nor has the next stream");
    deliveries.confirmed([1]);
    assert_eq!(deliveries.unconfirmed(), 0);
    assert_eq!(shop.taken("octo/hello"), [1]);
}

#[tokio::test(start_paused = true)]
async fn one_acknowledgement_with_an_outcome_per_route() {
    let shop = Arc::new(Shop::default());
    let routes = vec![route(&shop), only(&shop, "octo/hello"), only(&shop, "octo/other")];
    let mut deliveries = deliveries(routes, 8);
    deliveries.accept(&event(1, "octo/hello"), &[]);
    let mut targets: Vec<_> =
        acknowledged(&mut deliveries).await.outcomes.into_iter().map(|outcome| outcome.target).collect();
    targets.sort();
    assert_eq!(targets, ["shop", "shop#2"]);
    deliveries.accept(&event(2, "octo/third"), &[]);
    assert_eq!(acknowledged(&mut deliveries).await.outcomes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_no_route_wants_is_filtered() {
    let shop = Arc::new(Shop::default());
    let mut deliveries = deliveries(vec![only(&shop, "octo/other")], 8);
    assert!(deliveries.accept(&event(1, "octo/hello"), &[]));
    let outcomes = acknowledged(&mut deliveries).await.outcomes;
    assert_eq!(outcomes[0].result, i32::from(v1::OutcomeResult::Filtered));
    deliveries.cursor_at(Sequence::new(1));
    assert_eq!((deliveries.unconfirmed(), deliveries.state.borrow().filtered), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_address_selects_one_route() {
    let shop = Arc::new(Shop::default());
    let mut deliveries = deliveries(vec![route(&shop), route(&shop)], 8);
    for (sequence, target, result) in [(1, "shop#2", "shop#2"), (2, "elsewhere", NO_TARGET)] {
        let mut addressed = Event::clone(&event(sequence, "octo/hello"));
        addressed.address.targets = vec![target.into()];
        deliveries.accept(&Arc::new(addressed), &[]);
        let outcomes = acknowledged(&mut deliveries).await.outcomes;
        assert_eq!((outcomes.len(), outcomes[0].target.as_str()), (1, result));
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_acknowledges_what_was_done() {
    let shop = Arc::new(Shop::default());
    let mut deliveries = deliveries(vec![route(&shop)], 8);
    deliveries.accept(&event(1, "octo/hello"), &[]);
    while deliveries.reports.is_empty() {
        tokio::task::yield_now().await;
    }
    deliveries.begin_stop();
    deliveries.stopped().await;
    assert!(deliveries.has_news());
}

#[tokio::test(start_paused = true)]
async fn a_blocked_lane_holds_up_no_other_however_much_it_has() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/blocked");
    let mut log = vec!["octo/blocked"; 200];
    log.extend(["octo/free"; 20]);
    let (mut server, mut deliveries) = (Server::new(&log, 16), deliveries(vec![route(&shop)], 16));
    server.until(&mut deliveries, |server| server.done.len() == 20).await;
    assert_eq!(shop.taken("octo/free"), Vec::from_iter(201..=220));
    let state = deliveries.state.borrow().clone();
    assert_eq!(state.waiting, 200);
    assert!(state.deferred >= 190, "{state:?}");
    assert!(state.deferred < 200, "the first is kept");
    shop.unblock();
    server.until_all_is_done(&mut deliveries).await;
    assert_eq!(shop.taken("octo/blocked"), Vec::from_iter(1..=200));
}

#[tokio::test(start_paused = true)]
async fn many_blocked_lanes_leave_room_too() {
    let shop = Arc::new(Shop::default());
    let names: Vec<_> = (0..12).map(|number| format!("octo/blocked-{number}")).collect();
    let mut log = Vec::new();
    for name in &names {
        shop.block(name);
        log.extend(vec![name.as_str(); 20]);
    }
    log.push("octo/free");
    let (mut server, mut deliveries) = (Server::new(&log, 16), deliveries(vec![route(&shop)], 16));
    server.until(&mut deliveries, |server| server.done.len() == 1).await;
    shop.unblock();
    server.until_all_is_done(&mut deliveries).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_for_a_free_and_a_blocked_target_is_delivered_once_to_each() {
    let (free, blocked) = (Arc::new(Shop::default()), Arc::new(Shop::default()));
    blocked.block("octo/hello");
    let (mut server, mut deliveries) =
        (Server::new(&["octo/hello"; 100], 16), deliveries(vec![route(&free), route(&blocked)], 16));
    let everything = Vec::from_iter(1..=100);
    server.until(&mut deliveries, |_| free.taken("octo/hello").len() == 100).await;
    assert!(server.done.is_empty());
    blocked.unblock();
    server.until_all_is_done(&mut deliveries).await;
    assert_eq!((free.taken("octo/hello"), blocked.taken("octo/hello")), (everything.clone(), everything));
    assert!(server.done.values().all(|outcomes| outcomes.len() == 2));
}

#[tokio::test(start_paused = true)]
async fn what_only_waits_its_turn_is_not_put_down() {
    let shop = Arc::new(Shop::default());
    let (mut server, mut deliveries) =
        (Server::new(&["octo/hello"; 200], 16), deliveries(vec![route(&shop)], 16));
    server.exchange(&mut deliveries, usize::MAX);
    assert_eq!((deliveries.deferred, server.outstanding.len()), (0, 16), "the window holds back");
    server.until_all_is_done(&mut deliveries).await;
    assert!(server.recalled.is_empty() && server.deferred.is_empty());
    assert_eq!(shop.taken("octo/hello").len(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_bound_closes_the_window_and_nothing_is_stuck() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/hello");
    let all = MOST_DEFERRED + 100;
    let (mut server, mut deliveries) =
        (Server::new(&vec!["octo/hello"; all], 16), deliveries(vec![route(&shop)], 16));
    server.until(&mut deliveries, |server| server.deferred.len() == MOST_DEFERRED).await;
    server.exchange(&mut deliveries, usize::MAX);
    assert_eq!((server.deferred.len(), server.outstanding.len()), (MOST_DEFERRED, 16));
    shop.unblock();
    server.until_all_is_done(&mut deliveries).await;
    assert!(shop.taken("octo/hello").is_sorted());
}

#[tokio::test(start_paused = true)]
async fn order_holds_through_failures_and_reconnects() {
    for seed in 0..40 {
        fastrand::seed(seed);
        let shops = [0, 4, 12].map(|moody| Arc::new(Shop { moody, ..Shop::default() }));
        let names = ["octo/a", "octo/b", "octo/c"];
        let log: Vec<_> = (0..300).map(|_| names[fastrand::usize(0..3)]).collect();
        let routes = vec![route(&shops[0]), route(&shops[1]), only(&shops[2], "octo/a")];
        let window = fastrand::usize(1..20);
        let (mut server, mut deliveries) =
            (Server::new(&log, window), deliveries(routes, u32::try_from(window).unwrap()));
        for _ in 0..200 {
            server.exchange(&mut deliveries, fastrand::usize(0..5));
            match fastrand::usize(0..20) {
                0 => server.reconnect(&mut deliveries),
                1..12 => drop(tokio::time::timeout(Duration::from_secs(1), deliveries.progress()).await),
                _ => {}
            }
            let here = deliveries.pending.values().filter(|one| matches!(one.body, Body::Here(_))).count();
            assert!(here <= window + names.len() * 3, "{here} in a window of {window}");
        }
        server.until_all_is_done(&mut deliveries).await;
        for (shop, name) in shops.iter().flat_map(|shop| names.map(|name| (shop, name))) {
            let wanted: Vec<u64> =
                (1..).zip(&log).filter(|(_, one)| **one == name).map(|(sequence, _)| sequence).collect();
            let taken = shop.taken(name);
            assert!(
                taken == wanted || (taken.is_empty() && shop.moody == 12),
                "seed {seed}: {name} {taken:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_no_longer_has_is_not_waited_for() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/hello");
    let (mut server, mut deliveries) =
        (Server::new(&["octo/hello"; 40], 8), deliveries(vec![route(&shop)], 8));
    server.until(&mut deliveries, |server| server.sent == 40).await;
    let held = deliveries.pending.len() - deliveries.deferred;
    deliveries.missed(Sequence::new(1), Sequence::new(30));
    assert_eq!(deliveries.state.borrow().missed, 30);
    assert_eq!(deliveries.pending.len(), held + 10);
    deliveries.cursor_at(Sequence::new(40));
    assert_eq!(deliveries.pending.len(), held, "what is here is delivered all the same");
    shop.unblock();
    server.until(&mut deliveries, |server| server.done.len() == held).await;
    assert_eq!(deliveries.lanes.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_fails_shows_and_recovers() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/hello");
    let state = watch::Sender::new(ClientState {
        targets: vec![crate::state::TargetState::new("shop")],
        ..ClientState::default()
    });
    let mut deliveries = Deliveries { state, ..deliveries(vec![route(&shop)], 8) };
    deliveries.accept(&event(1, "octo/hello"), &[]);
    deliveries.progress().await;
    let error = |deliveries: &Deliveries| deliveries.state.borrow().targets[0].last_error.clone();
    assert!(deliveries.state.borrow().targets[0].failing);
    assert_eq!(error(&deliveries).as_deref(), Some("1 blocked"));
    shop.block("octo/other");
    deliveries.during(tokio::time::sleep(Duration::from_secs(600))).await;
    assert_eq!(error(&deliveries).as_deref(), Some("2 blocked"), "a later try");
    shop.unblock();
    acknowledged(&mut deliveries).await;
    let state = deliveries.state.borrow().clone();
    assert_eq!((state.targets[0].failing, state.targets[0].last_error.as_ref()), (false, None));
    assert_eq!(state.targets[0].last_outcome, Some(OutcomeResult::Delivered));
    assert_eq!((state.delivered, state.waiting, state.received.get()), (1, 0, 1));
}

/// A target whose tries take until they are let go.
#[derive(Debug)]
struct Slow {
    begun: Mutex<Vec<u64>>,
    go: Semaphore,
}

#[async_trait]
impl Target for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        self.begun.lock().unwrap().push(event.webhook.body.len() as u64);
        self.go.acquire().await.unwrap().forget();
        Attempt { verdict: Verdict::Retry(None), code: None, detail: String::new() }
    }
}

#[tokio::test(start_paused = true)]
async fn lanes_of_another_store_begin_when_those_of_the_first_have_ended() {
    let slow = Arc::new(Slow { begun: Mutex::default(), go: Semaphore::new(0) });
    let mut deliveries = deliveries(vec![Route::new(Arc::clone(&slow) as Arc<dyn Target>)], 8);
    let of_size = |size| {
        let webhook = testing::webhook(1, "octo/hello", size);
        let sequence = Sequence::new(1);
        Arc::new(Event { sequence, redelivery: false, address: Address::default(), webhook })
    };
    let (one, two) = (of_size(10), of_size(20));
    let sizes = [&one, &two].map(|event| event.webhook.body.len() as u64);
    let a_while = Duration::from_secs(100);
    assert!(deliveries.belong_to(&log("a"), Sequence::ZERO, None));
    deliveries.accept(&one, &[]);
    deliveries.during(tokio::time::sleep(a_while)).await;
    assert!(deliveries.belong_to(&log("a"), Sequence::ZERO, None));
    // A third store comes while the first one's lane is still busy: the order holds over both changes.
    for store in ["b", "c"] {
        assert!(!deliveries.belong_to(&log(store), Sequence::ZERO, None));
        assert!(deliveries.accept(&two, &[]), "the same sequence is another event");
        deliveries.during(tokio::time::sleep(a_while)).await;
        assert_eq!(*slow.begun.lock().unwrap(), sizes[..1]);
    }
    slow.go.add_permits(2);
    deliveries.during(tokio::time::sleep(a_while)).await;
    assert_eq!(*slow.begun.lock().unwrap(), [sizes[0]; 3], "it is tried again before others have their turn");
}
