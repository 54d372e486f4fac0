//! The source tree of a release: the sealed files under new directories, so that byte code can lie beside them.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, lchown},
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use crate::error::{HostError, Result};

const BYTE_CODE: &str = "__pycache__";

/// Makes `target` like `source`: its own directories, owned by `owner`, and the same files as hard links. Links that lead to nothing are left out, and
/// so is byte code that a repository brings along. Nothing may run as `owner` meanwhile.
pub(super) fn link_tree(source: &Path, target: &Path, owner: u32) -> Result<()> {
    for entry in WalkDir::new(source).sort_by_file_name().into_iter().filter_entry(|entry| entry.file_name() != BYTE_CODE) {
        let entry = entry.map_err(|error| HostError::machine_from(format!("{} could not be read", source.display()), error))?;
        let inside = entry.path().strip_prefix(source).unwrap_or(entry.path());
        let place = if inside.as_os_str().is_empty() { target.to_owned() } else { target.join(inside) };
        let made = if entry.file_type().is_dir() {
            DirBuilder::new().mode(0o755).create(&place).and_then(|()| lchown(&place, Some(owner), Some(owner)))
        } else if entry.file_type().is_symlink() {
            match fs::metadata(entry.path()) {
                Ok(_) => fs::read_link(entry.path()).and_then(|link| std::os::unix::fs::symlink(link, &place)),
                Err(_) => Ok(()),
            }
        } else {
            fs::hard_link(entry.path(), &place)
        };
        made.map_err(at(&place))?;
    }
    Ok(())
}

/// How deep links of a picked directory may lead to further ones.
const DEEPEST: usize = 16;

/// Puts directories in the place of links by which modules are picked from elsewhere in the tree, so that each module lies where its path says, with room for
/// byte code of its own. `target` is [`link_tree`]'s; `links` are paths in it.
pub(super) fn replace_links(source: &Path, target: &Path, links: &BTreeSet<PathBuf>) -> Result<()> {
    let root = fs::canonicalize(source).map_err(at(source))?;
    for link in links {
        let place = target.join(link);
        let from = fs::canonicalize(source.join(link)).map_err(at(&place))?;
        fs::remove_file(&place).map_err(at(&place))?;
        bring(&root, &from, &place, 0)?;
    }
    Ok(())
}

/// The file or directory at a real path of the sealed tree, anew at another place. What its links lead to is brought along.
fn bring(root: &Path, from: &Path, place: &Path, depth: usize) -> Result<()> {
    if depth > DEEPEST || !from.starts_with(root) {
        return Err(HostError::rejected(format!(
            "the link {} leads to links in a circle; let it lead to the directory of a module",
            from.strip_prefix(root).unwrap_or(from).display()
        )));
    }
    if !from.is_dir() {
        return fs::hard_link(from, place).map_err(at(place));
    }
    DirBuilder::new().mode(0o755).create(place).map_err(at(place))?;
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        if entry.file_name() == BYTE_CODE {
            continue;
        }
        let is_link = entry.file_type().map_err(at(from))?.is_symlink();
        // What leads to nothing is left out.
        let Ok(real) = fs::canonicalize(entry.path()) else { continue };
        bring(root, &real, &place.join(entry.file_name()), if is_link { depth + 1 } else { depth })?;
    }
    Ok(())
}

/// The links on the way to these modules.
pub(super) fn picking_links<'a>(source: &Path, modules: impl Iterator<Item = &'a str>) -> BTreeSet<PathBuf> {
    let is_link = |path: &Path| fs::symlink_metadata(source.join(path)).is_ok_and(|found| found.is_symlink());
    modules.filter_map(|module| Path::new(module).ancestors().filter(|path| is_link(path)).last().map(Path::to_owned)).collect()
}

/// Takes over the byte code of a module from another release's tree that has the very same module.
pub(super) fn link_byte_code(from: &Path, to: &Path) -> Result<()> {
    for entry in WalkDir::new(from).into_iter().filter_map(std::result::Result::ok).filter(|entry| entry.file_type().is_file()) {
        let path = entry.path();
        let Some(directory) = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == BYTE_CODE)) else { continue };
        let (Ok(inside), Some(name)) = (directory.strip_prefix(from), path.file_name()) else { continue };
        let target = to.join(inside);
        if !target.exists() {
            DirBuilder::new().mode(0o755).create(&target).map_err(at(&target))?;
        }
        match fs::hard_link(path, target.join(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(&target)(error)),
        }
    }
    Ok(())
}

/// Makes the directories for the byte code of a module that has none yet, owned by `owner`, and answers with them. Nothing else of the tree is the owner's.
pub(super) fn make_room(module: &Path, owner: u32) -> Result<Vec<PathBuf>> {
    let unreadable = |error| HostError::machine_from(format!("{} could not be read", module.display()), error);
    let mut made = Vec::new();
    // What lies in static/ is served, never imported.
    let is_code = |entry: &walkdir::DirEntry| !(entry.depth() == 1 && entry.file_name() == "static" && entry.file_type().is_dir());
    let directories: Vec<PathBuf> = WalkDir::new(module)
        .into_iter()
        .filter_entry(|entry| entry.depth() == 0 || (entry.file_type().is_dir() && is_code(entry)))
        .map(|entry| entry.map(walkdir::DirEntry::into_path).map_err(unreadable))
        .collect::<Result<_>>()?;
    for directory in directories {
        let has_code = fs::read_dir(&directory).map_err(at(&directory))?.flatten().any(|entry| {
            let path = entry.path();
            path.as_os_str().as_encoded_bytes().ends_with(b".py") && path.is_file()
        });
        if has_code {
            let place = directory.join(BYTE_CODE);
            DirBuilder::new().mode(0o755).create(&place).and_then(|()| lchown(&place, Some(owner), Some(owner))).map_err(at(&place))?;
            made.push(place);
        }
    }
    Ok(made)
}

