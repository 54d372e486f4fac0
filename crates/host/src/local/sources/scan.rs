//! What a source tree holds: its modules, its requirements, its size, and the fingerprints of its content.
//!
//! A directory whose name begins with a dot is not searched for modules; what a link leads to counts where the link is. So a repository can hold others, of
//! which it picks some modules by links (Odoo.sh documents it).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::required::Required;
use crate::error::{HostError, Result};

const MANIFEST: &str = "__manifest__.py";
const REQUIREMENTS: &str = "requirements.txt";
/// A manifest is a small dictionary; one that is larger is not read, in bytes.
const MANIFEST_LIMIT: u64 = 1024 * 1024;

/// A directory with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Relative to the tree.
    pub(super) path: String,
    /// The manifest's text; `Err` says why there is none.
    pub(super) manifest: Result<String, String>,
    /// SHA-256 over paths, kinds and contents of all files in it.
    pub(super) digest: String,
}

impl Candidate {
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(super) fn manifest_path(&self) -> String {
        format!("{}/{MANIFEST}", self.path)
    }
}

/// A tree that has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    pub(super) candidates: Vec<Candidate>,
    pub(super) requirements: Vec<String>,
    /// Over what they say, and over what they name in the tree.
    pub(super) requirements_digest: String,
    pub(super) bytes: u64,
    /// Over the whole tree.
    pub(super) fingerprint: String,
    /// Links that lead to nothing; they were removed.
    pub(super) dangling: Vec<String>,
}

/// Reads the whole tree once. Links that lead out of it through other links are refused; such as lead to nothing are removed.
pub(super) fn scan(tree: &Path) -> Result<Scan> {
    let root = fs::canonicalize(tree).map_err(at(tree))?;
    let dangling = check_links(&root)?;
    let mut bytes = 0;
    let mut whole = Sha256::new();
    let mut modules: BTreeMap<PathBuf, Sha256> = BTreeMap::new();
    let mut links = Vec::new();
    let mut current: Option<PathBuf> = None;
    for entry in WalkDir::new(&root).sort_by_file_name() {
        let entry = entry.map_err(|error| HostError::machine_from(format!("{} could not be read", root.display()), error))?;
        let path = entry.path();
        if current.as_ref().is_some_and(|module| !path.starts_with(module)) {
            current = None;
        }
        if entry.file_type().is_dir() {
            if is_module(path) {
                if path == root {
                    return Err(HostError::rejected(
                        "the root of the repository is itself a module; put it into a directory that has the module's name",
                    ));
                }
                // A module within a module is not one for Odoo.
                if current.is_none() && !is_hidden(&root, path) && !is_template(path) {
                    modules.insert(path.to_owned(), Sha256::new());
                    current = Some(path.to_owned());
                }
            }
            continue;
        }
        if entry.file_type().is_symlink() && current.is_none() && !is_hidden(&root, path) && path.is_dir() {
            links.push(path.to_owned());
        }
        let (kind, content) = read_entry(&entry)?;
        bytes += content.len() as u64;
        let mut content = Sha256::digest(&content).to_vec();
        add(&mut whole, path.strip_prefix(&root).unwrap_or(path), kind, &content);
        if let Some(module) = &current
            && let Some(hasher) = modules.get_mut(module)
        {
            // What lies elsewhere belongs to the module that links to it.
            if entry.file_type().is_symlink() {
                content.extend(behind(&root, module, path)?);
            }
            add(hasher, path.strip_prefix(module).unwrap_or(path), kind, &content);
        }
    }
    let mut holders = BTreeSet::from([root.clone()]);
    for (path, target) in picked(&root, &links, &modules)? {
        // The files that it needs beside it lie where it is from.
        holders.extend(target.parent().map(Path::to_owned));
        modules.insert(path, digest_of(&root, &target)?);
    }
    let mut candidates = Vec::new();
    for (path, hasher) in modules {
        holders.extend(path.parent().map(Path::to_owned));
        candidates.push(Candidate {
            manifest: read_manifest(&path.join(MANIFEST))?,
            digest: hex::encode(hasher.finalize()),
            path: relative(&root, &path)?,
        });
    }
    let requirements = holders.iter().map(|holder| holder.join(REQUIREMENTS)).filter(|path| path.is_file());
    let mut requirements = requirements.map(|path| relative(&root, &path)).collect::<Result<Vec<_>>>()?;
    requirements.sort();
    let requirements_digest = Required::read(&root, &requirements)?.digest(&root)?;
    Ok(Scan { candidates, requirements, requirements_digest, bytes, fingerprint: hex::encode(whole.finalize()), dangling })
}

