//! Stores of earlier versions of the schema.

use super::*;
use crate::hop::{Hop, Hops};

/// A store as the first version of the schema left it: three events, of which the second is a dead letter.
fn of_version_1() -> TempDir {
    let folder = TempDir::new().unwrap();
    let connection = shell(&folder);
    connection.execute_batch("PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL;").unwrap();
    connection.execute_batch(schema::MIGRATIONS[0]).unwrap();
    connection.execute_batch("PRAGMA application_id = 0x47745374; PRAGMA user_version = 1;").unwrap();
    connection.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).unwrap();
    for number in 1..=3i64 {
        let webhook = testing::webhook(number.unsigned_abs(), HELLO, 1000);
        let (facts, headers) = (&webhook.facts, codec::encode_headers(&webhook.headers));
        let sql = "INSERT INTO events VALUES (?1, 'github', '1', ?2, 'push', NULL, ?3, ?4, 'octo', NULL, ?5, ?5, 0, ?6)";
        let id = facts.repository_id.map(|id| id.0.cast_signed());
        let name = facts.repository_name.as_ref().map(|name| name.as_str());
        let received = codec::signed(Timestamp::from(std::time::SystemTime::now()).as_millis());
        let size = codec::signed(webhook.size());
        let values = (number, facts.delivery_id.as_str(), id, name, received, size);
        connection.execute(sql, values).unwrap();
        let values = (number, headers, &*webhook.body);
        connection.execute("INSERT INTO payloads VALUES (?1, ?2, ?3)", values).unwrap();
        connection
            .execute("UPDATE position SET head = ?1, events = ?1, bytes = bytes + ?2", (number, size))
            .unwrap();
    }
    let failed = "INSERT INTO outcomes VALUES (2, 'a', 'jenkins', 'failed', 500, 3, 7, 8, 'no')";
    connection.execute(failed, ()).unwrap();
    connection.execute("INSERT INTO cursors VALUES ('a', 2), ('b', 0), ('c', 0)", ()).unwrap();
    let ahead = "INSERT INTO ahead VALUES ('a', 3), ('b', 1), ('b', 3), ('c', 1), ('c', 2), ('c', 3)";
    connection.execute(ahead, ()).unwrap();
    folder
}

/// A store as the second version left it: that of the first, upgraded, with a copy of its dead letter.
fn of_version_2() -> TempDir {
    let folder = of_version_1();
    let connection = shell(&folder);
    connection.execute_batch(schema::MIGRATIONS[1]).unwrap();
    let copy = "INSERT INTO events SELECT 4, source, hook_id, delivery_id, event, action, repository_id, repository_name, \
                owner, installation_id, received_at, accepted_at, 1, size, 'a', 'jenkins', NULL, 2 FROM events WHERE sequence = 2";
    connection.execute(copy, ()).unwrap();
    let payload = "INSERT INTO payloads SELECT 4, headers, body FROM payloads WHERE sequence = 2";
    connection.execute(payload, ()).unwrap();
    let position = "UPDATE position SET head = 4, events = 4, \
                    bytes = bytes + (SELECT size FROM events WHERE sequence = 4)";
    connection.execute(position, ()).unwrap();
    connection.execute("UPDATE outcomes SET redelivered_as = 4 WHERE sequence = 2", ()).unwrap();
    connection.execute_batch("PRAGMA user_version = 2;").unwrap();
    folder
}

#[tokio::test]
async fn the_second_version_is_upgraded_and_takes_what_comes_through_other_servers() {
    let folder = of_version_2();
    for _ in 0..2 {
        let store = open(&folder);
        let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
        for (event, number) in page.events.iter().zip([1, 2, 3, 2]) {
            let (sent, facts) = (testing::webhook(number, HELLO, 1000), &event.webhook.facts);
            assert_eq!((&event.webhook.headers, &event.webhook.body), (&sent.headers, &sent.body));
            assert_eq!((&facts.delivery_id, &facts.hops), (&sent.facts.delivery_id, &Hops::default()));
        }
        assert_eq!((page.events.len(), page.events[3].redelivery), (4, true));
        assert_eq!(
            page.events[3].address,
            Address { client: Some(client()), targets: vec!["jenkins".into()] }
        );
        let id = page.events[0].webhook.facts.repository_id.unwrap();
        assert_eq!(
            store.counts(RepositoryId(0), 100).await.unwrap(),
            [(id, 4)],
            "those that were there are counted"
        );
        store.close().await;
    }
    let version = shell(&folder).query_row("PRAGMA user_version", (), |row| row.get::<_, u32>(0));
    assert_eq!(version.unwrap(), schema::MIGRATIONS.len() as u32);

    let store = open(&folder);
    let (id, sequence) = (StoreId::new(u64::MAX), Sequence::new(1));
    let hop = Hop {
        store: id,
        server: "edge".into(),
        sequence,
        received_at: Timestamp::default(),
        redelivery: false,
    };
    let mut relayed = testing::webhook(1, HELLO, 1000);
    relayed.facts.hops = Hops::new(vec![hop]);
    let known = Appended::Repeat { sequence };
    assert_eq!(store.append(relayed.clone()).await.unwrap(), known, "by its identity: it is pending");
    relayed.facts.delivery_id = "delivery-9".parse().unwrap();
    let stored = Appended::Stored { sequence: Sequence::new(5), redelivery: false };
    assert_eq!(store.append(relayed.clone()).await.unwrap(), stored);
    store.acknowledge(&client(), vec![acknowledgement(Sequence::new(5))], Sequence::new(5)).await.unwrap();
    let known = Appended::Repeat { sequence: Sequence::new(5) };
    assert_eq!(store.append(relayed).await.unwrap(), known, "by its origin");
}

