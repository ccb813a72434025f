use proptest::prelude::*;

use super::*;

fn sequences(numbers: impl IntoIterator<Item = u64>) -> Vec<Sequence> {
    numbers.into_iter().map(Sequence::new).collect()
}

fn ahead(numbers: impl IntoIterator<Item = u64>) -> Ranges {
    sequences(numbers).into_iter().collect()
}

const HEAD: Sequence = Sequence::new(1000);

fn flow(events: usize, bytes: u64) -> Flow {
    Flow::new(Progress::default(), Window { events, bytes }, [])
}

#[test]
fn the_window_closes_by_count_and_by_bytes() {
    let mut by_count = flow(2, 1000);
    by_count.sent(Sequence::new(1), 10);
    assert_eq!(by_count.room(), Some(Window { events: 1, bytes: 990 }));
    by_count.sent(Sequence::new(2), 10);
    assert_eq!(by_count.room(), None);
    assert!(by_count.acknowledged(Sequence::new(2), HEAD));
    assert_eq!(by_count.room(), Some(Window { events: 1, bytes: 990 }));

    let mut by_bytes = flow(10, 100);
    assert!(by_bytes.room().is_some(), "a first event always fits");
    by_bytes.sent(Sequence::new(1), 500);
    assert_eq!(by_bytes.room(), None);
    assert!(by_bytes.acknowledged(Sequence::new(1), HEAD));
    assert!(by_bytes.room().is_some());
}

#[test]
fn only_what_was_sent_can_be_acknowledged_and_once() {
    let mut flow = flow(10, 100);
    flow.sent(Sequence::new(3), 1);
    assert!(!flow.acknowledged(Sequence::new(2), HEAD));
    assert!(flow.acknowledged(Sequence::new(3), HEAD));
    assert!(!flow.acknowledged(Sequence::new(3), HEAD));
}

#[test]
fn what_was_acknowledged_ahead_is_passed_over() {
    let progress = Progress { cursor: Sequence::new(4), ahead: ahead([6]) };
    let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 }, []);
    assert_eq!(flow.position(), Sequence::new(4));
    assert!(flow.wants(Sequence::new(5)));
    flow.sent(Sequence::new(5), 1);
    assert!(!flow.wants(Sequence::new(6)));
    flow.read_to(Sequence::new(6));
    assert_eq!(flow.cursor(), Sequence::new(4));
    assert!(flow.acknowledged(Sequence::new(5), HEAD));
    assert_eq!(flow.cursor(), Sequence::new(6));
}

#[test]
fn what_is_acknowledged_before_it_is_sent_again_is_passed_over() {
    let mut flow = flow(10, 100);
    flow.sent(Sequence::new(1), 1);
    assert!(flow.acknowledged(Sequence::new(3), HEAD), "sent on an earlier stream");
    assert!(!flow.acknowledged(Sequence::new(3), HEAD));
    assert!(!flow.acknowledged(HEAD.next(), HEAD), "there is no such event");
    assert!(flow.acknowledged(Sequence::new(1), HEAD));
    assert_eq!(flow.cursor(), Sequence::new(1), "2 was not sent yet");
    assert!(flow.wants(Sequence::new(2)));
    flow.sent(Sequence::new(2), 1);
    assert!(!flow.wants(Sequence::new(3)));
    flow.read_to(Sequence::new(3));
    assert!(flow.acknowledged(Sequence::new(2), HEAD));
    assert_eq!(flow.cursor(), Sequence::new(3));
}

#[test]
fn no_more_is_acknowledged_early_than_a_window_has() {
    let head = Sequence::new(1 << 20);
    let mut flow = flow(10, 100);
    let early = (1..=5000).filter(|number| flow.acknowledged(Sequence::new(2 * number), head)).count();
    assert_eq!(early, MIN_EARLY);
    assert!(!flow.is_awaited(Sequence::new(3), head));
    flow.sent(Sequence::new(1), 1);
    assert!(flow.acknowledged(Sequence::new(1), head), "events of this stream do not count");

    // Many streams, one after the other, leave a bounded number of gaps.
    let mut ahead = Ranges::default();
    for stream in 0..40 {
        let progress = Progress { cursor: Sequence::ZERO, ahead };
        let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 }, []);
        for number in 1..=1024 {
            flow.acknowledged(Sequence::new(2 * (1024 * stream + number)), head);
        }
        ahead = flow.ahead;
    }
    assert_eq!(ahead.ranges(), MAX_GAPS);
}

