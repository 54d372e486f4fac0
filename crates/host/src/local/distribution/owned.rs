//! Whose the files of a distribution are that the operator keeps. Whoever may change them decides what a program does that reads them.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use crate::local::{below::Directory, exec::RunAs};

/// Nobody's.
const NOBODY: u32 = 65_534;
/// As many links may lead on from each other (path_resolution(7)).
const LINKS: usize = 40;

/// A user without any rights, for programs that somebody else than root may have changed.
pub(super) fn nobody() -> RunAs {
    RunAs { uid: NOBODY, gid: NOBODY, groups: Vec::new() }
}

/// Whom Git reads a checkout as: its configuration, which names programs that Git runs, says what its owner likes. `None` for root, whose own all of it
/// is.
pub(super) fn reader_of_checkout(source: &Path) -> Option<RunAs> {
    let repository = source.join(".git");
    let parts =
        [source.to_owned(), repository.join("config"), repository.join("info"), repository.join("hooks"), source.join(".gitattributes")];
    if parts.iter().all(|path| !path.exists() || is_roots_own(path)) {
        return None;
    }
    let owner = fs::metadata(&repository).ok().filter(|owner| owner.uid() != 0);
    Some(owner.map_or_else(nobody, |owner| RunAs { uid: owner.uid(), gid: owner.gid(), groups: Vec::new() }))
}

/// Whether nobody but root can change what the path names, or have it name something else: it, every directory on the way to it, and the same of
/// wherever links lead.
pub(in crate::local) fn is_roots_own(path: &Path) -> bool {
    path.is_absolute() && check(path, LINKS).unwrap_or(false)
}

fn check(path: &Path, links: usize) -> io::Result<bool> {
    let mut current = PathBuf::from("/");
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        match part {
            Component::Normal(name) => current.push(name),
            Component::ParentDir => drop(current.pop()),
            _ => continue,
        }
        let status = fs::symlink_metadata(&current)?;
        if status.uid() != 0 {
            return Ok(false);
        }
        if status.is_symlink() {
            let Some(links) = links.checked_sub(1) else { return Ok(false) };
            current.pop();
            let on = current.join(fs::read_link(current.join(part))?).join(parts.as_path());
            return check(&on, links);
        }
        if status.mode() & 0o022 != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// [`is_roots_own`] of a directory and of all that is in it.
pub(in crate::local) fn is_all_roots_own(tree: &Path) -> bool {
    let checked = Directory::open(tree).and_then(|directory| {
        directory.walk(|entry| {
            let is_link = entry.kind() == rustix::fs::FileType::Symlink;
            let is_own = entry.status.st_uid == 0 && (is_link || entry.status.st_mode & 0o022 == 0);
            if is_own && (!is_link || is_roots_own(&tree.join(entry.path))) { Ok(()) } else { Err(io::Error::other("it is not")) }
        })
    });
    is_roots_own(tree) && checked.is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_chain_is_roots_own_as_a_whole_or_not() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // Not below /tmp, where everybody may make names.
        let place = tempfile::tempdir_in("/var/lib").unwrap();
        let at = |path: &str| place.path().join(path);
        fs::create_dir_all(at("own/bin")).unwrap();
        fs::create_dir_all(at("others/bin")).unwrap();
        for path in ["own/bin/python", "others/bin/python"] {
            fs::write(at(path), "").unwrap();
        }
        symlink(at("own/bin/python"), at("own/link")).unwrap();
        symlink("../others/bin/python", at("own/away")).unwrap();
        assert!(is_roots_own(&at("own/bin/python")) && is_roots_own(&at("own/link")) && is_roots_own(&at("own/away")));
        assert!(is_all_roots_own(&at("own")));
        // Two directories above the program.
        chown(at("others"), Some(41_234), None).unwrap();
        for path in ["others/bin/python", "own/away"] {
            assert!(!is_roots_own(&at(path)), "{path}");
        }
        assert!(!is_all_roots_own(&at("own")), "a link leads to what is another's");
        fs::remove_file(at("own/away")).unwrap();
        assert!(is_all_roots_own(&at("own")));
        fs::set_permissions(at("own/bin/python"), fs::Permissions::from_mode(0o775)).unwrap();
        assert!(!is_roots_own(&at("own/link")) && !is_all_roots_own(&at("own")));
        assert!(!is_roots_own(&at("absent")) && !is_roots_own(Path::new("own")));
        symlink("loop", at("own/loop")).unwrap();
        assert!(!is_roots_own(&at("own/loop")));
    }
}