/// Modules that links lead to, by the path that they have by the link, with where they are. What is a module where it lies is one there, and not once more.
fn picked(root: &Path, links: &[PathBuf], modules: &BTreeMap<PathBuf, Sha256>) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for link in links {
        let target = fs::canonicalize(link).map_err(at(link))?;
        // A link to a directory that it lies in leads around for ever, and to nothing new.
        if !is_hidden(root, &target) || link.starts_with(&target) {
            continue;
        }
        let mut walk = WalkDir::new(&target).sort_by_file_name().into_iter();
        while let Some(entry) = walk.next() {
            let entry = entry.map_err(|error| HostError::machine_from(format!("{} could not be read", target.display()), error))?;
            let inside = entry.path().strip_prefix(&target).unwrap_or(entry.path());
            let place = if inside.as_os_str().is_empty() { link.clone() } else { link.join(inside) };
            let is_hidden_below = entry.depth() > 0 && entry.file_name().as_bytes().starts_with(b".");
            if !entry.file_type().is_dir() {
                continue;
            }
            if is_hidden_below {
                walk.skip_current_dir();
            } else if is_module(entry.path()) {
                if !is_template(&place) && !modules.contains_key(entry.path()) {
                    found.push((place, entry.path().to_owned()));
                }
                walk.skip_current_dir();
            }
        }
    }
    Ok(found)
}

fn is_module(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// Whether a directory on the way to it, or it itself, has a name that begins with a dot.
fn is_hidden(root: &Path, path: &Path) -> bool {
    let inside = path.strip_prefix(root).unwrap_or(path);
    inside.components().any(|part| part.as_os_str().as_bytes().starts_with(b"."))
}

/// A directory of which somebody makes modules: its name is to be filled in.
fn is_template(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().iter().any(|byte| b"{}%$<>".contains(byte)))
}

/// The digest of a module that lies elsewhere than its path says.
fn digest_of(root: &Path, module: &Path) -> Result<Sha256> {
    let mut hasher = Sha256::new();
    for entry in WalkDir::new(module).sort_by_file_name() {
        let entry = entry.map_err(|error| HostError::machine_from(format!("{} could not be read", module.display()), error))?;
        if entry.file_type().is_dir() {
            continue;
        }
        let (kind, content) = read_entry(&entry)?;
        let mut content = Sha256::digest(&content).to_vec();
        if entry.file_type().is_symlink() {
            content.extend(behind(root, module, entry.path())?);
        }
        add(&mut hasher, entry.path().strip_prefix(module).unwrap_or(entry.path()), kind, &content);
    }
    Ok(hasher)
}

/// What kind of file it is, and what it holds.
fn read_entry(entry: &walkdir::DirEntry) -> Result<(u8, Vec<u8>)> {
    let path = entry.path();
    if entry.file_type().is_symlink() {
        return Ok((b'l', fs::read_link(path).map_err(at(path))?.into_os_string().into_vec()));
    }
    let metadata = entry.metadata().map_err(|error| HostError::machine_from("a file could not be looked at", error))?;
    let kind = if metadata.permissions().mode() & 0o100 == 0 { b'f' } else { b'x' };
    Ok((kind, fs::read(path).map_err(at(path))?))
}

/// The digest of all that a link of a module leads to outside of it; nothing for one that stays inside.
pub(super) fn behind(root: &Path, module: &Path, link: &Path) -> Result<Vec<u8>> {
    let target = fs::canonicalize(link).map_err(at(link))?;
    if target.starts_with(module) || !target.starts_with(root) {
        return Ok(Vec::new());
    }
    let mut hasher = Sha256::new();
    for entry in WalkDir::new(&target).sort_by_file_name() {
        let entry = entry.map_err(|error| HostError::machine_from(format!("{} could not be read", target.display()), error))?;
        if entry.file_type().is_file() {
            let content = Sha256::digest(fs::read(entry.path()).map_err(at(entry.path()))?);
            add(&mut hasher, entry.path().strip_prefix(&target).unwrap_or(entry.path()), b'f', &content);
        }
    }
    Ok(hasher.finalize().to_vec())
}

/// Lengths stand before what may hold anything, so that no two trees give the same input.
fn add(hasher: &mut Sha256, path: &Path, kind: u8, content: &[u8]) {
    let path = path.as_os_str().as_bytes();
    hasher.update((path.len() as u64).to_le_bytes());
    hasher.update(path);
    hasher.update([kind]);
    hasher.update(content);
}

fn check_links(root: &Path) -> Result<Vec<String>> {
    let mut dangling = Vec::new();
    for entry in WalkDir::new(root).into_iter().filter_map(std::result::Result::ok).filter(|entry| entry.file_type().is_symlink()) {
        let path = entry.path();
        let inside = path.strip_prefix(root).unwrap_or(path).display().to_string();
        match fs::canonicalize(path) {
            Ok(target) if target.starts_with(root) => {}
            Ok(_) => {
                return Err(HostError::rejected(format!(
                    "the link {inside} leads out of the repository; links may only lead to files of the repository"
                )));
            }
            Err(_) => {
                fs::remove_file(path).map_err(at(path))?;
                dangling.push(inside);
            }
        }
    }
    Ok(dangling)
}

