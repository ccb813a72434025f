//! What the server is told of first attempts, and what it tells.

use super::*;
use crate::policy::DeliveryPolicy;

/// The first attempts that the server is told of next.
async fn told(deliveries: &mut Deliveries) -> Vec<v1::FirstAttempt> {
    loop {
        while let Some(request) = deliveries.next_news() {
            if let Request::FirstAttempts(message) = request {
                return message.first_attempts;
            }
        }
        deliveries.progress().await;
    }
}

fn first_attempt(sequence: u64, target: &str, age: Duration) -> FirstAttempt {
    FirstAttempt { sequence: Sequence::new(sequence), target: target.into(), age }
}

#[tokio::test(start_paused = true)]
async fn the_server_is_told_of_a_first_attempt_that_failed() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/hello");
    let mut deliveries = deliveries(vec![route(&shop), only(&shop, "octo/other")], 8);
    deliveries.accept(&event(1, "octo/hello"), &[]);
    deliveries.accept(&event(2, "octo/hello"), &[]);
    deliveries.accept(&event(3, "octo/third"), &[]);
    let first = told(&mut deliveries).await;
    assert_eq!(first.len(), 1, "the second waits for the first, and the third was delivered");
    assert_eq!((first[0].sequence, first[0].target.as_str()), (1, "shop"));
    // Later attempts are no news.
    let waiting = tokio::time::timeout(Duration::from_secs(600), told(&mut deliveries));
    assert!(waiting.await.is_err());
    // The next stream begins: the server may not have stored it.
    deliveries.resume();
    let again = told(&mut deliveries).await;
    assert_eq!((again.len(), again[0].sequence), (1, 1));
    let age = again[0].age.unwrap().seconds;
    assert!((595..=605).contains(&age), "{age}");
}

#[tokio::test(start_paused = true)]
async fn giving_up_counts_from_the_first_attempt_of_an_earlier_client() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/hello");
    let mut deliveries = deliveries(vec![route(&shop)], 8);
    let day = DeliveryPolicy::default().give_up_after;
    let left = Duration::from_secs(600);
    let begin = Instant::now();
    let known = [first_attempt(1, "shop", day - left), first_attempt(1, "another", Duration::ZERO)];
    deliveries.accept(&event(1, "octo/hello"), &known);
    let failed = acknowledged(&mut deliveries).await;
    assert_eq!(failed.outcomes[0].result, i32::from(v1::OutcomeResult::Failed));
    assert!(begin.elapsed() <= left, "{:?}", begin.elapsed());
    // Another target's time is not its own.
    deliveries.accept(&event(2, "octo/hello"), &[first_attempt(2, "another", day)]);
    assert_eq!(told(&mut deliveries).await[0].sequence, 2);
}

#[tokio::test(start_paused = true)]
async fn the_server_is_not_told_what_it_knows() {
    let shop = Arc::new(Shop::default());
    shop.block("octo/hello");
    let mut deliveries = deliveries(vec![route(&shop)], 8);
    deliveries.accept(&event(1, "octo/hello"), &[first_attempt(1, "shop", Duration::ZERO)]);
    let waiting = tokio::time::timeout(Duration::from_secs(600), told(&mut deliveries));
    assert!(waiting.await.is_err());
    deliveries.resume();
    assert!(deliveries.next_news().is_none());
}
