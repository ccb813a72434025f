//! `events follow`.
//!
//! The server's stream brings each event that is accepted while the stream is open. After every connection the client lists
//! the events since the last one that it has seen, so that none is missed. Heartbeats show that the connection works.

use std::convert::Infallible;
use std::time::Duration;

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{Entry, Listing};
use gitstafette_proto::convert::{Seen, from_duration, history};
use gitstafette_proto::v1::{FollowEventsRequest, FollowEventsResponse, ShowStatisticsRequest};
use tonic::Status;
use tracing::warn;

use super::commands::Follow;
use super::entries::EntryPrinter;
use super::pages::Pages;
use super::{Console, OperateError, answered};
use crate::client::{RECONNECT, is_refusal};
use crate::connect::{Connection, ServerAddress};

/// How long the stream may be silent before the first heartbeat has told how often they come.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Prints events as they are accepted. Ends only with an error: one that a person must see to, or of the output.
pub(super) async fn follow(
    asked: &Follow,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<Infallible, OperateError> {
    let listing = asked.listing();
    let mut follower =
        Follower { listing, printer: EntryPrinter::of_followers(asked.format), seen: None, failures: 0 };
    loop {
        let Err(error) = follower.stream(server, console).await;
        match error {
            OperateError::Server(status) if follower.seen.is_some() && !is_refusal(&status) => {
                follower.failures += 1;
                let wait = RECONNECT.delay(follower.failures, fastrand::f64());
                warn!(
                    reason = status.message(),
                    retry_in_ms = wait.as_millis(),
                    "the stream broke; going on"
                );
                tokio::time::sleep(wait).await;
            }
            error => return Err(error),
        }
    }
}

/// How far a follower has come.
struct Follower {
    /// By repository and kind.
    listing: Listing,
    printer: EntryPrinter,
    /// Everything up to here was looked at. `None` until a stream stood: then the address and the token are right.
    seen: Option<Seen>,
    /// In a row.
    failures: u32,
}

impl Follower {
    /// One stream, until it breaks.
    async fn stream(
        &mut self,
        server: &ServerAddress,
        console: &mut Console,
    ) -> Result<Infallible, OperateError> {
        let mut connection = server.connect().await?;
        let request = FollowEventsRequest { selection: Some((&self.listing).into()) };
        let mut stream = answered(connection.calls.follow_events(request)).await?;
        self.catch_up(&mut connection, console).await?;
        self.failures = 0;
        let mut silence_timeout = FIRST_MESSAGE_TIMEOUT;
        loop {
            let message = tokio::time::timeout(silence_timeout, stream.message()).await.map_err(|_| {
                let seconds = silence_timeout.as_secs();
                Status::unavailable(format!("no message from the server for {seconds} s"))
            })?;
            match message? {
                Some(FollowEventsResponse { entry: Some(entry), .. }) => {
                    self.show(vec![entry.try_into()?], console)?;
                }
                Some(FollowEventsResponse { entry: None, heartbeat_interval }) => {
                    if let Some(interval) = heartbeat_interval {
                        let interval = from_duration(interval);
                        silence_timeout = interval.min(FIRST_MESSAGE_TIMEOUT) * 3 / 2;
                    }
                }
                None => return Err(Status::unavailable("the server ended the stream").into()),
            }
        }
    }

    /// Shows what was accepted since the last event seen; the first time, only finds where the log ends.
    async fn catch_up(
        &mut self,
        connection: &mut Connection,
        console: &mut Console,
    ) -> Result<(), OperateError> {
        let statistics = answered(connection.calls.show_statistics(ShowStatisticsRequest {})).await?;
        let (history, head) = (history(&statistics.runs), Sequence::new(statistics.head));
        let after = match &self.seen {
            None => head,
            // In another store all is new: one in memory starts anew with its server. In one that was set back to an older
            // copy, everything is new beyond the last common sequence.
            Some(seen) => seen.last_common(&statistics.store_id, &history).unwrap_or_default(),
        };
        self.seen = Some(Seen { store: statistics.store_id, history, sequence: after });
        if after < head {
            let listing = Listing { first: after.next(), last: head, ..self.listing.clone() };
            let mut pages = Pages::new(&listing, usize::MAX);
            while let Some(entries) = pages.next(connection).await? {
                self.show(entries, console)?;
            }
            self.pass(head);
        }
        Ok(())
    }

    /// Shows entries that were not seen yet, in the order of the log.
    fn show(&mut self, mut entries: Vec<Entry>, console: &mut Console) -> Result<(), OperateError> {
        let seen = self.seen.as_ref().map_or(Sequence::ZERO, |seen| seen.sequence);
        entries.retain(|entry| entry.sequence > seen);
        self.printer.print(&entries, console)?;
        if let Some(last) = entries.last() {
            self.pass(last.sequence);
        }
        Ok(())
    }

    fn pass(&mut self, sequence: Sequence) {
        if let Some(seen) = &mut self.seen {
            seen.sequence = seen.sequence.max(sequence);
        }
    }
}
