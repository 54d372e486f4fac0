//! The storage pool: a directory on a file system whose copies share their blocks, made by ourselves where there is none.
//!
//! Where the disk has no reflinks and we are root, a sparse XFS image is mounted over the pool's directory. Where that cannot be, copies are
//! plain ones, and [`PoolFacts::reflinks`] says so.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{ioctl_ficlone, statvfs},
    mount::UnmountFlags,
};
use tokio::sync::Mutex;

use super::{
    config::PoolConfig,
    copy,
    durable::{self, blocking},
    exec::Program,
};
use crate::{
    api::PoolFacts,
    error::{HostError, Result},
};

/// What one file of a reflinked copy takes at most when its contents are shared: an inode and its part of directories and trees, in bytes.
const SHARED_ENTRY_COST: u64 = 4096;
/// The part of a database that a copy and its source soon no longer share: recovery, a start of Odoo and an hour's work change few pages.
const DIVERGES: u64 = 20;
/// The same for a small one, in bytes: WAL, hint bits, statistics.
const DIVERGES_AT_LEAST: u64 = 16 * 1024 * 1024;
/// No more than this part of a pool is kept free, so that a small one can be used at all.
const LARGEST_RESERVE: u64 = 6;
/// An image of which less than this part is free grows.
const NEARLY_FULL: u64 = 10;
/// How much an image grows at once, in bytes.
const GROWTH: u64 = 16 * 1024 * 1024 * 1024;
const MOUNT_TIME_LIMIT: Duration = Duration::from_mins(2);

/// The open pool.
#[derive(Debug, Clone)]
pub struct Pool {
    config: PoolConfig,
    reflinks: bool,
    /// The image is mounted at the pool's path.
    imaged: bool,
    /// Two that grow at once could make the image smaller.
    growth: Arc<Mutex<()>>,
}

impl Pool {
    /// Finds the pool or makes it. Mounts its image when that is not mounted, also one that an earlier run has made.
    pub async fn open(config: &PoolConfig) -> Result<Self> {
        durable::make_directory(&config.path, 0o711)?;
        let mut imaged = false;
        if is_mount_point(&config.path)? {
            imaged = config.image.as_ref().is_some_and(|image| image.exists());
        } else if let Some(image) = &config.image {
            if image.exists() {
                mount(image, &config.path).await?;
                imaged = true;
            } else if !clones(&config.path) {
                imaged = Self::make_image(config, image).await;
            }
        }
        if imaged {
            durable::make_directory(&config.path, 0o711)?;
        }
        let pool = Self { reflinks: clones(&config.path), imaged, config: config.clone(), growth: Arc::default() };
        if !pool.reflinks {
            tracing::warn!(
                path = %config.path.display(),
                "the storage pool has no reflinks: each copy of an instance takes its full size and time; put it on XFS or btrfs"
            );
        }
        Ok(pool)
    }

