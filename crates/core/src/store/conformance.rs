//! The contract of [`EventStore`] as checks that every store must pass: one function for each clause, named after it.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use gitstafette_core::store::{MemoryStore, conformance};
//!
//! conformance::run(async |options| MemoryStore::new(options)).await;
//! # }
//! ```
//!
//! Nothing here assumes that sequences have no gaps, or how fast a store is.

mod appending;
mod clients;
mod keeping;
mod operating;
mod progressing;
mod reading;
mod redelivering;
mod relaying;

#[cfg(test)]
pub(super) use redelivering::redeliver_together;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Acknowledgement, Appended, EventStore, Options, ReadLimit, Redelivery, Report, Retention};
use crate::event::{ClientId, Event, Sequence, Timestamp};
use crate::filter::Filter;
use crate::target::{Outcome, OutcomeResult};
use crate::testing;

/// Runs all checks, each with a new, empty store that `open` makes.
///
/// # Panics
/// At the first check that fails.
pub async fn run<S: EventStore>(open: impl AsyncFn(Options) -> S) {
    let options = Options::default();
    let drop_redeliveries = Options { redelivery: Redelivery::Drop, ..options };
    let keep = |retention: Retention| Options { retention, ..options };

    appending::is_ordered(&open(options).await).await;
    appending::keeps_every_byte(&open(options).await).await;
    appending::stores_an_identity_once(&open(options).await).await;
    appending::tells_identities_apart(&open(options).await).await;
    appending::stores_a_redelivery_anew(&open(options).await).await;
    appending::drops_a_redelivery_if_told(&open(drop_redeliveries).await).await;
    appending::answers_concurrent_repeats_alike(&open(options).await).await;
    appending::shows_what_is_durable(Arc::new(open(options).await)).await;
    appending::takes_a_burst(Arc::new(open(options).await)).await;
    appending::survives_dropped_futures(&open(options).await).await;

    reading::an_empty_store_has_nothing(&open(options).await).await;
    reading::stops_at_the_limits(&open(options).await).await;
    reading::selects_and_says_how_far_it_read(&open(options).await).await;
    reading::passes_over_what_is_not_selected(Arc::new(open(options).await)).await;
    reading::starts_before_a_time(&open(options).await).await;
    reading::finds_a_time_in_a_long_log(Arc::new(open(options).await)).await;

    progressing::a_new_client_has_none(&open(options).await).await;
    progressing::acknowledging_moves_forwards_only(&open(options).await).await;
    progressing::keeps_what_is_done_ahead(&open(options).await).await;
    progressing::keeps_ranges_of_what_is_ahead(&open(options).await).await;
    progressing::seeking_forgets_what_is_ahead(&open(options).await).await;
    progressing::keeps_outcomes_by_client_and_target(&open(options).await).await;
    progressing::a_second_report_replaces_the_first(&open(options).await).await;
    progressing::stores_a_bounded_number_of_outcomes(&open(options).await).await;
    progressing::passes_over_events_without_acknowledging(&open(options).await).await;
    progressing::keeps_first_attempts_until_the_event_is_done(&open(options).await).await;
    progressing::the_earliest_first_attempt_counts(&open(options).await).await;
    progressing::first_attempts_are_bounded(&open(options).await).await;

    clients::registers_as_many_as_the_owner_may_have(&open(options).await).await;
    clients::passes_ids_of_owners_that_are_gone(&open(options).await).await;
    clients::removes_all_that_is_kept_for_a_client(&open(options).await).await;
    clients::forgets_clients_that_stay_away(&open(options).await).await;
    clients::keeps_cursors_of_unregistered_clients(&open(options).await).await;

    redelivering::appends_a_copy_for_those_addressed(&open(options).await).await;
    redelivering::keeps_the_order_of_the_calls(Arc::new(open(options).await)).await;
    redelivering::does_not_find_what_is_not_there(&open(options).await).await;
    redelivering::marks_the_dead_letters_of_the_address(&open(options).await).await;
    redelivering::leaves_the_sender_s_next_alone(&open(options).await).await;

    operating::keeps_the_state_of_relays(&open(options).await).await;
    operating::has_one_run_while_it_is_open(&open(options).await).await;

    relaying::stores_an_origin_once(&open(options).await).await;
    relaying::stores_an_origin_once(&open(drop_redeliveries).await).await;
    relaying::tells_events_of_one_origin_apart(&open(options).await).await;
    relaying::tells_events_of_one_origin_apart(&open(drop_redeliveries).await).await;
    relaying::answers_concurrent_origins_alike(&open(options).await).await;
    relaying::carries_a_redelivery_over(&open(options).await).await;
    relaying::judges_other_origins_by_identity(&open(options).await).await;
    relaying::drops_other_origins_if_told(&open(drop_redeliveries).await).await;
    relaying::a_copy_begins_here(&open(options).await).await;
    relaying::keeps_every_hop(&open(options).await).await;

    operating::lists_what_is_there(&open(options).await).await;
    operating::lists_what_is_selected(&open(options).await).await;
    operating::lists_by_fate(&open(options).await).await;
    operating::goes_on_where_a_page_stopped(Arc::new(open(options).await)).await;
    operating::bounds_the_bytes_of_a_page(&open(options).await).await;
    operating::shows_every_cursor(&open(options).await).await;
    operating::keeps_changes_of_the_watchlist(&open(options).await).await;

    let retention = Retention::default();
    keeping::by_count(&open(keep(Retention { count: 3, ..retention })).await).await;
    keeping::by_bytes(&open(keep(Retention { bytes: 5_000, ..retention })).await).await;
    keeping::by_bytes_of_outcomes(&open(keep(Retention { bytes: 50_000, ..retention })).await).await;
    keeping::one_event_may_exceed_the_bytes(&open(keep(Retention { bytes: 10, ..retention })).await).await;
    keeping::by_age(&open(keep(Retention { age: Duration::ZERO, ..retention })).await).await;
    keeping::forgets_all_about_a_removed_event(&open(keep(Retention { count: 1, ..retention })).await).await;
    keeping::forgets_what_is_ahead_and_removed(&open(keep(Retention { count: 3, ..retention })).await).await;
    keeping::says_what_was_removed(&open(keep(Retention { count: 3, ..retention })).await).await;
    let keep_one = keep(Retention { count: 1, ..retention });
    progressing::forgets_first_attempts_of_removed_events(&open(keep_one).await).await;
    redelivering::outlives_what_it_copies(&open(keep(Retention { count: 1, ..retention })).await).await;
    relaying::forgets_a_removed_origin(&open(keep(Retention { count: 1, ..retention })).await).await;
    relaying::counts_by_repository(&open(keep(Retention { count: 4, ..retention })).await).await;
    keeping::counts_what_it_holds(&open(options).await).await;
    keeping::closes(&open(options).await).await;
}

