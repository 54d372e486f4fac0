//! Trees that others than root may change while root works in them.
//!
//! Data sets, file stores and what was copied from them belong to a tenant's processes, or did. There, nothing is looked up by a path that they could
//! bend meanwhile: root opens the tree's top, whose name lies in a directory of root's own, and reaches everything else below that descriptor, through
//! no link and to no other kind of thing than it expects (openat2(2), `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`). What a file says is read with a bound.

use std::{
    ffi::{CStr, OsStr},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid},
    io::Errno,
};

/// How many directories may lie in each other; Odoo's and PostgreSQL's are below ten.
pub(super) const DEEPEST: usize = 64;
/// How often a directory that somebody fills while it is removed is emptied again.
const PASSES: usize = 100;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An open directory. Every path that its methods take is relative to it and leads through no link; anything else is an error.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

/// What a walk comes by.
pub(super) struct Entry<'a> {
    pub(super) parent: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    /// Relative to where the walk began.
    pub(super) path: &'a Path,
    pub(super) status: &'a Stat,
}

impl Entry<'_> {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.status.st_mode)
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind() == FileType::RegularFile
    }

    /// Its length in bytes, when it is a file.
    pub(super) fn length(&self) -> u64 {
        self.status.st_size.cast_unsigned()
    }
}

