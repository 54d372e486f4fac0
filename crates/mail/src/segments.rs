//! Messages on disk: files that only grow, each a row of records. A record that was begun and not finished (the power went, the disk was full) is
//! found by its checksums; nothing of it was accepted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::message::Kept;

/// A file that is larger is not continued.
const SEGMENT_BYTES: u64 = 32 << 20;
const MAGIC: [u8; 4] = *b"oCm1";
/// Magic, two lengths, two checksums; little-endian.
const HEADER: usize = 20;
/// More than a [`Kept`] can be.
const META_LIMIT: usize = 1 << 20;

/// Where a message lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    /// Of the message itself, behind what is kept beside it.
    offset: u64,
    length: u32,
    checksum: u32,
    /// Of the whole record.
    pub(crate) bytes: u64,
}

/// A record found in a segment.
pub(crate) struct Found {
    pub(crate) kept: Kept,
    pub(crate) place: Place,
}

fn path(directory: &Path, segment: u32) -> PathBuf {
    directory.join(format!("{segment:010}.mail"))
}

/// The segments of a mailbox, oldest first.
pub(crate) fn list(directory: &Path) -> io::Result<Vec<u32>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number: Option<u32> = name.to_str().and_then(|name| name.strip_suffix(".mail")).and_then(|number| number.parse().ok());
        segments.extend(number);
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Every whole record of a segment. The messages themselves are not read, but in the `newest` segment, whose end may be torn.
pub(crate) fn scan(directory: &Path, segment: u32, newest: bool, mut found: impl FnMut(Found)) -> io::Result<u64> {
    let mut file = File::open(path(directory, segment))?;
    let size = file.metadata()?.len();
    let mut position = 0;
    let mut reader = io::BufReader::with_capacity(64 << 10, &mut file);
    while let Some(record) = read_record(&mut reader, position, size, newest)? {
        let (kept, place) = record;
        let place = Place { segment, ..place };
        position += place.bytes;
        found(Found { kept, place });
    }
    Ok(position)
}

fn read_record(reader: &mut io::BufReader<&mut File>, position: u64, size: u64, verify: bool) -> io::Result<Option<(Kept, Place)>> {
    if position + HEADER as u64 > size {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    reader.read_exact(&mut header)?;
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (meta_length, length) = (number(4) as usize, number(8));
    let bytes = HEADER as u64 + meta_length as u64 + u64::from(length);
    if header[..4] != MAGIC || meta_length > META_LIMIT || position + bytes > size {
        return Ok(None);
    }
    let mut meta = vec![0; meta_length];
    reader.read_exact(&mut meta)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[4..12]);
    hasher.update(&meta);
    let Some(kept) = (hasher.finalize() == number(12)).then(|| serde_json::from_slice(&meta).ok()).flatten() else { return Ok(None) };
    let checksum = number(16);
    if verify {
        let mut raw = vec![0; length as usize];
        reader.read_exact(&mut raw)?;
        if crc32fast::hash(&raw) != checksum {
            return Ok(None);
        }
    } else {
        reader.seek_relative(i64::from(length))?;
    }
    Ok(Some((kept, Place { segment: 0, offset: position + HEADER as u64 + meta_length as u64, length, checksum, bytes })))
}

/// A message as it came.
pub(crate) fn read(directory: &Path, place: Place) -> io::Result<Vec<u8>> {
    let file = File::open(path(directory, place.segment))?;
    let mut raw = vec![0; place.length as usize];
    file.read_exact_at(&mut raw, place.offset)?;
    if crc32fast::hash(&raw) != place.checksum {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is damaged on the disk"));
    }
    Ok(raw)
}

