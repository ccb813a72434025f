//! `events redeliver` when the server or the line breaks.

use gitstafette_proto::v1::gitstafette_server::{Gitstafette, GitstafetteServer};
use gitstafette_proto::v1::{
    RedeliverEventsRequest, RedeliverEventsResponse, Redelivered, ShowStatisticsRequest,
    ShowStatisticsResponse,
};
use tokio::net::TcpListener;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::Operator;
use crate::support::TOKEN;

/// A server that goes down in the middle of a redelivery.
struct Breaking;

#[tonic::async_trait]
impl Gitstafette for Breaking {
    async fn show_statistics(
        &self,
        _: Request<ShowStatisticsRequest>,
    ) -> Result<Response<ShowStatisticsResponse>, Status> {
        Ok(Response::new(ShowStatisticsResponse { head: 9, events: 9, first: 1, ..Default::default() }))
    }

    async fn redeliver_events(
        &self,
        request: Request<RedeliverEventsRequest>,
    ) -> Result<Response<BoxStream<RedeliverEventsResponse>>, Status> {
        let first = request.into_inner().selection.unwrap_or_default().first.max(1);
        let appended =
            (first..first + 3).map(|sequence| Redelivered { sequence, redelivered_as: sequence + 9 });
        let progress =
            RedeliverEventsResponse { redelivered: appended.collect(), next: first + 3, last: 9, total: 3 };
        let silence = RedeliverEventsResponse { redelivered: Vec::new(), ..progress.clone() };
        let messages = [Ok(progress), Ok(silence), Err(Status::unavailable("the server shuts down"))];
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
}

#[tokio::test]
async fn a_redelivery_that_breaks_says_how_to_go_on() {
    let router = Routes::new(GitstafetteServer::new(Breaking)).into_axum_router();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let operator = Operator { server, token: TOKEN, answer: None };
    for (line, printed, hint) in [
        ("--first 1 --last 20 --json", [1, 2, 3], "--first 4 --last 9"),
        ("--first 4 --last 20 --limit 5 --json", [4, 5, 6], "--first 7 --last 9 --limit 2"),
        ("--dead-letters --json", [1, 2, 3], "--first 4 --last 9"),
    ] {
        let done = operator.run(&format!("events redeliver {line} --yes")).await;
        assert_eq!(done.output.sequences(), printed, "what was told is printed");
        let error = done.result.unwrap_err();
        let expected = format!(
            "the server shuts down; 3 events redelivered, maybe some more that the server did not tell; to go on, repeat \
             the command with {hint}"
        );
        assert_eq!((error.to_string(), error.exit_code()), (expected, 1));
    }
}