#[test]
fn what_was_passed_over_is_not_acknowledged_again() {
    let progress = Progress { cursor: Sequence::new(4), ahead: ahead([5]) };
    let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 }, []);
    assert!(!flow.wants(Sequence::new(5)));
    assert_eq!(flow.cursor(), Sequence::new(5));
    assert!(!flow.acknowledged(Sequence::new(5), HEAD), "before the rest of the page was read");
}

#[test]
fn what_is_deferred_makes_room_and_holds_the_cursor() {
    let mut flow = flow(2, 100);
    flow.sent(Sequence::new(1), 50);
    flow.sent(Sequence::new(2), 50);
    assert_eq!(flow.room(), None);
    flow.defer(Sequence::new(1));
    flow.defer(Sequence::new(7)); // was never sent
    assert_eq!((flow.room(), flow.deferred()), (Some(Window { events: 1, bytes: 50 }), 1));
    assert!(flow.acknowledged(Sequence::new(2), HEAD));
    assert_eq!(flow.cursor(), Sequence::ZERO, "1 is undone");

    assert_eq!(flow.next_recalled(), None);
    flow.recall(Sequence::new(1));
    assert_eq!(flow.next_recalled(), Some(Sequence::new(1)));
    flow.sent(Sequence::new(1), 50);
    assert_eq!((flow.next_recalled(), flow.deferred(), flow.outstanding()), (None, 0, 1));
    assert!(flow.acknowledged(Sequence::new(1), HEAD));
    assert_eq!(flow.cursor(), Sequence::new(2));
}

#[test]
fn what_was_deferred_on_an_earlier_stream_is_passed_over() {
    let progress = Progress { cursor: Sequence::new(4), ahead: ahead([8]) };
    let deferred = sequences([3, 6, 8]);
    let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 }, deferred);
    assert_eq!((flow.deferred(), flow.cursor()), (1, Sequence::new(4)), "the others are done");
    assert!(flow.wants(Sequence::new(5)));
    flow.sent(Sequence::new(5), 1);
    assert!(!flow.wants(Sequence::new(6)));
    flow.read_to(Sequence::new(9));
    assert!(flow.acknowledged(Sequence::new(5), HEAD));
    assert_eq!(flow.cursor(), Sequence::new(5));
    assert!(flow.acknowledged(Sequence::new(6), HEAD), "given up without being recalled");
    assert_eq!(flow.cursor(), Sequence::new(9));
}

#[test]
fn what_is_done_or_deferred_is_not_read_again() {
    let progress = Progress { cursor: Sequence::new(4), ahead: ahead([6, 7, 9, 12, 13]) };
    let window = Window { events: 10, bytes: 100 };
    let mut flow = Flow::new(progress.clone(), window, sequences([5, 8, 12]));
    flow.skip_known(HEAD);
    assert_eq!((flow.position(), flow.cursor()), (Sequence::new(9), Sequence::new(4)), "5 is undone");
    assert_eq!((flow.deferred(), flow.room()), (2, Some(window)));
    flow.recall(Sequence::new(8));
    flow.recall(Sequence::new(5));
    assert_eq!(flow.next_recalled(), Some(Sequence::new(5)));
    flow.sent(Sequence::new(5), 1);
    assert!(flow.acknowledged(Sequence::new(5), HEAD));
    assert_eq!(flow.cursor(), Sequence::new(7));
    for number in [10, 11] {
        flow.skip_known(HEAD);
        assert_eq!(flow.position(), Sequence::new(number - 1), "{number} was never acknowledged");
        assert!(flow.wants(Sequence::new(number)));
        flow.sent(Sequence::new(number), 1);
    }
    flow.skip_known(HEAD);
    assert_eq!(flow.position(), Sequence::new(13));
    assert!(!flow.acknowledged(Sequence::new(12), HEAD), "it came before");

    let mut dead = Flow::new(progress, window, []);
    dead.skip_known(HEAD);
    assert_eq!(dead.position(), Sequence::new(4), "a client that died knows of nothing put down");
}

