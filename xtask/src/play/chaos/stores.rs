//! What the stores hold at the end of a chaos run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use gitstafette_core::event::Sequence;
use gitstafette_core::filter::Filter;
use gitstafette_core::store::{EventStore, Options, ReadLimit, SqliteStore};

/// How many events are read at once.
const PAGE: ReadLimit = ReadLimit { events: 1_000, bytes: 32 << 20 };

/// Says which store lacks accepted webhooks, if one does. An error if one has a webhook twice. Redeliveries do not count: a
/// webhook whose answer a kill cut off is sent again, and is one if it was delivered meanwhile.
pub(super) async fn missing(
    stores: &[PathBuf],
    accepted: &BTreeSet<String>,
) -> anyhow::Result<Option<String>> {
    let mut lack = None;
    for path in stores {
        let stored = delivery_ids(path).await.with_context(|| format!("cannot read {}", path.display()))?;
        let doubled: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).map(|(id, _)| id).collect();
        if let [first, ..] = doubled[..] {
            bail!("{} has {} webhooks twice, {first} is one", path.display(), doubled.len());
        }
        let missing: Vec<_> = accepted.iter().filter(|id| !stored.contains_key(*id)).collect();
        if let [first, ..] = missing[..] {
            lack =
                Some(format!("{} lacks {} accepted webhooks, {first} is one", path.display(), missing.len()));
        }
    }
    Ok(lack)
}

/// How often each delivery id is in the store of a server that does not run. Redeliveries are left out.
async fn delivery_ids(path: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let store = SqliteStore::open(path, Options::default())?;
    let mut counts = BTreeMap::new();
    let mut after = Sequence::ZERO;
    loop {
        let page = store.read(after, &Filter::default(), PAGE).await?;
        if page.read_to <= after {
            break;
        }
        after = page.read_to;
        for event in page.events.iter().filter(|event| !event.redelivery) {
            *counts.entry(event.webhook.facts.delivery_id.to_string()).or_default() += 1;
        }
    }
    store.close().await;
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::testing::webhook;

    #[tokio::test]
    async fn a_missing_webhook_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = SqliteStore::open(&path, Options::default()).unwrap();
        store.append(webhook(1, "octo/one", 2)).await.unwrap();
        store.close().await;
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let stores = [path];
        assert_eq!(missing(&stores, &ids(&["delivery-1"])).await.unwrap(), None);
        let lack = missing(&stores, &ids(&["delivery-1", "delivery-2"])).await.unwrap().unwrap();
        assert!(lack.contains("lacks 1 accepted webhooks, delivery-2 is one"), "{lack}");
    }
}