fn read_manifest(path: &Path) -> Result<Result<String, String>> {
    if fs::metadata(path).map_err(at(path))?.len() > MANIFEST_LIMIT {
        return Ok(Err("it is larger than 1 MB".to_owned()));
    }
    Ok(String::from_utf8(fs::read(path).map_err(at(path))?).map_err(|_| "it is not UTF-8 text".to_owned()))
}

fn relative(root: &Path, path: &Path) -> Result<String> {
    let inside = path.strip_prefix(root).unwrap_or(path);
    inside.to_str().map(str::to_owned).ok_or_else(|| HostError::rejected(format!("the path {} is not UTF-8 text", inside.display())))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HostError + '_ {
    move |error| HostError::machine_from(format!("{} could not be read: {error}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn modules_are_found_at_any_depth_but_not_in_modules_and_not_behind_links() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, "a/__manifest__.py", "{}");
        write(root, "a/tests/inner/__manifest__.py", "{}");
        write(root, "libs/repo/b/__manifest__.py", "{}");
        write(root, "libs/repo/requirements.txt", "x");
        write(root, "docs/requirements.txt", "x");
        write(root, "requirements.txt", "x");
        std::os::unix::fs::symlink("libs/repo/b", root.join("b")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("lost")).unwrap();
        let scan = scan(root).unwrap();
        assert_eq!(scan.candidates.iter().map(|found| found.path.as_str()).collect::<Vec<_>>(), ["a", "libs/repo/b"]);
        assert_eq!(scan.requirements, ["libs/repo/requirements.txt", "requirements.txt"]);
        assert_eq!(scan.dangling, ["lost"]);
        assert!(fs::symlink_metadata(root.join("lost")).is_err());
    }

    #[test]
    fn hidden_directories_hold_no_modules_and_links_pick_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for module in [
            ".vendor/ropes/coil_label",
            ".vendor/ropes/coil_unwanted",
            ".vendor/knots/coil_label",
            ".vendor/many/a",
            ".vendor/many/.old/b",
            "coil",
            "skeleton/{{name}}",
        ] {
            write(root, &format!("{module}/__manifest__.py"), "{}");
        }
        write(root, ".vendor/ropes/requirements.txt", "x");
        for (link, target) in [
            ("coil_label", ".vendor/ropes/coil_label"),
            ("another", "coil_label"),
            ("many", ".vendor/many"),
            (".vendor/back", ".."),
            ("twice", "coil"),
        ] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        let found = scan(root).unwrap();
        let paths: Vec<&str> = found.candidates.iter().map(|found| found.path.as_str()).collect();
        assert_eq!(paths, ["another", "coil", "coil_label", "many/a"]);
        assert_eq!(found.requirements, [".vendor/ropes/requirements.txt"]);
        let digest = found.candidates[2].digest.clone();
        write(root, ".vendor/ropes/coil_unwanted/x.py", "1");
        assert_eq!(scan(root).unwrap().candidates[2].digest, digest);
        write(root, ".vendor/ropes/coil_label/x.py", "1");
        assert_ne!(scan(root).unwrap().candidates[2].digest, digest);
    }

    #[test]
    fn a_digest_changes_with_content_name_and_mode_and_with_nothing_else() {
        let digest = |change: &dyn Fn(&Path)| {
            let directory = tempfile::tempdir().unwrap();
            write(directory.path(), "a/__manifest__.py", "{}");
            write(directory.path(), "a/x.py", "1");
            change(directory.path());
            scan(directory.path()).unwrap().candidates[0].digest.clone()
        };
        let same = digest(&|_| {});
        assert_eq!(same, digest(&|root| write(root, "README.md", "new")));
        assert_ne!(same, digest(&|root| write(root, "a/x.py", "2")));
        assert_ne!(same, digest(&|root| fs::rename(root.join("a/x.py"), root.join("a/y.py")).unwrap()));
        assert_ne!(same, digest(&|root| fs::set_permissions(root.join("a/x.py"), fs::Permissions::from_mode(0o755)).unwrap()));
        assert_ne!(same, digest(&|root| write(root, "a/sub/x.py", "1")));
    }

    #[test]
    fn a_link_that_leaves_through_another_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        write(&root, "d/x", "");
        fs::create_dir(root.join("e")).unwrap();
        std::os::unix::fs::symlink("../e", root.join("d/l")).unwrap();
        std::os::unix::fs::symlink("d/l/../..", root.join("out")).unwrap();
        assert!(scan(&root).unwrap_err().to_string().contains("the link out leads out of the repository"));
    }

    #[test]
    fn a_repository_that_is_a_module_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "__manifest__.py", "{}");
        assert!(scan(directory.path()).unwrap_err().to_string().contains("put it into a directory"));
    }
}
