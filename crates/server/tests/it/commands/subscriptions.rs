//! `subscriptions list` and `remove`.

use super::*;

#[tokio::test]
async fn subscriptions_show_cursor_lag_and_stream() {
    let server = TestServer::start("").await;
    let operator = Operator::of(&server);
    assert_eq!(operator.run("subscriptions list").await.remarks, "no client has subscribed yet\n");
    let mut target = TestTarget::start().await;
    let mut client = TestClient::start(options(server.addresses.grpc, target.target()));
    client.subscribed().await;
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    target.next().await;
    all_acknowledged(&*server.store).await;
    let attached = &operator.prints("subscriptions list --json").await.json()[0];
    assert_eq!(
        (&attached["clientId"], &attached["cursor"], &attached["lag"]),
        (&"test".into(), &1.into(), &0.into())
    );
    assert_eq!(attached["attached"]["sent"], 1);
    client.stop().await;
    sender.push("delivery-2").await;
    let gone = async {
        while operator.prints("subscriptions list --json").await.json()[0]["attached"] != Value::Null {
            tokio::time::sleep(Duration::from_millis(5)).await; // the server learns of it when the stream ends
        }
    };
    soon(gone).await;
    let table = operator.prints("subscriptions list").await.text();
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["test", "1", "1", "-"]);

    let refused = operator.run("subscriptions remove test").await.result.unwrap_err().to_string();
    assert!(refused.contains("--yes"), "nobody can be asked: {refused}");
    let no = Operator { answer: Some("n\n"), ..Operator::of(&server) }.run("subscriptions remove test").await;
    assert!(no.remarks.ends_with("nothing was removed\n"), "{}", no.remarks);
    let yes =
        Operator { answer: Some("y\n"), ..Operator::of(&server) }.run("subscriptions remove test").await;
    yes.result.unwrap();
    assert!(yes.remarks.contains("it receives all stored events"), "{}", yes.remarks);
    let again = operator.run("subscriptions remove test --yes").await.result.unwrap_err().to_string();
    assert!(again.contains("there is no client test"), "{again}");
    assert_eq!(operator.run("subscriptions list").await.remarks, "no client has subscribed yet\n");
}
