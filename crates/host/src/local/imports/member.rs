//! What a member of an archive is to an import: by its path, and by its first bytes.
//!
//! Separators of Windows count like others (`Compress-Archive` writes them): nothing is ever written where a member says.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::archive::Kind;
use crate::error::{HostError, Result};

/// So many bytes tell what a file is, also packed.
pub(super) const HEAD: usize = 4096;
/// Names of what was left out that are kept.
const EXAMPLES: usize = 5;
/// File stores in one archive that are told apart.
const MOST_STORES: usize = 8;

/// A file of a file store: `root/da/da39a3ee…`. Odoo has scattered its files over directories of two letters since version 8 and keeps those of three,
/// which older ones have made, where they are (`ir.attachment`, `_get_path`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// The directory of the store.
    pub(super) root: String,
    /// Its directory in the store.
    pub(super) shard: String,
    /// 40 hexadecimal digits: the SHA-1 of its content.
    pub(super) name: String,
}

/// What a member of an archive is to an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// A database as SQL.
    Sql {
        path: String,
        gzip: bool,
    },
    /// `pg_dump --format=custom`
    Custom {
        path: String,
        gzip: bool,
    },
    /// A file of a directory dump: `toc.dat`, `3001.dat.gz` …
    Directory {
        parent: String,
        name: String,
    },
    Stored(Stored),
    /// Another name for the content of an earlier file with the same name, in this directory of the same store.
    Again {
        file: Stored,
        of: String,
    },
    /// `manifest.json` of Odoo's database manager.
    Manifest,
    /// What no import needs: marks of Odoo's collector, sessions, what systems put into each directory.
    Needless,
    Other(String),
}

/// What of archives is neither a database nor a file of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    pub(super) count: u64,
    pub(super) examples: Vec<String>,
}

impl LeftOut {
    pub(super) fn note(&mut self, path: String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(path);
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.count += other.count;
        let room = EXAMPLES - self.examples.len();
        self.examples.extend(other.examples.into_iter().take(room));
    }
}

/// The file stores of an archive, by their directories.
#[derive(Debug, Default)]
pub(super) struct Stores(BTreeMap<String, (u64, u64)>);

impl Stores {
    pub(super) fn note(&mut self, file: &Stored, bytes: u64) -> Result<()> {
        let (files, sum) = self.0.entry(file.root.clone()).or_default();
        *files += 1;
        *sum += bytes;
        if self.0.len() > MOST_STORES { self.only().map(drop) } else { Ok(()) }
    }

    /// How many files and bytes the one store has; of several nobody knows which one belongs to the database.
    pub(super) fn only(&self) -> Result<(u64, u64)> {
        if self.0.len() > 1 {
            let shown = |root: &str| if root.is_empty() { "the top".to_owned() } else { root.escape_debug().to_string() };
            let roots: Vec<String> = self.0.keys().map(|root| shown(root)).collect();
            return Err(HostError::rejected(format!(
                "the archive holds the file stores of several databases ({}), and a file store is one database's; leave the one that belongs to it",
                roots.join(", ")
            )));
        }
        Ok(self.0.values().next().copied().unwrap_or_default())
    }
}

/// What the path alone says, with `/` between its parts. `size` is what the member declares.
pub(super) fn role(path: &str, size: u64) -> Member {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let Some((last, above)) = parts.split_last() else { return Member::Needless };
    if is_of_a_system(last) || above.iter().any(|part| matches!(*part, "__MACOSX" | "@eaDir")) {
        return Member::Needless;
    }
    if let Some(file) = stored(&parts) {
        // Odoo's collector marks new files by empty ones of the same name (`_mark_for_gc`).
        let is_mark = size == 0 && (file.root == "checklist" || file.root.ends_with("/checklist"));
        return if is_mark { Member::Needless } else { Member::Stored(file) };
    }
    let is_in_store = is_in_store(path);
    if (!is_in_store && above.contains(&"sessions")) || (size == 0 && above.contains(&"checklist")) {
        return Member::Needless;
    }
    if !is_in_store && above.len() <= 2 && is_of_directory_dump(last) {
        return Member::Directory { parent: above.join("/"), name: (*last).to_owned() };
    }
    match *last {
        "manifest.json" if !is_in_store && above.len() <= 1 => Member::Manifest,
        "dump.sql" if !is_in_store && above.len() <= 1 => Member::Sql { path: parts.join("/"), gzip: false },
        // Of `pg_dump --format=tar`, for people.
        "restore.sql" if !is_in_store && above.len() <= 1 => Member::Needless,
        _ => Member::Other(parts.join("/")),
    }
}

/// Below a directory that is called as Odoo calls the one of its file stores.
pub(super) fn is_in_store(path: &str) -> bool {
    path.rsplit_once('/').is_some_and(|(above, _)| above.split('/').any(|part| part == "filestore"))
}

/// What a member is whose path says nothing, by what it begins with.
pub(super) fn by_content(path: String, head: &[u8]) -> Result<Member> {
    Ok(match Kind::of_plain(head)? {
        Some(Kind::Sql) => Member::Sql { path, gzip: false },
        Some(Kind::Custom) => Member::Custom { path, gzip: false },
        _ if head.starts_with(&[0x1f, 0x8b]) => match Kind::of_plain(&unpacked_head(head))? {
            Some(Kind::Sql) => Member::Sql { path, gzip: true },
            Some(Kind::Custom) => Member::Custom { path, gzip: true },
            _ => Member::Other(path),
        },
        _ => Member::Other(path),
    })
}

