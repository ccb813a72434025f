//! Order, identity, visibility.

use std::sync::Arc;

use bytes::Bytes;

use super::{HELLO, acknowledgement, append, client, fill, read_all, sequences_after};
use crate::event::{EventType, Facts, Sequence, Webhook};
use crate::filter::Filter;
use crate::headers::Headers;
use crate::repository::RepositoryId;
use crate::store::{Appended, EventStore};
use crate::testing;

pub(super) async fn is_ordered(store: &impl EventStore) {
    let sequences = fill(store, 0..20).await;
    assert!(sequences[0] >= Sequence::new(1));
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    assert_eq!(sequences_after(store, Sequence::ZERO).await, sequences);
    assert_eq!(*store.head().borrow(), sequences[19]);
}

pub(super) async fn keeps_every_byte(store: &impl EventStore) {
    let plain = testing::webhook(1, HELLO, 100_000);
    let mut headers = Headers::new();
    for value in [&b"a"[..], b"", b"\xff\x00\n", b"a", &[b'x'; 20_000]] {
        headers.append("x-value", value);
        headers.append("x-other", value);
    }
    let full = Webhook {
        facts: Facts {
            hook_id: None,
            delivery_id: "full".parse().expect("a valid id"),
            event_type: EventType { name: "pull_request".into(), action: Some("opened".into()) },
            repository_id: Some(RepositoryId(u64::MAX)),
            installation_id: Some(u64::MAX - 1),
            source: "gitea".parse().expect("a valid source"),
            ..plain.facts.clone()
        },
        headers,
        body: Bytes::from((0..=255u8).cycle().take(70_000).collect::<Vec<_>>()),
    };
    let bare = Webhook {
        facts: Facts {
            delivery_id: "bare".parse().expect("a valid id"),
            repository_id: None,
            repository_name: None,
            owner: None,
            ..plain.facts.clone()
        },
        headers: Headers::new(),
        body: Bytes::new(),
    };
    let sent = [plain, full, bare];
    for webhook in &sent {
        store.append(webhook.clone()).await.expect("the append");
    }
    let events = read_all(store, Sequence::ZERO, &Filter::default()).await;
    let stored: Vec<_> = events.iter().map(|event| event.webhook.clone()).collect();
    assert_eq!(stored, sent);
}

pub(super) async fn stores_an_identity_once(store: &impl EventStore) {
    let first = append(store, 1).await;
    assert!(matches!(first, Appended::Stored { redelivery: false, .. }), "{first:?}");
    append(store, 2).await;
    assert_eq!(append(store, 1).await, Appended::Repeat { sequence: first.sequence() });
    assert_eq!(sequences_after(store, Sequence::ZERO).await.len(), 2);
    // Progress without an outcome says nothing of delivery.
    store.acknowledge(&client("a"), Vec::new(), first.sequence()).await.expect("the acknowledgement");
    assert_eq!(append(store, 1).await, Appended::Repeat { sequence: first.sequence() });
}

pub(super) async fn tells_identities_apart(store: &impl EventStore) {
    let first = testing::webhook(1, HELLO, 10);
    let mut others = vec![first.clone(); 4];
    others[0].facts.hook_id = None;
    others[1].facts.hook_id = Some("2".parse().expect("a valid id"));
    others[2].facts.source = "gitea".parse().expect("a valid source");
    others[3].facts.delivery_id = "other".parse().expect("a valid id");
    for webhook in others.iter().chain([&first]) {
        let appended = store.append(webhook.clone()).await.expect("the append");
        assert!(matches!(appended, Appended::Stored { redelivery: false, .. }), "{:?}", webhook.facts);
    }
    for webhook in others.iter().chain([&first]) {
        let appended = store.append(webhook.clone()).await.expect("the append");
        assert!(matches!(appended, Appended::Repeat { .. }), "{:?}", webhook.facts);
    }
}

pub(super) async fn stores_a_redelivery_anew(store: &impl EventStore) {
    let first = append(store, 1).await.sequence();
    let reported = vec![acknowledgement(first)];
    store.acknowledge(&client("a"), reported, first).await.expect("the acknowledgement");
    let second = append(store, 1).await;
    let Appended::Stored { sequence, redelivery: true } = second else { panic!("{second:?}") };
    assert!(sequence > first);
    // The newest event of the identity decides, and nothing is known of that one yet.
    assert_eq!(append(store, 1).await, Appended::Repeat { sequence });
    let events = read_all(store, Sequence::ZERO, &Filter::default()).await;
    let marks: Vec<_> = events.iter().map(|event| (event.sequence, event.redelivery)).collect();
    assert_eq!(marks, [(first, false), (sequence, true)]);
}

