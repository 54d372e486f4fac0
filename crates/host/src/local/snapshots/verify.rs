//! The check of a whole snapshot: the file store against the names of its files, the database's pages against their checksums.
//!
//! A page that a live cluster wrote after backup mode began is not checked: recovery replaces it by its image in the log, as PostgreSQL's own
//! base backup reasons too (`basebackup.c`). The log itself is checked when the snapshot comes to life.

use std::{
    fs::{File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::ids::SnapshotId;
use tokio_util::sync::CancellationToken;

use super::{file_store, unreadable};
use crate::{
    api::{Damage, Progress, Verification},
    error::{HostError, Result},
    local::{
        LocalHost,
        below::Directory,
        build_users::{self, BuildUser},
        cluster,
        copy::read_steadily,
        durable::blocking,
        exec::{Finished, Program},
    },
};

const PAGE: usize = 8192;
/// In bytes.
const LABEL_LIMIT: u64 = 64 * 1024;
/// Pages of one file of a relation; the next ones go on in another (PostgreSQL's `RELSEG_SIZE`).
const SEGMENT_PAGES: u32 = 131_072;
/// No more pages of one file are named than this.
const NAMED_PAGES: usize = 5;

impl LocalHost {
    /// Reads all of a snapshot, two files at a time.
    pub(in crate::local) async fn verify(&self, snapshot: SnapshotId, progress: &Progress) -> Result<Verification> {
        let _stays = self.data_locks.share(snapshot).await;
        if self.find_snapshot(snapshot)?.is_none() {
            return Err(HostError::NotFound { what: "snapshot", id: snapshot.to_string() });
        }
        self.check(&self.layout.snapshot(snapshot), progress).await
    }

    /// Reads all of a database and file store at rest.
    pub(in crate::local) async fn check(&self, directory: &Path, progress: &Progress) -> Result<Verification> {
        let control = self.control_of(&directory.join("pgdata")).await?;
        let stop = progress.cancel.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        let files = {
            let (directory, stop) = (directory.to_owned(), stop.clone());
            blocking(move || check_file_store(&directory, &stop))
        };
        let pages = {
            let (directory, has_checksums) = (directory.to_owned(), control.has_checksums);
            blocking(move || if has_checksums { check_pages(&directory, &stop) } else { Ok(Verification::default()) })
        };
        let (files, pages) = tokio::try_join!(files, pages)?;
        if !control.has_checksums {
            progress.log.line("The database's pages have no checksums, so they were not checked.");
        }
        let mut damaged: Vec<Damage> = [control.damage, files.damaged, pages.damaged].into_iter().flatten().collect();
        damaged.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Verification { checked_files: files.checked_files + pages.checked_files, damaged })
    }

    /// What PostgreSQL's own program says of it: run by a user that owns nothing, on a copy of the one file that it reads.
    async fn control_of(&self, pgdata: &Path) -> Result<Control> {
        let program = cluster::postgres_bin(pgdata)?.join("pg_controldata");
        let user = self.claim_build_user().await?;
        let control = describe_control(program, pgdata.to_owned(), &user).await;
        user.release().await?;
        control
    }
}

/// The copy lies where the user sees it, and not longer than the user is lent.
async fn describe_control(program: PathBuf, pgdata: PathBuf, user: &BuildUser) -> Result<Control> {
    let copied = blocking(move || {
        let copy = || -> io::Result<tempfile::TempDir> {
            let control = read_steadily(&Directory::open(&pgdata)?.file(CONTROL)?)?;
            let place =
                tempfile::Builder::new().prefix("control-").permissions(Permissions::from_mode(0o711)).tempdir_in(build_users::PLACE)?;
            Directory::open(place.path())?.make("global", 0o711)?;
            Directory::open(place.path())?.create(CONTROL, 0o444)?.write_all(&control)?;
            Ok(place)
        };
        Ok(copy())
    });
    let place = match copied.await? {
        Ok(place) => place,
        Err(error) => return Ok(Control::damaged(&format!("it cannot be read: {error}"))),
    };
    let program = Program::new(program).arg(place.path()).of_build(user, Vec::new()).without_network().time_limit(CONTROL_TIME);
    Ok(Control::of(&program.run().await?))
}

const CONTROL: &str = "global/pg_control";
const CONTROL_TIME: Duration = Duration::from_mins(1);

struct Control {
    has_checksums: bool,
    damage: Vec<Damage>,
}

impl Control {
    fn of(described: &Finished) -> Self {
        let text = described.stdout_text() + &described.stderr_text();
        if !described.status.success() || text.contains("CRC") {
            return Self { has_checksums: has_checksums(&text), ..Self::damaged("PostgreSQL cannot read it") };
        }
        Self { has_checksums: has_checksums(&text), damage: Vec::new() }
    }

    fn damaged(problem: &str) -> Self {
        Self {
            has_checksums: false,
            damage: vec![Damage { path: Path::new("pgdata").join(CONTROL).display().to_string(), problem: problem.to_owned() }],
        }
    }
}

fn has_checksums(described: &str) -> bool {
    let version = described.lines().find_map(|line| line.strip_prefix("Data page checksum version:"));
    version.is_some_and(|version| version.trim() != "0")
}

fn check_file_store(directory: &Path, stop: &CancellationToken) -> Result<Verification> {
    let (data_dir, paths) = files(&directory.join("data_dir"))?;
    let mut verification = Verification::default();
    for path in paths {
        if stop.is_cancelled() {
            return Err(HostError::Cancelled);
        }
        if file_store::promised(&path).is_none() {
            continue;
        }
        verification.checked_files += 1;
        let problem = match file_store::is_whole(&data_dir, &path) {
            Ok(true) => continue,
            Ok(false) => "its content is not what its name says".to_owned(),
            Err(error) => format!("it cannot be read: {error}"),
        };
        verification.damaged.push(Damage { path: Path::new("data_dir").join(path).display().to_string(), problem });
    }
    Ok(verification)
}

fn check_pages(directory: &Path, stop: &CancellationToken) -> Result<Verification> {
    let (pgdata, paths) = files(&directory.join("pgdata"))?;
    let label = pgdata.read_text("backup_label", LABEL_LIMIT).ok();
    let begun = label
        .as_deref()
        .map(|label| start_of(label).ok_or_else(|| HostError::machine("the backup label does not say where recovery starts")));
    let begun = begun.transpose()?.unwrap_or(u64::MAX);
    let mut verification = Verification::default();
    for path in paths {
        let Some(segment) = relation_segment(&path) else { continue };
        verification.checked_files += 1;
        let problem = match pgdata.file(&path).and_then(|file| wrong_pages(file, segment, begun, stop)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(HostError::Cancelled),
            Err(error) => format!("it cannot be read: {error}"),
            Ok(wrong) if wrong.count == 0 => continue,
            Ok(wrong) => {
                let named: Vec<String> = wrong.first.iter().map(u32::to_string).collect();
                let more = if wrong.count > named.len() { " …" } else { "" };
                format!("{} of its pages do not match their checksums: {}{more}", wrong.count, named.join(", "))
            }
        };
        verification.damaged.push(Damage { path: Path::new("pgdata").join(path).display().to_string(), problem });
    }
    Ok(verification)
}

/// A directory, and all files below it, relative to it, sorted.
fn files(place: &Path) -> Result<(Directory, Vec<PathBuf>)> {
    let mut files = Vec::new();
    let walked = Directory::open(place).and_then(|directory| {
        directory.walk(|entry| {
            if entry.is_file() {
                files.push(entry.path.to_owned());
            }
            io::Result::Ok(())
        })?;
        Ok(directory)
    });
    let directory = walked.map_err(|error| unreadable(place, error))?;
    files.sort_unstable();
    Ok((directory, files))
}

/// The number of the file among those of its relation: `base/5/1259.2` and `global/1262_fsm` are such; others are no relation's.
fn relation_segment(path: &Path) -> Option<u32> {
    let mut parts = path.iter().map(|part| part.to_str());
    match parts.next()?? {
        "global" => {}
        "base" => drop(parts.next()??.parse::<u32>().ok()?),
        _ => return None,
    }
    let name = parts.next()??;
    if parts.next().is_some() {
        return None;
    }
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (number, fork) = name.split_once('_').unwrap_or((name, "main"));
    number.parse::<u32>().ok()?;
    matches!(fork, "main" | "fsm" | "vm" | "init").then_some(segment)
}

#[derive(Default)]
struct WrongPages {
    count: usize,
    first: Vec<u32>,
}

fn wrong_pages(mut file: File, segment: u32, begun: u64, stop: &CancellationToken) -> io::Result<WrongPages> {
    if file.metadata()?.len() > u64::from(SEGMENT_PAGES) * PAGE as u64 {
        return Err(io::Error::other("it is longer than a file of a relation can be"));
    }
    let mut chunk = vec![0; PAGE * 128];
    let mut wrong = WrongPages::default();
    let mut page_in_file = 0;
    loop {
        if stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = read_full(&mut file, &mut chunk)?;
        if length == 0 {
            return Ok(wrong);
        }
        for page in chunk[..length].chunks(PAGE) {
            let number = segment.wrapping_mul(SEGMENT_PAGES).wrapping_add(page_in_file);
            if !is_right(page, number, begun) {
                wrong.count += 1;
                if wrong.first.len() < NAMED_PAGES {
                    wrong.first.push(number);
                }
            }
            page_in_file += 1;
        }
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// A page that is new, will be replaced by recovery, or matches its checksum.
fn is_right(page: &[u8], number: u32, begun: u64) -> bool {
    if page.len() < PAGE {
        // The file was just growing; recovery cuts it or makes it whole. At rest there is no such page.
        return begun != u64::MAX;
    }
    if page.iter().all(|byte| *byte == 0) {
        return true;
    }
    let half = |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    let written = half(0) << 32 | half(4);
    written >= begun || u16::from_le_bytes([page[8], page[9]]) == checksum(page, number)
}

/// Where the values start that are mixed with each page (`checksum_impl.h`).
const OFFSETS: [u32; 32] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// PostgreSQL's checksum of a page (`checksum_impl.h`): 32 FNV-1a hashes side by side, joined, mixed with the page's number, never 0.
fn checksum(page: &[u8], number: u32) -> u16 {
    let mix = |sum: u32, value: u32| {
        let mixed = sum ^ value;
        mixed.wrapping_mul(16_777_619) ^ (mixed >> 17)
    };
    let mut sums = OFFSETS;
    for (row, words) in page.chunks_exact(4 * sums.len()).enumerate() {
        for (column, (sum, word)) in sums.iter_mut().zip(words.chunks_exact(4)).enumerate() {
            let mut value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if (row, column) == (0, 2) {
                // The checksum's own place counts as zero.
                value &= 0xFFFF_0000;
            }
            *sum = mix(*sum, value);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = mix(*sum, 0);
        }
    }
    let joined = sums.into_iter().fold(0, |joined, sum| joined ^ sum) ^ number;
    u16::try_from(joined % 65_535 + 1).unwrap_or(u16::MAX)
}

/// `START WAL LOCATION: 0/2000028 (file …)`, as one number.
fn start_of(label: &str) -> Option<u64> {
    let place = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "))?.split_whitespace().next()?;
    let (high, low) = place.split_once('/')?;
    Some(u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_relations_are_told_from_others() {
        for (path, segment) in [("base/5/1259", 0), ("base/5/1259.2", 2), ("global/1262_fsm", 0), ("base/16384/2619_vm.1", 1)] {
            assert_eq!(relation_segment(Path::new(path)), Some(segment), "{path}");
        }
        for path in ["base/5/PG_VERSION", "base/5/pg_filenode.map", "global/pg_control", "pg_xact/0000", "base/5/t3_16384", "PG_VERSION"] {
            assert_eq!(relation_segment(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn the_place_where_recovery_starts_is_a_number() {
        assert_eq!(start_of("START WAL LOCATION: 1/2000028 (file 000000010000000100000002)\n"), Some(0x1_0200_0028));
    }

    #[test]
    fn a_page_that_recovery_replaces_is_not_judged() {
        let mut page = vec![7; PAGE];
        assert!(!is_right(&page, 0, u64::MAX));
        assert!(is_right(&page, 0, 1));
        let right = checksum(&page, 3);
        page[8..10].copy_from_slice(&right.to_le_bytes());
        assert!(is_right(&page, 3, u64::MAX));
        assert!(!is_right(&page, 4, u64::MAX), "a page in the place of another is wrong");
    }
}
