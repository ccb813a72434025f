use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use gitstafette_core::backoff::Backoff;
use gitstafette_core::event::Address;
use gitstafette_core::target::{Target, Verdict};
use gitstafette_core::testing;

use super::*;
use crate::policy::DeliveryPolicy;
use crate::route::Route;

/// Answers from a list, and notes when it was asked for what.
#[derive(Debug)]
struct Scripted {
    answers: Mutex<VecDeque<Verdict>>,
    asked: Mutex<Vec<(Sequence, Instant)>>,
}

impl Scripted {
    fn new(answers: impl IntoIterator<Item = Verdict>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<(Sequence, Instant)> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Target for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        self.asked.lock().unwrap().push((event.sequence, Instant::now()));
        let verdict = self.answers.lock().unwrap().pop_front().unwrap_or(Verdict::Delivered);
        Attempt { verdict, code: None, detail: "scripted".into() }
    }

    /// It is away as long as that is what it would say.
    async fn is_reachable(&self) -> bool {
        self.answers.lock().unwrap().front() != Some(&Verdict::Unreachable)
    }
}

fn event(sequence: u64) -> Arc<Event> {
    let webhook = testing::webhook(sequence, "octo/hello", 3);
    Arc::new(Event {
        sequence: Sequence::new(sequence),
        redelivery: false,
        address: Address::default(),
        webhook,
    })
}

const POLICY: DeliveryPolicy = DeliveryPolicy {
    backoff: Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) },
    give_up_after: Duration::from_secs(3600),
    give_up_attempts: None,
    parallel: 8,
};

struct Running {
    queue: Arc<Queue>,
    reports: mpsc::UnboundedReceiver<Report>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn send(&self, sequence: u64) {
        self.send_tried(sequence, Duration::ZERO);
    }

    /// Sends an event that an earlier client has tried for so long.
    fn send_tried(&self, sequence: u64, tried_before: Duration) {
        self.queue.push(Parcel { event: event(sequence), arrived: Instant::now(), tried_before });
    }

    async fn completed(&mut self) -> (u64, Outcome) {
        loop {
            if let Report::Completed { sequence, outcome, .. } = self.reports.recv().await.unwrap() {
                return (sequence.get(), outcome);
            }
        }
    }
}

fn destination(target: &Arc<Scripted>, policy: DeliveryPolicy) -> Arc<Destination> {
    let target = Arc::clone(target) as Arc<dyn Target>;
    Destination::all(vec![Route { policy, ..Route::new(target) }]).remove(0)
}

fn start(destination: &Arc<Destination>) -> Running {
    let queue = Arc::new(Queue::default());
    let (reporter, reports) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let lane = Lane {
        key: LaneKey::new(0, &event(1).webhook.facts),
        destination: Arc::clone(destination),
        queue: Arc::clone(&queue),
        reports: reporter,
        stop: stop.clone(),
    };
    Running { queue, reports, stop, task: tokio::spawn(lane.run()) }
}

fn seconds(times: &[(Sequence, Instant)]) -> Vec<f64> {
    times.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs_f64()).collect()
}

