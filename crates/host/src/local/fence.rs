//! One operation at a time on an instance, and never one that has been taken over.
//!
//! The newest generation of each instance is on disk before anything is done for it. A call with an older one is refused; one that is
//! still at work is told to stop when a newer one arrives, and the newer one waits until it has.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ocore_model::ids::InstanceId;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::{
    durable::{self, blocking},
    layout::Layout,
};
use crate::{
    api::Fence,
    error::{HostError, Result},
};

/// How long the fence of a destroyed instance is kept.
const KEPT: Duration = Duration::from_hours(30 * 24);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Newest {
    generation: i64,
}

#[derive(Default)]
struct Entry {
    turn: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newest: Option<i64>,
    /// The generation for which the leavings of older ones have been cleared away.
    cleared: Option<i64>,
    holder: Option<(i64, CancellationToken)>,
}

/// All fences of a server.
pub struct Fences {
    directory: PathBuf,
    entries: Mutex<HashMap<InstanceId, Arc<Entry>>>,
}

/// The right to work on an instance, for as long as this value lives.
pub struct Claim {
    pub instance: InstanceId,
    pub fence: Fence,
    /// Cancelled when a newer generation wants the instance.
    pub superseded: CancellationToken,
    entry: Arc<Entry>,
    _turn: OwnedMutexGuard<()>,
}

impl Claim {
    /// This is the first call of its generation here, or the first after a restart: what older calls left running must go.
    pub fn must_clear(&self) -> bool {
        self.entry.lock().cleared != Some(self.fence.generation)
    }

    /// What older calls left running is gone.
    pub fn cleared(&self) {
        self.entry.lock().cleared = Some(self.fence.generation);
    }

    /// Refuses to go on when a newer generation has come. Called before each effect of a call that has several.
    pub fn check(&self) -> Result<()> {
        match self.entry.lock().newest {
            Some(newest) if newest > self.fence.generation => Err(HostError::Fenced { held: self.fence.generation, newest }),
            _ => Ok(()),
        }
    }

    /// Does the work of a call, and breaks it off with `Fenced` as soon as a newer generation wants the instance. Work must bear to be dropped
    /// at any `await`: programs that it waits for end, half-made directories go.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.superseded.cancelled() => Err(self.check().err().unwrap_or(HostError::Cancelled)),
            result = work => result,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.entry.lock().holder = None;
    }
}

impl Entry {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fences {
    /// The directory must be there.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, entries: Mutex::default() }
    }

    /// Waits for the turn. Refused when a newer generation has been seen, also while waiting.
    pub async fn enter(&self, instance: InstanceId, fence: Fence) -> Result<Claim> {
        let entry = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(entries.entry(instance).or_default())
        };
        self.raise(instance, fence.generation, &entry).await?;
        let turn = Arc::clone(&entry.turn).lock_owned().await;
        let superseded = CancellationToken::new();
        {
            let mut state = entry.lock();
            if let Some(newest) = state.newest
                && newest > fence.generation
            {
                return Err(HostError::Fenced { held: fence.generation, newest });
            }
            state.holder = Some((fence.generation, superseded.clone()));
        }
        Ok(Claim { instance, fence, superseded, entry, _turn: turn })
    }

    async fn raise(&self, instance: InstanceId, generation: i64, entry: &Arc<Entry>) -> Result<()> {
        let path = self.directory.join(format!("{instance}.json"));
        let entry = Arc::clone(entry);
        blocking(move || {
            // The lock is held while the file is written, so that the file never goes back.
            let mut state = entry.lock();
            let stored = durable::read_json::<Newest>(&path)?.map(|newest| newest.generation);
            let newest = stored.max(state.newest);
            state.newest = newest;
            match newest {
                Some(newest) if newest > generation => return Err(HostError::Fenced { held: generation, newest }),
                Some(newest) if newest == generation => {}
                _ => {
                    durable::write_json(&path, &Newest { generation })?;
                    state.newest = Some(generation);
                }
            }
            if let Some((held, token)) = &state.holder
                && *held < generation
            {
                token.cancel();
            }
            Ok(())
        })
        .await
    }
}

/// Removes the fences of instances that were destroyed so long ago that no worker of theirs can still be at work.
pub(super) fn prune(layout: &Layout) -> Result<()> {
    let read_error = |error| HostError::machine_from("the fences of instances could not be read", error);
    for entry in std::fs::read_dir(layout.fences()).map_err(read_error)?.flatten() {
        let Some(instance) = entry.path().file_stem().and_then(|stem| stem.to_str()?.parse::<InstanceId>().ok()) else { continue };
        let is_old = entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|time| time.elapsed().is_ok_and(|age| age > KEPT));
        if is_old && !layout.records(instance).exists() {
            durable::remove_fleeting(&entry.path()).map_err(read_error)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ocore_model::ids::OperationId;

    use super::*;

    fn fence(generation: i64) -> Fence {
        Fence { operation: OperationId::new(), generation }
    }

    #[tokio::test]
    async fn an_older_generation_is_refused_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let instance = InstanceId::new();
        let fences = Fences::new(directory.path().to_owned());
        drop(fences.enter(instance, fence(5)).await.unwrap());
        drop(fences.enter(instance, fence(5)).await.unwrap());
        assert!(matches!(fences.enter(instance, fence(4)).await, Err(HostError::Fenced { held: 4, newest: 5 })));
        let fences = Fences::new(directory.path().to_owned());
        assert!(matches!(fences.enter(instance, fence(4)).await, Err(HostError::Fenced { held: 4, newest: 5 })));
        assert!(fences.enter(InstanceId::new(), fence(1)).await.is_ok(), "instances do not fence each other");
    }

    #[tokio::test]
    async fn a_newer_generation_stops_the_one_at_work_and_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let instance = InstanceId::new();
        let fences = Arc::new(Fences::new(directory.path().to_owned()));
        let old = fences.enter(instance, fence(1)).await.unwrap();
        let newer = tokio::spawn({
            let fences = Arc::clone(&fences);
            async move { fences.enter(instance, fence(2)).await }
        });
        old.superseded.cancelled().await;
        assert!(!newer.is_finished());
        assert!(matches!(old.run(std::future::pending::<Result<()>>()).await, Err(HostError::Fenced { held: 1, newest: 2 })));
        drop(old);
        let newer = newer.await.unwrap().unwrap();
        assert!(newer.must_clear());
        newer.cleared();
        drop(newer);
        assert!(!fences.enter(instance, fence(2)).await.unwrap().must_clear());
    }
}
