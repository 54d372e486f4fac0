//! Odoo's file store: files that are named by the SHA-1 of their contents.
//!
//! Odoo writes a file under its final name and in no single step (`ir.attachment`, `_file_write`), so a crash can leave a short file under a
//! good name; Odoo never writes it again, since it is there.

use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use rustix::fs::Stat;
use sha1::{Digest, Sha1};

use crate::local::below::{Directory, is_hollow};

/// What is hashed while a snapshot is taken, in bytes; the rest is for the check of the whole.
const CHEAP: u64 = 64 * 1024 * 1024;
const PIECE: usize = 128 * 1024;

/// The digest that a file of the file store must have, by its path in the `data_dir`: `filestore/<database>/ab/abcdef…`, or in the directory of three
/// letters that an Odoo before version 8 made. `None` for files that are named by something else.
pub(super) fn promised(path: &Path) -> Option<[u8; 20]> {
    let mut parts = path.components();
    let mut next = || match parts.next() {
        Some(Component::Normal(part)) => part.to_str(),
        _ => None,
    };
    if next()? != "filestore" {
        return None;
    }
    next()?;
    let (shard, name) = (next()?, next()?);
    if next().is_some() || name.len() != 40 || !name.starts_with(shard) || !matches!(shard.len(), 2 | 3) {
        return None;
    }
    let mut digest = [0; 20];
    hex::decode_to_slice(name, &mut digest).ok()?;
    Some(digest)
}

/// A file that may be half-written: an empty one, or one that has changed since, in seconds since 1970.
pub(super) fn is_suspect(path: &Path, status: &Stat, since: i64) -> bool {
    (status.st_size == 0 || status.st_mtime >= since) && promised(path).is_some()
}

/// Whether the path is that of a file which Odoo names by its contents: it writes such a file once, never changes it and only removes it.
pub(in crate::local) fn is_content(path: &Path) -> bool {
    promised(path).is_some()
}

/// Is in the file store, by its path in the `data_dir`.
pub(super) fn is_in(path: &Path) -> bool {
    path.starts_with("filestore")
}

/// Whether the file's content is what its name says.
pub(super) fn is_whole(data_dir: &Directory, path: &Path) -> io::Result<bool> {
    let Some(promised) = promised(path) else { return Ok(true) };
    let mut file = data_dir.file(path)?;
    let found = file.metadata()?;
    if is_hollow(found.len(), found.blocks()) {
        return Ok(false);
    }
    let mut left = found.len();
    let mut digest = Sha1::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok(<[u8; 20]>::from(digest.finalize()) == promised);
        }
        // Somebody writes on to it.
        let Some(less) = left.checked_sub(count as u64) else { return Ok(false) };
        left = less;
        digest.update(&piece[..count]);
    }
}

/// Those of the files, which lie in a `data_dir` that nobody works in, that are not whole. Stops after what is cheap.
pub(super) fn not_whole(data_dir: &Path, paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let data_dir = Directory::open(data_dir)?;
    let mut budget = CHEAP;
    let mut found = Vec::new();
    for path in paths {
        let length = data_dir.file(path)?.metadata()?.len();
        let Some(left) = budget.checked_sub(length) else { continue };
        budget = left;
        if !is_whole(&data_dir, path)? {
            found.push(path.clone());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_named_by_their_content_promise_one() {
        let name = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        for shard in ["da", "da3"] {
            assert!(promised(Path::new(&format!("filestore/odoo/{shard}/{name}"))).is_some());
        }
        for other in [
            format!("filestore/odoo/ab/{name}"),
            format!("filestore/odoo/checklist/da/{name}"),
            format!("sessions/odoo/da/{name}"),
            format!("filestore/odoo/da/{}", &name[1..]),
            format!("filestore/odoo/da/{}z", &name[..39]),
            format!("filestore/../da/{name}"),
        ] {
            assert_eq!(promised(Path::new(&other)), None, "{other}");
        }
    }

    #[test]
    fn a_short_file_under_a_good_name_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let whole = PathBuf::from("filestore/odoo/aa/aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d");
        let short = PathBuf::from("filestore/odoo/7c/7c211433f02071597741e6ff5a8ea34789abbf43");
        for (path, content) in [(&whole, "hello"), (&short, "worl")] {
            std::fs::create_dir_all(directory.path().join(path).parent().unwrap()).unwrap();
            std::fs::write(directory.path().join(path), content).unwrap();
        }
        assert_eq!(not_whole(directory.path(), &[whole, short.clone()]).unwrap(), vec![short]);
    }
}