#[test]
fn what_is_not_there_yet_is_not_skipped() {
    let deferred = sequences([5, 6, 7, Sequence::MAX.get()]);
    let progress = Progress { cursor: Sequence::new(4), ..Progress::default() };
    let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 }, deferred);
    for head in [4, 6, 6] {
        flow.skip_known(Sequence::new(head));
        assert_eq!(flow.position(), Sequence::new(head));
    }
    flow.recall(Sequence::new(7));
    assert_eq!(flow.next_recalled(), None, "it comes in its turn");
    assert!(flow.wants(Sequence::new(7)));
}

#[test]
fn what_retention_removed_is_missed_once() {
    let mut flow = flow(10, 100);
    flow.sent(Sequence::new(1), 1);
    assert_eq!(flow.removed(Sequence::new(1)), None, "it was sent");
    let missed = (Sequence::new(2), Sequence::new(5));
    assert_eq!(flow.removed(Sequence::new(5)), Some(missed));
    assert_eq!(flow.removed(Sequence::new(5)), None);
    assert_eq!((flow.position(), flow.cursor()), (Sequence::new(5), Sequence::ZERO));
    assert!(flow.acknowledged(Sequence::new(1), HEAD));
    assert_eq!(flow.cursor(), Sequence::new(5));
}

proptest! {
    /// In whatever order acknowledgements come, the cursor is the greatest sequence with nothing outstanding
    /// at or before it, and it never moves back.
    #[test]
    fn any_order_gives_the_right_cursor(
        mut numbers in proptest::collection::btree_set(1u64..200, 1..60),
        shuffle in proptest::collection::vec(any::<u16>(), 60),
        read_to in 200u64..250,
    ) {
        let sent = sequences(std::mem::take(&mut numbers));
        let mut flow = flow(1000, 1_000_000);
        for sequence in &sent {
            flow.sent(*sequence, 7);
        }
        flow.read_to(Sequence::new(read_to));
        let mut order: Vec<_> = sent.iter().copied().zip(shuffle).collect();
        order.sort_by_key(|(_, key)| *key);
        let mut left: BTreeSet<_> = sent.iter().copied().collect();
        let mut last = flow.cursor();
        for (sequence, _) in order {
            prop_assert!(flow.acknowledged(sequence, HEAD));
            left.remove(&sequence);
            let expected = left.first().map_or(Sequence::new(read_to), |oldest| oldest.previous());
            prop_assert_eq!(flow.cursor(), expected);
            prop_assert!(flow.cursor() >= last);
            last = flow.cursor();
        }
        prop_assert_eq!(flow.outstanding(), 0);
        prop_assert_eq!(flow.room(), Some(Window { events: 1000, bytes: 1_000_000 }));
    }

    /// Acknowledgements come in any order, ahead of a resend, for what is no event, repeatedly, and over several
    /// streams: the flow knows exactly what was acknowledged, and nothing is lost or sent again.
    #[test]
    fn streams_agree_with_the_set_of_acknowledged_sequences(
        selected in proptest::collection::btree_set((1..=LAST).prop_map(Sequence::new), 0..30),
        events in 1usize..6,
        steps in proptest::collection::vec(step(), 0..150),
    ) {
        let mut model = Model::new(selected, events);
        for step in steps {
            model.take(step)?;
        }
        model.finish()?;
    }
}

/// The end of the model's log.
const LAST: u64 = 40;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The stream comes to the next event that its filter selects, if there is room for one.
    Send,
    /// A page ends before that event.
    ReadOn,
    /// The stream passes over what is known, without reading.
    Skip,
    Acknowledge(Sequence),
    /// The client puts one of the events down that it has, or wants one again that it put down.
    Defer(usize),
    Recall(usize),
    /// The stream ends, and another starts where the store says. The client has died: it knows of nothing put down.
    Reconnect,
    /// The same for a client that lives, and names what it has put down.
    ReconnectNaming,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Send),
        2 => Just(Step::ReadOn),
        2 => Just(Step::Skip),
        8 => (0..LAST + 4).prop_map(|number| Step::Acknowledge(Sequence::new(number))),
        4 => any::<usize>().prop_map(Step::Defer),
        3 => any::<usize>().prop_map(Step::Recall),
        1 => Just(Step::Reconnect),
        1 => Just(Step::ReconnectNaming),
    ]
}