pub(super) async fn drops_a_redelivery_if_told(store: &impl EventStore) {
    let first = append(store, 1).await.sequence();
    let reported = vec![acknowledgement(first)];
    store.acknowledge(&client("a"), reported, first).await.expect("the acknowledgement");
    assert_eq!(append(store, 1).await, Appended::Repeat { sequence: first });
}

pub(super) async fn answers_concurrent_repeats_alike(store: &impl EventStore) {
    let (a, b, c, d) = tokio::join!(append(store, 1), append(store, 1), append(store, 2), append(store, 1));
    let same = [a, b, d];
    let stored = same.iter().filter(|appended| matches!(appended, Appended::Stored { .. })).count();
    assert_eq!(stored, 1, "{same:?}");
    assert!(same.iter().all(|appended| appended.sequence() == a.sequence()), "{same:?}");
    assert!(matches!(c, Appended::Stored { .. }));
    let mut expected = [a.sequence(), c.sequence()];
    expected.sort();
    assert_eq!(sequences_after(store, Sequence::ZERO).await, expected);
}

/// Whoever follows the head finds every event that it shows, in order, and nothing that it does not show.
pub(super) async fn shows_what_is_durable<S: EventStore>(store: Arc<S>) {
    const EVENTS: u64 = 200;
    let mut head = store.head();
    let followed = Arc::clone(&store);
    let follower = async move {
        let (mut at, mut seen) = (Sequence::ZERO, Vec::new());
        while (seen.len() as u64) < EVENTS {
            let shown = *head.wait_for(|head| *head > at).await.expect("the store is open");
            for event in read_all(&*followed, at, &Filter::default()).await {
                assert!(event.sequence > at);
                at = event.sequence;
                seen.push(event.sequence);
            }
            assert!(at >= shown, "read to {at}, but the head was {shown}");
        }
        seen
    };
    let writer = async {
        let mut sequences = Vec::new();
        for number in (0..EVENTS).step_by(2) {
            let (a, b) = tokio::join!(append(&*store, number), append(&*store, number + 1));
            assert!(*store.head().borrow() >= a.sequence().max(b.sequence()));
            sequences.extend([a.sequence(), b.sequence()]);
        }
        sequences.sort();
        sequences
    };
    let (seen, written) = tokio::join!(follower, writer);
    assert_eq!(seen, written);
}

/// Once 9 of 32 webhooks of 1 MB were refused by an idle server.
pub(super) async fn takes_a_burst<S: EventStore>(store: Arc<S>) {
    let appends = (0..32).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.append(testing::webhook(number, HELLO, 1_000_000)).await })
    });
    let appends: Vec<_> = appends.collect();
    store.acknowledge(&client("a"), Vec::new(), Sequence::ZERO).await.expect("the acknowledgement");
    store.seek(&client("a"), Sequence::ZERO).await.expect("the new cursor");
    let mut sequences = Vec::new();
    for append in appends {
        sequences.push(append.await.expect("no panic").expect("the append").sequence());
    }
    sequences.sort();
    assert_eq!(sequences_after(&*store, Sequence::ZERO).await, sequences);
}

pub(super) async fn survives_dropped_futures(store: &impl EventStore) {
    let name = client("a");
    for number in 0..20 {
        let append = store.append(testing::webhook(number, HELLO, 100));
        tokio::select! {
            biased;
            _ = append => {}
            () = std::future::ready(()) => {}
        }
        let seek = store.seek(&name, Sequence::new(number));
        tokio::select! {
            biased;
            _ = seek => {}
            () = std::future::ready(()) => {}
        }
    }
    // Whatever became of them: each identity is there at most once, and everything goes on.
    fill(store, 0..21).await;
    let events = read_all(store, Sequence::ZERO, &Filter::default()).await;
    let mut deliveries: Vec<_> = events.iter().map(|event| &event.webhook.facts.delivery_id).collect();
    deliveries.sort();
    deliveries.dedup();
    assert_eq!((events.len(), deliveries.len()), (21, 21));
}
