//! Bodies that are written and read part by part.

use super::*;

#[tokio::test]
async fn a_large_body_is_stored_and_read_whole() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let webhook = testing::webhook(1, HELLO, (5 << 20) + 17);
    store.append(webhook.clone()).await.unwrap();
    let copy = store.redeliver(Sequence::new(1), Address::default()).await.unwrap().unwrap();
    for sequence in [Sequence::new(1), copy] {
        let limit = ReadLimit { events: 1, bytes: 0 };
        let page = store.read(sequence.previous(), &Filter::default(), limit).await.unwrap();
        assert!(page.events[0].webhook == webhook, "{sequence}");
    }
}
