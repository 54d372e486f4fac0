//! An instance's logs: read from their end, followed across rotations, rotated by size.
//!
//! Their names lie in a directory of root's own, but who writes them has them open and may make them any length: by truncating one, or by writing without
//! a line's end. So a reader takes a bounded piece at a time, and what was never written is passed over.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use ocore_model::ids::InstanceId;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{
    failure,
    log_record::{Level, Log},
};
use crate::{
    error::{HostError, Result},
    local::{LocalHost, config::LogLimits, durable::blocking, pool::human},
};

/// How soon a new line is seen.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
/// A line without end is given out in pieces of this size, in bytes.
const LINE_LIMIT: usize = 64 * 1024;
/// How many lines may wait for a slow reader.
const BUFFER: usize = 1024;
/// What a follower reads at a time, in bytes.
const TURN: u64 = 256 * 1024;
/// How far back the last lines are looked for, in bytes.
const TAIL_LIMIT: u64 = 16 * 1024 * 1024;

/// How far back errors are counted.
const LINES_SEARCHED: usize = 20_000;

/// Odoo writes its times in UTC.
fn errors_since(text: &str, since: DateTime<Utc>) -> u64 {
    let since = since.format("%Y-%m-%d %H:%M:%S,%3f").to_string();
    let log = Log::parse(text);
    log.at_least(Level::Error).filter(|record| !failure::is_symptom(record) && record.line.as_str() >= since.as_str()).count() as u64
}

impl LocalHost {
    /// See [`Host::odoo_log`](crate::Host::odoo_log).
    pub(in crate::local) async fn read_log(&self, instance: InstanceId, lines: usize, follow: bool) -> Result<mpsc::Receiver<String>> {
        let path = self.odoo_log_path(instance);
        if !self.layout.logs(instance).is_dir() {
            return Err(HostError::NotFound { what: "instance", id: instance.to_string() });
        }
        let (last, mut position) = blocking({
            let path = path.clone();
            move || tail(&path, lines).map_err(|error| HostError::machine_from(format!("{} could not be read", path.display()), error))
        })
        .await?;
        let (sender, receiver) = mpsc::channel(BUFFER);
        tokio::spawn(async move {
            for line in last {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
            if !follow {
                return;
            }
            loop {
                let path = path.clone();
                let Ok((read, next)) = blocking(move || Ok(position.advance(&path))).await else { return };
                position = next;
                for line in read {
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
                if position.is_behind {
                    continue;
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
                }
            }
        });
        Ok(receiver)
    }

    /// See [`Host::logged_errors`](crate::Host::logged_errors).
    pub(in crate::local) async fn count_errors(&self, instance: InstanceId, since: DateTime<Utc>) -> Result<u64> {
        let path = self.odoo_log_path(instance);
        blocking(move || {
            let (lines, _) = tail(&path, LINES_SEARCHED)
                .map_err(|error| HostError::machine_from(format!("{} could not be read", path.display()), error))?;
            Ok(errors_since(&lines.join("\n"), since))
        })
        .await
    }

    pub(in crate::local) async fn rotate(&self) -> Result<()> {
        let (directory, limits) = (self.layout.instances(), self.config.logs);
        blocking(move || {
            for instance in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let logs = instance.path().join("log");
                for entry in fs::read_dir(&logs).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if let Err(error) = rotate_if_large(&path, limits) {
                        tracing::warn!(%error, path = %path.display(), "a log could not be rotated");
                    }
                }
            }
            Ok(())
        })
        .await
    }
}

/// Where a follower is in a log.
struct Position {
    file: Option<File>,
    /// The beginning of a line whose end has not been written yet.
    partial: Vec<u8>,
    /// There was more than one turn takes.
    is_behind: bool,
}

impl Position {
    fn of(file: Option<File>) -> Self {
        Self { file, partial: Vec::new(), is_behind: false }
    }