/// The directories that hold these modules, without duplicates, in the order of their names.
pub(super) fn addons_directories<'a>(module_paths: impl Iterator<Item = &'a str>) -> Result<Vec<PathBuf>> {
    let mut directories: Vec<PathBuf> = module_paths.map(|path| Path::new(path).parent().unwrap_or(Path::new("")).to_owned()).collect();
    directories.sort();
    directories.dedup();
    for directory in &directories {
        let text = directory.to_string_lossy();
        // Odoo separates the directories of its addons path by commas, and its configuration file ends a value with the line.
        if text.contains(',') || text.trim() != text || text.chars().any(char::is_control) {
            return Err(HostError::rejected(format!(
                "the directory `{}` holds modules, and Odoo cannot use a directory whose name has commas, control characters or spaces at its ends; \
                 rename it",
                text.escape_debug()
            )));
        }
    }
    Ok(directories)
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

    #[test]
    fn each_directory_with_modules_is_named_once() {
        let directories = addons_directories(["b", "a", "libs/x/c", "libs/x/d"].into_iter()).unwrap();
        assert_eq!(directories, [Path::new(""), Path::new("libs/x")]);
        assert!(addons_directories(["a,b/c"].into_iter()).unwrap_err().to_string().contains("commas"));
    }

    #[test]
    fn byte_code_that_a_repository_brings_along_is_left_out_and_room_is_made_where_code_is() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for path in ["a/models", "a/static/src", "a/data", "a/__pycache__", "elsewhere"] {
            fs::create_dir_all(from.join(path)).unwrap();
        }
        for path in ["a/__init__.py", "a/models/m.py", "a/static/src/s.py", "a/data/d.xml", "a/__pycache__/__init__.cpython-311.pyc"] {
            fs::write(from.join(path), "").unwrap();
        }
        std::os::unix::fs::symlink("../../elsewhere", from.join("a/models/__pycache__")).unwrap();
        link_tree(&from, &to, 0).unwrap();
        let made = make_room(&to.join("a"), 0).unwrap();
        assert_eq!(made, [to.join("a/__pycache__"), to.join("a/models/__pycache__")]);
        assert!(made.iter().all(|place| fs::read_dir(place).unwrap().count() == 0));
        assert_eq!(fs::read_dir(to.join("elsewhere")).unwrap().count(), 0);
    }

    #[test]
    fn a_picked_module_lies_where_its_link_is() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join(".vendor/ropes/coil/models")).unwrap();
        fs::create_dir_all(from.join(".vendor/shared")).unwrap();
        fs::write(from.join(".vendor/ropes/coil/models/m.py"), "1").unwrap();
        fs::write(from.join(".vendor/shared/s.py"), "2").unwrap();
        std::os::unix::fs::symlink("../../shared", from.join(".vendor/ropes/coil/shared")).unwrap();
        std::os::unix::fs::symlink(".vendor/ropes/coil", from.join("coil")).unwrap();
        std::os::unix::fs::symlink(".vendor/ropes", from.join("all")).unwrap();
        let links = picking_links(&from, ["coil", "all/coil", ".vendor/ropes/coil"].into_iter());
        assert_eq!(links, BTreeSet::from(["coil", "all"].map(PathBuf::from)));
        link_tree(&from, &to, 0).unwrap();
        replace_links(&from, &to, &links).unwrap();
        for path in ["coil/models/m.py", "coil/shared/s.py", "all/coil/shared/s.py"] {
            assert!(fs::symlink_metadata(to.join(path)).unwrap().is_file(), "{path}");
        }
        assert!(fs::symlink_metadata(to.join("coil/shared")).unwrap().is_dir());
        // In a circle.
        std::os::unix::fs::symlink("..", from.join(".vendor/ropes/coil/up")).unwrap();
        assert!(replace_links(&from, &directory.path().join("to"), &BTreeSet::new()).is_ok());
        let again = directory.path().join("again");
        link_tree(&from, &again, 0).unwrap();
        assert!(replace_links(&from, &again, &links).unwrap_err().to_string().contains("in a circle"));
    }

    #[test]
    fn byte_code_of_an_equal_module_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("models/__pycache__")).unwrap();
        fs::write(from.join("models/__pycache__/a.pyc"), "code").unwrap();
        fs::write(from.join("models/a.py"), "source").unwrap();
        fs::create_dir_all(to.join("models")).unwrap();
        for _ in 0..2 {
            link_byte_code(&from, &to).unwrap();
        }
        assert_eq!(fs::read_to_string(to.join("models/__pycache__/a.pyc")).unwrap(), "code");
        assert!(!to.join("models/a.py").exists());
    }
}
