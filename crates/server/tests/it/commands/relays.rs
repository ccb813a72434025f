//! `relays list`.

use super::*;
use crate::relay::relay;

#[tokio::test]
async fn relays_show_what_became_of_events() {
    let middle = TestServer::start("").await;
    assert_eq!(Operator::of(&middle).run("relays list").await.remarks, "the server has no relays\n");
    // Nobody listens at port 1; tokens are told by nobody.
    let away = relay("push", "away", ([127, 0, 0, 1], 1).into(), "");
    let edge = TestServer::start(&(relay("push", "middle", middle.addresses.grpc, "") + &away)).await;
    let last = TestServer::start(&relay("pull", "middle", middle.addresses.grpc, "")).await;
    let (at_edge, at_last) = (Operator::of(&edge), Operator::of(&last));
    Sender::new(&edge).push("delivery-1").await;
    let all_known = async {
        while at_edge.prints("relays list --json").await.json()[0]["lastError"] == Value::Null
            || at_edge.prints("relays list --json").await.json()[1]["lag"] != 0
            || at_last.prints("relays list --json").await.json()[0]["relayed"] != 1
        {
            tokio::time::sleep(Duration::from_millis(5)).await; // a relay's state has nothing to wait on
        }
    };
    soon(all_known).await;
    let states = at_edge.prints("relays list --json").await.json();
    assert_eq!(states.len(), 2);
    let at = format!("grpc://{}", middle.addresses.grpc);
    let expected = json!({
        "name": "middle", "direction": "push", "address": at, "clientId": "relay.push.middle", "connected": true,
        "lag": 0, "relayed": 1, "unwanted": 0, "deadLetters": 0, "missed": 0, "lastError": null,
    });
    assert_eq!(states[1], expected);

    let printed = at_edge.prints("relays list").await.text();
    let lines: Vec<Vec<_>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    let titles = "RELAY DIRECTION ADDRESS CONNECTED LAG RELAYED UNWANTED DEAD LETTERS MISSED LAST ERROR";
    assert_eq!(lines[0].join(" "), titles);
    let start = ["away", "push", "grpc://127.0.0.1:1", "no", "1", "0", "0", "0", "0"];
    assert_eq!((&lines[1][..9], lines[1].len() > 10), (&start[..], true), "{printed}");
    assert_eq!(lines[2], ["middle", "push", at.as_str(), "yes", "0", "1", "0", "0", "0", "-"]);
    assert_eq!(lines.len(), 3);
    let pulled = at_last.prints("relays list").await.text();
    let row: Vec<_> = pulled.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["middle", "pull", at.as_str(), "yes"]);
}