impl Directory {
    /// By a path all of whose directories are root's own. Its last part is no link.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    pub(super) fn inside(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat2(&self.0, path.as_ref(), DIRECTORY, Mode::empty(), BENEATH)?))
    }

    /// A regular file, to be read.
    pub(super) fn file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        // Without waiting: it may be a pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat2(&self.0, path.as_ref(), flags, Mode::empty(), BENEATH)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
    }

    /// All of a file that has no more than `limit` bytes.
    pub(super) fn read(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.file(path)?.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {limit} bytes")));
        }
        Ok(content)
    }

    /// [`Directory::read`] of text.
    pub(super) fn read_text(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<String> {
        String::from_utf8(self.read(path, limit)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// A file that is not there yet, with exactly this mode; root's own.
    pub(super) fn create(&self, path: impl AsRef<Path>, mode: u32) -> io::Result<File> {
        let mode = Mode::from_raw_mode(mode);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat2(&self.0, path.as_ref(), flags, mode, BENEATH)?);
        rustix::fs::fchmod(&file, mode)?;
        Ok(file)
    }

    /// A directory with exactly this mode, made when it is not there. `name` is one part.
    pub(super) fn make(&self, name: &str, mode: u32) -> io::Result<Self> {
        let mode = Mode::from_raw_mode(mode);
        match rustix::fs::mkdirat(&self.0, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let made = self.inside(name)?;
        rustix::fs::fchmod(&made.0, mode)?;
        Ok(made)
    }

    /// What is there, a link for itself; `None` for nothing.
    pub(super) fn status(&self, path: impl AsRef<Path>) -> io::Result<Option<Stat>> {
        let found = self.at(path.as_ref(), |parent, name| Ok(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?));
        absent_is_none(found)
    }

    /// Removes a file, or a link for itself. Absent is done.
    pub(super) fn remove(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let removed = self.at(path.as_ref(), |parent, name| Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?));
        absent_is_none(removed).map(drop)
    }

    /// Both names are one part.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// Moves a file, or a link for itself, in place of what has the same name there. `name` is one part.
    pub(super) fn rename_into(&self, name: &str, other: &Self) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, name, &other.0, name)?)
    }

    /// Its own entries are on the disk for good.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// Names of what lies in it.
    pub(super) fn names(&self) -> io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            if !is_itself(entry.file_name()) {
                names.push(PathBuf::from(OsStr::from_bytes(entry.file_name().to_bytes())));
            }
        }
        Ok(names)
    }

    /// Calls `visit` with everything below, a directory before what it holds, in no order otherwise. What goes, or becomes something else, meanwhile is
    /// passed over; more than [`DEEPEST`] directories in each other are an error.
    pub(super) fn walk<E: From<io::Error>>(&self, mut visit: impl FnMut(&Entry<'_>) -> Result<(), E>) -> Result<(), E> {
        walk(self.0.as_fd(), Path::new(""), 0, &mut visit)
    }

    fn at<T>(&self, path: &Path, act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> io::Result<T>) -> io::Result<T> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => act(self.inside(parent)?.0.as_fd(), name),
            None => act(self.0.as_fd(), name),
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn absent_is_none<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_itself(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Gone, or another kind of thing than a moment ago.
fn has_changed(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::LOOP | Errno::NOTDIR)
}

fn walk<E: From<io::Error>>(
    directory: BorrowedFd<'_>,
    below: &Path,
    depth: usize,
    visit: &mut impl FnMut(&Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if depth > DEEPEST {
        return Err(io::Error::other(format!("there are more than {DEEPEST} directories in each other")).into());
    }
    let mut entries = Dir::read_from(directory).map_err(io::Error::from)?;
    while let Some(entry) = entries.read() {
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name();
        if is_itself(name) {
            continue;
        }
        let status = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(error) if has_changed(error) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let path = below.join(OsStr::from_bytes(name.to_bytes()));
        let found = Entry { parent: directory, name, path: &path, status: &status };
        visit(&found)?;
        if found.kind() == FileType::Directory {
            match rustix::fs::openat(directory, name, DIRECTORY, Mode::empty()) {
                Ok(inner) => walk(inner.as_fd(), &path, depth + 1, visit)?,
                Err(error) if has_changed(error) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }
    Ok(())
}

/// Gives a tree to another owner and group, except for what `stays`; links are changed, not followed. Nothing but files, directories and links may be in
/// it, and no file that has a second name: that one could lie anywhere. Done already is done.
pub(super) fn change_owner(tree: &Path, uid: u32, gid: u32, stays: impl Fn(&Entry<'_>) -> bool) -> io::Result<()> {
    let top = Directory::open(tree)?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    top.walk(|entry| {
        if (entry.status.st_uid, entry.status.st_gid) == (uid, gid) || stays(entry) {
            return Ok(());
        }
        let refused = |what: &str| io::Error::other(format!("{} {what}", entry.path.display()));
        let found = rustix::fs::openat(entry.parent, entry.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let status = rustix::fs::fstat(&found)?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {}
            FileType::RegularFile | FileType::Symlink if status.st_nlink == 1 => {}
            FileType::RegularFile | FileType::Symlink => return Err(refused("has more than one name, so that it may be somebody else's")),
            _ => return Err(refused("is neither a file nor a directory")),
        }
        rustix::fs::chownat(&found, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
        Ok(())
    })?;
    Ok(rustix::fs::fchown(&top.0, Some(user), Some(group))?)
}

/// Lets a group, and nobody else, read a file or a tree that stays root's own.
pub(super) fn share(place: &Path, gid: u32) -> io::Result<()> {
    set_group(place, gid, 0o040, 0o050)
}

/// The end of [`share`]. Absent is done.
pub(super) fn share_no_more(place: &Path) -> io::Result<()> {
    absent_is_none(set_group(place, 0, 0, 0)).map(drop)
}

fn set_group(place: &Path, gid: u32, of_files: u32, of_directories: u32) -> io::Result<()> {
    let set = |fd: BorrowedFd<'_>| -> io::Result<()> {
        let mode = match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
            FileType::RegularFile => 0o600 | of_files,
            FileType::Directory => 0o700 | of_directories,
            _ => return Err(io::Error::other("it is neither a file nor a directory")),
        };
        rustix::fs::fchown(fd, Some(Uid::ROOT), Some(Gid::from_raw(gid)))?;
        Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?)
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let top = rustix::fs::open(place, flags, Mode::empty())?;
    set(top.as_fd())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&top)?.st_mode) == FileType::Directory {
        Directory(top).walk(|entry| set(rustix::fs::openat(entry.parent, entry.name, flags, Mode::empty())?.as_fd()))?;
    }
    Ok(())
}

/// Removes a directory with all that is in it, however deep it is; a link or a file for itself. Absent is done. The directory that holds it is root's own.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
        Ok(top) => empty_all(top.as_fd()).and_then(|()| Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)),
        Err(Errno::LOOP | Errno::NOTDIR) => rustix::fs::unlinkat(CWD, path, AtFlags::empty()).map_err(Into::into),
        Err(error) => Err(error.into()),
    };
    absent_is_none(removed).map(drop)
}

fn empty_all(top: BorrowedFd<'_>) -> io::Result<()> {
    let mut moved = 0;
    for _ in 0..PASSES {
        if empty(top, top, 0, &mut moved)? {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "somebody still writes there"))
}

