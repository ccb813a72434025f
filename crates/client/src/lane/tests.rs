use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use gitstafette_core::event::Address;
use gitstafette_core::testing;

use super::*;

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
        Attempt { verdict, code: Some(1), detail: "scripted".into() }
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

const RETRY: RetryPolicy = RetryPolicy {
    backoff: Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) },
    give_up_after: Duration::from_secs(3600),
};

struct Running {
    events: mpsc::UnboundedSender<Arc<Event>>,
    completions: mpsc::UnboundedReceiver<Completion>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(target: &Arc<Scripted>, retry: RetryPolicy) -> Running {
    let (events, receiver) = mpsc::unbounded_channel();
    let (sender, completions) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let key = LaneKey::new(0, &event(1).webhook.facts);
    let task = tokio::spawn(run(key, Arc::clone(target) as _, retry, receiver, sender, stop.clone()));
    Running { events, completions, stop, task }
}

#[tokio::test(start_paused = true)]
async fn retries_in_order_until_delivered() {
    let target = Scripted::new([Verdict::Retry(None), Verdict::Retry(None), Verdict::Delivered]);
    let mut lane = start(&target, RETRY);
    for sequence in 1..=2 {
        lane.events.send(event(sequence)).unwrap();
    }
    let first = lane.completions.recv().await.unwrap();
    let second = lane.completions.recv().await.unwrap();
    assert_eq!((first.sequence.get(), first.outcome.attempts), (1, 3));
    assert_eq!((second.sequence.get(), second.outcome.attempts), (2, 1));
    assert_eq!(first.outcome.result, OutcomeResult::Delivered);
    let asked = target.asked();
    assert_eq!(asked.iter().map(|(sequence, _)| sequence.get()).collect::<Vec<_>>(), [1, 1, 1, 2]);
    let waits: Vec<_> = asked.windows(2).take(2).map(|pair| pair[1].1 - pair[0].1).collect();
    assert!((500..=1001).contains(&waits[0].as_millis()), "{waits:?}");
    assert!((1000..=2001).contains(&waits[1].as_millis()), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_final_answer_is_not_repeated() {
    let target = Scripted::new([Verdict::Final]);
    let mut lane = start(&target, RETRY);
    lane.events.send(event(1)).unwrap();
    let outcome = lane.completions.recv().await.unwrap().outcome;
    assert_eq!((outcome.result, outcome.attempts), (OutcomeResult::Failed, 1));
}

#[tokio::test(start_paused = true)]
async fn the_targets_wish_counts_up_to_the_last_try() {
    let wish = |seconds| Verdict::Retry(Some(Duration::from_secs(seconds)));
    let target = Scripted::new([wish(20), wish(600), wish(86_400)]);
    let mut lane = start(&target, RETRY);
    lane.events.send(event(1)).unwrap();
    lane.completions.recv().await.unwrap();
    let asked = target.asked();
    let waits: Vec<_> = asked.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs()).collect();
    assert_eq!(waits, [20, 600, 3600 - 620]);
}

#[tokio::test(start_paused = true)]
async fn gives_up_when_the_time_is_up_and_goes_on_with_the_next() {
    let target = Scripted::new(std::iter::repeat_n(Verdict::Retry(None), 1000));
    let mut lane = start(&target, RETRY);
    lane.events.send(event(1)).unwrap();
    let outcome = lane.completions.recv().await.unwrap().outcome;
    assert_eq!(outcome.result, OutcomeResult::Failed);
    assert!(outcome.attempts > 10, "{}", outcome.attempts);
    assert!(outcome.duration <= RETRY.give_up_after);
    target.answers.lock().unwrap().clear();
    lane.events.send(event(2)).unwrap();
    assert_eq!(lane.completions.recv().await.unwrap().outcome.result, OutcomeResult::Delivered);
}

#[tokio::test(start_paused = true)]
async fn stopping_leaves_what_waits() {
    let target = Scripted::new([Verdict::Retry(None)]);
    let mut lane = start(&target, RETRY);
    lane.events.send(event(1)).unwrap();
    lane.events.send(event(2)).unwrap();
    tokio::task::yield_now().await;
    lane.stop.cancel();
    lane.task.await.unwrap();
    assert_eq!(target.asked().len(), 1, "the first try was made, no second, and no other event");
    assert!(lane.completions.recv().await.is_none());
}