    /// Lines that have been written since, of one turn's length; to the end of a file that was rotated away and on in the one that took its place.
    fn advance(mut self, path: &Path) -> (Vec<String>, Self) {
        let mut lines = Vec::new();
        self.read(&mut lines);
        let current = fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|metadata| (metadata.dev(), metadata.ino()));
        if !self.is_behind && current.is_some() && current != ours {
            // Whatever came between the first look and the rotation.
            self.read(&mut lines);
            if !self.is_behind {
                self.file = File::open(path).ok();
                self.read(&mut lines);
            }
        }
        (lines, self)
    }

    fn read(&mut self, lines: &mut Vec<String>) {
        self.is_behind = false;
        let Some(file) = &mut self.file else { return };
        let mut bytes = std::mem::take(&mut self.partial);
        let Ok((passed_over, piece)) = next_piece(file) else { return };
        if passed_over > 0 {
            // A line that was begun has no end.
            lines.extend(text(&std::mem::take(&mut bytes)));
            lines.push(left_out(passed_over));
        }
        let Ok(read) = file.take(piece.min(TURN)).read_to_end(&mut bytes) else { return };
        self.is_behind =
            read > 0 && file.metadata().is_ok_and(|metadata| file.stream_position().is_ok_and(|position| position < metadata.len()));
        let mut rest = bytes.as_slice();
        while let Some(end) = memchr::memchr(b'\n', rest) {
            lines.extend(text(&rest[..end]));
            rest = &rest[end + 1..];
        }
        while rest.len() > LINE_LIMIT {
            lines.extend(text(&rest[..LINE_LIMIT]));
            rest = &rest[LINE_LIMIT..];
        }
        self.partial = rest.to_vec();
    }
}

/// Goes on to where something is written. Answers with how many bytes were passed over, and how many are written from there on.
fn next_piece(file: &mut File) -> io::Result<(u64, u64)> {
    let (length, mut position) = (file.metadata()?.len(), file.stream_position()?);
    // A file that was emptied begins again.
    if length < position {
        file.rewind()?;
        position = 0;
    }
    if length == position {
        return Ok((0, 0));
    }
    let begin = match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(position)) {
        Ok(begin) => begin,
        // Nothing is written from here to its end.
        Err(Errno::NXIO) => {
            file.seek(SeekFrom::Start(length))?;
            return Ok((length - position, 0));
        }
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(&*file, rustix::fs::SeekFrom::Hole(begin))?;
    file.seek(SeekFrom::Start(begin))?;
    Ok((begin - position, end - begin))
}

fn left_out(bytes: u64) -> String {
    format!("… {} of the log were never written and are left out …", human(bytes))
}

/// The last lines, and where the rest begins. A log that is not there is empty.
fn tail(path: &Path, lines: usize) -> io::Result<(Vec<String>, Position)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Position::of(None))),
        Err(error) => return Err(error),
    };
    let bytes = end_of(&mut file)?;
    let mut position = Position::of(Some(file));
    // What has no end yet is the beginning of what is to come.
    let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |end| end + 1);
    let partial = &bytes[whole..];
    position.partial = partial[partial.len().saturating_sub(LINE_LIMIT)..].to_vec();
    let mut found = last_lines(&bytes[..whole], lines);
    if found.len() < lines
        && let Ok(mut rotated) = File::open(numbered(path, 1))
    {
        let older = end_of(&mut rotated)?;
        found.splice(0..0, last_lines(&older, lines - found.len()));
    }
    Ok((found, position))
}

/// What is written in the last part of a file, which is left at its end.
fn end_of(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_LIMIT)))?;
    let mut bytes = Vec::new();
    while file.stream_position()? < length && (bytes.len() as u64) < TAIL_LIMIT {
        let (_, piece) = next_piece(file)?;
        let left = TAIL_LIMIT - bytes.len() as u64;
        if (&mut *file).take(piece.min(left)).read_to_end(&mut bytes)? == 0 {
            break;
        }
    }
    Ok(bytes)
}

