//! `events list`.

use gitstafette_core::store::Listing;

use super::commands::List;
use super::entries::EntryPrinter;
use super::pages::Pages;
use super::{Console, OperateError};
use crate::connect::ServerAddress;

/// Prints events page by page until the limit.
pub(super) async fn list(
    listing: &Listing,
    asked: &List,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let mut connection = server.connect().await?;
    let mut pages = Pages::new(listing, asked.limit as usize);
    let mut printer = EntryPrinter::of_pages(asked.format);
    let mut is_empty = true;
    while let Some(entries) = pages.next(&mut connection).await? {
        is_empty &= entries.is_empty();
        printer.print(&entries, console)?;
    }
    if is_empty {
        console.remark("no such events");
    }
    Ok(())
}