    /// Whether an image is in place now. That it could not be made is said and no error: plain copies work too.
    async fn make_image(config: &PoolConfig, image: &Path) -> bool {
        let is_empty = std::fs::read_dir(&config.path).is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty {
            tracing::warn!(path = %config.path.display(), "the pool has contents, so no image with reflinks is mounted over it");
            return false;
        }
        match create_image(image, config.image_size).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "no image with reflinks could be made");
                return false;
            }
        }
        if let Err(error) = mount(image, &config.path).await {
            tracing::warn!(%error, "the new image with reflinks could not be mounted");
            if let Err(error) = durable::remove_fleeting(image) {
                tracing::warn!(%error, "the image could not be removed");
            }
            return false;
        }
        true
    }

    pub fn path(&self) -> &Path {
        &self.config.path
    }

    pub fn has_reflinks(&self) -> bool {
        self.reflinks
    }

    pub async fn facts(&self) -> Result<PoolFacts> {
        let pool = self.clone();
        blocking(move || {
            let space = pool.space()?;
            Ok(PoolFacts {
                path: pool.config.path.display().to_string(),
                file_system: file_system(&pool.config.path)?,
                reflinks: pool.reflinks,
                total_bytes: space.total,
                available_bytes: space.available,
            })
        })
        .await
    }

    /// A copy of the tree will fit, after the pool has grown if it may; otherwise an error that says how much is left.
    pub async fn require_for_copy(&self, tree: &Path, what: &str) -> Result<()> {
        if self.fits_any_copy().await? {
            return Ok(());
        }
        self.require(self.copy_cost(tree).await?, what).await
    }

    /// A copy of whatever is in the pool would fit, so that no tree needs to be measured: nothing in the pool takes more than all of it.
    pub async fn fits_any_copy(&self) -> Result<bool> {
        let pool = self.clone();
        blocking(move || {
            let space = pool.space()?;
            Ok(space.available >= pool.cost(space.used, space.entries, space.used).saturating_add(pool.reserve(&space)))
        })
        .await
    }

    /// What a copy of the tree will take, in bytes.
    pub async fn copy_cost(&self, tree: &Path) -> Result<u64> {
        let tree = tree.to_owned();
        let shared = self.reflinks;
        blocking(move || {
            let (bytes, entries) = copy::measure(&tree)?;
            Ok(if shared { entries * SHARED_ENTRY_COST } else { bytes })
        })
        .await
    }

    /// What a copy of files of that length, in that many entries and with a database of that length among them, will take, in bytes. Where blocks are
    /// shared that is what describes them, and what source and copy will soon no longer share: an estimate.
    pub fn cost(&self, bytes: u64, entries: u64, database_bytes: u64) -> u64 {
        if self.reflinks { entries * SHARED_ENTRY_COST + (database_bytes / DIVERGES).max(DIVERGES_AT_LEAST) } else { bytes }
    }

    /// That much is left, after the pool has grown if it may; otherwise an error that says how much is.
    pub async fn require(&self, bytes: u64, what: &str) -> Result<()> {
        if self.has_room(bytes).await? {
            return Ok(());
        }
        self.grow(bytes).await?;
        if self.has_room(bytes).await? {
            return Ok(());
        }
        Err(self.full(bytes, what).await)
    }

    /// What works in a copy may take half of what is kept free, and ends before what is live cannot write any more. The pool grows first, if it may.
    pub async fn require_for_the_live(&self) -> Result<()> {
        let has_room = async || {
            let pool = self.clone();
            blocking(move || pool.space().map(|space| space.available >= pool.reserve(&space) / 2)).await
        };
        if has_room().await? {
            return Ok(());
        }
        self.grow(0).await?;
        if has_room().await? { Ok(()) } else { Err(self.full(0, "what is live").await) }
    }

    /// Makes an image that is nearly full larger, if it may grow and the disk below has room: what instances write asks nobody before.
    pub async fn tend(&self) -> Result<()> {
        let pool = self.clone();
        let is_nearly_full = blocking(move || {
            let space = pool.space()?;
            Ok(pool.imaged && Space::of(&pool.config.path)?.available < space.total / NEARLY_FULL)
        })
        .await?;
        if is_nearly_full { self.grow(0).await } else { Ok(()) }
    }

    /// The error of a pool that has no room for something.
    pub async fn full(&self, needed: u64, what: &str) -> HostError {
        let pool = self.clone();
        let space = blocking(move || {
            let space = pool.space()?;
            Ok((space.available, pool.reserve(&space)))
        });
        let (left, reserve) = match space.await {
            Ok((available, reserve)) => (format!("has {} left", human(available)), reserve),
            Err(_) => ("is full".to_owned(), self.config.reserve),
        };
        HostError::machine(format!(
            "the storage pool {} {left}, {what} needs {} and {} stay free: remove instances or snapshots that are not needed, or make the pool larger",
            self.config.path.display(),
            if needed == 0 { "room".to_owned() } else { human(needed) },
            human(reserve),
        ))
    }

    /// Unmounts the pool's image. Not mounted is done. Nothing may use the pool any more.
    pub async fn unmount(&self) -> Result<()> {
        unmount(&self.config).await
    }

    async fn has_room(&self, bytes: u64) -> Result<bool> {
        let pool = self.clone();
        blocking(move || {
            let space = pool.space()?;
            Ok(space.available >= bytes.saturating_add(pool.reserve(&space)))
        })
        .await
    }

    /// What stays free, so that PostgreSQL can still write what it must: it stops when it cannot.
    fn reserve(&self, space: &Space) -> u64 {
        self.config.reserve.min(space.total / LARGEST_RESERVE)
    }

    fn space(&self) -> Result<Space> {
        let mut space = Space::of(&self.config.path)?;
        // A sparse image cannot give more than the disk below it has.
        if self.imaged
            && let Some(image) = &self.config.image
        {
            let below = Space::of(image.parent().unwrap_or(Path::new("/")))?;
            let metadata =
                std::fs::metadata(image).map_err(|error| HostError::machine_from("the pool's image could not be read", error))?;
            let allocated = metadata.blocks() * 512;
            let reusable = allocated.saturating_sub(space.used);
            let free = below.available.saturating_sub(self.reserve(&below));
            space.available = space.available.min(free.saturating_add(reusable));
        }
        Ok(space)
    }

    /// Makes the image and its file system larger by what is needed, up to its limit. Nothing to do without an image.
    async fn grow(&self, needed: u64) -> Result<()> {
        let Some(image) = self.config.image.as_ref().filter(|_| self.imaged) else { return Ok(()) };
        let _one_at_a_time = self.growth.lock().await;
        let below = Space::of(image.parent().unwrap_or(Path::new("/")))?;
        if below.available < self.reserve(&below) {
            tracing::warn!(image = %image.display(), "the pool's image cannot grow: the disk below it is nearly full");
            return Ok(());
        }
        let size_error =
            |error: io::Error| HostError::machine_from(format!("the size of {} could not be changed: {error}", image.display()), error);
        let file = OpenOptions::new().write(true).open(image).map_err(size_error)?;
        let size = file.metadata().map_err(size_error)?.len();
        let wanted = size.saturating_add(needed.saturating_add(self.config.reserve).max(GROWTH)).min(self.config.image_size_limit);
        if wanted <= size {
            return Ok(());
        }
        file.set_len(wanted).map_err(size_error)?;
        let found = Program::new("losetup").args(["--noheadings", "--output", "NAME", "--associated"]).arg(image).run().await?;
        let found = found.expect_success("the pool's loop device was not found")?.stdout_text();
        let device = found.lines().next().unwrap_or_default().trim();
        Program::new("losetup").args(["--set-capacity", device]).run().await?.expect_success("the pool's loop device did not grow")?;
        Program::new("xfs_growfs").arg(&self.config.path).run().await?.expect_success("the pool's file system did not grow")?;
        tracing::info!(bytes = wanted, "the pool's image has grown");
        Ok(())
    }
}

