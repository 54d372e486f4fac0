//! A copy of a live file store that is kept warm, so that the next copy of it finds most of its work done.
//!
//! What a file costs a copy is the file system's bookkeeping, some 60 µs whatever its size; looking whether it is unchanged costs a tenth of that.
//! So an instance that others are copied from, and whose own copies make users wait, has a warm copy of its file store beside its data. A
//! snapshot, or a deployment's copy, begins with it, by a rename, and then goes over all of the source: what is new is copied, what has gone is
//! removed, and nothing of the warm copy is believed but that a file of the same name, length and time of change is the same.
//!
//! So it may be in any state that some pass has left. Only a power cut could leave a file whose length and time have reached the disk and whose
//! contents have not: a warm copy counts as long as the system runs in which it was made, and its mark names that. Nothing is synced for it: whoever
//! needs it would wait for that.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ocore_model::ids::{DataSetId, InstanceId};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::file_store;
use crate::{
    api::Progress,
    error::{HostError, Result},
    local::{
        LocalHost,
        copy::{Hold, Take, TreeCopy, WorkDirectory},
        durable::{self, blocking},
    },
};

/// A pass looks at every file, so a warm copy is left alone for so long.
const FRESH: Duration = Duration::from_mins(5);
/// How often one who waits for a pass to end asks it to, in case another one began at that moment.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Who works on warm copies in this process: one at a time, and whoever needs one goes before whoever only keeps it warm.
#[derive(Debug, Default)]
pub(in crate::local) struct WarmCopies {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Ends the pass that runs.
    pass: Mutex<CancellationToken>,
}

impl WarmCopies {
    /// A pass's turn and end; `None` when somebody else is at work.
    fn begin(&self) -> Option<(OwnedMutexGuard<()>, CancellationToken)> {
        let mut pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = Arc::clone(&self.turn).try_lock_owned().ok()?;
        *pass = CancellationToken::new();
        Some((turn, pass.clone()))
    }

    /// Ends the pass that runs. None begins until the answer is dropped.
    pub(in crate::local) async fn pause(&self) -> OwnedMutexGuard<()> {
        loop {
            self.pass.lock().unwrap_or_else(PoisonError::into_inner).cancel();
            if let Ok(turn) = tokio::time::timeout(ASK_AGAIN, Arc::clone(&self.turn).lock_owned()).await {
                return turn;
            }
        }
    }
}

impl LocalHost {
    /// One pass over the file store of a data set, unless the last one was a moment ago.
    pub(in crate::local) async fn warm_up_copy(&self, instance: InstanceId, data_set: DataSetId, progress: &Progress) -> Result<()> {
        let source = self.layout.data_dir(instance, data_set);
        let (place, mark) = self.warm_copy(instance);
        if std::fs::metadata(&mark).and_then(|mark| mark.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH)) {
            return Ok(());
        }
        let has_room = async || self.pool.require_for_copy(&source, "a warm copy").await.is_ok();
        if !self.pool.has_reflinks() || !source.is_dir() || !has_room().await {
            return Ok(());
        }
        let Some((turn, end)) = self.warm_copies.begin() else { return Ok(()) };
        let again = blocking({
            let (place, mark) = (place.clone(), mark.clone());
            move || {
                // Whatever rights the source gives away, nobody but root comes here.
                durable::make_directory(place.parent().unwrap_or(&place), 0o700)?;
                // Not good while it is worked on.
                let is_good = unmark(&mark).map_err(|error| failed(&place, error))?;
                if !is_good {
                    durable::remove_tree(&place)?;
                }
                Ok(is_good && place.is_dir())
            }
        })
        .await?;
        let how = TreeCopy {
            share: true,
            owner: Some((0, 0)),
            live: true,
            again,
            prune: again,
            no_links: false,
            seal: file_store::is_content,
            take,
        };
        // The turn is the thread's: it ends with the thread, also when nobody waits for that any more.
        let hold = Hold::of(turn);
        how.run(&source, &place, hold.clone(), &[progress.cancel.clone(), end], None).await?;
        blocking(move || {
            let _hold = hold;
            boot().and_then(|boot| std::fs::write(&mark, boot)).map_err(|error| failed(&place, error))
        })
        .await
    }

    /// Moves the instance's warm copy, where there is one, to the directory in which its data are being copied, as the `data_dir`. Without it the
    /// copy takes longer.
    pub(in crate::local) async fn begin_with_warm_copy(&self, instance: InstanceId, work: &WorkDirectory) {
        let turn = self.warm_copies.pause().await;
        let ((place, mark), data_dir, hold) = (self.warm_copy(instance), work.path().join("data_dir"), work.hold());
        // Both are the thread's, also when nobody waits for it any more.
        let moved = blocking(move || {
            let _held = (turn, hold);
            let take = || if unmark(&mark)? { std::fs::rename(&place, &data_dir) } else { Ok(()) };
            take().map_err(|error| failed(&place, error))
        });
        if let Err(error) = moved.await {
            tracing::warn!(%instance, %error, "a copy begins from nothing");
        }
    }

    /// It, and its mark.
    fn warm_copy(&self, instance: InstanceId) -> (PathBuf, PathBuf) {
        let directory = self.layout.warm_copy(instance);
        (directory.join("data_dir"), directory.join("boot"))
    }
}

/// Whether it was marked as good, in this run of the system. It is not any more.
fn unmark(mark: &Path) -> io::Result<bool> {
    let found = match std::fs::read(mark) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    durable::remove_fleeting(mark)?;
    Ok(found == boot()?)
}

/// What names this run of the system (proc(5)).
fn boot() -> io::Result<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id")
}

/// The file store's contents and the directories above them. The rest is little, or changes all the time.
fn take(path: &Path) -> Take {
    let is_above = path.components().count() <= 3 && file_store::is_in(path);
    if is_above || file_store::is_content(path) { Take::All } else { Take::Nothing }
}

fn failed(place: &Path, error: io::Error) -> HostError {
    HostError::machine_from(format!("the warm copy {} could not be kept: {error}", place.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_contents_are_taken() {
        let name = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        let content = format!("filestore/odoo/da/{name}");
        for (path, taken) in [
            ("filestore", true),
            ("filestore/odoo", true),
            ("filestore/odoo/da", true),
            (content.as_str(), true),
            ("filestore/odoo/da/else", false),
            ("sessions", false),
            ("addons/19.0", false),
        ] {
            assert_eq!(take(Path::new(path)) == Take::All, taken, "{path}");
        }
    }
}