/// What a file that is packed with gzip begins with, as far as its first bytes tell.
fn unpacked_head(head: &[u8]) -> Vec<u8> {
    let mut unpacked = vec![0; 512];
    let mut length = 0;
    let mut decoder = MultiGzDecoder::new(Cursor::new(head));
    while length < unpacked.len() {
        match decoder.read(&mut unpacked[length..]) {
            Ok(0) | Err(_) => break,
            Ok(count) => length += count,
        }
    }
    unpacked.truncate(length);
    unpacked
}

/// File stores are packed with and without `filestore/`, with the database's name or without, and at any depth.
fn stored(parts: &[&str]) -> Option<Stored> {
    let [root @ .., shard, name] = parts else { return None };
    let is_file = is_digest(name) && matches!(shard.len(), 2 | 3) && name.starts_with(shard);
    is_file.then(|| Stored { root: root.join("/"), shard: (*shard).to_owned(), name: (*name).to_owned() })
}

fn is_digest(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What file managers leave in directories.
fn is_of_a_system(name: &str) -> bool {
    name.starts_with("._") || matches!(name, ".DS_Store" | "Thumbs.db" | "desktop.ini")
}

/// The names that `pg_dump --format=directory` gives.
fn is_of_directory_dump(name: &str) -> bool {
    if name == "toc.dat" {
        return true;
    }
    let stem = [".gz", ".lz4", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let digits = |text: &str| !text.is_empty() && text.len() < 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    let data = stem.strip_suffix(".dat").is_some_and(|stem| digits(stem.strip_prefix("blob_").unwrap_or(stem)));
    let blobs = stem.strip_suffix(".toc").is_some_and(|stem| stem == "blobs" || stem.strip_prefix("blobs_").is_some_and(digits));
    data || blobs
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const HASH: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";

    #[test]
    fn a_file_of_a_store_lies_in_a_directory_of_two_or_three_of_its_letters() {
        for (root, shard) in [("", "da"), ("filestore", "da"), ("filestore/prod", "da3"), ("shop/filestore", "da"), ("checklist", "da")] {
            let path = format!("{root}/{shard}/{HASH}");
            let expected = Stored { root: root.to_owned(), shard: shard.to_owned(), name: HASH.to_owned() };
            assert_eq!(role(&path, 7), Member::Stored(expected), "{path}");
        }
        for path in [format!("db/{HASH}"), format!("filestore/{HASH}"), format!("d/{HASH}"), format!("filestore/da39/{HASH}")] {
            assert_eq!(role(&path, 7), Member::Other(path.clone()), "{path}");
        }
    }

    #[test]
    fn marks_of_the_collector_sessions_and_what_systems_leave_are_needless() {
        for path in
            [format!("filestore/checklist/da/{HASH}"), format!("checklist/da3/{HASH}"), format!("filestore/prod/checklist/da/{HASH}")]
        {
            assert_eq!(role(&path, 0), Member::Needless, "{path}");
        }
        for path in ["filestore/checklist/da/x", "__MACOSX/shop/._dump.sql", "filestore/.DS_Store", "odoo/sessions/aa/bb", "restore.sql"] {
            assert_eq!(role(path, 0), Member::Needless, "{path}");
        }
    }

    #[test]
    fn a_database_is_known_by_its_content_and_may_lie_one_level_down() {
        let sql = b"--\n-- PostgreSQL database dump\n--\n".as_slice();
        assert_eq!(role("shop/dump.sql", 9), Member::Sql { path: "shop/dump.sql".to_owned(), gzip: false });
        assert_eq!(role("./shop/manifest.json", 9), Member::Manifest);
        let parent = "database".to_owned();
        for name in ["toc.dat", "3001.dat", "3001.dat.gz", "blobs.toc", "blob_17.dat.gz", "blobs_3.toc"] {
            assert_eq!(role(&format!("database/{name}"), 9), Member::Directory { parent: parent.clone(), name: name.to_owned() });
        }
        for name in ["x.dat", ".dat", "blob_.dat", "toc.dat.d"] {
            assert!(matches!(role(&format!("database/{name}"), 9), Member::Other(_)), "{name}");
        }
        let path = || "prod.sql".to_owned();
        assert_eq!(by_content(path(), sql).unwrap(), Member::Sql { path: path(), gzip: false });
        assert_eq!(by_content(path(), b"\xef\xbb\xbf-- PostgreSQL database dump\n").unwrap(), Member::Sql { path: path(), gzip: false });
        assert_eq!(by_content(path(), b"PGDMP\x01").unwrap(), Member::Custom { path: path(), gzip: false });
        assert_eq!(by_content(path(), b"select 1").unwrap(), Member::Other(path()));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&[sql, &vec![b'x'; 100_000]].concat()).unwrap();
        let mut packed = gzip.finish().unwrap();
        packed.truncate(100);
        assert_eq!(by_content(path(), &packed).unwrap(), Member::Sql { path: path(), gzip: true });
        for utf16 in [b"\xff\xfe-\0-\0".as_slice(), b"\xfe\xff\0-\0-", b"-\0-\0 \0P\0"] {
            assert!(by_content(path(), utf16).unwrap_err().to_string().contains("UTF-16"));
        }
    }

    #[test]
    fn stores_of_several_databases_are_no_store() {
        let mut stores = Stores::default();
        let file = |root: &str| Stored { root: root.to_owned(), shard: "da".to_owned(), name: HASH.to_owned() };
        stores.note(&file("filestore/prod"), 3).unwrap();
        stores.note(&file("filestore/prod"), 4).unwrap();
        assert_eq!(stores.only().unwrap(), (2, 7));
        stores.note(&file("filestore/test"), 4).unwrap();
        let said = stores.only().unwrap_err().to_string();
        assert!(said.contains("filestore/prod, filestore/test"), "{said}");
    }
}
