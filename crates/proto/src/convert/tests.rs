use gitstafette_core::testing;
use proptest::prelude::*;
use prost::Message;

use super::*;

fn time() -> impl Strategy<Value = Timestamp> {
    (0u64..4_000_000_000_000).prop_map(Timestamp::from_millis)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (
        "[a-z]{1,20}",
        prop_oneof![
            Just(OutcomeResult::Delivered),
            Just(OutcomeResult::Failed),
            Just(OutcomeResult::Filtered)
        ],
        proptest::option::of(1u16..),
        any::<u32>(),
        0u64..1_000_000_000,
        time(),
        "\\PC{0,50}",
    )
        .prop_map(|(target, result, code, attempts, micros, at, detail)| Outcome {
            target,
            result,
            code,
            attempts,
            duration: Duration::from_micros(micros),
            at,
            detail,
        })
}

fn event() -> impl Strategy<Value = Event> {
    (
        1u64..i64::MAX as u64,
        any::<bool>(),
        proptest::option::of("[0-9]{1,9}"),
        proptest::option::of("[a-z_]{1,12}"),
        proptest::option::of(any::<u64>()),
        proptest::collection::vec(("[a-z-]{1,12}", proptest::collection::vec(any::<u8>(), 0..30)), 0..6),
        proptest::collection::vec(any::<u8>(), 0..200),
        time(),
    )
        .prop_map(
            |(sequence, redelivery, hook_id, action, installation_id, headers, body, received_at)| {
                let mut webhook = testing::webhook(sequence % 1000, "octo/hello", 0);
                webhook.facts.hook_id = hook_id.map(|id| id.parse().unwrap());
                webhook.facts.event_type.action = action.map(Into::into);
                webhook.facts.installation_id = installation_id;
                webhook.facts.received_at = received_at;
                webhook.headers = headers.into_iter().collect();
                webhook.body = body.into();
                Event { sequence: Sequence::new(sequence), redelivery, address: Address::default(), webhook }
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

    #[test]
    fn acknowledgements_round_trip(sequence in 1u64..1_000_000, outcomes in proptest::collection::vec(outcome(), 1..4)) {
        let acknowledgement = Acknowledgement { sequence: Sequence::new(sequence), outcomes };
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
fn subscriptions_round_trip() {
    let starts = [
        Start::Cursor,
        Start::After(Sequence::ZERO),
        Start::After(Sequence::new(9)),
        Start::Since(Timestamp::from_millis(1_700_000_000_123)),
        Start::Latest,
    ];
    for start in starts {
        let subscription = Subscription {
            client_id: "homelab".parse().unwrap(),
            filter: Filter {
                repositories: ["7", "octo/*", "octo/hello"].map(|text| text.parse().unwrap()).into(),
                events: ["push", "pull_request.opened"].map(|text| text.parse().unwrap()).into(),
            },
            start,
            existing_cursor: ExistingCursor::Keep,
            max_events: Some(5),
            max_bytes: None,
            deferred: sequences(&[3, 1]),
        };
        assert_eq!(v1::Subscription::from(subscription.clone()).try_into(), Ok(subscription));
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
    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    assert!(error(with(v1::Outcome { duration: Some(negative), ..outcome })).starts_with("duration: "));
}

#[test]
fn a_long_detail_is_cut_at_a_character() {
    let wire = v1::Outcome { target: "t".into(), result: 1, detail: "ö".repeat(2000), ..Default::default() };
    let outcome = Outcome::try_from(wire).unwrap();
    assert_eq!(outcome.detail.len(), MAX_DETAIL_BYTES);
}
