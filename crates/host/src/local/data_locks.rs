//! Who is at work on the files of a data set or a snapshot, in this process.
//!
//! Claims keep operations on one instance apart. A snapshot is taken without a claim, of an instance that an operation may hold, and brought to
//! life for another instance; so the directories have locks of their own. *Sharing* one means: it stays where it is. *Owning* one means: nobody
//! starts its cluster, copies it or removes it.
//!
//! The same for an instance: who starts something of it without a claim *shares* it until that is recorded, and who ends what no record accounts for
//! *owns* it.
//!
//! Order: a snapshot's before a data set's before an instance's.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use uuid::Uuid;

/// The locks that somebody holds or waits for, by the ids of data sets, snapshots and instances.
#[derive(Debug, Default)]
pub(super) struct DataLocks(Mutex<HashMap<Uuid, Arc<RwLock<()>>>>);

impl DataLocks {
    pub(super) async fn share(&self, id: impl Into<Uuid>) -> OwnedRwLockReadGuard<()> {
        self.of(id.into()).read_owned().await
    }

    pub(super) async fn own(&self, id: impl Into<Uuid>) -> OwnedRwLockWriteGuard<()> {
        self.of(id.into()).write_owned().await
    }

    fn of(&self, id: Uuid) -> Arc<RwLock<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(id).or_default())
    }
}
