//! Copies of trees whose owners may be at work in them, and may wish us ill.
//!
//! We are root, and the tree of a live instance belongs to a tenant's processes. So nothing is looked up by a path that they could bend
//! meanwhile: each directory is opened below the one that holds it, no link is followed, and nothing but files, directories and links is
//! copied. What vanishes between two looks is left out when the source is live.
//!
//! A few threads work on one tree, a directory at a time: what a small file costs is the file system's bookkeeping, which waits more than it
//! computes.

use std::{
    collections::HashSet,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use super::Hold;
use crate::{
    error::{HostError, Result},
    local::{below::DEEPEST, durable::blocking},
};

/// Larger files are shared in pieces of this size, in bytes: the file system keeps writers out of the whole file while it shares a piece of it.
const PIECE: u64 = 64 * 1024 * 1024;
/// How many threads copy one tree. More would take the processors from the source, which serves meanwhile.
const THREADS: usize = 2;
/// How many directories, each with two descriptors, may wait for a thread; what is beyond is copied by the thread that finds it.
const WAITING: usize = 64;
/// How often a file that changes while it is read is read again.
const STEADY_ATTEMPTS: usize = 100;
/// How long such a file may be, in bytes.
const STEADY_LIMIT: u64 = 1024 * 1024;
/// For a plain copy, in bytes.
const BUFFER: usize = 1024 * 1024;

/// What of an entry is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::local) enum Take {
    All,
    /// The directory, and nothing in it.
    Empty,
    Nothing,
}

/// How a tree is copied.
#[derive(Debug, Clone)]
pub(in crate::local) struct TreeCopy {
    /// Blocks are shared; where they cannot be, contents are copied.
    pub(in crate::local) share: bool,
    /// User and group of all that is made; `None` for those of the source.
    pub(in crate::local) owner: Option<(u32, u32)>,
    /// The source may change meanwhile.
    pub(in crate::local) live: bool,
    /// The target is there from an earlier pass: what is unchanged since stays, what is new or changed is copied, what has gone from the source
    /// stays too.
    pub(in crate::local) again: bool,
    /// With `again`: files that are not in the source any more are removed.
    pub(in crate::local) prune: bool,
    /// A link in the source is an error: a database has none, unless it is told to keep a part of itself elsewhere.
    pub(in crate::local) no_links: bool,
    /// Which files, by the path relative to the tree, become root's own, and readable for whoever reaches them: who may remove them may still not
    /// change them, and the copy can change hands without a change in each file.
    pub(in crate::local) seal: fn(&Path) -> bool,
    /// By the path relative to the tree.
    pub(in crate::local) take: fn(&Path) -> Take,
}

/// What was copied, or found there already.
#[derive(Debug, Default)]
pub(in crate::local) struct Copied {
    /// Lengths of all files together.
    pub(in crate::local) bytes: u64,
    pub(in crate::local) files: u64,
    /// Those that were asked for, relative to the tree, sorted.
    pub(in crate::local) noted: Vec<PathBuf>,
}

impl Copied {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
        self.noted.extend(other.noted);
    }
}

/// What a pass looks for besides: files that [`Copied::noted`] is to name, by relative path and status.
pub(in crate::local) type Note = fn(&Path, &Stat, i64) -> bool;

impl TreeCopy {
    /// Everything, with its owners, from a source at rest.
    pub(in crate::local) fn exact(share: bool) -> Self {
        Self { share, owner: None, live: false, again: false, prune: false, no_links: false, seal: |_| false, take: |_| Take::All }
    }

    /// Copies `source` to `target`. The directory that `hold` stands for is not removed while a thread still works in it. `note` is asked about each
    /// file with `since`, in seconds since 1970.
    pub(in crate::local) async fn run(
        self,
        source: &Path,
        target: &Path,
        hold: Hold,
        cancel: &[CancellationToken],
        note: Option<(Note, i64)>,
    ) -> Result<Copied> {
        let (source, target) = (source.to_owned(), target.to_owned());
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let cancel: Vec<CancellationToken> = cancel.iter().cloned().chain([stop]).collect();
        blocking(move || {
            let _hold = hold;
            let pass = Pass { how: &self, cancel: &cancel, note, queue: Mutex::default(), changed: Condvar::new() };
            match pass.tree(&source, &target) {
                Ok(copied) => Ok(copied),
                Err(Failure { error, .. }) if error.kind() == io::ErrorKind::Interrupted => Err(HostError::Cancelled),
                Err(Failure { path, error }) => {
                    Err(HostError::machine_from(format!("{} could not be copied: {error}", source.join(path).display()), error))
                }
            }
        })
        .await
    }
}

