use std::time::Duration;

use gitstafette_core::outcomes::OTHER_TARGETS;
use gitstafette_core::store::{History, Run, RunId};
use gitstafette_core::testing;
use proptest::prelude::*;
use prost::Message;

use super::*;

/// Any time, the first and the last ones often.
fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![0u64..4_000_000_000_000, any::<u64>(), Just(0), Just(u64::MAX)]
        .prop_map(Timestamp::from_millis)
}

fn sequence() -> impl Strategy<Value = Sequence> {
    prop_oneof![1u64..1000, 1..=u64::MAX, Just(u64::MAX)].prop_map(Sequence::new)
}

/// Any span of up to 100 years.
fn span() -> impl Strategy<Value = Duration> {
    (0..100 * 366 * 24 * 3600u64, 0u32..1_000_000_000)
        .prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn subscription() -> impl Strategy<Value = Subscription> {
    let part = "[a-zA-Z0-9._-]{1,12}";
    let repository = prop_oneof![
        any::<u64>().prop_map(|id| id.to_string()),
        (part, part).prop_map(|(owner, name)| format!("{owner}/{name}")),
        part.prop_map(|owner| format!("{owner}/*")),
        Just("*".to_owned()),
    ];
    let start = prop_oneof![
        Just(Start::Cursor),
        Just(Start::After(Sequence::ZERO)),
        sequence().prop_map(Start::After),
        time().prop_map(Start::Since),
        Just(Start::Latest),
    ];
    (
        "[!-~]{1,128}",
        proptest::collection::vec(repository, 0..5),
        proptest::collection::vec("[a-zA-Z0-9_-]{1,12}(\\.[a-zA-Z0-9_-]{1,12})?", 0..5),
        start,
        any::<bool>(),
        proptest::option::of(1u32..),
        proptest::option::of(1u64..),
    )
        .prop_map(|(client_id, repositories, events, start, keep, max_events, max_bytes)| Subscription {
            client_id: client_id.parse().unwrap(),
            filter: Filter {
                repositories: repositories.iter().map(|text| text.parse().unwrap()).collect(),
                events: events.iter().map(|text| text.parse().unwrap()).collect(),
            },
            start,
            existing_cursor: if keep { ExistingCursor::Keep } else { ExistingCursor::Move },
            max_events,
            max_bytes,
            deferred: sequences(&[3, 1]),
            seen: keep.then(seen_log),
            resume_at_seen: keep,
        })
}

fn seen_log() -> Seen {
    let run = |id, start| Run { id: RunId::new(id), start: Sequence::new(start) };
    Seen {
        store: "00000000000000ff".to_owned(),
        history: History::new(vec![run(1, 0), run(2, 40)]),
        sequence: Sequence::new(50),
    }
}

#[test]
fn who_names_one_run_knows_no_other() {
    let wire = v1::Subscription {
        client_id: "a".to_owned(),
        store_id: "00000000000000ff".to_owned(),
        run_id: "0000000000000002".to_owned(),
        seen_sequence: Some(50),
        ..v1::Subscription::default()
    };
    let seen = Subscription::try_from(wire).unwrap().seen.unwrap();
    assert_eq!(seen.last_common("00000000000000ff", &seen_log().history), Some(Sequence::new(50)));
    assert_eq!(seen.last_common("another", &seen_log().history), None);
    assert_eq!(Seen::default().last_common("another", &seen_log().history), Some(Sequence::ZERO));
    let nothing =
        v1::Subscription { client_id: "a".to_owned(), seen_sequence: Some(0), ..v1::Subscription::default() };
    let seen = Subscription::try_from(nothing).unwrap().seen.unwrap();
    assert!(seen.store.is_empty());
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (
        "[a-z0-9.:#-]{1,60}",
        prop_oneof![
            Just(OutcomeResult::Delivered),
            Just(OutcomeResult::Failed),
            Just(OutcomeResult::Filtered)
        ],
        proptest::option::of(1u32..),
        any::<u32>(),
        span(),
        time(),
        "\\PC{0,50}",
    )
        .prop_map(|(target, result, code, attempts, duration, at, detail)| Outcome {
            target,
            result,
            code,
            attempts,
            duration,
            at,
            detail,
        })
}

/// Any fields; a few names come often, so that some are repeated.
fn headers() -> impl Strategy<Value = Headers> {
    let name = prop_oneof!["[!-~]{1,12}", Just("x-repeated".to_owned()), Just("X-Repeated".to_owned())];
    let value = proptest::collection::vec(any::<u8>(), 0..30);
    proptest::collection::vec((name, value), 0..8).prop_map(Headers::from_iter)
}

fn event() -> impl Strategy<Value = Event> {
    (
        sequence(),
        any::<bool>(),
        proptest::option::of("[!-~]{1,128}"),
        proptest::option::of("[^\\pC\\pZ]{1,60}"),
        proptest::option::of(any::<u64>()),
        headers(),
        proptest::collection::vec(any::<u8>(), 0..200),
        time(),
    )
        .prop_map(
            |(sequence, redelivery, hook_id, action, installation_id, headers, body, received_at)| {
                let mut webhook = testing::webhook(1, "octo/hello", 0);
                webhook.facts.hook_id = hook_id.map(|id| id.parse().unwrap());
                webhook.facts.event_type.action = action.map(Into::into);
                webhook.facts.installation_id = installation_id;
                webhook.facts.received_at = received_at;
                webhook.headers = headers;
                webhook.body = body.into();
                Event { sequence, redelivery, address: Address::default(), webhook }
            },
        )
}

proptest! {
    #[test]
    fn events_round_trip(event in event()) {
        let bytes = v1::Event::from(&event).encode_to_vec();
        let back = Event::try_from(v1::Event::decode(&*bytes).unwrap()).unwrap();
        prop_assert_eq!(back, event);
    }

    /// Order, repeats and bytes of every field, whatever its value; names are in lower case already.
    #[test]
    fn header_fields_keep_order_repeats_and_bytes(headers in headers()) {
        let webhook = Webhook { headers: headers.clone(), ..testing::webhook(1, "octo/hello", 0) };
        let wire = v1::Event::from(&Event { sequence: Sequence::new(1), redelivery: false, address: Address::default(), webhook });
        let sent: Vec<_> = wire.headers.iter().map(|field| (&*field.name, &*field.value)).collect();
        prop_assert_eq!(&sent, &headers.iter().collect::<Vec<_>>());
        prop_assert_eq!(Event::try_from(wire).unwrap().webhook.headers, headers);
    }

    #[test]
    fn subscriptions_round_trip(subscription in subscription()) {
        let bytes = v1::Subscription::from(subscription.clone()).encode_to_vec();
        let back = Subscription::try_from(v1::Subscription::decode(&*bytes).unwrap()).unwrap();
        prop_assert_eq!(back, subscription);
    }

    #[test]
    fn acknowledgements_round_trip(sequence in sequence(), outcomes in proptest::collection::vec(outcome(), 1..4)) {
        let outcomes: Outcomes = outcomes.into_iter().collect();
        let acknowledgement = Acknowledgement { sequence, outcomes: outcomes.into() };
        let bytes = v1::Acknowledgement::from(&acknowledgement).encode_to_vec();
        let back = Acknowledgement::try_from(v1::Acknowledgement::decode(&*bytes).unwrap()).unwrap();
        prop_assert_eq!(back, acknowledgement);
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(v1::Event::decode(&*bytes).map(Event::try_from));
        drop(v1::SubscribeRequest::decode(&*bytes));
        drop(v1::Subscription::decode(&*bytes).map(Subscription::try_from));
        drop(v1::Acknowledgement::decode(&*bytes).map(Acknowledgement::try_from));
    }
}

#[test]
fn malformed_messages_say_where() {
    let error = |wire: v1::Subscription| Subscription::try_from(wire).unwrap_err().to_string();
    let valid = v1::Subscription { client_id: "a".into(), ..Default::default() };
    assert_eq!(
        error(v1::Subscription::default()),
        "client_id: a client id is 1 to 128 visible ASCII characters"
    );
    assert!(
        error(v1::Subscription { repositories: vec!["octo".into()], ..valid.clone() })
            .starts_with("repositories: ")
    );
    assert!(
        error(v1::Subscription { events: vec!["pu sh".into()], ..valid.clone() }).starts_with("events: ")
    );
    assert!(error(v1::Subscription { repositories: vec!["1".into(); 1001], ..valid }).contains("1000"));

    let outcome = v1::Outcome { target: "t".into(), result: 1, ..Default::default() };
    let error = |wire: v1::Acknowledgement| Acknowledgement::try_from(wire).unwrap_err().to_string();
    let with = |outcome| v1::Acknowledgement { sequence: 1, outcomes: vec![outcome] };
    assert!(error(v1::Acknowledgement::default()).starts_with("outcomes: "));
    assert!(error(with(v1::Outcome { result: 9, ..outcome.clone() })).starts_with("result: "));
    assert!(error(with(v1::Outcome { target: String::new(), ..outcome.clone() })).starts_with("target: "));
}

#[test]
fn no_time_of_an_outcome_refuses_it() {
    for (seconds, nanos) in [(-1, 0), (253_402_300_800, 0), (i64::MAX, i32::MAX), (0, -1)] {
        let (at, duration) =
            (prost_types::Timestamp { seconds, nanos }, prost_types::Duration { seconds, nanos });
        let wire = v1::Outcome {
            target: "t".into(),
            result: 1,
            at: Some(at),
            duration: Some(duration),
            ..Default::default()
        };
        let outcome = Outcome::try_from(wire).unwrap();
        assert!(outcome.at > Timestamp::from_millis(1_700_000_000_000), "it counts as now: {}", outcome.at);
        assert!(outcome.at < Timestamp::MAX, "{}", outcome.at);
        assert!(outcome.duration < Duration::from_secs(4_000_000_000));
    }
}

#[test]
fn a_client_with_many_targets_is_not_refused() {
    let detail = "x".repeat(2048);
    let outcome = |number| v1::Outcome {
        target: format!("target-{number}"),
        result: 2,
        detail: detail.clone(),
        ..Default::default()
    };
    let wire = v1::Acknowledgement { sequence: 1, outcomes: (0..1000).map(outcome).collect() };
    let acknowledgement = Acknowledgement::try_from(wire).unwrap();
    assert_eq!(acknowledgement.outcomes.len(), MAX_TARGETS + 1);
    assert!(acknowledgement.outcomes.iter().any(|outcome| outcome.target == OTHER_TARGETS));
    let text: usize = acknowledgement.outcomes.iter().map(|outcome| outcome.detail.len()).sum();
    assert!(text < 9 << 10, "{text}");
}

#[test]
fn a_long_detail_is_cut_at_a_character() {
    let wire = v1::Outcome { target: "t".into(), result: 1, detail: "ö".repeat(2000), ..Default::default() };
    let outcome = Outcome::try_from(wire).unwrap();
    assert_eq!((outcome.detail.len(), outcome.detail.ends_with('…')), (MAX_DETAIL_BYTES - 1, true));
}