/// Not more of them than are wanted, in their order.
fn last_lines(bytes: &[u8], wanted: usize) -> Vec<String> {
    let lines = bytes.rsplit(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut found: Vec<String> = lines.filter_map(|line| text(&line[..line.len().min(LINE_LIMIT)])).take(wanted).collect();
    found.reverse();
    found
}

/// `None` for what was never written.
fn text(bytes: &[u8]) -> Option<String> {
    // A hole in a file ends within a block of it.
    let written = bytes.iter().position(|byte| *byte != 0).map(|begin| &bytes[begin..]);
    match written {
        None if !bytes.is_empty() => None,
        written => Some(String::from_utf8_lossy(written.unwrap_or_default()).trim_end_matches(['\r', '\0']).to_owned()),
    }
}

/// `odoo.log` is replaced by an empty one in one step: Odoo opens it again when it sees that (its handler is a `WatchedFileHandler`). The others
/// are held open by who writes them: they are copied and emptied, which may lose what is written in between.
fn rotate_if_large(path: &Path, limits: LogLimits) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let is_log = path.extension().is_some_and(|extension| extension == "log" || extension == "out");
    let metadata = fs::symlink_metadata(path)?;
    if !is_log || !metadata.is_file() || metadata.len() <= limits.max_bytes {
        return Ok(());
    }
    for number in (1..limits.keep.max(1)).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let first = numbered(path, 1);
    if name == "odoo.log" {
        let mut fresh = OsString::from(".");
        fresh.push(name);
        let fresh = path.with_file_name(fresh);
        let _ = fs::remove_file(&fresh);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        chown(&fresh, Some(metadata.uid()), Some(metadata.gid()))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(metadata.mode() & 0o777))?;
        let _ = fs::remove_file(&first);
        fs::hard_link(path, &first)?;
        return fs::rename(&fresh, path);
    }
    let mut source = File::open(path)?;
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&first)?;
    copy_end(&mut source, &mut copy, limits.max_bytes.saturating_mul(2))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// What is written in the last part of a file, at most that many bytes.
