use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use super::*;

const GO: Duration = Duration::from_secs(5);

/// A courier with a subscription and a connection that the test plays.
struct Rig {
    started: Instant,
    incoming: mpsc::UnboundedSender<Result<v1::SubscribeResponse, Status>>,
    requests: mpsc::UnboundedReceiver<v1::SubscribeRequest>,
    metrics: Arc<Metrics>,
    traffic: Arc<Traffic>,
    cut: CancellationToken,
    running: JoinHandle<()>,
}

/// What a connection that reads at once has got, and after how many seconds.
type Got = mpsc::UnboundedReceiver<(u64, Result<Vec<u64>, Status>)>;

fn rig(pace: Duration, lifetime: Option<Duration>, traffic: u64) -> (Rig, Doorstep) {
    let (incoming, responses) = mpsc::unbounded_channel();
    let (acknowledging, requests) = mpsc::unbounded_channel();
    let (outgoing, door) = doorstep(Arc::default());
    let (metrics, cut) = (Metrics::new(), CancellationToken::new());
    let traffic = Arc::new(Traffic::new(traffic));
    let courier = Courier {
        incoming: UnboundedReceiverStream::new(responses).boxed(),
        requests: acknowledging,
        outgoing,
        traffic: Arc::clone(&traffic),
        client: "a/b".parse().unwrap(),
        metrics: Arc::clone(&metrics),
        cut: cut.clone(),
        pace,
        batch: Batch::default(),
        waiting: None,
        unread: None,
        idle_at: Instant::now(),
        is_to_show_life: false,
        unconfirmed: 0,
    };
    let running = tokio::spawn(courier.run(lifetime));
    (Rig { started: Instant::now(), incoming, requests, metrics, traffic, cut, running }, door)
}

impl Rig {
    fn say(&self, response: Response) {
        self.incoming.send(Ok(v1::SubscribeResponse { response: Some(response) })).unwrap();
    }

    fn event(&self, sequence: u64, bytes: usize) {
        self.say(Response::Event(v1::Event {
            sequence,
            delivery_id: format!("delivery-{sequence}"),
            body: vec![b'x'; bytes].into(),
            ..v1::Event::default()
        }));
    }

    /// Reads as a connection does, as soon as there is something.
    fn read(&self, mut door: Doorstep) -> Got {
        let (sender, got) = mpsc::unbounded_channel();
        let started = self.started;
        tokio::spawn(async move {
            while let Some(message) = door.next().await {
                let sequences = message
                    .map(|message| message.webhook_events.iter().map(|event| event.sequence).collect());
                drop(sender.send((started.elapsed().as_secs(), sequences)));
            }
        });
        got
    }

    /// What was acknowledged up to now.
    fn acknowledged(&mut self) -> Vec<(u64, OutcomeResult)> {
        let mut all = Vec::new();
        while let Some(Some(request)) = self.requests.recv().now_or_never() {
            let Some(Request::Acknowledgements(message)) = request.request else { panic!("{request:?}") };
            all.extend(message.acknowledgements.iter().map(|one| (one.sequence, one.outcomes[0].result())));
        }
        all
    }