#[tokio::test(start_paused = true)]
async fn retries_in_order_until_delivered() {
    let target = Scripted::new([Verdict::Retry(None), Verdict::Retry(None), Verdict::Delivered]);
    let mut lane = start(&destination(&target, POLICY));
    lane.send(1);
    lane.send(2);
    let (first, second) = (lane.completed().await, lane.completed().await);
    assert_eq!((first.0, first.1.attempts), (1, 3));
    assert_eq!((second.0, second.1.attempts), (2, 1));
    assert_eq!(first.1.result, OutcomeResult::Delivered);
    let asked = target.asked();
    assert_eq!(asked.iter().map(|(sequence, _)| sequence.get()).collect::<Vec<_>>(), [1, 1, 1, 2]);
    let waits = seconds(&asked);
    assert!((0.5..1.01).contains(&waits[0]) && (1.0..2.01).contains(&waits[1]), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_final_answer_is_not_repeated() {
    let target = Scripted::new([Verdict::Final]);
    let mut lane = start(&destination(&target, POLICY));
    lane.send(1);
    let (_, outcome) = lane.completed().await;
    assert_eq!((outcome.result, outcome.attempts), (OutcomeResult::Failed, 1));
}

#[tokio::test(start_paused = true)]
async fn the_targets_wish_counts_up_to_the_last_try() {
    let wish = |seconds| Verdict::Retry(Some(Duration::from_secs(seconds)));
    let target = Scripted::new([wish(20), wish(600), wish(86_400)]);
    let mut lane = start(&destination(&target, POLICY));
    lane.send(1);
    lane.completed().await;
    let waits: Vec<_> = seconds(&target.asked()).into_iter().map(f64::round).collect();
    assert_eq!(waits, [20.0, 600.0, 3600.0 - 620.0]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_behind_a_dead_target_expires_together() {
    let target = Scripted::new(std::iter::repeat_n(Verdict::Retry(None), 1000));
    let mut lane = start(&destination(&target, POLICY));
    let begin = Instant::now();
    for sequence in 1..=100 {
        lane.send(sequence);
    }
    for sequence in 1..=100 {
        let (completed, outcome) = lane.completed().await;
        assert_eq!((completed, outcome.result), (sequence, OutcomeResult::Failed));
        assert!(if sequence == 1 { outcome.attempts > 10 } else { outcome.attempts >= 1 });
    }
    assert!(begin.elapsed() <= POLICY.give_up_after, "{:?}", begin.elapsed());
    target.answers.lock().unwrap().clear();
    lane.send(101);
    assert_eq!(lane.completed().await.1.result, OutcomeResult::Delivered);
}

#[tokio::test(start_paused = true)]
async fn the_time_to_give_up_includes_attempts_before_a_restart() {
    let target = Scripted::new(std::iter::repeat_n(Verdict::Retry(None), 1000));
    let mut lane = start(&destination(&target, POLICY));
    let (begin, before) = (Instant::now(), POLICY.give_up_after - Duration::from_secs(600));
    lane.send_tried(1, before);
    assert_eq!(lane.completed().await.1.result, OutcomeResult::Failed);
    assert!(begin.elapsed() <= Duration::from_secs(600), "{:?}", begin.elapsed());
    lane.send_tried(2, Duration::MAX);
    let (_, outcome) = lane.completed().await;
    assert_eq!((outcome.result, outcome.attempts), (OutcomeResult::Failed, 1), "each is tried once");
}

#[tokio::test(start_paused = true)]
async fn gives_up_after_so_many_tries() {
    let target = Scripted::new(std::iter::repeat_n(Verdict::Unreachable, 10));
    let policy = DeliveryPolicy { give_up_attempts: Some(3), ..POLICY };
    let mut lane = start(&destination(&target, policy));
    lane.send(1);
    let (_, outcome) = lane.completed().await;
    assert_eq!((outcome.result, outcome.attempts), (OutcomeResult::Failed, 3));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_comes_back_is_tried_at_once() {
    let target = Scripted::new(std::iter::repeat_n(Verdict::Unreachable, 1000));
    let destination = destination(&target, POLICY);
    let mut lanes: Vec<_> = (0..4).map(|_| start(&destination)).collect();
    for lane in &lanes {
        lane.send(1);
    }
    // By now the waits are a minute long.
    tokio::time::sleep(Duration::from_secs(1000)).await;
    target.answers.lock().unwrap().clear();
    let back = Instant::now();
    for lane in &mut lanes {
        assert_eq!(lane.completed().await.1.result, OutcomeResult::Delivered);
    }
    assert!(back.elapsed() <= Duration::from_millis(1100), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_event_that_fails_alone_does_not_loop_on_the_success_of_others() {
    // 503 for one event only, while another lane gets one event after the other delivered.
    let (bad, good) = (Scripted::new(std::iter::repeat_n(Verdict::Retry(None), 1000)), Scripted::new([]));
    let shared = destination(&bad, POLICY);
    let lane = start(&shared);
    lane.send(1);
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        shared.gate.tried(good.attempt(&event(2)).await.verdict);
    }
    let tries = bad.asked().len();
    assert!((10..40).contains(&tries), "{tries}");
}

/// Fails; another lane's event is delivered while the last of its attempts is under way.
#[derive(Debug, Default)]
struct Crossing {
    attempts: Mutex<Vec<Instant>>,
    destination: std::sync::OnceLock<Arc<Destination>>,
}

impl Crossing {
    /// By the last of these attempts, the waits are a minute long.
    const ATTEMPTS: usize = 10;
}

#[async_trait]
impl Target for Crossing {
    fn name(&self) -> &str {
        "crossing"
    }

    async fn attempt(&self, _: &Event) -> Attempt {
        let number = {
            let mut attempts = self.attempts.lock().unwrap();
            attempts.push(Instant::now());
            attempts.len()
        };
        if number == Self::ATTEMPTS {
            self.destination.get().unwrap().gate.tried(Verdict::Delivered);
        }
        let verdict = if number > Self::ATTEMPTS { Verdict::Delivered } else { Verdict::Retry(None) };
        Attempt { verdict, code: None, detail: String::new() }
    }
}

#[tokio::test(start_paused = true)]
async fn the_success_of_another_lane_during_an_attempt_is_not_lost() {
    let target = Arc::new(Crossing::default());
    let route = Route { policy: POLICY, ..Route::new(Arc::clone(&target) as Arc<dyn Target>) };
    let destination = Destination::all(vec![route]).remove(0);
    target.destination.set(Arc::clone(&destination)).unwrap();
    let mut lane = start(&destination);
    lane.send(1);
    assert_eq!(lane.completed().await.1.result, OutcomeResult::Delivered);
    let attempts = target.attempts.lock().unwrap();
    let wait = attempts[Crossing::ATTEMPTS] - attempts[Crossing::ATTEMPTS - 1];
    assert!(wait <= POLICY.backoff.first, "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn stopping_leaves_what_waits() {
    let target = Scripted::new([Verdict::Retry(None)]);
    let mut lane = start(&destination(&target, POLICY));
    lane.send(1);
    lane.send(2);
    tokio::task::yield_now().await;
    lane.stop.cancel();
    lane.task.await.unwrap();
    assert_eq!(target.asked().len(), 1, "the first try was made, no second, and no other event");
    assert!(matches!(lane.reports.recv().await, Some(Report::Retrying { .. })));
    assert!(lane.reports.recv().await.is_none());
}
