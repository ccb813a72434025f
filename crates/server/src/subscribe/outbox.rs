//! The way from a session to its connection, bounded in bytes whoever does not read.
//!
//! A session hands over one page of events and may hand over the next when the connection has taken all of it. So a
//! subscriber that reads slowly, or not at all, holds one page and not more. A large event is a page of its own, and all
//! large events on their way share one bound over all subscribers: a hundred that catch up at once take turns.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use gitstafette_core::store::ReadLimit;
use gitstafette_proto::v1::SubscribeResponse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

/// What one page holds; a larger event is one alone.
pub(super) const PAGE: ReadLimit = ReadLimit { events: 64, bytes: 32 << 10 };
/// How many messages may wait for the connection: a page, and what is said beside it.
const MESSAGES: usize = PAGE.events + 8;

/// The bound that all subscribers share: bytes of large events on their way.
#[derive(Debug)]
pub(crate) struct Traffic {
    room: Arc<Semaphore>,
    bytes: u32,
}

/// A large event's share of the traffic.
pub(crate) type Share = OwnedSemaphorePermit;

impl Traffic {
    /// So many bytes; one event may exceed them alone.
    pub(crate) fn new(bytes: u64) -> Self {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(most);
        Self { room: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// Room for an event of this size, if there is some now.
    pub(crate) fn try_share(&self, size: u64) -> Option<Share> {
        Arc::clone(&self.room).try_acquire_many_owned(self.share_of(size)).ok()
    }

    /// Room for an event of this size, as soon as others have been taken. Those who wait are served in order.
    pub(super) async fn share(&self, size: u64) -> Option<Share> {
        Arc::clone(&self.room).acquire_many_owned(self.share_of(size)).await.ok()
    }

    fn share_of(&self, size: u64) -> u32 {
        u32::try_from(size).unwrap_or(u32::MAX).min(self.bytes)
    }
}

/// The session's end.
#[derive(Debug)]
pub(super) struct Outbox {
    sender: mpsc::Sender<Parcel>,
    /// One permit: the connection has taken every page.
    turn: Arc<Semaphore>,
}

/// The connection's end.
#[derive(Debug)]
pub(super) struct Outgoing {
    receiver: mpsc::Receiver<Parcel>,
    /// The page of the message that was taken last. It is through when the next is asked for.
    page: Option<Arc<Page>>,
}

#[derive(Debug)]
struct Parcel {
    message: Result<SubscribeResponse, Status>,
    page: Option<Arc<Page>>,
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

/// Why there is no next turn.
#[derive(Debug)]
pub(super) enum NoTurn {
    /// Nobody reads at the other end.
    Gone,
    /// The other end does not take what it was given.
    Stalled,
}

/// The two ends.
pub(super) fn outbox() -> (Outbox, Outgoing) {
    let (sender, receiver) = mpsc::channel(MESSAGES);
    (Outbox { sender, turn: Arc::new(Semaphore::new(1)) }, Outgoing { receiver, page: None })
}

impl Outbox {
    /// Waits until the connection has taken the last page.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Gone> {
        tokio::select! {
            turn = Arc::clone(&self.turn).acquire_owned() => turn.map_err(|_| Gone),
            () = self.sender.closed() => Err(Gone),
        }
    }

    /// Likewise, if the connection takes it within `patience`: a large event holds a share of what all have.
    pub(super) async fn turn_within(&self, patience: Duration) -> Result<OwnedSemaphorePermit, NoTurn> {
        match tokio::time::timeout(patience, self.turn()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(Gone)) => Err(NoTurn::Gone),
            Err(_) => Err(NoTurn::Stalled),
        }
    }

    /// Begins a page.
    pub(super) fn page(turn: OwnedSemaphorePermit, share: Option<Share>) -> Arc<Page> {
        Arc::new(Page { _turn: turn, _share: share })
    }

    /// Hands over an event of a page.
    pub(super) async fn event(&self, message: SubscribeResponse, page: &Arc<Page>) -> Result<(), Gone> {
        self.hand_over(Parcel { message: Ok(message), page: Some(Arc::clone(page)) }).await
    }

    /// Hands over a message that is no event: small, and soon followed by no other.
    pub(super) async fn say(&self, message: Result<SubscribeResponse, Status>) -> Result<(), Gone> {
        self.hand_over(Parcel { message, page: None }).await
    }

    /// Waits until nobody reads at the other end.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }

    async fn hand_over(&self, parcel: Parcel) -> Result<(), Gone> {
        self.sender.send(parcel).await.map_err(|_| Gone)
    }
}

impl Stream for Outgoing {
    type Item = Result<SubscribeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.page = None;
        self.receiver.poll_recv(context).map(|parcel| {
            let Parcel { message, page } = parcel?;
            self.page = page;
            Some(message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};

    fn message() -> SubscribeResponse {
        SubscribeResponse::default()
    }

    #[tokio::test]
    async fn the_next_turn_comes_when_the_page_is_taken() {
        let (outbox, mut outgoing) = outbox();
        let traffic = Traffic::new(100);
        let page = Outbox::page(outbox.turn().await.unwrap(), traffic.try_share(80));
        outbox.event(message(), &page).await.unwrap();
        outbox.event(message(), &page).await.unwrap();
        drop(page);
        outbox.say(Ok(message())).await.unwrap();
        assert!(outbox.turn().now_or_never().is_none());
        for _ in 0..2 {
            outgoing.next().await.unwrap().unwrap();
            assert!(outbox.turn().now_or_never().is_none(), "it is not taken before the next is asked for");
        }
        assert!(traffic.try_share(80).is_none());
        outgoing.next().await.unwrap().unwrap();
        drop(outbox.turn().now_or_never().unwrap().unwrap());
        assert!(traffic.try_share(1000).is_some(), "one event may exceed the bound alone");
    }

    #[tokio::test]
    async fn a_connection_that_is_gone_gives_everything_back() {
        let (outbox, outgoing) = outbox();
        let traffic = Traffic::new(100);
        let page = Outbox::page(outbox.turn().await.unwrap(), traffic.try_share(100));
        outbox.event(message(), &page).await.unwrap();
        drop((page, outgoing));
        assert!(traffic.try_share(100).is_some());
        outbox.closed().await;
        assert!(outbox.turn().await.is_err() || outbox.say(Ok(message())).await.is_err());
    }
}