#[tokio::test]
async fn the_first_version_is_upgraded_and_loses_nothing() {
    let folder = of_version_1();
    for _ in 0..2 {
        let store = open(&folder);
        let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
        for (event, number) in page.events.iter().zip(1..) {
            let sent = testing::webhook(number, HELLO, 1000);
            assert_eq!((event.sequence, &event.address), (Sequence::new(number), &Address::default()));
            assert_eq!((&event.webhook.headers, &event.webhook.body), (&sent.headers, &sent.body));
        }
        assert_eq!((page.events.len(), page.removed_to), (3, Sequence::ZERO));
        assert_eq!(holds(&store).await.events, 3);
        let first = store.history().runs()[0];
        assert_eq!((first.id.get(), first.start), (store.id().get(), Sequence::ZERO), "all copies share it");
        let ranges: [(_, _, &[(u64, u64)]); 3] =
            [("a", 2, &[(3, 3)]), ("b", 0, &[(1, 1), (3, 3)]), ("c", 0, &[(1, 3)])];
        for (name, cursor, expected) in ranges {
            let progress = store.progress(&name.parse().unwrap()).await.unwrap().unwrap();
            let ahead = progress.ahead.iter().map(|(first, last)| (first.get(), last.get()));
            assert_eq!((progress.cursor.get(), ahead.collect::<Vec<_>>().as_slice()), (cursor, expected));
        }
        let dead = FateFilter { fate: Fate::DeadLetter, client: None, target: Some("jenkins".into()) };
        let listed = store.list(&Listing { fate: Some(dead), ..Listing::default() }).await.unwrap();
        assert_eq!(listed.entries.len(), 1, "what was a dead letter is one");
        assert_eq!((listed.entries[0].sequence, listed.entries[0].reports.len()), (Sequence::new(2), 1));
        store.close().await;
    }
    let version = shell(&folder).query_row("PRAGMA user_version", (), |row| row.get::<_, u32>(0));
    assert_eq!(version.unwrap(), schema::MIGRATIONS.len() as u32);
    let rows = shell(&folder).query_row("SELECT count(*) FROM ahead", (), |row| row.get::<_, u32>(0));
    assert_eq!(rows.unwrap(), 4, "those that follow each other are one");

    let store = open(&folder);
    let connected = vec!["a".parse().unwrap()];
    let away = store.forget_clients(Duration::ZERO, connected.clone()).await.unwrap();
    assert_eq!(away, ["b".parse().unwrap(), "c".parse().unwrap()], "clients with a cursor are registered");
    assert_eq!(store.forget_clients(Duration::ZERO, connected).await.unwrap(), []);
    assert_eq!(append(&store, 1).await.unwrap(), Appended::Repeat { sequence: Sequence::new(1) });
    let copy = store.redeliver(Sequence::new(2), Address::default()).await.unwrap();
    assert_eq!(copy, Some(Sequence::new(4)));
    assert_eq!(store.reports(Sequence::new(2)).await.unwrap()[0].redelivered_as, copy);
}

#[tokio::test]
async fn what_came_with_the_second_version_survives_reopening() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..2).await;
    let mut failed = acknowledgement(Sequence::new(1));
    failed.outcomes[0].result = OutcomeResult::Failed;
    store.acknowledge(&client(), vec![failed], Sequence::new(1)).await.unwrap();
    let address = Address { client: Some(client()), targets: vec!["jenkins".into()] };
    let copy = store.redeliver(Sequence::new(1), address).await.unwrap().unwrap();
    let pattern = "octo/*".parse().unwrap();
    store.change_watchlist(&pattern, Some(WatchlistChange::Removed)).await.unwrap();
    let all = Listing::default();
    let before = (store.list(&all).await.unwrap(), store.reports(Sequence::new(1)).await.unwrap());
    assert_eq!((before.0.entries.len(), before.1[0].redelivered_as), (3, Some(copy)));
    let events = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    store.close().await;

    let store = open(&folder);
    let after = (store.list(&all).await.unwrap(), store.reports(Sequence::new(1)).await.unwrap());
    assert_eq!(after, before);
    assert_eq!(store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap(), events);
    assert_eq!(store.watchlist_changes().await.unwrap(), [(pattern, WatchlistChange::Removed)]);
}
