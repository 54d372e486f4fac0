//! Copies of directory trees that are whole or not there.
//!
//! A tree is made under a temporary name that its maker holds a lock on, synced, and renamed. What a crash leaves has the temporary name and
//! no lock, and [`sweep`] removes it.

mod tree;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;

pub(super) use self::tree::{Take, TreeCopy, is_full, read_steadily};
use super::{
    below::{self, Directory},
    durable::{self, blocking},
    pool::Pool,
};
use crate::error::{HostError, Result};

const TEMPORARY: &str = ".new-";
const REMOVED: &str = ".removed-";

/// A directory in the making beside its final place; gone when dropped before [`WorkDirectory::keep`].
pub struct WorkDirectory(Arc<Work>);

/// Keeps something, usually a [`WorkDirectory`], from going away under a thread that still works in it.
#[derive(Clone)]
pub struct Hold {
    _held: Arc<dyn Send + Sync>,
}

impl Hold {
    /// It is dropped with the last clone.
    pub fn of(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Arc::new(held) }
    }
}

struct Work {
    path: PathBuf,
    target: PathBuf,
    _lock: Flock<File>,
    kept: AtomicBool,
}

impl WorkDirectory {
    /// An empty directory (mode 0700, owner root) that will become `target`. What an earlier attempt left is removed.
    pub async fn create(target: &Path) -> Result<Self> {
        let target = target.to_owned();
        blocking(move || {
            let path = beside(&target, TEMPORARY);
            let busy = |error| HostError::machine_from(format!("{} is being made by another process", target.display()), error);
            if path.exists() {
                let _leftover = lock(&path).map_err(busy)?;
                durable::remove_tree(&path)?;
            }
            durable::make_directory(&path, 0o700)?;
            let lock = lock(&path).map_err(busy)?;
            Ok(Self(Arc::new(Work { path, target, _lock: lock, kept: AtomicBool::new(false) })))
        })
        .await
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// For a thread that works in it.
    pub fn hold(&self) -> Hold {
        Hold { _held: Arc::<Work>::clone(&self.0) }
    }

    /// Syncs the file system and gives the directory its final name. Fails when there is something of that name.
    pub async fn keep(self) -> Result<()> {
        // It moves along, so that dropping this future cannot remove the directory while it is being renamed.
        blocking(move || {
            let Work { path, target, kept, .. } = &*self.0;
            let keep = || -> io::Result<()> {
                durable::sync_file_system(path)?;
                std::fs::rename(path, target)?;
                kept.store(true, Ordering::Relaxed);
                durable::sync_parent(target)
            };
            keep().map_err(|error| HostError::machine_from(format!("{} could not be put in its place: {error}", target.display()), error))
        })
        .await
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed)
            && let Err(error) = durable::remove_tree(&self.path)
        {
            tracing::warn!(%error, "a half-made directory stays until the next start");
        }
    }
}

/// Copies a tree at rest with owners, permissions and times to `target`, which lies in `work`; shares the blocks when the pool has reflinks. When
/// there is something in `target` already, it is made equal to the source. On failure nothing of it stays that [`WorkDirectory`] does not remove.
pub async fn copy_tree(pool: &Pool, source: &Path, target: &Path, work: &WorkDirectory, cancel: &[CancellationToken]) -> Result<()> {
    let what = format!("this copy of {}", source.display());
    pool.require_for_copy(source, &what).await?;
    let again = target.is_dir();
    let copied =
        TreeCopy { again, prune: again, ..TreeCopy::exact(pool.has_reflinks()) }.run(source, target, work.hold(), cancel, None).await;
    match copied {
        Err(error) if is_full(&error) => Err(pool.full(pool.copy_cost(source).await?, &what).await),
        copied => copied.map(drop),
    }
}

/// Two copies side by side into one directory. When one fails the other one is ended and waited for, so that nobody works there any more and a next
/// attempt may begin; the answer is the failure that was first.
pub async fn side_by_side<A, B, First, Second>(
    cancel: &[CancellationToken],
    first: impl FnOnce(Vec<CancellationToken>) -> First,
    second: impl FnOnce(Vec<CancellationToken>) -> Second,
) -> Result<(A, B)>
where
    First: Future<Output = Result<A>>,
    Second: Future<Output = Result<B>>,
{
    let failed = CancellationToken::new();
    let cancel = || cancel.iter().cloned().chain([failed.clone()]).collect();
    let first = async { first(cancel()).await.inspect_err(|_| failed.cancel()) };
    let second = async { second(cancel()).await.inspect_err(|_| failed.cancel()) };
    match tokio::join!(first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        // The one that was ended for the other one's sake has nothing to tell.
        (Ok(_) | Err(HostError::Cancelled), Err(error)) | (Err(error), _) => Err(error),
    }
}

/// Gives a whole tree to another owner and group; links are changed, not followed, and no file that has a second name.
pub async fn change_owner(tree: &Path, uid: u32, gid: u32) -> Result<()> {
    let tree = tree.to_owned();
    blocking(move || {
        below::change_owner(&tree, uid, gid, |_| false)
            .map_err(|error| HostError::machine_from(format!("the owner of {} could not be changed: {error}", tree.display()), error))
    })
    .await
}

/// Takes the directory away at once, by a rename, and then removes it. Absent is done.
pub async fn remove(directory: &Path) -> Result<()> {
    let directory = directory.to_owned();
    blocking(move || {
        let aside = beside(&directory, REMOVED);
        durable::remove_tree(&aside)?;
        match std::fs::rename(&directory, &aside) {
            Ok(()) => durable::remove_tree(&aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(HostError::machine_from(format!("{} could not be removed: {error}", directory.display()), error)),
        }
    })
    .await
}

/// Removes what copies and removals that were broken off have left in a directory. Absent is done.
pub fn sweep(directory: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(HostError::machine_from(format!("{} could not be read: {error}", directory.display()), error)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_left = name.starts_with(REMOVED) || (name.starts_with(TEMPORARY) && lock(&entry.path()).is_ok());
        if is_left {
            tracing::info!(path = %entry.path().display(), "removes what a crash has left");
            durable::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// How much a tree takes: bytes of its files as the disk counts them, and how many entries it has.
pub fn measure(tree: &Path) -> Result<(u64, u64)> {
    let mut bytes = 0_u64;
    let mut entries = 1;
    let measured = Directory::open(tree).and_then(|directory| {
        directory.walk(|entry| {
            bytes += entry.status.st_blocks.cast_unsigned() * 512;
            entries += 1;
            Ok(())
        })
    });
    measured.map_err(|error: io::Error| HostError::machine_from(format!("{} could not be read: {error}", tree.display()), error))?;
    Ok((bytes, entries))
}

fn beside(target: &Path, prefix: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(prefix);
    name.push(target.file_name().unwrap_or_default());
    target.with_file_name(name)
}

fn lock(directory: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(directory)?, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}
