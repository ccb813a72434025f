use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use gitstafette_core::event::Event;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A target that is only looked at.
#[derive(Debug, Default)]
struct Door {
    open: AtomicBool,
    looks: AtomicUsize,
}

#[async_trait]
impl Target for Door {
    fn name(&self) -> &str {
        "door"
    }

    async fn attempt(&self, _: &Event) -> Attempt {
        unreachable!("nothing is delivered in these tests")
    }

    async fn is_reachable(&self) -> bool {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.open.load(Ordering::Relaxed)
    }
}

fn pause(trouble: Trouble) -> Pause {
    Pause { longest: 60 * SECOND, shortest: SECOND / 2, trouble }
}

/// Lets `count` lanes wait; returns when each ended, in seconds, and whether early.
async fn waits(gate: &Arc<Gate>, door: &Arc<Door>, trouble: Trouble, count: usize) -> Vec<(f64, bool)> {
    let start = Instant::now();
    let lanes: Vec<_> = (0..count)
        .map(|_| {
            let (gate, door) = (Arc::clone(gate), Arc::clone(door));
            tokio::spawn(async move {
                let early = gate.wait(&*door, pause(trouble), gate.listen()).await;
                ((Instant::now() - start).as_secs_f64(), early)
            })
        })
        .collect();
    let mut ended = Vec::new();
    for lane in lanes {
        ended.push(lane.await.unwrap());
    }
    ended
}

#[tokio::test(start_paused = true)]
async fn one_lane_looks_and_all_go_when_the_target_is_back() {
    let (gate, door) = (Arc::new(Gate::new(8)), Arc::new(Door::default()));
    let opener = Arc::clone(&door);
    tokio::spawn(async move {
        sleep(9 * SECOND + SECOND / 2).await;
        opener.open.store(true, Ordering::Relaxed);
    });
    for (seconds, early) in waits(&gate, &door, Trouble::Away, 5).await {
        assert!(early && (9.5..10.1).contains(&seconds), "{seconds}");
    }
    assert_eq!(door.looks.load(Ordering::Relaxed), 11, "one lane, at once and once a second");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_was_never_away_is_no_news() {
    let (gate, door) = (Arc::new(Gate::new(8)), Arc::new(Door::default()));
    door.open.store(true, Ordering::Relaxed);
    for (seconds, early) in waits(&gate, &door, Trouble::Away, 2).await {
        assert!(!early && (60.0..60.1).contains(&seconds), "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn probing_goes_on_when_the_lane_that_probes_is_through() {
    let (gate, door) = (Arc::new(Gate::new(8)), Arc::new(Door::default()));
    let short = Pause { longest: 3 * SECOND, ..pause(Trouble::Away) };
    let (first, second) = tokio::join!(gate.wait(&*door, short, gate.listen()), async {
        let waiting = gate.wait(&*door, pause(Trouble::Away), gate.listen());
        let opening = async {
            sleep(5 * SECOND).await;
            door.open.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        tokio::select! { early = waiting => early, () = opening => false }
    });
    assert!(!first && second);
    assert!(door.looks.load(Ordering::Relaxed) <= 7);
}

#[tokio::test(start_paused = true)]
async fn anothers_success_after_failures_wakes_but_not_too_soon() {
    let (gate, door) = (Arc::new(Gate::new(8)), Arc::new(Door::default()));
    gate.tried(Verdict::Retry(None));
    let other = Arc::clone(&gate);
    tokio::spawn(async move {
        sleep(SECOND / 10).await;
        other.tried(Verdict::Delivered);
    });
    for (seconds, early) in waits(&gate, &door, Trouble::Overload, 3).await {
        assert!(early && (0.5..0.6).contains(&seconds), "{seconds}");
    }
    assert_eq!(door.looks.load(Ordering::Relaxed), 0, "an overloaded target is not looked at");
}

#[tokio::test(start_paused = true)]
async fn a_success_between_an_attempt_and_the_wait_after_it_wakes() {
    let (gate, door) = (Gate::new(8), Door::default());
    gate.tried(Verdict::Retry(None));
    let news = gate.listen();
    gate.tried(Verdict::Delivered);
    let begin = Instant::now();
    assert!(gate.wait(&door, pause(Trouble::Overload), news).await);
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_return_between_an_attempt_and_the_wait_after_it_wakes() {
    let (gate, door) = (Gate::new(8), Door::default());
    let news = gate.listen();
    let opening = async {
        sleep(3 * SECOND).await;
        door.open.store(true, Ordering::Relaxed);
    };
    let (early, ()) = tokio::join!(gate.wait(&door, pause(Trouble::Away), gate.listen()), opening);
    assert!(early, "another lane has found that the target is back");
    let begin = Instant::now();
    assert!(gate.wait(&door, pause(Trouble::Away), news).await);
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_any_length_can_be_waited_for() {
    let (gate, door) = (Gate::new(8), Door::default());
    gate.tried(Verdict::Retry(None));
    let news = gate.listen();
    gate.tried(Verdict::Delivered);
    let endless = Pause { longest: Duration::MAX, shortest: Duration::MAX, trouble: Trouble::Overload };
    let waiting = gate.wait(&door, endless, news);
    assert!(tokio::time::timeout(60 * SECOND, waiting).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn success_without_failure_and_trouble_of_ones_own_wake_nobody() {
    for (failed, trouble) in [(false, Trouble::Overload), (true, Trouble::Event)] {
        let (gate, door) = (Arc::new(Gate::new(8)), Arc::new(Door::default()));
        if failed {
            gate.tried(Verdict::Retry(None));
        }
        let other = Arc::clone(&gate);
        tokio::spawn(async move {
            sleep(SECOND).await;
            other.tried(Verdict::Delivered);
        });
        assert!(waits(&gate, &door, trouble, 1).await.iter().all(|(_, early)| !early));
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_at_once() {
    let gate = Gate::new(2);
    let (one, _two) = (gate.admit().await, gate.admit().await);
    assert!(tokio::time::timeout(SECOND, gate.admit()).await.is_err());
    drop(one);
    drop(gate.admit().await);
    drop(Gate::new(0).admit().await);
}

#[test]
fn whose_trouble_it_is() {
    let of = |verdict, code| Trouble::of(&Attempt { verdict, code, detail: String::new() });
    assert_eq!(of(Verdict::Unreachable, None), Trouble::Away);
    assert_eq!(of(Verdict::Retry(None), None), Trouble::Overload);
    assert_eq!(of(Verdict::Retry(None), Some(503)), Trouble::Overload);
    assert_eq!(of(Verdict::Retry(Some(SECOND)), Some(503)), Trouble::Event);
    assert_eq!(of(Verdict::Retry(None), Some(500)), Trouble::Event);
}