/// Whether an error says that the disk is full.
pub(in crate::local) fn is_full(error: &HostError) -> bool {
    match error {
        HostError::Machine { source: Some(source), .. } => source
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)),
        _ => false,
    }
}

struct Failure {
    /// Relative to the source.
    path: PathBuf,
    error: io::Error,
}

/// One walk over a tree, by several threads.
struct Pass<'a> {
    how: &'a TreeCopy,
    cancel: &'a [CancellationToken],
    note: Option<(Note, i64)>,
    queue: Mutex<Queue>,
    /// The queue.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Directory>,
    /// How many threads are in a directory and may find more of them.
    busy: usize,
    /// What ends all of them.
    failure: Option<Failure>,
    broken_off: bool,
}

/// A directory that is there in the copy, and whose contents are not.
struct Directory {
    source: OwnedFd,
    target: OwnedFd,
    path: PathBuf,
    depth: usize,
}

/// A thread is in a directory.
struct Turn<'a>(&'a Pass<'a>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.busy -= 1;
        queue.broken_off |= std::thread::panicking();
        self.0.changed.notify_all();
    }
}

impl Pass<'_> {
    fn tree(&self, source: &Path, target: &Path) -> Result<Copied, Failure> {
        let root = |error: io::Error| Failure { path: PathBuf::new(), error };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = rustix::fs::open(source, flags, Mode::empty()).map_err(|error| root(error.into()))?;
        let status = rustix::fs::fstat(&source).map_err(|error| root(error.into()))?;
        if !self.how.again {
            rustix::fs::mkdir(target, Mode::RWXU).map_err(|error| root(error.into()))?;
        }
        let target = rustix::fs::open(target, flags, Mode::empty()).map_err(|error| root(error.into()))?;
        self.finish_directory(&target, &status).map_err(root)?;
        self.queue().waiting.push(Directory { source, target, path: PathBuf::new(), depth: 0 });
        let mut copied = std::thread::scope(|scope| {
            let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(|| self.work())).collect();
            let mut copied = self.work();
            for other in others {
                match other.join() {
                    Ok(part) => copied.add(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            copied
        });
        if let Some(failure) = self.queue().failure.take() {
            return Err(failure);
        }
        copied.noted.sort_unstable();
        Ok(copied)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes directories until none is left and nobody can find another one.
    fn work(&self) -> Copied {
        let mut copied = Copied::default();
        while let Some((directory, _turn)) = self.next() {
            if let Err(failure) = self.contents(&directory, &mut copied) {
                self.queue().failure.get_or_insert(failure);
            }
        }
        copied
    }

    fn next(&self) -> Option<(Directory, Turn<'_>)> {
        let mut queue = self.queue();
        loop {
            if queue.failure.is_some() || queue.broken_off {
                return None;
            }
            if let Some(directory) = queue.waiting.pop() {
                queue.busy += 1;
                return Some((directory, Turn(self)));
            }
            if queue.busy == 0 {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn contents(&self, directory: &Directory, copied: &mut Copied) -> Result<(), Failure> {
        let Directory { source, path: below, depth, .. } = directory;
        let here = |error: io::Error| Failure { path: below.clone(), error };
        if *depth > DEEPEST {
            return Err(here(io::Error::other(format!("there are more than {DEEPEST} directories in each other"))));
        }
        let mut entries = Dir::read_from(source).map_err(|error| here(error.into()))?;
        let mut seen = HashSet::new();
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|error| here(error.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if self.how.prune {
                seen.insert(name.to_owned());
            }
            let path = below.join(OsStr::from_bytes(name.to_bytes()));
            match self.entry(directory, name, path, copied) {
                Err(Failure { error, .. }) if self.how.live && error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
        if self.how.prune {
            prune(&directory.target, &seen).map_err(here)?;
        }
        Ok(())
    }

    fn entry(&self, directory: &Directory, name: &CStr, path: PathBuf, copied: &mut Copied) -> Result<(), Failure> {
        let Directory { source, target, depth, .. } = directory;
        if self.cancel.iter().any(CancellationToken::is_cancelled) {
            return Err(Failure { path, error: io::ErrorKind::Interrupted.into() });
        }
        let take = (self.how.take)(&path);
        if take == Take::Nothing {
            return Ok(());
        }
        let status = match rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(error) => return Err(Failure { path, error: error.into() }),
        };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => match self.directory(source, target, name, &status) {
                Ok((source, target)) if take == Take::All => self.enter(Directory { source, target, path, depth: depth + 1 }, copied),
                Ok(_) => Ok(()),
                Err(error) => Err(Failure { path, error }),
            },
            FileType::RegularFile => self.file(source, target, name, &path, &status, copied).map_err(|error| Failure { path, error }),
            FileType::Symlink => self.link(source, target, name, &status).map_err(|error| Failure { path, error }),
            // Sockets and pipes mean nothing in a copy.
            _ => Ok(()),
        }
    }

    /// Both opened.
    fn directory(&self, source: &OwnedFd, target: &OwnedFd, name: &CStr, status: &Stat) -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = rustix::fs::openat(source, name, flags, Mode::empty())?;
        match rustix::fs::mkdirat(target, name, Mode::RWXU) {
            Err(Errno::EXIST) if self.how.again => {}
            outcome => outcome?,
        }
        let made = rustix::fs::openat(target, name, flags, Mode::empty())?;
        // Nobody else can enter the copy yet, so its owner may be set before it is full.
        self.finish_directory(&made, status)?;
        Ok((inner, made))
    }

    /// Leaves the contents to whichever thread is free, or copies them now.
    fn enter(&self, directory: Directory, copied: &mut Copied) -> Result<(), Failure> {
        let mut queue = self.queue();
        if queue.waiting.len() < WAITING {
            queue.waiting.push(directory);
            self.changed.notify_one();
            return Ok(());
        }
        drop(queue);
        self.contents(&directory, copied)
    }

    fn finish_directory(&self, made: &OwnedFd, source: &Stat) -> io::Result<()> {
        self.give(made, source)?;
        rustix::fs::fchmod(made, permissions(source))?;
        Ok(())
    }

    fn link(&self, source: &OwnedFd, target: &OwnedFd, name: &CStr, status: &Stat) -> io::Result<()> {
        if self.how.no_links {
            return Err(io::Error::other("it is a link; the data must lie in the database's own directory"));
        }
        let points_to = rustix::fs::readlinkat(source, name, Vec::new())?;
        match rustix::fs::symlinkat(&points_to, target, name) {
            Err(Errno::EXIST) if self.how.again => return Ok(()),
            outcome => outcome?,
        }
        if let Some((user, group)) = self.owner(status) {
            rustix::fs::chownat(target, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn file(&self, source: &OwnedFd, target: &OwnedFd, name: &CStr, path: &Path, seen: &Stat, copied: &mut Copied) -> io::Result<()> {
        if self.how.again && is_unchanged(target, name, seen)? {
            self.count(path, seen, copied);
            return Ok(());
        }
        // Without waiting: the entry may have become a pipe since.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = File::from(rustix::fs::openat(source, name, flags, Mode::empty())?);
        let mut status = rustix::fs::fstat(&from)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let is_sealed = (self.how.seal)(path);
        let mode = if is_sealed { Mode::from_raw_mode(0o444) } else { permissions(&status) };
        let made = File::from(rustix::fs::openat(target, name, flags, mode)?);
        self.content(&from, &made, &status)?;
        if !is_sealed {
            self.give(&made, &status)?;
        }
        let got = rustix::fs::fstat(&made)?;
        // Our own mask may have taken some of it.
        if permissions(&got) != mode {
            rustix::fs::fchmod(&made, mode)?;
        }
        let modified = Timespec { tv_sec: status.st_mtime, tv_nsec: status.st_mtime_nsec.cast_signed() };
        rustix::fs::futimens(&made, &Timestamps { last_access: modified, last_modification: modified })?;
        status.st_size = got.st_size;
        self.count(path, &status, copied);
        Ok(())
    }

    fn content(&self, from: &File, made: &File, status: &Stat) -> io::Result<()> {
        let length = status.st_size.cast_unsigned();
        if length == 0 && !self.how.live {
            return Ok(());
        }
        if self.how.share && length <= PIECE {
            match rustix::fs::ioctl_ficlone(made, from) {
                Ok(()) => return Ok(()),
                Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
                // Another file system below, or a kind of file that cannot be shared.
                Err(_) => {}
            }
        }
        // No more than its length of a moment ago, however fast it grows, and of that only what is there: a hole in the source is one in the copy.
        let mut begin = 0;
        while begin < length {
            begin = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(begin)) {
                Ok(begin) => begin,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(begin))?.min(length);
            if !self.piece(from, made, begin, end)? {
                break;
            }
            begin = end;
        }
        // One that was cut meanwhile is no longer than what is left of it.
        let length = length.min(from.metadata()?.len());
        if made.metadata()?.len() < length {
            made.set_len(length)?;
        }
        Ok(())
    }

    /// What lies between two places of a file; `false` when the file ends before.
    fn piece(&self, from: &File, made: &File, mut begin: u64, end: u64) -> io::Result<bool> {
        let mut to = begin;
        while begin < end {
            if self.cancel.iter().any(CancellationToken::is_cancelled) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let wanted = usize::try_from((end - begin).min(PIECE)).unwrap_or(usize::MAX);
            // Shares blocks where the file system can, and is the kernel's plain copy elsewhere.
            match rustix::fs::copy_file_range(from, Some(&mut begin), made, Some(&mut to), wanted) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
                Err(_) => return self.plain_piece(from, made, begin, end),
            }
        }
        Ok(true)
    }

    fn plain_piece(&self, from: &File, made: &File, mut begin: u64, end: u64) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER];
        while begin < end {
            if self.cancel.iter().any(CancellationToken::is_cancelled) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let wanted = usize::try_from(end - begin).unwrap_or(usize::MAX).min(BUFFER);
            let count = from.read_at(&mut buffer[..wanted], begin)?;
            if count == 0 {
                return Ok(false);
            }
            made.write_all_at(&buffer[..count], begin)?;
            begin += count as u64;
        }
        Ok(true)
    }

    fn owner(&self, source: &Stat) -> Option<(Uid, Gid)> {
        let (user, group) = self.how.owner.unwrap_or((source.st_uid, source.st_gid));
        (user != 0 || group != 0).then(|| (Uid::from_raw(user), Gid::from_raw(group)))
    }

    fn give(&self, made: impl AsFd, source: &Stat) -> io::Result<()> {
        if let Some((user, group)) = self.owner(source) {
            rustix::fs::fchown(made, Some(user), Some(group))?;
        }
        Ok(())
    }

    fn count(&self, path: &Path, status: &Stat, copied: &mut Copied) {
        copied.bytes += status.st_size.cast_unsigned();
        copied.files += 1;
        if let Some((note, since)) = self.note
            && note(path, status, since)
        {
            copied.noted.push(path.to_owned());
        }
    }
}

/// Removes the files of a directory that are not among those names.
fn prune(directory: &OwnedFd, names: &HashSet<CString>) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_type() != FileType::Directory && !names.contains(entry.file_name()) {
            rustix::fs::unlinkat(directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(())
}

/// Whether the copy of an earlier pass is still what the source is; one that is not is removed.
fn is_unchanged(target: &OwnedFd, name: &CStr, seen: &Stat) -> io::Result<bool> {
    match rustix::fs::statat(target, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(copy)
            if (copy.st_size, copy.st_mtime, copy.st_mtime_nsec) == (seen.st_size, seen.st_mtime, seen.st_mtime_nsec)
                && FileType::from_raw_mode(copy.st_mode) == FileType::RegularFile =>
        {
            Ok(true)
        }
        Ok(_) => {
            rustix::fs::unlinkat(target, name, AtFlags::empty())?;
            Ok(false)
        }
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Without set-user-id, set-group-id and sticky bits.
fn permissions(status: &Stat) -> Mode {
    Mode::from_raw_mode(status.st_mode & 0o777)
}

/// A small file that is written in one piece, e.g. `pg_control`: read until two looks agree.
pub(in crate::local) fn read_steadily(file: &File) -> io::Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let length = file.metadata()?.len();
        if length > STEADY_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {STEADY_LIMIT} bytes")));
        }
        let mut content = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact_at(&mut content, 0)?;
        Ok(content)
    };
    let mut before = read()?;
    for _ in 0..STEADY_ATTEMPTS {
        let after = read()?;
        if before == after {
            return Ok(after);
        }
        before = after;
    }
    Err(io::Error::other("it never rests"))
}