pub(crate) fn remove(directory: &Path, segment: u32) -> io::Result<()> {
    match fs::remove_file(path(directory, segment)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The segment that grows.
pub(crate) struct Writer {
    directory: PathBuf,
    segment: u32,
    file: File,
    /// Behind the last whole record.
    end: u64,
}

impl Writer {
    /// Goes on behind the last whole record of the newest segment, or begins the first one.
    pub(crate) fn open(directory: &Path, newest: Option<(u32, u64)>) -> io::Result<Self> {
        let (segment, end) = newest.unwrap_or((1, 0));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path(directory, segment))?;
        let mut writer = Self { directory: directory.to_owned(), segment, file, end };
        writer.cut()?;
        File::open(directory)?.sync_all()?;
        Ok(writer)
    }

    pub(crate) fn segment(&self) -> u32 {
        self.segment
    }

    /// Begins another file.
    pub(crate) fn next_segment(&mut self) -> io::Result<()> {
        *self = Self::open(&self.directory, Some((self.segment + 1, 0)))?;
        Ok(())
    }

    /// Removes what lies behind the last whole record.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.file.seek(SeekFrom::Start(self.end)).map(drop)
    }

    /// Writes messages so that they are on the disk afterwards: all of them, or none.
    pub(crate) fn append(&mut self, messages: &[(Kept, &[u8])]) -> io::Result<Vec<Place>> {
        if self.end >= SEGMENT_BYTES {
            self.next_segment()?;
        }
        let begin = self.end;
        match self.write(messages) {
            Ok(places) => Ok(places),
            Err(error) => {
                self.end = begin;
                // A segment that cannot be cut is left: nothing is written behind a torn record.
                if self.cut().is_err() {
                    self.next_segment()?;
                }
                Err(error)
            }
        }
    }

    fn write(&mut self, messages: &[(Kept, &[u8])]) -> io::Result<Vec<Place>> {
        let mut places = Vec::with_capacity(messages.len());
        let mut heads = Vec::with_capacity(messages.len());
        for (kept, raw) in messages {
            let meta = serde_json::to_vec(kept)?;
            let length = u32::try_from(raw.len()).map_err(io::Error::other)?;
            let mut lengths = [0; 8];
            lengths[..4].copy_from_slice(&(meta.len() as u32).to_le_bytes());
            lengths[4..].copy_from_slice(&length.to_le_bytes());
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&lengths);
            hasher.update(&meta);
            let checksum = crc32fast::hash(raw);
            let mut head = Vec::with_capacity(HEADER + meta.len());
            head.extend(MAGIC);
            head.extend(lengths);
            head.extend(hasher.finalize().to_le_bytes());
            head.extend(checksum.to_le_bytes());
            head.extend(meta);
            let bytes = head.len() as u64 + u64::from(length);
            places.push(Place { segment: self.segment, offset: self.end + head.len() as u64, length, checksum, bytes });
            self.end += bytes;
            heads.push(head);
        }
        let mut slices: Vec<IoSlice> =
            heads.iter().zip(messages).flat_map(|(head, (_, raw))| [IoSlice::new(head), IoSlice::new(raw)]).collect();
        let mut slices = slices.as_mut_slice();
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.file.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.file.sync_data()?;
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use uuid::Uuid;

    use super::*;
    use crate::message::Envelope;

    fn message(text: &str) -> (Kept, Vec<u8>) {
        let raw = format!("Subject: {text}\r\n\r\n{text}\r\n").into_bytes();
        (Kept::new(Uuid::now_v7(), Envelope::default(), &raw, Utc::now()), raw)
    }

    fn subjects(directory: &Path) -> (Vec<String>, u64) {
        let mut subjects = Vec::new();
        let end = scan(directory, 1, true, |found| subjects.push(found.kept.summary.subject)).unwrap();
        (subjects, end)
    }

    #[test]
    fn a_torn_end_is_cut_wherever_it_is_torn() {
        let directory = tempfile::tempdir().unwrap();
        let messages = [message("one"), message("two")];
        let batch: Vec<_> = messages.iter().map(|(kept, raw)| (kept.clone(), raw.as_slice())).collect();
        let mut writer = Writer::open(directory.path(), None).unwrap();
        let places = writer.append(&batch).unwrap();
        assert_eq!(read(directory.path(), places[1]).unwrap(), messages[1].1);
        let whole = fs::read(path(directory.path(), 1)).unwrap();
        let first = places[0].bytes;
        for length in first..whole.len() as u64 {
            fs::write(path(directory.path(), 1), &whole[..length as usize]).unwrap();
            assert_eq!(subjects(directory.path()), (vec!["one".to_owned()], first), "cut at {length}");
        }
        let mut writer = Writer::open(directory.path(), Some((1, first))).unwrap();
        let (kept, raw) = message("three");
        writer.append(&[(kept, &raw)]).unwrap();
        assert_eq!(subjects(directory.path()).0, ["one", "three"]);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, raw) = message("one");
        let place = Writer::open(directory.path(), None).unwrap().append(&[(kept, &raw)]).unwrap()[0];
        let file = OpenOptions::new().write(true).open(path(directory.path(), 1)).unwrap();
        file.write_all_at(b"X", place.offset).unwrap();
        assert!(read(directory.path(), place).is_err());
    }
}
