//! Large reads that several callers want at the same moment are made once for all of them.
//!
//! An answer is shared only with calls that had come before its read began, so each caller sees everything that was committed before it
//! asked. Nothing is kept beyond that: this is no cache.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

/// The reads that are going on, by what they read. The key says everything that the answer depends on, the tenant first.
#[derive(Debug)]
pub(crate) struct Coalescer<K> {
    slots: Mutex<HashMap<K, Arc<Slot>>>,
}

impl<K> Default for Coalescer<K> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// How many reads have begun.
    begun: AtomicU64,
    /// The newest answer and the number of its read. Locked while one goes on: one at a time.
    answer: tokio::sync::Mutex<Option<(u64, Bytes)>>,
}

impl<K: Hash + Eq + Clone> Coalescer<K> {
    /// The answer of a read that began after this call: another caller's, or one's own. An error is its caller's alone.
    pub(crate) async fn read<E>(&self, key: K, read: impl AsyncFnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let slot = self.lock().entry(key.clone()).or_default().clone();
        let leave = Leave { coalescer: self, key, slot };
        let begun_before = leave.slot.begun.load(Ordering::SeqCst);
        let mut answer = leave.slot.answer.lock().await;
        if let Some((number, bytes)) = answer.as_ref()
            && *number > begun_before
        {
            return Ok(bytes.clone());
        }
        let number = leave.slot.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let bytes = read().await?;
        *answer = Some((number, bytes.clone()));
        Ok(bytes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a slot when its last caller goes, also when that is by a broken connection.
struct Leave<'a, K: Hash + Eq + Clone> {
    coalescer: &'a Coalescer<K>,
    key: K,
    slot: Arc<Slot>,
}

impl<K: Hash + Eq + Clone> Drop for Leave<'_, K> {
    fn drop(&mut self) {
        let mut slots = self.coalescer.lock();
        // The table's and ours: nobody else can get one while the table is locked.
        if Arc::strong_count(&self.slot) == 2 {
            slots.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::atomic::AtomicUsize};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_share_a_read_that_began_after_them_and_never_an_older_one() {
        let coalescer = Arc::new(Coalescer::<&str>::default());
        let reads = Arc::new(AtomicUsize::new(0));
        let (entered, proceed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let call = |coalescer: Arc<Coalescer<&'static str>>| {
            let (reads, entered, proceed) = (reads.clone(), entered.clone(), proceed.clone());
            tokio::spawn(async move {
                coalescer
                    .read("key", async || {
                        let number = reads.fetch_add(1, Ordering::SeqCst) + 1;
                        entered.notify_one();
                        proceed.notified().await;
                        Ok::<_, Infallible>(Bytes::from(number.to_string()))
                    })
                    .await
                    .unwrap()
            })
        };
        let first = call(coalescer.clone());
        entered.notified().await;
        // These come while the first reads: its answer may be too old for them.
        let later: Vec<_> = (0..5).map(|_| call(coalescer.clone())).collect();
        while Arc::strong_count(coalescer.lock().get("key").unwrap()) < 7 {
            tokio::task::yield_now().await;
        }
        proceed.notify_one();
        assert_eq!(first.await.unwrap(), "1");
        entered.notified().await;
        proceed.notify_one();
        for caller in later {
            assert_eq!(caller.await.unwrap(), "2");
        }
        assert_eq!(reads.load(Ordering::SeqCst), 2);
        assert!(coalescer.lock().is_empty(), "nothing is kept when everybody has gone");
    }

    #[tokio::test]
    async fn an_error_is_not_shared_and_leaves_nothing_behind() {
        let coalescer = Coalescer::<u8>::default();
        let failed: Result<Bytes, &str> = coalescer.read(1, async || Err("away")).await;
        assert_eq!(failed, Err("away"));
        assert_eq!(coalescer.read::<&str>(1, async || Ok(Bytes::from_static(b"x"))).await, Ok(Bytes::from_static(b"x")));
        assert!(coalescer.lock().is_empty());
    }
}