    async fn ended(&self) {
        while !self.running.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn at(&self, seconds: f64) {
        tokio::time::sleep_until(self.started + Duration::from_secs_f64(seconds)).await;
    }
}

/// What was delivered.
fn delivered(sequences: &[u64]) -> Vec<(u64, OutcomeResult)> {
    sequences.iter().map(|sequence| (*sequence, OutcomeResult::Delivered)).collect()
}

async fn next(got: &mut Got) -> (u64, Vec<u64>) {
    let (at, message) = got.recv().await.unwrap();
    (at, message.unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_event_is_acknowledged_when_its_message_is_taken() {
    let (mut rig, mut door) = rig(Duration::ZERO, None, 1 << 20);
    rig.event(1, 10);
    rig.event(2, 10);
    assert_eq!(door.next().await.unwrap().unwrap().webhook_events[0].sequence, 1);
    rig.at(1.0).await;
    assert_eq!(rig.acknowledged(), [], "it may still be lost");
    assert_eq!(door.next().await.unwrap().unwrap().webhook_events[0].sequence, 2, "each goes out alone");
    rig.at(2.0).await;
    assert_eq!(rig.acknowledged(), delivered(&[1]));
    drop(door);
    rig.ended().await;
    assert_eq!(rig.acknowledged(), [], "it was not taken");
}

#[tokio::test(start_paused = true)]
async fn the_go_client_reads_a_message_every_five_seconds() {
    let (mut rig, door) = rig(GO, None, 1 << 20);
    let mut got = rig.read(door);
    rig.at(1.0).await;
    rig.event(1, 10);
    assert_eq!(next(&mut got).await, (1, vec![1]), "the first goes out at once");
    rig.event(2, 10);
    rig.event(3, 10);
    rig.at(5.9).await;
    assert_eq!(rig.acknowledged(), []);
    assert_eq!(next(&mut got).await, (6, vec![2, 3]), "what came meanwhile");
    assert_eq!(rig.acknowledged(), delivered(&[1]));
    rig.at(10.9).await;
    assert_eq!(rig.acknowledged(), []);
    rig.at(11.1).await;
    assert_eq!(rig.acknowledged(), delivered(&[2, 3]));
    rig.event(4, 10);
    assert_eq!(next(&mut got).await, (11, vec![4]), "idle again: at once");
}

#[tokio::test(start_paused = true)]
async fn what_the_go_client_has_not_read_at_the_end_stays_unacknowledged() {
    let (mut rig, door) = rig(GO, Some(Duration::from_secs(8)), 1 << 20);
    let mut got = rig.read(door);
    for sequence in 1..=3 {
        rig.event(sequence, 10);
    }
    assert_eq!(next(&mut got).await, (0, vec![1]));
    assert_eq!(next(&mut got).await, (5, vec![2, 3]));
    assert!(got.recv().await.is_none(), "it ends in order");
    rig.ended().await;
    assert_eq!(rig.acknowledged(), delivered(&[1]));
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_at_the_end_is_waited_for() {
    let (mut rig, mut door) = rig(Duration::ZERO, Some(Duration::from_secs(8)), 1 << 20);
    rig.event(1, 10);
    rig.at(7.9).await;
    door.next().await.unwrap().unwrap();
    rig.at(8.5).await;
    assert_eq!(rig.acknowledged(), []);
    assert!(door.next().await.is_none());
    rig.ended().await;
    assert_eq!(rig.acknowledged(), delivered(&[1]));
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_the_receipt() {
    let (mut rig, door) = rig(Duration::ZERO, Some(Duration::from_secs(8)), 1 << 20);
    let mut got = rig.read(door);
    rig.event(1, 10);
    assert_eq!(next(&mut got).await, (0, vec![1]));
    rig.at(9.0).await;
    assert!(!rig.running.is_finished(), "dropping the subscription could lose what it has not taken yet");
    rig.say(Response::Receipt(v1::Receipt { sequences: vec![1] }));
    rig.ended().await;
    assert_eq!(rig.started.elapsed().as_secs(), 9);
    assert_eq!(rig.acknowledged(), delivered(&[1]));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_no_larger_than_old_clients_take() {
    let (mut rig, door) = rig(GO, None, 32 << 20);
    let mut got = rig.read(door);
    rig.event(1, 10);
    assert_eq!(next(&mut got).await, (0, vec![1]));
    for sequence in 2..=4 {
        rig.event(sequence, 1_500_000);
    }
    rig.event(5, MAX_GO_MESSAGE_BYTES);
    rig.event(6, MAX_GO_MESSAGE_BYTES - 100);
    assert_eq!(next(&mut got).await, (5, vec![2, 3]));
    assert_eq!(next(&mut got).await, (10, vec![4]));
    assert_eq!(next(&mut got).await, (15, vec![6]), "just within the limit");
    rig.at(30.0).await;
    let mut expected = delivered(&[1, 2, 3, 4, 6]);
    expected.push((5, OutcomeResult::Failed));
    let mut acknowledged = rig.acknowledged();
    acknowledged.sort_unstable_by_key(|(sequence, result)| (*result == OutcomeResult::Failed, *sequence));
    assert_eq!(acknowledged, expected);
    assert_eq!(rig.metrics.held_back.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_all_have_collected_is_bounded() {
    let (rig, door) = rig(GO, None, 100_000);
    let mut got = rig.read(door);
    for sequence in 1..=4 {
        rig.event(sequence, 60_000);
    }
    assert_eq!(next(&mut got).await, (0, vec![1]));
    assert_eq!(next(&mut got).await, (5, vec![2]), "there is room for one");
    assert_eq!(next(&mut got).await, (10, vec![3]));
    assert_eq!(next(&mut got).await, (15, vec![4]));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_take_what_others_wait_for_is_cut_off() {
    let (rig, mut door) = rig(GO, None, 1 << 20);
    rig.event(1, 60_000);
    door.next().await.unwrap().unwrap();
    rig.event(2, 60_000);
    // It takes the first, and then only holds the door open.
    assert_eq!(door.next().await.unwrap().unwrap().webhook_events[0].sequence, 2);
    let other = "other".parse().unwrap();
    let waiting = rig.traffic.share(&other, 1 << 20);
    let cut = async {
        rig.cut.cancelled().await;
        rig.started.elapsed().as_secs()
    };
    let (share, cut_after) = tokio::join!(waiting, cut);
    assert!(share.is_some());
    assert_eq!(cut_after, 15, "10 s after it was sent");
    rig.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off() {
    let (rig, mut door) = rig(Duration::ZERO, None, 1 << 20);
    rig.event(1, 10);
    // It takes the first, and then only holds the door open.
    door.next().await.unwrap().unwrap();
    rig.cut.cancelled().await;
    assert_eq!(rig.started.elapsed().as_secs(), 60);
    rig.ended().await;
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_do_not_hold_events_up() {
    let (mut rig, door) = rig(GO, None, 1 << 20);
    let mut got = rig.read(door);
    let heartbeat = || rig.say(Response::Heartbeat(v1::Heartbeat::default()));
    heartbeat();
    assert_eq!(next(&mut got).await, (0, vec![]));
    rig.at(1.0).await;
    heartbeat();
    rig.at(2.0).await;
    rig.event(1, 10);
    assert_eq!(next(&mut got).await, (2, vec![1]), "and no second sign of life before the first is read");
    heartbeat();
    rig.at(9.9).await;
    assert_eq!(rig.acknowledged(), [], "the client reads the sign of life first");
    rig.at(10.1).await;
    assert_eq!(rig.acknowledged(), delivered(&[1]));
    rig.say(Response::Heartbeat(v1::Heartbeat::default()));
    assert_eq!(next(&mut got).await, (10, vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_is_for_another_target_is_passed_over() {
    let (mut rig, door) = rig(Duration::ZERO, None, 1 << 20);
    let mut got = rig.read(door);
    for (sequence, target) in [(1, "jenkins"), (2, TARGET)] {
        let address = Some(v1::Address { client_id: None, targets: vec![target.to_owned()] });
        rig.say(Response::Event(v1::Event { sequence, address, ..v1::Event::default() }));
    }
    assert_eq!(next(&mut got).await, (0, vec![2]));
    rig.at(1.0).await;
    assert_eq!(rig.acknowledged(), [(1, OutcomeResult::Filtered), (2, OutcomeResult::Delivered)]);
}

#[tokio::test(start_paused = true)]
async fn how_a_stream_ends_says_whether_to_come_again() {
    for (reason, code) in [
        (GoAwayReason::Drain, None),
        (GoAwayReason::Window, None),
        (GoAwayReason::TakenOver, Some(Code::Aborted)),
    ] {
        let (rig, door) = rig(GO, None, 1 << 20);
        let mut got = rig.read(door);
        rig.say(Response::GoAway(v1::GoAway { reason: reason.into(), message: String::new() }));
        let last = got.recv().await.map(|(_, message)| message.unwrap_err().code());
        assert_eq!(last, code, "{reason:?}");
        rig.ended().await;
    }
}
