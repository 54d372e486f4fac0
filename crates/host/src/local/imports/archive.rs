//! Reads archives that came from outside: zip, tar and tar.gz, member by member, in the order in which they lie there.
//!
//! Nothing is ever written where a member says. A member has a role by its name ([`Member`]) or it is passed over, and its content goes where
//! the reader of that role puts it. Paths that climb out, links and devices end the reading: whoever packs them means harm, or packed another
//! thing than a backup. So do bombs: what members declare must fit together, and what they hold must be what they declare.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Component, Path},
};

use flate2::read::MultiGzDecoder;
use tar::EntryType;
use zip::ZipArchive;

use super::{
    member::{self, Member, role},
    sql,
};
use crate::error::{HostError, Result};

/// How much an archive may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Unpacked, in bytes.
    pub(super) bytes: u64,
    pub(super) members: u64,
    /// Unpacked to packed, where the whole is larger than [`Limits::harmless`]. SQL packs to a tenth or a twentieth.
    pub(super) ratio: u64,
    /// Below that many bytes no ratio is looked at.
    pub(super) harmless: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 4 * 1024 * 1024 * 1024 * 1024, members: 2_000_000, ratio: 250, harmless: 64 * 1024 * 1024 }
    }
}

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Zip,
    Tar,
    TarGz,
    /// `pg_dump --format=custom`
    Custom,
    Sql,
    SqlGz,
    /// The same as `Custom`, packed once more.
    CustomGz,
}

impl Kind {
    /// `Rejected` when it is nothing that can be imported.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let head = |reader: &mut dyn Read| -> io::Result<Vec<u8>> {
            let mut head = Vec::with_capacity(512);
            reader.take(512).read_to_end(&mut head)?;
            Ok(head)
        };
        let mut file = open(path)?;
        let begin = head(&mut file).map_err(damaged)?;
        if begin.starts_with(b"PK\x03\x04") || begin.starts_with(b"PK\x05\x06") {
            return Ok(Self::Zip);
        }
        if begin.starts_with(&[0x1f, 0x8b]) {
            file.rewind().map_err(damaged)?;
            let inner = head(&mut MultiGzDecoder::new(file)).map_err(damaged)?;
            return match Self::of_plain(&inner)? {
                Some(Self::Tar) => Ok(Self::TarGz),
                Some(Self::Sql) => Ok(Self::SqlGz),
                Some(Self::Custom) => Ok(Self::CustomGz),
                _ => Err(HostError::rejected("inside its gzip, the file is neither a tar archive nor SQL of pg_dump, nor a dump of it")),
            };
        }
        Self::of_plain(&begin)?.ok_or_else(|| {
            HostError::rejected(
                "the file is no backup: expected a zip of Odoo's database manager, a dump of pg_dump (custom, or a directory as tar), or SQL of pg_dump",
            )
        })
    }

    /// By what it begins with; `Rejected` when that is SQL in an encoding that nobody can run.
    pub(super) fn of_plain(begin: &[u8]) -> Result<Option<Self>> {
        if is_utf16(begin) {
            return Err(HostError::rejected(
                "the SQL is written in UTF-16, as PowerShell's `>` does it, and PostgreSQL reads none; dump again with `pg_dump --file=dump.sql`, or turn the file into UTF-8",
            ));
        }
        Ok(if begin.starts_with(b"PGDMP") {
            Some(Self::Custom)
        } else if begin.get(257..262) == Some(b"ustar") {
            Some(Self::Tar)
        } else {
            let text = begin.strip_prefix(sql::BYTE_ORDER_MARK).unwrap_or(begin);
            let text = std::str::from_utf8(text).or_else(|error| std::str::from_utf8(&text[..error.valid_up_to()]));
            // A long comment may come first, but nothing that is not text.
            let is_dump = text.is_ok_and(|text| text.trim_start().starts_with("--") && text.contains("PostgreSQL database dump"));
            is_dump.then_some(Self::Sql)
        })
    }
}

/// Text in UTF-16, with its mark or, in either order, without.
fn is_utf16(begin: &[u8]) -> bool {
    let marks: [&[u8]; 4] = [b"\xff\xfe", b"\xfe\xff", b"-\0-\0", b"\0-\0-"];
    marks.iter().any(|mark| begin.starts_with(mark))
}

/// Opens a file that we have written ourselves.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| HostError::machine_from(format!("{} could not be opened: {error}", path.display()), error))
}