/// Whether nothing was found in it. What lies too deep is moved up to the top, and found there by the next pass.
fn empty(top: BorrowedFd<'_>, directory: BorrowedFd<'_>, depth: usize, moved: &mut u64) -> io::Result<bool> {
    let mut was_empty = true;
    let mut entries = Dir::read_from(directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if is_itself(name) {
            continue;
        }
        was_empty = false;
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        if depth == DEEPEST {
            *moved += 1;
            rustix::fs::renameat(directory, name, top, format!(".ocore-deep-{moved}"))?;
            continue;
        }
        match rustix::fs::openat(directory, name, DIRECTORY, Mode::empty()) {
            Ok(inner) => drop(empty(top, inner.as_fd(), depth + 1, moved)?),
            Err(error) if has_changed(error) => continue,
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            // Somebody fills it, or the kernel did not list all of it at once: the next pass sees to it.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(was_empty)
}

/// Below this length, in bytes, nobody asks how much of a file is there.
const SMALL: u64 = 1 << 30;

/// Whether a file claims much more than it holds: what reads it to its end reads for days. `blocks` are of 512 bytes.
pub(super) fn is_hollow(length: u64, blocks: u64) -> bool {
    // File systems that compress keep a good part of what can be compressed at all.
    length > SMALL && length / 256 > blocks * 512
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn nothing_is_reached_through_a_link_or_outside() {
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| place.path().join(path);
        std::fs::create_dir_all(at("tree/inner")).unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        std::fs::write(at("tree/inner/file"), "mine").unwrap();
        symlink("../secret", at("tree/link")).unwrap();
        symlink("..", at("tree/up")).unwrap();
        rustix::fs::mknodat(CWD, at("tree/pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let tree = Directory::open(&at("tree")).unwrap();
        assert_eq!(tree.read("inner/file", 4).unwrap(), b"mine");
        for path in ["link", "up/secret", "../secret", "pipe", "inner", "/etc/passwd"] {
            assert!(tree.read(path, 1000).is_err(), "{path}");
        }
        assert!(tree.read("inner/file", 3).is_err(), "it is longer than it may be");
        for path in ["up/new", "../new", "inner/file"] {
            assert!(tree.create(path, 0o600).is_err(), "{path}");
        }
        tree.remove("up").unwrap();
        tree.remove("absent/file").unwrap();
        assert!(at("secret").exists() && tree.status("up").unwrap().is_none());
        assert!(Directory::open(&at("tree/link")).is_err());
    }

    #[test]
    fn a_tree_that_is_deeper_than_any_path_can_say_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut inner = Directory::open(&tree).unwrap();
        for _ in 0..5000 {
            inner = inner.make("d", 0o700).unwrap();
        }
        drop(inner.create("file", 0o600).unwrap());
        assert!(Directory::open(&tree).unwrap().walk(|_| io::Result::Ok(())).is_err());
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        std::fs::write(place.path().join("kept"), "").unwrap();
        symlink("kept", &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(place.path().join("kept").exists() && !tree.is_symlink());
    }

    #[test]
    fn no_owner_is_changed_through_a_link_nor_of_a_file_with_a_second_name() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| place.path().join(path);
        std::fs::create_dir_all(at("tree/inner")).unwrap();
        std::fs::create_dir(at("outside")).unwrap();
        std::fs::write(at("outside/file"), "").unwrap();
        std::fs::write(at("tree/inner/file"), "").unwrap();
        symlink("../outside", at("tree/link")).unwrap();
        change_owner(&at("tree"), 41_234, 41_235, |_| false).unwrap();
        for path in ["tree", "tree/inner", "tree/inner/file", "tree/link"] {
            let status = std::fs::symlink_metadata(at(path)).unwrap();
            assert_eq!((status.uid(), status.gid()), (41_234, 41_235), "{path}");
        }
        assert_eq!(std::fs::metadata(at("outside")).unwrap().uid(), 0);
        std::fs::hard_link(at("outside/file"), at("tree/second")).unwrap();
        assert!(change_owner(&at("tree"), 41_234, 41_235, |_| false).unwrap_err().to_string().contains("more than one name"));
        assert_eq!(std::fs::metadata(at("outside/file")).unwrap().uid(), 0);
    }

    #[test]
    fn what_is_shared_with_a_group_stays_roots_own() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let (tree, file) = (place.path().join("tree"), place.path().join("tree/file"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(&file, "").unwrap();
        let found = |path: &Path| {
            let status = std::fs::metadata(path).unwrap();
            (status.uid(), status.gid(), status.permissions().mode() & 0o777)
        };
        share(&tree, 41_235).unwrap();
        assert_eq!((found(&tree), found(&file)), ((0, 41_235, 0o750), (0, 41_235, 0o640)));
        share_no_more(&tree).unwrap();
        assert_eq!((found(&tree), found(&file)), ((0, 0, 0o700), (0, 0, 0o600)));
        share_no_more(&place.path().join("absent")).unwrap();
    }
}