fn copy_end(source: &mut File, copy: &mut File, limit: u64) -> io::Result<()> {
    let length = source.metadata()?.len();
    if length > limit {
        source.seek(SeekFrom::Start(length - limit))?;
        writeln!(copy, "… {} of the log before this are left out …", human(length - limit))?;
    }
    while source.stream_position()? < length {
        let (passed_over, piece) = next_piece(source)?;
        if passed_over > 0 {
            writeln!(copy, "{}", left_out(passed_over))?;
        }
        if io::copy(&mut (&mut *source).take(piece), copy)? == 0 {
            break;
        }
    }
    copy.flush()
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{number}"));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_from_a_moment_on() {
        let text = "2026-01-01 00:00:00,000 1 ERROR odoo odoo.http: early\n2026-01-01 00:00:01,500 1 ERROR odoo odoo.http: broken\nTraceback (most recent call last):\n  no\n2026-01-01 00:00:02,000 1 ERROR odoo odoo.sql_db: bad query: select\n2026-01-01 00:00:02,000 1 WARNING odoo odoo.x: slow\n";
        assert_eq!(errors_since(text, "2026-01-01T00:00:01.5Z".parse().unwrap()), 1);
        assert_eq!(errors_since(text, "2025-12-31T00:00:00Z".parse().unwrap()), 2);
    }

    fn append(path: &Path, text: &str) {
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    const LIMITS: LogLimits = LogLimits { max_bytes: 10, keep: 2 };

    #[test]
    fn a_follower_loses_no_line_when_the_log_is_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("odoo.log");
        append(&path, "one\ntwo\nthr");
        let (last, position) = tail(&path, 1).unwrap();
        assert_eq!(last, ["two"]);
        append(&path, "ee\nfour\n");
        rotate_if_large(&path, LIMITS).unwrap();
        append(&path, "five\n");
        let (lines, position) = position.advance(&path);
        assert_eq!(lines, ["three", "four", "five"]);
        append(&path, "six\n");
        assert_eq!(position.advance(&path).0, ["six"]);
    }

    #[test]
    fn last_lines_reach_into_the_rotated_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("odoo.log");
        append(&path, "one\ntwo\nthree\n");
        rotate_if_large(&path, LIMITS).unwrap();
        append(&path, "four\n");
        assert_eq!(tail(&path, 3).unwrap().0, ["two", "three", "four"]);
    }

    #[test]
    fn as_many_old_logs_are_kept_as_asked_for_and_small_ones_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("postgresql.log");
        for round in 0..4 {
            append(&path, &format!("line of round {round}\n"));
            rotate_if_large(&path, LIMITS).unwrap();
        }
        append(&path, "small\n");
        rotate_if_large(&path, LIMITS).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["postgresql.log", "postgresql.log.1", "postgresql.log.2"]);
        assert_eq!(fs::read_to_string(directory.path().join("postgresql.log.1")).unwrap(), "line of round 3\n");
    }

    /// All that comes, turn by turn, and the longest that was given out at once.
    fn follow(mut position: Position, path: &Path) -> (Vec<String>, usize) {
        let (mut all, mut longest) = (Vec::new(), 0);
        loop {
            let (lines, next) = position.advance(path);
            longest = longest.max(lines.iter().map(String::len).sum());
            all.extend(lines);
            position = next;
            if !position.is_behind {
                return (all, longest);
            }
        }
    }

    #[test]
    fn what_was_never_written_is_passed_over_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("odoo.log");
        append(&path, "one\nhalf");
        let (_, position) = tail(&path, 10).unwrap();
        let grow = |bytes| OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        grow(10 << 40);
        append(&path, "two\n");
        let (lines, _) = follow(position, &path);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0] == "half" && lines[1].contains("10.0 TiB") && lines[2] == "two", "{lines:?}");
        assert_eq!(tail(&path, 10).unwrap().0, ["two"]);
        grow(11 << 40);
        assert!(tail(&path, 10).unwrap().0.is_empty());
        // Of a rotated one too.
        rotate_if_large(&path, LIMITS).unwrap();
        append(&path, "three\n");
        assert_eq!(tail(&path, 10).unwrap().0, ["three"]);
        // Cut off again, it begins anew.
        let (_, position) = tail(&path, 1).unwrap();
        grow(0);
        append(&path, "four\n");
        assert_eq!(follow(position, &path).0, ["four"]);
    }

    #[test]
    fn a_long_log_is_read_piece_by_piece() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("odoo.log");
        append(&path, "");
        let (_, position) = tail(&path, 1).unwrap();
        append(&path, &"\0".repeat(5 << 20));
        append(&path, &"\n".repeat(1 << 20));
        append(&path, "last\n");
        let (lines, longest) = follow(position, &path);
        assert!(lines.last().is_some_and(|line| line == "last") && longest <= 2 * TURN as usize, "{longest}");
        assert_eq!(tail(&path, 20).unwrap().0, ["last"]);
    }

    #[test]
    fn a_rotated_output_holds_no_more_than_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("odoo-blue.out");
        append(&path, "first\n");
        OpenOptions::new().write(true).open(&path).unwrap().set_len(10 << 40).unwrap();
        append(&path, "second\n");
        rotate_if_large(&path, LogLimits { max_bytes: 1 << 20, keep: 2 }).unwrap();
        let rotated = fs::read_to_string(directory.path().join("odoo-blue.out.1")).unwrap();
        assert!(rotated.ends_with("second\n") && rotated.contains("left out") && rotated.len() < 10_000, "{} bytes", rotated.len());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        append(&path, &"x".repeat(10 << 20));
        rotate_if_large(&path, LogLimits { max_bytes: 1 << 20, keep: 2 }).unwrap();
        let rotated = fs::metadata(directory.path().join("odoo-blue.out.1")).unwrap().len();
        assert!(rotated < 3 << 20, "{rotated}");
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_followed_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("odoo.log");
        let (last, position) = tail(&path, 10).unwrap();
        assert!(last.is_empty());
        append(&path, "one\n");
        assert_eq!(position.advance(&path).0, ["one"]);
    }
}