/// A subscriber's streams and what the store keeps of them, as the server runs them, beside the truth.
struct Model {
    selected: BTreeSet<Sequence>,
    window: Window,
    flow: Flow,
    stored: Progress,
    /// The truth: whatever was acknowledged and taken.
    acknowledged: BTreeSet<Sequence>,
    /// What the client has put down, and what it wants again of that and has not got.
    down: BTreeSet<Sequence>,
    wanted: BTreeSet<Sequence>,
}

impl Model {
    const SIZE: u64 = 7;
    const HEAD: Sequence = Sequence::new(LAST);

    fn new(selected: BTreeSet<Sequence>, events: usize) -> Self {
        let window = Window { events, bytes: 1000 };
        let flow = Flow::new(Progress::default(), window, []);
        Self {
            selected,
            window,
            flow,
            stored: Progress::default(),
            acknowledged: BTreeSet::new(),
            down: BTreeSet::new(),
            wanted: BTreeSet::new(),
        }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let cursor = self.flow.cursor();
        match step {
            Step::Send if self.flow.room().is_some() => self.send()?,
            Step::Send => prop_assert_eq!(self.flow.outstanding(), self.window.events),
            Step::ReadOn => self.flow.read_to(self.upcoming().map_or(Self::HEAD, Sequence::previous)),
            Step::Skip => self.skip()?,
            Step::Acknowledge(sequence) => self.acknowledge(sequence)?,
            Step::Defer(choice) => self.defer(choice),
            Step::Recall(choice) => self.recall(choice),
            Step::Reconnect => {
                self.down.clear();
                self.wanted.clear();
                self.flow = Flow::new(self.stored.clone(), self.window, []);
            }
            Step::ReconnectNaming => {
                // What was wanted again is simply not named.
                self.wanted.clear();
                self.flow = Flow::new(self.stored.clone(), self.window, self.down.iter().copied());
            }
        }
        if !matches!(step, Step::Reconnect | Step::ReconnectNaming) {
            prop_assert!(self.flow.cursor() >= cursor, "a cursor moves back only to what is stored");
        }
        self.check()
    }

    fn upcoming(&self) -> Option<Sequence> {
        self.selected.range(self.flow.position().next()..).next().copied()
    }

    /// Sent, and neither acknowledged nor put down.
    fn outstanding(&self) -> BTreeSet<Sequence> {
        let sent = self.selected.range(..=self.flow.position());
        let open = sent.filter(|one| !self.acknowledged.contains(one) && !self.wanted.contains(one));
        open.filter(|one| !self.down.contains(one)).copied().collect()
    }

    fn skip(&mut self) -> Result<(), TestCaseError> {
        let known =
            |sequence: &Sequence| self.acknowledged.contains(sequence) || self.down.contains(sequence);
        let position = self.flow.position();
        let next = (position.next().get()..=LAST).map(Sequence::new);
        let expected = next.take_while(known).last().unwrap_or(position);
        self.flow.skip_known(Self::HEAD);
        prop_assert_eq!(self.flow.position(), expected);
        Ok(())
    }

    fn defer(&mut self, choice: usize) {
        // One that is not there is passed over.
        self.flow.defer(Self::HEAD.next());
        let has: Vec<_> = self.outstanding().into_iter().chain(self.wanted.iter().copied()).collect();
        let Some(sequence) = has.get(choice % has.len().max(1)).copied() else { return };
        self.wanted.remove(&sequence);
        self.down.insert(sequence);
        self.flow.defer(sequence);
    }

