//! Unpacks a tar stream into a directory that nothing of it can leave.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};

use tar::EntryType;

use crate::error::{HostError, Result};

/// How much one archive may bring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 4 * 1024 * 1024 * 1024, entries: 500_000 }
    }
}

/// Unpacks `archive` below `tree/prefix`; `tree` is a real directory. Files get mode 0444 or 0555, whatever the archive says, directories 0755;
/// owners and times are not taken over. Paths and links that leave the tree, hard links and devices are refused.
///
/// Each file is made in `staging`, an empty directory on the same file system, and renamed into the tree: whatever is in the tree is whole, also
/// when two unpack the same archive at once.
pub(super) fn unpack(archive: impl Read, tree: &Path, prefix: &Path, staging: &Path, limits: Limits) -> Result<()> {
    let target = tree.join(prefix);
    let staged = staging.join("entry");
    make_directories(tree, prefix)?;
    let mut archive = tar::Archive::new(archive);
    let mut bytes_left = limits.bytes;
    let mut entries_left = limits.entries;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            continue;
        }
        let path = inner_path(&entry.path_bytes())?;
        if path.as_os_str().is_empty() {
            continue;
        }
        entries_left = entries_left.checked_sub(1).ok_or_else(|| {
            HostError::rejected(format!("the repository is too large: it holds more than {} files and directories", limits.entries))
        })?;
        let place = target.join(&path);
        let inside = prefix.join(&path);
        make_directories(tree, inside.parent().unwrap_or(prefix))?;
        match entry.header().entry_type() {
            EntryType::Directory => make_directories(tree, &inside)?,
            EntryType::Regular | EntryType::Continuous => {
                let executable = entry.header().mode().map_err(broken)? & 0o100 != 0;
                let mode = if executable { 0o555 } else { 0o444 };
                let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged).map_err(at(&place))?;
                let copied = io::copy(&mut entry.by_ref().take(bytes_left + 1), &mut file).map_err(at(&place))?;
                bytes_left = bytes_left.checked_sub(copied).ok_or_else(|| {
                    HostError::rejected(format!("the repository is too large: unpacked it takes more than {} MB", limits.bytes / 1_000_000))
                })?;
                fs::rename(&staged, &place).map_err(at(&place))?;
            }
            EntryType::Symlink => {
                let link = entry.link_name_bytes().unwrap_or_default().into_owned();
                let link = Path::new(OsStr::from_bytes(&link));
                if leaves(&inside, link) {
                    return Err(HostError::rejected(format!(
                        "the link {} leads out of the repository (to {}); links may only lead to files of the repository",
                        inside.display(),
                        link.display()
                    )));
                }
                std::os::unix::fs::symlink(link, &staged).map_err(at(&place))?;
                fs::rename(&staged, &place).map_err(at(&place))?;
            }
            EntryType::Link => return Err(refused(&inside, "a hard link")),
            _ => return Err(refused(&inside, "neither a file nor a directory nor a link")),
        }
    }
    Ok(())
}

/// The prefix of a submodule as a path inside the tree; refused when it is none.
pub(super) fn prefix_path(prefix: &str) -> Result<PathBuf> {
    inner_path(prefix.as_bytes())
}

/// A relative path of plain names; a leading `./` and a slash at the end are dropped.
fn inner_path(bytes: &[u8]) -> Result<PathBuf> {
    let raw = Path::new(OsStr::from_bytes(bytes));
    let mut path = PathBuf::new();
    for component in raw.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            _ => return Err(HostError::rejected(format!("the path {} leads out of the repository", raw.display()))),
        }
    }
    Ok(path)
}

/// Whether a link at `place`, relative to the tree, leads out of it as written. Links that go through other links are looked at when the tree is
/// sealed.
fn leaves(place: &Path, link: &Path) -> bool {
    let mut depth = place.components().count() - 1;
    for component in link.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => depth += 1,
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return true,
        }
    }
    link.as_os_str().is_empty()
}

/// Makes the directories below `tree` one by one; a link among them is refused, since it would lead what is written elsewhere.
fn make_directories(tree: &Path, inside: &Path) -> Result<()> {
    let mut path = tree.to_owned();
    for name in inside.components() {
        path.push(name);
        match DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&path).map_err(at(&path))?.is_dir() {
                    return Err(refused(inside, "inside something that is not a directory"));
                }
            }
            Err(error) => return Err(at(&path)(error)),
        }
    }
    Ok(())
}

fn refused(path: &Path, what: &str) -> HostError {
    HostError::rejected(format!("{} cannot be taken: it is {what}", path.display()))
}

