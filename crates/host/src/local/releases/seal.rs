//! Makes root's own what a build has written, so that nobody changes it any more.
//!
//! Nothing runs as the build's user by then. What it has left is looked at all the same as something that was made to mislead: each directory is opened below the
//! one that holds it, no link is followed, and what does not belong to the build's user, say a file of ours that it has linked to, is not touched but refused.

use std::{
    ffi::CStr,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};

use crate::error::{HostError, Result};

/// How many directories may lie in each other.
const DEEPEST: usize = 100;
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Files, directories and links; who has the key of the directory above reads them, and runs what its maker could run.
    Environment,
    /// Byte code alone, that cannot be changed.
    ByteCode,
}

struct Seal<'a> {
    kind: Kind,
    owner: Uid,
    top: &'a Path,
}

/// All that `owner` has made in `top`, a directory below one that is root's.
pub(super) fn seal(top: &Path, owner: u32, kind: Kind) -> Result<()> {
    let seal = Seal { kind, owner: Uid::from_raw(owner), top };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(top, flags, Mode::empty()).map_err(|error| failed_at(top, error.into()))?;
    seal.directory(&directory, top, 0)
}

impl Seal<'_> {
    /// First itself, so that what is looked at stays as it is.
    fn directory(&self, directory: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return Err(self.refused(path, "lies in too many directories"));
        }
        let failed = |error: rustix::io::Errno| failed_at(path, error.into());
        let status = rustix::fs::fstat(directory).map_err(failed)?;
        if Uid::from_raw(status.st_uid) != self.owner {
            return Err(self.refused(path, "does not belong to the build"));
        }
        rustix::fs::fchown(directory, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed)?;
        rustix::fs::fchmod(directory, DIRECTORY).map_err(failed)?;
        for entry in Dir::read_from(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                self.entry(directory, name, &path.join(name.to_string_lossy().as_ref()), depth)?;
            }
        }
        Ok(())
    }

    fn entry(&self, directory: &OwnedFd, name: &CStr, path: &Path, depth: usize) -> Result<()> {
        let failed = |error: rustix::io::Errno| failed_at(path, error.into());
        let status = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if Uid::from_raw(status.st_uid) != self.owner {
            return Err(self.refused(path, "does not belong to the build"));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match (FileType::from_raw_mode(status.st_mode), self.kind) {
            (FileType::RegularFile, kind) => {
                let file = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(failed)?;
                let mode = match kind {
                    Kind::ByteCode if !name.to_bytes().ends_with(b".pyc") => return Err(self.refused(path, "is no byte code")),
                    Kind::ByteCode => 0o444,
                    Kind::Environment if status.st_mode & 0o100 != 0 => 0o755,
                    Kind::Environment => 0o644,
                };
                let opened = rustix::fs::fstat(&file).map_err(failed)?;
                if (opened.st_dev, opened.st_ino) != (status.st_dev, status.st_ino) {
                    return Err(self.refused(path, "changes while it is looked at"));
                }
                rustix::fs::fchown(&file, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed)?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(failed)
            }
            (FileType::Directory, Kind::Environment) => {
                let inner = rustix::fs::openat(directory, name, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
                self.directory(&inner, path, depth + 1)
            }
            (FileType::Symlink, Kind::Environment) => {
                rustix::fs::chownat(directory, name, Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
            }
            _ => Err(self.refused(path, "is of a kind that has no place there")),
        }
    }

    fn refused(&self, path: &Path, reason: &str) -> HostError {
        let inside = path.strip_prefix(self.top).map_or_else(|_| path.to_owned(), Path::to_owned);
        let inside = if inside.as_os_str().is_empty() { PathBuf::from(".") } else { inside };
        HostError::rejected(format!("what the build has made is not taken: {} {reason}", inside.display()))
    }
}

fn failed_at(path: &Path, error: io::Error) -> HostError {
    HostError::machine_from(format!("{} could not be sealed: {error}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    };

    use super::*;

    const BUILDER: u32 = 41_234;

    /// A tree of the builder's, beside a file of root's.
    fn tree() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let (top, secret) = (directory.path().join("top"), directory.path().join("secret"));
        fs::write(&secret, "root's").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(&top).unwrap();
        chown(&top, Some(BUILDER), Some(BUILDER)).unwrap();
        (directory, top, secret)
    }

    fn own(path: &Path) {
        std::os::unix::fs::lchown(path, Some(BUILDER), Some(BUILDER)).unwrap();
    }

    #[test]
    fn what_the_build_made_becomes_roots_and_links_are_left_alone() {
        let (_directory, top, secret) = tree();
        fs::create_dir(top.join("bin")).unwrap();
        fs::write(top.join("bin/tool"), "").unwrap();
        fs::set_permissions(top.join("bin/tool"), fs::Permissions::from_mode(0o6755)).unwrap();
        symlink(&secret, top.join("link")).unwrap();
        for path in ["bin", "bin/tool", "link"] {
            own(&top.join(path));
        }
        seal(&top, BUILDER, Kind::Environment).unwrap();
        let found = |path: &str| fs::symlink_metadata(top.join(path)).map(|found| (found.uid(), found.mode() & 0o7777)).unwrap();
        assert_eq!((found(""), found("bin"), found("bin/tool")), ((0, 0o755), (0, 0o755), (0, 0o755)));
        assert_eq!(found("link").0, 0);
        assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_of_roots_that_was_linked_to_is_refused_and_stays_as_it_is() {
        for (kind, name) in [(Kind::Environment, "a.py"), (Kind::ByteCode, "a.pyc")] {
            let (_directory, top, secret) = tree();
            fs::hard_link(&secret, top.join(name)).unwrap();
            let error = seal(&top, BUILDER, kind).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} does not belong to the build")), "{error}");
            assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn among_byte_code_there_is_nothing_else() {
        type Make = fn(&Path);
        let makers: [Make; 3] = [
            |path| symlink("/etc/passwd", path.join("a.pyc")).unwrap(),
            |path| fs::create_dir(path.join("a.pyc")).unwrap(),
            |path| fs::write(path.join("a.py"), "").unwrap(),
        ];
        for make in makers {
            let (_directory, top, _secret) = tree();
            make(&top);
            fs::read_dir(&top).unwrap().flatten().for_each(|entry| own(&entry.path()));
            assert!(matches!(seal(&top, BUILDER, Kind::ByteCode), Err(HostError::Rejected { .. })));
        }
    }
}
