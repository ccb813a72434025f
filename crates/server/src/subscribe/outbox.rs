//! The way from a session to its connection, bounded in bytes whoever does not read.
//!
//! A session hands over one page of events and may hand over the next when the connection has taken all of it. So a
//! subscriber that reads slowly, or not at all, holds one page and not more. A large event is a page of its own, and all
//! large events on their way share one bound over all subscribers, see [`traffic`](super::traffic).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use gitstafette_core::store::ReadLimit;
use gitstafette_proto::v1::SubscribeResponse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

use super::send_progress::SendProgress;
use super::traffic::Share;

/// What one page holds; a larger event is one alone.
pub(super) const PAGE: ReadLimit = ReadLimit { events: 64, bytes: 32 << 10 };
/// How many messages may wait for the connection: a page, what is said beside it, and the last message of the stream.
const MESSAGES: usize = PAGE.events + 9;

/// The session's end.
#[derive(Debug)]
pub(super) struct Outbox {
    sender: mpsc::Sender<Parcel>,
    /// One permit: the connection has taken every page.
    turn: Arc<Semaphore>,
    /// Room for the last message, so that it waits for nobody.
    last: mpsc::OwnedPermit<Parcel>,
    progress: Arc<SendProgress>,
}

/// The connection's end.
#[derive(Debug)]
pub(super) struct Outgoing {
    receiver: mpsc::Receiver<Parcel>,
    /// What the message that was taken last holds. It is through when the next is asked for.
    on_its_way: Option<Hold>,
    progress: Arc<SendProgress>,
}

#[derive(Debug)]
struct Parcel {
    /// In a box: the channel allocates room for many messages at once, which would be most of what an idle stream takes.
    message: Box<Result<SubscribeResponse, Status>>,
    hold: Hold,
}

/// What a message holds until the connection has taken it.
#[derive(Debug)]
enum Hold {
    Nothing,
    /// An event's page.
    Page(#[expect(dead_code, reason = "it is held")] Arc<Page>),
    /// A receipt's room among the acknowledgements of its stream.
    Room(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit),
}

/// A page on its way: gone when the connection has taken all its messages.
#[derive(Debug)]
pub(super) struct Page {
    _turn: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// Nobody reads at the other end.
#[derive(Debug)]
pub(super) struct Gone;

/// The two ends.
pub(super) fn outbox(progress: Arc<SendProgress>) -> (Outbox, Outgoing) {
    let (sender, receiver) = mpsc::channel(MESSAGES);
    let last = sender.clone().try_reserve_owned().expect("the channel is empty");
    let outgoing = Outgoing { receiver, on_its_way: None, progress: Arc::clone(&progress) };
    (Outbox { sender, turn: Arc::new(Semaphore::new(1)), last, progress }, outgoing)
}

impl Outbox {
    /// Waits until the connection has taken the last page.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Gone> {
        tokio::select! {
            turn = Arc::clone(&self.turn).acquire_owned() => turn.map_err(|_| Gone),
            () = self.sender.closed() => Err(Gone),
        }
    }

    /// Begins a page.
    pub(super) fn page(turn: OwnedSemaphorePermit, share: Option<Share>) -> Arc<Page> {
        Arc::new(Page { _turn: turn, _share: share })
    }

    /// Hands over an event of a page.
    pub(super) async fn event(&self, message: SubscribeResponse, page: &Arc<Page>) -> Result<(), Gone> {
        self.hand_over(message, Hold::Page(Arc::clone(page))).await
    }

    /// Hands over a receipt, which holds its room until it is taken.
    pub(super) async fn receipt(
        &self,
        message: SubscribeResponse,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Gone> {
        self.hand_over(message, room.map_or(Hold::Nothing, Hold::Room)).await
    }

    /// Hands over a message that is no event: small, and soon followed by no other.
    pub(super) async fn say(&self, message: SubscribeResponse) -> Result<(), Gone> {
        self.hand_over(message, Hold::Nothing).await
    }

    /// Hands over the last message.
    pub(super) fn end(self, message: Result<SubscribeResponse, Status>) {
        self.progress.queued();
        self.last.send(Parcel { message: Box::new(message), hold: Hold::Nothing });
    }

    /// Waits until nobody reads at the other end.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// How the connection takes what it is given.
    pub(super) fn progress(&self) -> &SendProgress {
        &self.progress
    }

    async fn hand_over(&self, message: SubscribeResponse, hold: Hold) -> Result<(), Gone> {
        let permit = self.sender.reserve().await.map_err(|_| Gone)?;
        self.progress.queued();
        permit.send(Parcel { message: Box::new(Ok(message)), hold });
        Ok(())
    }
}

impl Stream for Outgoing {
    type Item = Result<SubscribeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.on_its_way.take().is_some() {
            self.progress.taken();
        }
        self.receiver.poll_recv(context).map(|parcel| {
            let Parcel { message, hold } = parcel?;
            self.on_its_way = Some(hold);
            Some(*message)
        })
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.progress.end();
    }
}

#[cfg(test)]
mod tests {
    use super::super::traffic::Traffic;
    use super::*;
    use futures_util::{FutureExt, StreamExt};
    use gitstafette_core::event::ClientId;

    fn client() -> ClientId {
        "a".parse().unwrap()
    }

    fn message() -> SubscribeResponse {
        SubscribeResponse::default()
    }

    #[tokio::test]
    async fn the_next_turn_comes_when_the_page_is_taken() {
        let (outbox, mut outgoing) = outbox(Arc::default());
        let traffic = Arc::new(Traffic::new(100));
        let page = Outbox::page(outbox.turn().await.unwrap(), traffic.try_share(&client(), 80));
        outbox.event(message(), &page).await.unwrap();
        outbox.event(message(), &page).await.unwrap();
        drop(page);
        outbox.say(message()).await.unwrap();
        assert!(outbox.turn().now_or_never().is_none());
        for _ in 0..2 {
            outgoing.next().await.unwrap().unwrap();
            assert!(outbox.turn().now_or_never().is_none(), "it is not taken before the next is asked for");
        }
        assert!(traffic.try_share(&client(), 80).is_none());
        outgoing.next().await.unwrap().unwrap();
        drop(outbox.turn().now_or_never().unwrap().unwrap());
        assert!(traffic.try_share(&client(), 1000).is_some(), "one event may exceed the bound alone");
    }

    #[tokio::test]
    async fn a_connection_that_is_gone_gives_everything_back() {
        let (outbox, outgoing) = outbox(Arc::default());
        let traffic = Arc::new(Traffic::new(100));
        let page = Outbox::page(outbox.turn().await.unwrap(), traffic.try_share(&client(), 80));
        outbox.event(message(), &page).await.unwrap();
        drop((page, outgoing));
        assert!(traffic.try_share(&client(), 80).is_some());
        outbox.closed().await;
        outbox.progress().ended().await;
        assert!(outbox.turn().await.is_err() || outbox.say(message()).await.is_err());
    }

    #[tokio::test]
    async fn the_last_message_waits_for_nobody() {
        let (outbox, outgoing) = outbox(Arc::default());
        while outbox.say(message()).now_or_never().is_some() {}
        let progress = Arc::clone(&outbox.progress);
        outbox.end(Err(Status::unavailable("the end")));
        assert!(progress.ended().now_or_never().is_none());
        let messages: Vec<_> = outgoing.collect().await;
        assert_eq!(messages.len(), MESSAGES);
        assert!(messages[MESSAGES - 1].is_err());
        progress.ended().await;
    }
}