const HELLO: &str = "octo/hello";

/// More than any check stores.
const ALL: ReadLimit = ReadLimit { events: 100_000, bytes: u64::MAX };

fn client(name: &str) -> ClientId {
    name.parse().expect("a valid id")
}

fn filter(repository: &str) -> Filter {
    Filter { repositories: vec![repository.parse().expect("a valid pattern")], events: Vec::new() }
}

/// An outcome of which no field is a default.
fn outcome(target: &str, result: OutcomeResult) -> Outcome {
    Outcome {
        target: target.to_owned(),
        result,
        code: Some(502),
        attempts: 3,
        duration: Duration::from_nanos(1_234_567_891),
        at: Timestamp::from_millis(1_700_000_123_456),
        detail: "Bad Gateway — ü".to_owned(),
    }
}

/// What a client of this name reported.
fn report(client_id: &str, outcome: Outcome) -> Report {
    Report { client: client(client_id), outcome, redelivered_as: None }
}

fn acknowledgement(sequence: Sequence) -> Acknowledgement {
    Acknowledgement { sequence, outcomes: vec![outcome("jenkins", OutcomeResult::Delivered)] }
}

/// Appends test webhook `number`; what was done.
async fn append(store: &impl EventStore, number: u64) -> Appended {
    append_to(store, number, HELLO).await
}

async fn append_to(store: &impl EventStore, number: u64, repository: &str) -> Appended {
    store.append(testing::webhook(number, repository, 1000)).await.expect("the append")
}

/// Appends test webhooks; their sequences.
async fn fill(store: &impl EventStore, numbers: impl IntoIterator<Item = u64>) -> Vec<Sequence> {
    let mut sequences = Vec::new();
    for number in numbers {
        sequences.push(append(store, number).await.sequence());
    }
    sequences
}

/// Appends that many test webhooks of a repository that nobody looks for, many at once.
async fn append_hay<S: EventStore>(store: &Arc<S>, count: u64) {
    let mut number = 0;
    while number < count {
        let mut appends = JoinSet::new();
        for _ in 0..250 {
            number += 1;
            let store = Arc::clone(store);
            appends.spawn(async move { store.append(testing::webhook(number, "octo/hay", 1)).await });
        }
        for appended in appends.join_all().await {
            appended.expect("the append");
        }
    }
}

/// Everything after a sequence that the filter selects, read page by page up to the head.
async fn read_all(store: &impl EventStore, after: Sequence, filter: &Filter) -> Vec<Arc<Event>> {
    let head = *store.head().borrow();
    let (mut events, mut at) = (Vec::new(), after);
    while at < head {
        let page = store.read(at, filter, ALL).await.expect("the read");
        assert!(page.read_to > at, "a read before the head gets on");
        assert_eq!(page.damaged, [], "what was appended can be read");
        events.extend(page.events);
        at = page.read_to;
    }
    events
}

async fn sequences_after(store: &impl EventStore, after: Sequence) -> Vec<Sequence> {
    read_all(store, after, &Filter::default()).await.iter().map(|event| event.sequence).collect()
}

/// Waits until the store holds this many events: retention says nothing when it has removed one.
async fn until_holds(store: &impl EventStore, events: u64) {
    let holds = async {
        while store.statistics().await.expect("the statistics").events != events {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holds).await.expect("retention comes in the end");
}