fn broken(error: io::Error) -> HostError {
    HostError::machine_from(format!("the archive of the repository could not be read: {error}"), error)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HostError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull => HostError::machine_from("the disk of the storage pool is full; make room or enlarge the pool", error),
        _ => HostError::machine_from(format!("{} could not be written: {error}", path.display()), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Item<'a> {
        File(&'a str, &'a str),
        Link(&'a str, &'a str),
        Hard(&'a str, &'a str),
    }

    /// A tar archive with these entries, also such as no good program writes.
    fn archive(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for item in items {
            let mut header = tar::Header::new_old();
            header.set_mode(0o4777);
            let (path, kind, content, link) = match item {
                Item::File(path, content) => (path, EntryType::Regular, content.as_bytes(), None),
                Item::Link(path, link) => (path, EntryType::Symlink, &b""[..], Some(link)),
                Item::Hard(path, link) => (path, EntryType::Link, &b""[..], Some(link)),
            };
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            if let Some(link) = link {
                header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
            }
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(items: &[Item<'_>]) -> (tempfile::TempDir, Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let staging = tempfile::tempdir_in(directory.path()).unwrap();
        let result = unpack(&archive(items)[..], &tree, Path::new(""), staging.path(), Limits { bytes: 100, entries: 10 });
        drop(staging);
        (directory, result)
    }

    #[test]
    fn what_leads_out_of_the_tree_is_refused_and_nothing_is_written_there() {
        let cases: &[&[Item<'_>]] = &[
            &[Item::File("../out", "x")],
            &[Item::File("/tmp/ocore-test-out", "x")],
            &[Item::File("a/../../out", "x")],
            &[Item::Link("a", "/etc")],
            &[Item::Link("a", "..")],
            &[Item::Link("a/b", "../../out")],
            &[Item::Link("a", "b"), Item::File("a/out", "x")],
            &[Item::Hard("a", "/etc/passwd")],
        ];
        for items in cases {
            let (directory, result) = unpacked(items);
            assert!(matches!(result, Err(HostError::Rejected { .. })), "{result:?}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        assert!(!Path::new("/tmp/ocore-test-out").exists());
    }

    #[test]
    fn files_links_and_modes_arrive() {
        use std::os::unix::fs::PermissionsExt;
        let (directory, result) = unpacked(&[Item::File("./a/b", "one"), Item::Link("c", "a/b"), Item::File("a/b", "two")]);
        result.unwrap();
        let tree = directory.path().join("tree");
        assert_eq!(fs::read_to_string(tree.join("c")).unwrap(), "two");
        assert_eq!(fs::metadata(tree.join("a/b")).unwrap().permissions().mode() & 0o7777, 0o555);
    }

    #[test]
    fn an_archive_that_brings_too_much_is_refused() {
        let big = "x".repeat(101);
        let (_directory, result) = unpacked(&[Item::File("a", &big)]);
        assert!(result.unwrap_err().to_string().contains("too large"));
        let names: Vec<String> = (0..11).map(|number| format!("f{number}")).collect();
        let many: Vec<Item<'_>> = names.iter().map(|name| Item::File(name, "")).collect();
        let (_directory, result) = unpacked(&many);
        assert!(result.unwrap_err().to_string().contains("more than 10 files"));
    }

    #[test]
    fn a_submodule_goes_below_its_prefix_and_may_come_twice() {
        let directory = tempfile::tempdir().unwrap();
        let (tree, staging) = (directory.path().join("tree"), directory.path().join("staging"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&staging).unwrap();
        let prefix = prefix_path("libs/x/").unwrap();
        for _ in 0..2 {
            unpack(&archive(&[Item::File("a", "1")])[..], &tree, Path::new(""), &staging, Limits::default()).unwrap();
            unpack(&archive(&[Item::File("b", "2"), Item::Link("c", "b")])[..], &tree, &prefix, &staging, Limits::default()).unwrap();
        }
        assert!(tree.join("a").exists() && tree.join("libs/x/c").exists());
        assert_eq!(fs::read_dir(&staging).unwrap().count(), 0);
        assert!(prefix_path("../x").is_err() && prefix_path("/x").is_err());
    }

    #[test]
    fn what_git_archives_arrives_with_long_paths_links_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let repository = directory.path().join("repository");
        let long = format!("module/static/{}/größe.txt", "a-long-name".repeat(20));
        fs::create_dir_all(repository.join(&long).parent().unwrap()).unwrap();
        fs::write(repository.join(&long), "x").unwrap();
        fs::write(repository.join("run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(repository.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&long, repository.join("link")).unwrap();
        let git = |args: &[&str]| {
            let settings = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"];
            let output = std::process::Command::new("git").current_dir(&repository).args(settings).args(args).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            output.stdout
        };
        git(&["init", "-q"]);
        git(&["add", "--all"]);
        git(&["commit", "-q", "-m", "one"]);
        let (tree, staging) = (directory.path().join("tree"), directory.path().join("staging"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&staging).unwrap();
        unpack(&git(&["archive", "HEAD"])[..], &tree, Path::new(""), &staging, Limits::default()).unwrap();
        assert_eq!(fs::read_to_string(tree.join("link")).unwrap(), "x");
        assert_eq!(fs::metadata(tree.join("run")).unwrap().permissions().mode() & 0o777, 0o555);
        assert!(!tree.join("pax_global_header").exists());
    }
}