    fn recall(&mut self, choice: usize) {
        self.flow.recall(Self::HEAD.next());
        let Some(sequence) = self.down.iter().nth(choice % self.down.len().max(1)).copied() else { return };
        self.down.remove(&sequence);
        if sequence <= self.flow.position() {
            self.wanted.insert(sequence);
        }
        self.flow.recall(sequence);
    }

    fn send(&mut self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.flow.next_recalled(), self.wanted.first().copied());
        if let Some(sequence) = self.wanted.pop_first() {
            self.flow.sent(sequence, Self::SIZE);
            return Ok(());
        }
        let Some(sequence) = self.upcoming() else {
            self.flow.read_to(Self::HEAD);
            return Ok(());
        };
        let done = !self.flow.wants(sequence);
        let passed_over = self.acknowledged.contains(&sequence) || self.down.contains(&sequence);
        prop_assert_eq!(done, passed_over, "{} is or is not to be sent", sequence);
        if !done {
            self.flow.sent(sequence, Self::SIZE);
        }
        Ok(())
    }

    fn acknowledge(&mut self, sequence: Sequence) -> Result<(), TestCaseError> {
        // What the filter drops needs no acknowledgement, and once it was read past, gets none.
        let open = self.selected.contains(&sequence) || sequence > self.flow.position();
        let new = open && sequence <= Self::HEAD && !self.acknowledged.contains(&sequence);
        prop_assert_eq!(self.flow.acknowledged(sequence, Self::HEAD), new, "{}", sequence);
        if new {
            self.down.remove(&sequence);
            self.wanted.remove(&sequence);
            self.acknowledged.insert(sequence);
            self.stored.cursor = self.stored.cursor.max(self.flow.cursor());
            self.stored.ahead.insert(sequence);
            self.stored.ahead.remove_through(self.stored.cursor);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let position = self.flow.position();
        let mut open = self.selected.range(..=position).filter(|sent| !self.acknowledged.contains(sent));
        let expected = open.clone().next().map_or(position, |oldest| oldest.previous());
        prop_assert_eq!(self.flow.cursor(), expected);
        prop_assert_eq!(self.flow.outstanding(), self.outstanding().len());
        prop_assert_eq!(self.flow.deferred(), self.down.len() + self.wanted.len());
        prop_assert!(open.all(|sequence| *sequence > self.stored.cursor), "the store passed over an event");
        let (events, bytes) = (self.flow.outstanding(), self.flow.outstanding() as u64 * Self::SIZE);
        let room = Window { events: self.window.events - events, bytes: self.window.bytes - bytes };
        prop_assert_eq!(self.flow.room(), Some(room).filter(|room| room.events > 0));
        Ok(())
    }

    /// Whatever happened before, a stream on which everything is acknowledged comes to the end.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.take(Step::Reconnect)?;
        while self.flow.cursor() < Self::HEAD {
            self.take(Step::Send)?;
            if self.flow.room().is_none() || self.flow.position() == Self::HEAD {
                self.take(Step::Acknowledge(self.flow.cursor().next()))?;
            }
        }
        prop_assert!(self.selected.is_subset(&self.acknowledged));
        Ok(())
    }
}

#[test]
fn the_cursor_passes_what_cannot_be_read() {
    let progress =
        Progress { cursor: Sequence::ZERO, ahead: [5, 6].map(Sequence::new).into_iter().collect() };
    let window = Window { events: 10, bytes: 1000 };
    let mut flow = Flow::new(progress, window, [Sequence::new(3)]);
    let number = Sequence::new;
    assert!(flow.wants(number(1)));
    flow.sent(number(1), 10);
    assert!(flow.damaged(number(2), number(3)), "the client has done neither");
    assert_eq!(
        (flow.cursor(), flow.deferred()),
        (Sequence::ZERO, 0),
        "what was deferred does not hold it up"
    );
    assert!(flow.acknowledged(number(1), number(9)));
    assert_eq!(flow.cursor(), number(3));
    assert!(!flow.damaged(number(5), number(6)), "it was done before");
    assert_eq!((flow.cursor(), flow.position()), (number(6), number(6)));
    assert!(flow.damaged(number(7), number(7)));
    assert_eq!(flow.cursor(), number(7));
}
