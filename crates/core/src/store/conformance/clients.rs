//! Client ids: registering, removing and forgetting them.

use std::time::Duration;

use super::{acknowledgement, client, fill};
use crate::event::{ClientId, Sequence};
use crate::store::{EventStore, Owner, Registration};

/// The owners that the server knows now.
const CURRENT: [&str; 2] = ["one", "other"];

fn owner(label: &str) -> Owner {
    Owner { label: label.to_owned(), max_ids: 2, current: CURRENT.map(str::to_owned).into() }
}

async fn register(store: &impl EventStore, name: &str, label: &str) -> Registration {
    store.register_client(&client(name), &owner(label)).await.expect("the registration")
}

async fn forget(store: &impl EventStore, age: Duration, connected: &[&str]) -> Vec<ClientId> {
    let connected = connected.iter().map(|name| client(name)).collect();
    store.forget_clients(age, connected).await.expect("the forgetting")
}

/// The client ids with a cursor.
async fn with_cursor(store: &impl EventStore) -> Vec<ClientId> {
    store.cursors().await.expect("the cursors").into_iter().map(|(client, _)| client).collect()
}

pub(super) async fn registers_as_many_as_the_owner_may_have(store: &impl EventStore) {
    for (name, label, expected) in [
        ("a", "one", Registration::Registered),
        ("b", "one", Registration::Registered),
        ("c", "one", Registration::LimitReached),
        ("a", "one", Registration::Registered),
        ("c", "other", Registration::Registered),
        // The id belongs to the owner that used it first.
        ("a", "other", Registration::OwnedByAnother),
        ("d", "other", Registration::Registered),
        ("e", "other", Registration::LimitReached),
        ("e", "one", Registration::LimitReached),
    ] {
        assert_eq!(register(store, name, label).await, expected, "{name} of {label}");
    }
    assert!(store.remove_client(&client("b")).await.expect("the removal"));
    assert_eq!(register(store, "e", "one").await, Registration::Registered, "there is room again");
    assert_eq!(with_cursor(store).await, [], "registering makes no cursor");
}

pub(super) async fn passes_ids_of_owners_that_are_gone(store: &impl EventStore) {
    let all = fill(store, 0..1).await;
    assert_eq!(register(store, "a", "replaced").await, Registration::Registered);
    store.seek(&client("a"), all[0]).await.expect("the seek");
    assert_eq!(register(store, "a", "one").await, Registration::Registered, "its owner is gone");
    assert_eq!(register(store, "a", "other").await, Registration::OwnedByAnother);
    assert_eq!(register(store, "a", "one").await, Registration::Registered, "the refusal changed nothing");

    assert!(store.release_client(&client("a")).await.expect("the release"));
    assert!(!store.release_client(&client("never")).await.expect("the release"));
    assert_eq!(register(store, "a", "other").await, Registration::Registered, "it has no owner");
    assert_eq!(register(store, "a", "one").await, Registration::OwnedByAnother);
    let progress = store.progress(&client("a")).await.expect("the progress").expect("a cursor");
    assert_eq!(progress.cursor, all[0], "the cursor stays");

    // A client from before there were owners has a cursor, and no owner.
    store.seek(&client("b"), all[0]).await.expect("the seek");
    assert!(store.release_client(&client("b")).await.expect("the release"));
    assert_eq!(register(store, "b", "one").await, Registration::Registered);
    assert_eq!(register(store, "b", "other").await, Registration::OwnedByAnother);
}

pub(super) async fn removes_all_that_is_kept_for_a_client(store: &impl EventStore) {
    let all = fill(store, 0..4).await;
    for name in ["a", "b"] {
        register(store, name, "one").await;
        let acknowledgements = vec![acknowledgement(all[0]), acknowledgement(all[2])];
        store.acknowledge(&client(name), acknowledgements, all[0]).await.expect("the acknowledgement");
    }
    assert!(store.remove_client(&client("a")).await.expect("the removal"));
    assert!(!store.remove_client(&client("a")).await.expect("the removal"), "it is gone already");
    assert!(!store.remove_client(&client("never")).await.expect("the removal"));
    assert_eq!(with_cursor(store).await, [client("b")]);
    assert_eq!(store.progress(&client("a")).await.expect("the progress"), None);
    let reports = store.reports(all[0]).await.expect("the reports");
    assert_eq!(reports.len(), 2, "outcomes belong to the event");

    // The id starts anew: nothing that it acknowledged before is left.
    store.seek(&client("a"), Sequence::ZERO).await.expect("the seek");
    let progress = store.progress(&client("a")).await.expect("the progress").expect("a cursor");
    assert_eq!((progress.cursor, progress.ahead.iter().next()), (Sequence::ZERO, None));
    let other = store.progress(&client("b")).await.expect("the progress").expect("a cursor");
    assert_eq!((other.cursor, other.ahead.contains(all[2])), (all[0], true));
}

pub(super) async fn forgets_clients_that_stay_away(store: &impl EventStore) {
    for name in ["a", "b", "c"] {
        register(store, name, name).await;
        store.seek(&client(name), Sequence::ZERO).await.expect("the seek");
    }
    assert_eq!(forget(store, Duration::from_secs(3600), &[]).await, []);
    assert_eq!(forget(store, Duration::ZERO, &["b"]).await, [client("a"), client("c")]);
    assert_eq!(with_cursor(store).await, [client("b")]);
    assert_eq!(forget(store, Duration::ZERO, &["b"]).await, [], "a connected client is never forgotten");
    register(store, "a", "a").await;
    assert_eq!(store.progress(&client("a")).await.expect("the progress"), None, "it is new");
}

pub(super) async fn keeps_cursors_of_unregistered_clients(store: &impl EventStore) {
    store.seek(&client("a"), Sequence::ZERO).await.expect("the seek");
    assert_eq!(forget(store, Duration::ZERO, &[]).await, []);
    assert_eq!(with_cursor(store).await, [client("a")]);
}
