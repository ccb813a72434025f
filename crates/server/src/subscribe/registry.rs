//! Who is attached: one stream per client id. A newer one takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use gitstafette_core::event::ClientId;
use tokio_util::sync::CancellationToken;

/// The attached streams by client id.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    attached: DashMap<ClientId, Entry>,
    next: AtomicU64,
}

#[derive(Clone, Debug)]
struct Entry {
    stream: u64,
    taken_over: CancellationToken,
    ended: CancellationToken,
}

/// A stream's place in the registry, left when it is dropped.
#[derive(Debug)]
pub(crate) struct Attachment {
    registry: Arc<Registry>,
    client: ClientId,
    entry: Entry,
}

impl Registry {
    /// Attaches a stream. One that is attached under the same id is told to end, and has ended when this returns:
    /// what it still acknowledges counts.
    pub(crate) async fn attach(self: &Arc<Self>, client: ClientId) -> Attachment {
        let entry = Entry {
            stream: self.next.fetch_add(1, Ordering::Relaxed),
            taken_over: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        let previous = self.attached.insert(client.clone(), entry.clone());
        let attachment = Attachment { registry: Arc::clone(self), client, entry };
        if let Some(previous) = previous {
            previous.taken_over.cancel();
            previous.ended.cancelled().await;
        }
        attachment
    }

    /// How many streams are attached.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.attached.len()
    }
}

impl Attachment {
    /// Waits until a newer stream takes over.
    pub(crate) async fn taken_over(&self) {
        self.entry.taken_over.cancelled().await;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.registry.attached.remove_if(&self.client, |_, entry| entry.stream == self.entry.stream);
        self.entry.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_stream_waits_for_the_older_to_end() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let first = registry.attach(client.clone()).await;
        let other = registry.attach("b".parse().unwrap()).await;
        let second = tokio::spawn({
            let (registry, client) = (Arc::clone(&registry), client.clone());
            async move { registry.attach(client).await }
        });
        first.taken_over().await;
        assert!(!second.is_finished());
        drop(first);
        let second = second.await.unwrap();
        assert_eq!(registry.len(), 2, "the older one's end does not remove the newer one");
        drop(second);
        drop(other);
        assert_eq!(registry.len(), 0);
    }
}