/// Calls `take` with each member that is a file: what it is, the size that it declares, and its bytes. Members that nobody reads cost nothing
/// in a zip.
pub(super) fn read(path: &Path, kind: Kind, limits: Limits, mut take: impl FnMut(Member, u64, &mut dyn Read) -> Result<()>) -> Result<()> {
    match kind {
        Kind::Zip => read_zip(path, limits, &mut take),
        Kind::Tar => read_tar(BufReader::with_capacity(1 << 18, open(path)?), size_of(path)?, limits, &mut take),
        Kind::TarGz => read_tar(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(open(path)?)), size_of(path)?, limits, &mut take),
        Kind::Custom | Kind::CustomGz | Kind::Sql | Kind::SqlGz => {
            Err(HostError::rejected("the file is no archive: expected tar, tar.gz or zip"))
        }
    }
}

fn size_of(path: &Path) -> Result<u64> {
    open(path)?.metadata().map(|metadata| metadata.len()).map_err(damaged)
}

/// The reader of one member.
type Take<'a> = dyn FnMut(Member, u64, &mut dyn Read) -> Result<()> + 'a;

fn read_zip(path: &Path, limits: Limits, take: &mut Take<'_>) -> Result<()> {
    let mut file = open(path)?;
    let announced = zip_members(&mut file)?;
    if announced > limits.members {
        return Err(too_many(limits));
    }
    let packed = file.metadata().map_err(damaged)?.len();
    let mut zip = ZipArchive::new(BufReader::with_capacity(1 << 18, file)).map_err(|error| zip_damaged(&error))?;
    let mut spans = Vec::with_capacity(zip.len());
    let mut declared: u64 = 0;
    for index in 0..zip.len() {
        let member = zip.by_index_raw(index).map_err(|error| zip_damaged(&error))?;
        let name = member.name().map_err(|error| zip_damaged(&error))?.into_owned();
        if member.encrypted() {
            return Err(HostError::rejected(format!("the zip is encrypted ({name}); make one without a password")));
        }
        check_path(&name)?;
        // The upper half of the attributes is st_mode when it was made on Unix (APPNOTE.TXT, 4.4.15).
        if let Some(mode) = member.unix_mode()
            && !matches!(mode & 0o170_000, 0 | 0o100_000 | 0o040_000)
        {
            return Err(refused(&name, if mode & 0o170_000 == 0o120_000 { "a symbolic link" } else { "neither a file nor a directory" }));
        }
        spans.push((member.header_start(), member.data_start().unwrap_or_default().saturating_add(member.compressed_size())));
        declared = declared.saturating_add(member.size());
    }
    spans.sort_unstable();
    if spans.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(HostError::rejected("the zip is a bomb: its members lie over each other"));
    }
    check_bomb(declared, packed, limits)?;
    for index in 0..zip.len() {
        let mut member = zip.by_index(index).map_err(|error| zip_damaged(&error))?;
        if member.is_dir() {
            continue;
        }
        let name = slashed(&member.name().map_err(|error| zip_damaged(&error))?);
        if name.ends_with('/') {
            continue;
        }
        let size = member.size();
        take_exactly(role(&name, size), size, &name, &mut member, take)?;
    }
    Ok(())
}

/// How many members a zip says it has, from its last records (APPNOTE.TXT, 4.3.14 to 4.3.16), so that a list that would fill the memory is never
/// read.
fn zip_members(file: &mut File) -> Result<u64> {
    const END: &[u8] = b"PK\x05\x06";
    const LOCATOR: &[u8] = b"PK\x06\x07";
    let length = file.metadata().map_err(damaged)?.len();
    let tail_length = length.min(22 + 65_535 + 20);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(length - tail_length)).map_err(damaged)?;
    file.read_to_end(&mut tail).map_err(damaged)?;
    file.rewind().map_err(damaged)?;
    let cut = || HostError::rejected("the zip has no end: it was not received whole, or is damaged");
    let at = tail.windows(4).rposition(|window| window == END).ok_or_else(cut)?;
    let number = |bytes: &[u8], from: usize, width: usize| -> Option<u64> {
        let slice = bytes.get(from..from + width)?;
        Some(slice.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let members = number(&tail, at + 10, 2).ok_or_else(cut)?;
    if members != 0xffff {
        return Ok(members);
    }
    let Some(locator) = at.checked_sub(20).filter(|from| tail[*from..].starts_with(LOCATOR)) else { return Ok(members) };
    let end64 = number(&tail, locator + 8, 8).ok_or_else(cut)?;
    let mut record = [0; 56];
    file.seek(SeekFrom::Start(end64)).and_then(|_| file.read_exact(&mut record)).map_err(|_| cut())?;
    file.rewind().map_err(damaged)?;
    number(&record, 32, 8).ok_or_else(cut)
}

fn read_tar(archive: impl Read, packed: u64, limits: Limits, take: &mut Take<'_>) -> Result<()> {
    let mut archive = tar::Archive::new(archive);
    let mut members = 0;
    let mut declared: u64 = 0;
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        members += 1;
        if members > limits.members {
            return Err(too_many(limits));
        }
        let name = slashed(&String::from_utf8_lossy(&entry.path_bytes()));
        check_path(&name)?;
        match kind {
            EntryType::Directory => {}
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = entry.size();
                declared = declared.saturating_add(size);
                check_bomb(declared, packed, limits)?;
                take_exactly(role(&name, size), size, &name, &mut entry, take)?;
            }
            EntryType::Symlink => return Err(refused(&name, "a symbolic link")),
            EntryType::Link => {
                let of = entry.link_name_bytes().map(|of| slashed(&String::from_utf8_lossy(&of))).unwrap_or_default();
                take(linked(&name, &of)?, 0, &mut io::empty())?;
            }
            _ => return Err(refused(&name, "neither a file nor a directory")),
        }
    }
    if members == 0 {
        return Err(HostError::rejected("the archive is empty, or was not received whole"));
    }
    Ok(())
}

