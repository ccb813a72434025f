//! The log page by page.

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{Entry, Listed, Listing, Order};
use gitstafette_proto::convert::MAX_LISTED;
use gitstafette_proto::v1::ListEventsRequest;

use super::{OperateError, answered};
use crate::connect::Connection;

/// A listing that is fetched as far as it is wanted.
#[derive(Debug)]
pub(super) struct Pages {
    /// What the next page is asked for.
    listing: Listing,
    /// How many entries are still wanted.
    left: usize,
    is_over: bool,
}

impl Pages {
    /// The first `most` entries of a listing.
    pub(super) fn new(listing: &Listing, most: usize) -> Self {
        Self { listing: listing.clone(), left: most, is_over: false }
    }

    /// The next entries, if there are more. A page may be empty and not the last: the server looks at so many events a
    /// call, whatever it finds.
    pub(super) async fn next(
        &mut self,
        connection: &mut Connection,
    ) -> Result<Option<Vec<Entry>>, OperateError> {
        if self.is_over || self.left == 0 {
            return Ok(None);
        }
        self.listing.limit = self.left.min(MAX_LISTED as usize);
        let listed: Listed = answered(connection.calls.list_events(ListEventsRequest::from(&self.listing)))
            .await?
            .try_into()?;
        self.left = self.left.saturating_sub(listed.entries.len());
        match listed.next {
            Some(next) => self.go_on(next),
            None => self.is_over = true,
        }
        Ok(Some(listed.entries))
    }

    fn go_on(&mut self, next: Sequence) {
        match self.listing.order {
            Order::OldestFirst => self.listing.first = next,
            Order::NewestFirst => self.listing.last = next,
        }
    }
}
