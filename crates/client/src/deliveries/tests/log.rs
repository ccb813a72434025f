//! Another store, and an older copy of the same.

use super::*;

#[tokio::test(start_paused = true)]
async fn another_store_loses_only_what_was_left_to_the_first() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/hello");
    let mut deliveries = deliveries(vec![route(&shop)], 8);
    let mut server = Server::new(&["octo/hello"; 20], 8);
    assert!(deliveries.belong_to(&log("a"), Sequence::ZERO, None));
    server.until(&mut deliveries, |server| server.deferred.len() > 10).await;
    let (absent, here) = (deliveries.absent.len(), deliveries.pending.len() - deliveries.absent.len());
    assert!(absent > 10 && here > 0, "{absent} and {here}");
    assert!(!deliveries.belong_to(&log("b"), Sequence::ZERO, None));
    assert_eq!(deliveries.state.borrow().missed, absent as u64);
    deliveries.accept(&event(1, "octo/hello"), &[]);
    deliveries.during(tokio::time::sleep(Duration::from_secs(100))).await;
    shop.unblock();
    assert_eq!(acknowledged(&mut deliveries).await.sequence, 1);
    let expected: Vec<_> = (1..=here as u64).chain([1]).collect();
    assert_eq!(shop.taken("octo/hello"), expected, "those of the first store, and then the other's");
    assert!(!deliveries.has_news(), "nobody is told of the first store's");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_set_back_gets_no_acknowledgement_of_other_events() {
    let shop = Arc::new(Shop::default());
    let mut deliveries = deliveries(vec![route(&shop)], 8);
    let mut store = log("a");
    store.sequence = Sequence::new(9);
    assert!(deliveries.belong_to(&store, Sequence::ZERO, None));
    for number in 1..=4 {
        deliveries.accept(&event(number, "octo/hello"), &[]);
    }
    deliveries.during(tokio::time::sleep(Duration::from_secs(100))).await;
    assert_eq!(shop.taken("octo/hello"), [1, 2, 3, 4]);
    assert_eq!(deliveries.seen().unwrap().sequence, Sequence::new(9));

    // The stream breaks before anything is confirmed. The server comes back with what it had up to the second event.
    drop(deliveries.resume());
    assert!(deliveries.belong_to(&log("a"), Sequence::ZERO, Some(Sequence::new(2))));
    assert_eq!(deliveries.seen().unwrap().sequence, Sequence::ZERO);
    let Some(Request::Acknowledgements(message)) = deliveries.next_news() else { panic!("acknowledgements") };
    let sequences: Vec<_> = message.acknowledgements.iter().map(|one| one.sequence).collect();
    assert_eq!(sequences, [1, 2], "these are the same events");
    assert!(!deliveries.has_news(), "the others are not");
    for number in [3, 4] {
        assert!(deliveries.accept(&event(number, "octo/hello"), &[]), "a new event under a known sequence");
        assert_eq!(acknowledged(&mut deliveries).await.sequence, number);
    }
    assert_eq!(shop.taken("octo/hello"), [1, 2, 3, 4, 3, 4]);
}