/// A member may not hold more than it declares, and whoever reads it to its end finds no less. One whose path says nothing is known by its content.
fn take_exactly(role: Member, size: u64, name: &str, member: &mut dyn Read, take: &mut Take<'_>) -> Result<()> {
    let mut exact = Exact { inner: member, left: size, name };
    let Member::Other(path) = role else { return take(role, size, &mut exact) };
    let mut head = Vec::new();
    (&mut exact).take(member::HEAD as u64).read_to_end(&mut head).map_err(damaged)?;
    let role = if member::is_in_store(&path) { Member::Other(path) } else { member::by_content(path, &head)? };
    take(role, size, &mut head.as_slice().chain(exact))
}

/// A hard link of a tar archive: tools that save space make one of the files of a store that lie in two of its directories.
fn linked(name: &str, of: &str) -> Result<Member> {
    let refused = |what: &str| {
        Err(refused(name, &format!("a hard link {what} ({}); pack it again with `tar --hard-dereference`", of.escape_debug())))
    };
    if check_path(of).is_err() {
        return refused("to what is outside of it");
    }
    match (role(name, 0), role(of, 1)) {
        (Member::Stored(file), Member::Stored(target)) if (&file.root, &file.name) == (&target.root, &target.name) => {
            Ok(Member::Again { file, of: target.shard })
        }
        // That the archive holds several stores is told when it has been read.
        (Member::Stored(file), Member::Stored(target)) if file.root != target.root && file.name == target.name => Ok(Member::Stored(file)),
        (needless @ (Member::Needless | Member::Other(_)), _) => Ok(needless),
        _ => refused("to another file"),
    }
}

/// The path as another system would read it, too.
fn slashed(path: &str) -> String {
    path.replace('\\', "/")
}

struct Exact<'a> {
    inner: &'a mut dyn Read,
    left: u64,
    name: &'a str,
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}", self.name));
        let count = self.inner.read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(wrong("is cut off"));
        }
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| wrong("holds more than it declares"))?;
        Ok(count)
    }
}

fn check_bomb(declared: u64, packed: u64, limits: Limits) -> Result<()> {
    if declared > limits.bytes || (declared > limits.harmless && declared / packed.max(1) > limits.ratio) {
        return Err(HostError::rejected(format!(
            "the archive is a bomb: its {packed} bytes would become {declared}, more than {} times as much",
            limits.ratio
        )));
    }
    Ok(())
}

fn too_many(limits: Limits) -> HostError {
    HostError::rejected(format!("the archive holds more than {} members", limits.members))
}

fn check_path(name: &str) -> Result<()> {
    let climbs = |path: &str| Path::new(path).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
    if name.contains('\0') || climbs(name) || climbs(&slashed(name)) {
        return Err(HostError::rejected(format!("the archive holds a path that leads out of it: {}", name.escape_debug())));
    }
    Ok(())
}

fn refused(name: &str, what: &str) -> HostError {
    HostError::rejected(format!("the archive holds {what}, which no backup does: {}", name.escape_debug()))
}

pub(super) fn damaged(error: io::Error) -> HostError {
    if error.raw_os_error().is_some() {
        return HostError::machine_from(format!("the upload could not be read: {error}"), error);
    }
    HostError::rejected(format!("the archive is damaged or was not received whole: {error}"))
}

fn zip_damaged(error: &zip::result::ZipError) -> HostError {
    HostError::rejected(match error {
        zip::result::ZipError::UnsupportedArchive(what) if what.contains("assword") => {
            "the zip is encrypted; make one without a password".to_owned()
        }
        error => format!("the zip is damaged, was not received whole, or is packed in a way that is not known: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb_out_are_refused() {
        for path in ["../x", "a/../../x", "/etc/passwd", "a\\..\\..\\x", "filestore/../../x", "a\0b"] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        check_path("./filestore/da/x").unwrap();
    }
}