/// Unmounts what is mounted at a pool's path. Not mounted is done.
pub async fn unmount(config: &PoolConfig) -> Result<()> {
    let path = config.path.clone();
    blocking(move || {
        while is_mount_point(&path)? {
            rustix::mount::unmount(&path, UnmountFlags::empty()).map_err(|error| {
                HostError::machine_from(
                    format!("the pool {} could not be unmounted ({error}); see what still uses it: `fuser -vm`", path.display()),
                    error,
                )
            })?;
        }
        Ok(())
    })
    .await
}

/// Unmounts the pool and removes it with all that is in it, and its image. Absent is done.
pub async fn purge(config: &PoolConfig) -> Result<()> {
    unmount(config).await?;
    let config = config.clone();
    blocking(move || {
        if let Some(image) = &config.image {
            for path in [image.clone(), image.with_extension("new")] {
                durable::remove_fleeting(&path)
                    .map_err(|error| HostError::machine_from(format!("{} could not be removed: {error}", path.display()), error))?;
            }
        }
        durable::remove_tree(&config.path)
    })
    .await
}

struct Space {
    total: u64,
    used: u64,
    available: u64,
    /// Files, directories and links.
    entries: u64,
}

impl Space {
    fn of(path: &Path) -> Result<Self> {
        let found = statvfs(path)
            .map_err(|error| HostError::machine_from(format!("the free space of {} could not be read", path.display()), error))?;
        Ok(Self {
            total: found.f_blocks * found.f_frsize,
            used: found.f_blocks.saturating_sub(found.f_bfree) * found.f_frsize,
            available: found.f_bavail * found.f_frsize,
            entries: found.f_files.saturating_sub(found.f_ffree),
        })
    }
}

/// The file is complete when it has its name.
async fn create_image(image: &Path, size: u64) -> Result<()> {
    let aside = image.with_extension("new");
    let size_error = |error: io::Error| HostError::machine_from(format!("the image {} could not be made: {error}", image.display()), error);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside).map_err(size_error)?;
    file.set_len(size).map_err(size_error)?;
    drop(file);
    let made = Program::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(&aside).run().await;
    let made = made.map_err(HostError::from).and_then(|finished| finished.expect_success("the pool's file system could not be made"));
    if let Err(error) = made {
        durable::remove_fleeting(&aside).map_err(size_error)?;
        return Err(error);
    }
    std::fs::rename(&aside, image).and_then(|()| durable::sync_parent(image)).map_err(size_error)
}

/// With `discard`, removed copies give their blocks back to the disk below.
async fn mount(image: &Path, path: &Path) -> Result<()> {
    Program::new("mount")
        .args(["-t", "xfs", "-o", "loop,discard,noatime,nodev,nosuid"])
        .args([image, path])
        .time_limit(MOUNT_TIME_LIMIT)
        .run()
        .await?
        .expect_success(&format!("the pool's image {} could not be mounted", image.display()))?;
    Ok(())
}

/// Tries it: a file is cloned.
fn clones(directory: &Path) -> bool {
    let attempt = || -> io::Result<()> {
        let mut source = tempfile::tempfile_in(directory)?;
        source.write_all(&[1; 4096])?;
        let target: File = tempfile::tempfile_in(directory)?;
        ioctl_ficlone(&target, &source)?;
        Ok(())
    };
    attempt().is_ok()
}

fn is_mount_point(path: &Path) -> Result<bool> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Ok(mounts()?.iter().any(|(point, _)| *point == path))
}

fn file_system(path: &Path) -> Result<String> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // The last of the longest: a later mount covers an earlier one.
    let found = mounts()?.into_iter().filter(|(point, _)| path.starts_with(point)).max_by_key(|(point, _)| point.as_os_str().len());
    Ok(found.map_or_else(|| "unknown".to_owned(), |(_, kind)| kind))
}

/// Mount points and file system types: proc_pid_mountinfo(5).
fn mounts() -> Result<Vec<(PathBuf, String)>> {
    let text =
        std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| HostError::machine_from("the mounts could not be read", error))?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = before.split(' ').nth(4)?;
            Some((PathBuf::from(unescape(point)), after.split(' ').next()?.to_owned()))
        })
        .collect())
}

/// Spaces, tabs, line ends and backslashes are written as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, meaning)| text.replace(code, meaning))
}

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(human(512), "512 bytes");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(20 * 1024 * 1024 * 1024), "20.0 GiB");
    }
}
