//! Questions before several events are redelivered.

use super::{Operator, five_events};

#[tokio::test]
async fn a_person_is_asked_and_may_say_no() {
    let server = five_events().await;
    let asked = |answer| Operator { answer: Some(answer), ..Operator::of(&server) };
    let range = "events redeliver --first 2 --last 4";
    for no in ["", "\n", "no\n", "x\n"] {
        let done = asked(no).run(range).await;
        assert!(done.result.is_ok() && done.output.bytes().is_empty());
        assert_eq!(done.remarks, "deliver 3 events again? [y/N] nothing was redelivered\n", "{no:?}");
    }
    assert_eq!(server.events().await, 5);
    assert_eq!(asked("y\n").run("events redeliver 1").await.remarks, "", "one event is no question");
    assert_eq!(asked("n\n").run(&format!("{range} --limit 1 --yes")).await.remarks, "");
    assert_eq!(server.events().await, 7);
    assert_eq!(asked("yes\n").run(range).await.remarks, "deliver 3 events again? [y/N] ");
    assert_eq!(server.events().await, 10);
    let none = asked("y\n").run("events redeliver --first 50 --last 60").await;
    assert_eq!(none.remarks, "no such events\n");
}

#[tokio::test]
async fn nothing_is_redelivered_unasked_where_nobody_can_be_asked() {
    let server = five_events().await;
    let operator = Operator::of(&server);
    for line in
        ["--first 2 --last 4", "--delivery delivery-2", "--dead-letters", "--first 50 --last 60 --json"]
    {
        let refused = operator.run(&format!("events redeliver {line}")).await;
        let error = refused.result.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert_eq!(error.to_string(), "there is no terminal to ask for confirmation; give --yes");
        assert!(refused.output.bytes().is_empty() && refused.remarks.is_empty(), "{line}");
    }
    assert_eq!(server.events().await, 5);
    operator.prints("events redeliver --first 2 --last 4 --yes").await;
    assert_eq!(server.events().await, 8);
}
