//! A session's way from the log to its client: what is recalled, what comes next, what was missed.

use std::collections::HashMap;
use std::sync::Arc;

use gitstafette_core::event::{Event, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::hop::Hop;
use gitstafette_core::store::{DamagedEvents, Page, ReadLimit, StoreError};
use gitstafette_core::subscription::Window;
use gitstafette_proto::convert::{duration, runs};
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{self, MissedKind};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tonic::Status;
use tracing::{debug, info, warn};

use super::outbox::{Gone, Outbox, PAGE};
use super::send_progress::CHECK;
use super::service::{head, status};
use super::session::{End, Session, wire};
use super::traffic::Share;

/// What is to be sent next.
enum Next {
    /// A deferred event that the client wants again.
    Recalled(Sequence),
    /// The log after a sequence, as far as the window has room.
    After(Sequence, Window),
}

impl Session {
    /// Follows the log: catching up and following live are the same.
    pub(super) async fn send_events(&self) -> End {
        let mut heads = self.store.head();
        match self.follow_log(&mut heads).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn follow_log(
        &self,
        heads: &mut watch::Receiver<Sequence>,
    ) -> Result<std::convert::Infallible, End> {
        self.say_started().await?;
        // How large the last page was, if it holds a share of the traffic.
        let mut large = 0;
        loop {
            let turn = self.turn(large).await?;
            match self.next().await {
                Next::Recalled(sequence) => large = self.send_recalled(sequence, turn).await?,
                Next::After(after, room) => {
                    let limit =
                        ReadLimit { events: room.events.min(PAGE.events), bytes: room.bytes.min(PAGE.bytes) };
                    let read_to;
                    (read_to, large) = self.send_page(after, limit, turn).await?;
                    if read_to <= after {
                        self.wait_for_more(heads, after).await?;
                    }
                }
            }
        }
    }

    /// Waits until the connection has taken the last page. While others wait for the bytes of a large one, the connection has
    /// less time for it.
    async fn turn(&self, large: u64) -> Result<OwnedSemaphorePermit, End> {
        let since = Instant::now();
        loop {
            if let Ok(turn) = tokio::time::timeout(CHECK, self.outbox.turn()).await {
                return Ok(turn?);
            }
            let progress = self.outbox.progress();
            let is_in_the_way =
                large > 0 && self.traffic.has_waiting() && progress.is_in_the_way(large, since);
            if progress.is_stalled() || is_in_the_way {
                return Err(End::Stalled);
            }
        }
    }

    async fn say_started(&self) -> Result<(), End> {
        let runs = runs(self.store.history());
        let started = v1::Started {
            server_name: self.server_name.clone(),
            cursor: self.stored_cursor().get(),
            head: head(&*self.store).get(),
            heartbeat_interval: Some(duration(self.options.heartbeat)),
            store_id: self.store.id().to_string(),
            max_unacknowledged_events: u32::try_from(self.window.events).unwrap_or(u32::MAX),
            max_unacknowledged_bytes: self.window.bytes,
            run_id: runs.last().map(|run| run.run_id.clone()).unwrap_or_default(),
            common_sequence: self.common.map(Sequence::get),
            runs,
        };
        if let Some(common) = started.common_sequence {
            warn!(
                common.sequence = common,
                "the client knows a later state of this store, which was set back"
            );
        }
        info!(cursor = started.cursor, head = started.head, "a client attached");
        Ok(self.send(Response::Started(started)).await?)
    }

    /// Waits until something may be sent.
    async fn next(&self) -> Next {
        loop {
            {
                let mut flow = self.flow();
                // While one event is stuck, a stream begins before it, and all after it may be done.
                flow.skip_known(head(&*self.store));
                match (flow.room(), flow.next_recalled()) {
                    (Some(_), Some(recalled)) => return Next::Recalled(recalled),
                    (Some(room), None) => return Next::After(flow.position(), room),
                    (None, _) => {}
                }
            }
            // An acknowledgement between the look and the wait leaves a permit: it is not missed.
            self.changed.notified().await;
        }
    }

    /// Waits until the log goes on or the client wants something again.
    async fn wait_for_more(&self, heads: &mut watch::Receiver<Sequence>, after: Sequence) -> Result<(), End> {
        tokio::select! {
            more = heads.wait_for(|head| *head > after) => match more {
                Ok(_) => Ok(()),
                Err(_) => Err(End::Failed(Status::unavailable("the server is going down; reconnect"))),
            },
            () = self.changed.notified() => Ok(()),
        }
    }

    /// Sends the next page of the log; returns how far it was read, and its bytes if it holds a share of the traffic.
    async fn send_page(
        &self,
        after: Sequence,
        limit: ReadLimit,
        turn: OwnedSemaphorePermit,
    ) -> Result<(Sequence, u64), End> {
        let (page, share) = self.read(after, &self.filter, limit).await?;
        let large = large_bytes(&page, share.as_ref());
        self.tell_missed(page.removed_to).await?;
        let mut first_attempts = self.first_attempts(after, page.read_to).await?;
        let hold = Outbox::page(turn, share);
        let mut damaged = page.damaged.iter().peekable();
        for event in page.events.iter().filter(|event| event.address.includes_client(&self.client)) {
            while let Some(damage) = damaged.next_if(|damage| damage.first < event.sequence) {
                self.pass_damaged(damage).await?;
            }
            let wanted = {
                let mut flow = self.flow();
                let wanted = flow.wants(event.sequence);
                if wanted {
                    flow.sent(event.sequence, event.webhook.size());
                    self.standing.follow(&flow);
                }
                wanted
            };
            if wanted {
                let first_attempts = first_attempts.remove(&event.sequence).unwrap_or_default();
                self.send_event(event, first_attempts, &hold).await?;
            }
        }
        for damage in damaged {
            self.pass_damaged(damage).await?;
        }
        self.flow().read_to(page.read_to);
        Ok((page.read_to, large))
    }

    /// Passes events that cannot be read, and tells the client unless it has done them.
    async fn pass_damaged(&self, damage: &DamagedEvents) -> Result<(), End> {
        let DamagedEvents { first, last, reason } = damage;
        let is_missed = {
            let mut flow = self.flow();
            let is_missed = flow.damaged(*first, *last);
            self.standing.follow(&flow);
            is_missed
        };
        if is_missed { self.say_damaged(*first, *last, reason).await } else { Ok(()) }
    }

    /// Since when the client tries the events of a page. As a rule it has tried none, and nothing is read.
    async fn first_attempts(
        &self,
        after: Sequence,
        read_to: Sequence,
    ) -> Result<HashMap<Sequence, Vec<v1::FirstAttempt>>, End> {
        let mut by_sequence: HashMap<_, Vec<_>> = HashMap::new();
        let last = read_to.min(self.last_tried);
        if after < last {
            let first_attempts = self.store.first_attempts(&self.client, after.next()..=last).await;
            for one in first_attempts.map_err(|error| End::Failed(status(&error)))? {
                by_sequence.entry(one.sequence).or_default().push((&one).into());
            }
        }
        Ok(by_sequence)
    }

    /// Sends a deferred event again, or says that it is gone. A client may have named any when it subscribed: one that is not
    /// for it is as good as gone, but was not missed. Returns the event's bytes if it holds a share of the traffic.
    async fn send_recalled(&self, sequence: Sequence, turn: OwnedSemaphorePermit) -> Result<u64, End> {
        let limit = ReadLimit { events: 1, bytes: PAGE.bytes };
        let (page, share) = self.read(sequence.previous(), &Filter::default(), limit).await?;
        let is_meant = |event: &&Arc<Event>| {
            event.sequence == sequence
                && self.filter.matches(&event.webhook.facts)
                && event.address.includes_client(&self.client)
        };
        let large = large_bytes(&page, share.as_ref());
        let Some(event) = page.events.first().filter(is_meant) else {
            {
                let mut flow = self.flow();
                flow.lost(sequence);
                self.standing.follow(&flow);
            }
            if page.events.first().is_some_and(|event| event.sequence == sequence) {
                let missed = missed(sequence, sequence, MissedKind::Removed, "");
                self.send(Response::Missed(missed)).await?;
                return Ok(0);
            }
            match page.damaged.iter().find(|damage| (damage.first..=damage.last).contains(&sequence)) {
                Some(damage) => self.say_damaged(sequence, sequence, &damage.reason).await?,
                None => self.say_removed(sequence, sequence).await?,
            }
            return Ok(0);
        };
        {
            let mut flow = self.flow();
            // While it was read it may have been put down again, or one before it recalled.
            if flow.next_recalled() != Some(sequence) {
                return Ok(0);
            }
            flow.sent(sequence, event.webhook.size());
            self.standing.follow(&flow);
        }
        // This client was sent the event before, with its first attempts.
        self.send_event(event, Vec::new(), &Outbox::page(turn, share)).await?;
        Ok(large)
    }

    /// One page, with its share of the traffic if it is one large event. Such an event is not kept while its turn is
    /// waited for: it is read again then.
    async fn read(
        &self,
        after: Sequence,
        filter: &Filter,
        limit: ReadLimit,
    ) -> Result<(Page, Option<Share>), End> {
        let read = async || {
            let page = self.store.read(after, filter, limit).await?;
            let bytes = page.events.iter().map(|event| event.webhook.size()).sum();
            Ok::<(Page, u64), StoreError>((page, bytes))
        };
        let failed = |error: StoreError| End::Failed(status(&error));
        let (page, bytes) = read().await.map_err(failed)?;
        if bytes <= PAGE.bytes {
            return Ok((page, None));
        }
        if let Some(share) = self.traffic.try_share(&self.client, bytes) {
            return Ok((page, Some(share)));
        }
        drop(page);
        let share = self.traffic.share(&self.client, bytes).await;
        let (page, _) = read().await.map_err(failed)?;
        Ok((page, share))
    }

    async fn tell_missed(&self, removed_to: Sequence) -> Result<(), End> {
        let missed = self.flow().removed(removed_to);
        match missed {
            Some((first, last)) => self.say_removed(first, last).await,
            None => Ok(()),
        }
    }

    async fn say_removed(&self, first: Sequence, last: Sequence) -> Result<(), End> {
        // What was put down is asked for, and found missing, one by one: a line for each would flood the log.
        if first < last || self.standing.has_missed_none() {
            warn!(
                missed.first = first.get(),
                missed.last = last.get(),
                missed.events = last.get() - first.get() + 1,
                "retention removed events that the client has not acknowledged"
            );
        }
        self.say_missed(first, last, MissedKind::Removed, "").await
    }

    /// The store has logged the damage, once for all clients.
    async fn say_damaged(&self, first: Sequence, last: Sequence, reason: &str) -> Result<(), End> {
        debug!(missed.first = first.get(), missed.last = last.get(), reason, "damaged events were passed");
        self.say_missed(first, last, MissedKind::Damaged, reason).await
    }

    async fn say_missed(
        &self,
        first: Sequence,
        last: Sequence,
        kind: MissedKind,
        reason: &str,
    ) -> Result<(), End> {
        let events = last.get().saturating_sub(first.get()).saturating_add(1);
        self.standing.missed(events);
        self.metrics.missed.inc_by(events);
        Ok(self.send(Response::Missed(missed(first, last, kind, reason))).await?)
    }

    async fn send_event(
        &self,
        event: &Arc<Event>,
        first_attempts: Vec<v1::FirstAttempt>,
        page: &Arc<super::outbox::Page>,
    ) -> Result<(), End> {
        debug!(event.sequence = event.sequence.get(), delivery.id = %event.webhook.facts.delivery_id, "sent");
        let mut on_wire = v1::Event::from(&**event);
        on_wire.first_attempts = first_attempts;
        on_wire.hops.push((&Hop::at(self.store.id(), &self.server_name, event)).into());
        self.outbox.event(wire(Response::Event(on_wire)), page).await?;
        self.standing.sent();
        self.metrics.events_sent.inc();
        Ok(())
    }
}

fn missed(first: Sequence, last: Sequence, kind: MissedKind, reason: &str) -> v1::Missed {
    v1::Missed { first: first.get(), last: last.get(), reason: reason.to_owned(), kind: kind.into() }
}

/// The bytes of a page that holds a share of the traffic.
fn large_bytes(page: &Page, share: Option<&Share>) -> u64 {
    share.map_or(0, |_| page.events.iter().map(|event| event.webhook.size()).sum())
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Client
    }
}
