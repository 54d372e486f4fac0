//! What instances and snapshots take, alone and together, as the file system's own map of blocks tells it.
//!
//! A block that several files refer to is there once. So what would come free when a snapshot goes is what no other snapshot and no instance
//! refers to, and nobody knows that but the file system: `filefrag` (e2fsprogs) asks it where each file lies, and what lies in the same place is the
//! same. Files of one thing that share blocks among themselves count as one.

use std::{
    collections::BinaryHeap,
    fs::File,
    io::{self, BufRead, BufReader},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ocore_model::ids::{InstanceId, SnapshotId};

use crate::{
    api::{SpaceReport, Usage},
    error::{HostError, Result},
    local::{LocalHost, below::Directory, durable::blocking, exec::Program, imports},
};

/// Files that one `filefrag` is asked about. All of them are open meanwhile.
const BATCH: usize = 250;
/// Extents of one instance or snapshot whose places are kept, each of 16 bytes.
const MOST_EXTENTS: usize = 8_000_000;
/// The unit of its answers, in bytes.
const UNIT: u64 = 512;
const TIME_LIMIT: Duration = Duration::from_mins(5);

/// Whose a place on the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Instance(InstanceId),
    Snapshot(SnapshotId),
}

/// Places on the disk in units: sorted, apart from each other, without duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Places(Vec<(u64, u64)>);

impl Places {
    /// Of beginnings and ends in any order, which may overlap.
    fn of(mut raw: Vec<(u64, u64)>) -> Self {
        raw.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in raw {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        joined.shrink_to_fit();
        Self(joined)
    }

    fn units(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

/// How many units of each are in no other. One pass over all, with one entry a participant in memory beside the places themselves.
fn alone(all: &[Places]) -> Vec<u64> {
    use std::cmp::Reverse;
    let mut exclusive = vec![0; all.len()];
    let mut next = vec![0; all.len()];
    // Beginnings and ends, from the start of the disk to its end.
    let mut events: BinaryHeap<Reverse<(u64, bool, usize)>> = BinaryHeap::new();
    for (index, places) in all.iter().enumerate() {
        if let Some((start, _)) = places.0.first() {
            events.push(Reverse((*start, true, index)));
        }
    }
    let mut present: std::collections::BTreeSet<usize> = std::collections::BTreeSet::new();
    let mut position = 0;
    while let Some(Reverse((at, begins, index))) = events.pop() {
        if let (1, Some(only)) = (present.len(), present.first()) {
            exclusive[*only] += at - position;
        }
        position = at;
        let places = &all[index].0;
        if begins {
            present.insert(index);
            events.push(Reverse((places[next[index]].1, false, index)));
        } else {
            present.remove(&index);
            next[index] += 1;
            if let Some((start, _)) = places.get(next[index]) {
                events.push(Reverse((*start, true, index)));
            }
        }
    }
    exclusive
}

/// What one line of `filefrag -v` says of an extent: beginning and end, or only a length when the file system tells no place.
#[derive(Debug, PartialEq, Eq)]
enum Extent {
    At(u64, u64),
    Somewhere(u64),
}

/// `   0:        0..       4:   46147706..  46147710:      5:             last,shared,eof`. `None` for other lines.
fn parse(line: &str) -> Option<Extent> {
    let mut fields = line.split(':').map(str::trim);
    fields.next()?.parse::<u64>().ok()?;
    let _logical = fields.next()?;
    let (start, _) = fields.next()?.split_once("..")?;
    let start: u64 = start.trim().parse().ok()?;
    let length: u64 = fields.next()?.parse().ok()?;
    let flags = fields.next_back().unwrap_or_default();
    let has = |wanted: &str| flags.split(',').any(|flag| flag == wanted);
    if has("inline") {
        // Within the file's own entry. The length is given in bytes here, whatever the unit is.
        return Some(Extent::Somewhere(length.div_ceil(UNIT)));
    }
    if has("unknown_loc") || has("delalloc") || has("not_aligned") {
        return Some(Extent::Somewhere(length));
    }
    Some(Extent::At(start, start + length))
}

impl LocalHost {
    /// What is shared and what is not.
    pub(in crate::local) async fn measure_space(&self) -> Result<SpaceReport> {
        let mut owners = Vec::new();
        for instance in self.ledger.instances().await? {
            owners.push((Owner::Instance(instance), self.layout.instance(instance)));
        }
        for snapshot in imports::names_in(&self.layout.snapshots()) {
            owners.push((Owner::Snapshot(snapshot), self.layout.snapshot(snapshot)));
        }
        let mut report = SpaceReport::default();
        let mut put = |owner, usage| match owner {
            Owner::Instance(instance) => report.instances.push((instance, usage)),
            Owner::Snapshot(snapshot) => report.snapshots.push((snapshot, usage)),
        };
        if self.pool.has_reflinks() {
            let mut all = Vec::new();
            let mut unplaced = Vec::new();
            for (_, directory) in &owners {
                let (places, elsewhere) = places_of(directory).await?;
                all.push(places);
                unplaced.push(elsewhere);
            }
            let (all, exclusive) = blocking(move || {
                let exclusive = alone(&all);
                Ok((all, exclusive))
            })
            .await?;
            for (index, (owner, _)) in owners.into_iter().enumerate() {
                let usage = Usage {
                    referenced_bytes: (all[index].units() + unplaced[index]) * UNIT,
                    exclusive_bytes: (exclusive[index] + unplaced[index]) * UNIT,
                };
                put(owner, usage);
            }
        } else {
            for (owner, directory) in owners {
                let bytes = blocking(move || Ok(files(&directory).paths.iter().map(|(_, bytes)| bytes).sum())).await?;
                put(owner, Usage { referenced_bytes: bytes, exclusive_bytes: bytes });
            }
        }
        let facts = self.pool.facts().await?;
        Ok(SpaceReport { pool_total_bytes: facts.total_bytes, pool_available_bytes: facts.available_bytes, ..report })
    }
}

/// Where the files below a directory lie, and how many units the file system tells no place of. What goes meanwhile is left out.
async fn places_of(directory: &Path) -> Result<(Places, u64)> {
    let directory = directory.to_owned();
    let mut files = blocking(move || Ok(files(&directory))).await?;
    let mut found = Found::default();
    while !files.paths.is_empty() {
        let batch = files.paths.split_off(files.paths.len().saturating_sub(BATCH));
        let Some(directory) = files.directory.clone() else { break };
        // Who owns the files may put anything in the place of one. What is open here is a regular file, and no other is asked about.
        let open: Vec<(File, u64)> =
            blocking(move || Ok(batch.into_iter().filter_map(|(path, bytes)| Some((directory.file(path).ok()?, bytes))).collect())).await?;
        let ours = std::process::id();
        let names = open.iter().map(|(file, _)| format!("/proc/{ours}/fd/{}", file.as_raw_fd()));
        let (reader, writer) = io::pipe().map_err(|error| HostError::machine_from("no pipe could be made", error))?;
        // It answers for those that are there and complains about the others. Only lines of extents are read, and one run is about one thing, so that a
        // tenant's odd files change nobody else's numbers.
        let asked = Program::new("filefrag")
            .args([format!("-b{UNIT}"), "-v".to_owned()])
            .arg("--")
            .args(names)
            .stdout_to(writer)
            .time_limit(TIME_LIMIT);
        let read = blocking(move || {
            let before = found.counts();
            for line in BufReader::new(reader).lines().map_while(io::Result::ok) {
                found.note(&line);
            }
            Ok((found.counts() == before, found))
        });
        let (asked, read) = tokio::join!(asked.run(), read);
        asked?;
        let is_silent;
        (is_silent, found) = read?;
        if is_silent {
            // A file system without maps, where nothing is known to be shared.
            found.unplaced += open.iter().map(|(_, bytes)| bytes / UNIT).sum::<u64>();
        }
    }
    let Found { raw, unplaced } = found;
    let places = blocking(move || Ok(Places::of(raw))).await?;
    Ok((places, unplaced))
}

/// What `filefrag` has said so far.
#[derive(Default)]
struct Found {
    raw: Vec<(u64, u64)>,
    unplaced: u64,
}

impl Found {
    fn counts(&self) -> (usize, u64) {
        (self.raw.len(), self.unplaced)
    }

    fn note(&mut self, line: &str) {
        match parse(line) {
            // Files of nothing but pieces could take all memory; how much they take is known then, and not what they share.
            Some(Extent::At(start, end)) if self.raw.len() < MOST_EXTENTS => self.raw.push((start, end)),
            Some(Extent::At(start, end)) => self.unplaced += end - start,
            Some(Extent::Somewhere(length)) => self.unplaced += length,
            None => {}
        }
    }
}

/// Files that take space, with how much, and the directory that they are in.
#[derive(Default)]
struct Files {
    directory: Option<Arc<Directory>>,
    paths: Vec<(PathBuf, u64)>,
}

/// What lies too deep, or cannot be looked at, is left out.
fn files(place: &Path) -> Files {
    let Ok(directory) = Directory::open(place) else { return Files::default() };
    let mut paths = Vec::new();
    let walked = directory.walk(|entry| {
        let bytes = entry.status.st_blocks.cast_unsigned() * 512;
        if entry.is_file() && bytes > 0 {
            paths.push((entry.path.to_owned(), bytes));
        }
        io::Result::Ok(())
    });
    if let Err(error) = walked {
        tracing::warn!(path = %place.display(), %error, "not all that is there could be measured");
    }
    Files { directory: Some(Arc::new(directory)), paths }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_extents_are_read_and_others_are_not() {
        let line = "   0:        0..       4:   46147706..  46147710:      5:             last,shared,eof";
        assert_eq!(parse(line), Some(Extent::At(46_147_706, 46_147_711)));
        let line = "   1:        5..       9:        100..       104:      5:   46147711: last,eof";
        assert_eq!(parse(line), Some(Extent::At(100, 105)));
        let line = "   0:        0..       7:          0..         7:      8:             last,unknown_loc,delalloc,eof";
        assert_eq!(parse(line), Some(Extent::Somewhere(8)));
        let line = "   0:        0..    4095:          0..      4095:   4096:             last,not_aligned,inline,eof";
        assert_eq!(parse(line), Some(Extent::Somewhere(8)));
        for other in [
            " ext:     logical_offset:        physical_offset: length:   expected: flags:",
            "f1: 1 extent found",
            "File size of f1 is 20000 (5 blocks of 4096 bytes)",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_only_one_refers_to_is_its_own_also_when_it_does_so_twice() {
        let one = Places::of(vec![(0, 10), (5, 12), (20, 30)]);
        let two = Places::of(vec![(8, 25)]);
        assert_eq!((one.units(), two.units()), (22, 17));
        assert_eq!(alone(&[one, two, Places::default()]), vec![8 + 5, 8, 0]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_counting_each_unit(raw in prop::collection::vec(prop::collection::vec((0_u64..60, 1_u64..9), 0..8), 0..5)) {
            let all: Vec<Places> =
                raw.iter().map(|places| Places::of(places.iter().map(|(start, length)| (*start, start + length)).collect())).collect();
            let holds = |index: usize, unit: u64| raw[index].iter().any(|(start, length)| (*start..start + length).contains(&unit));
            for (index, exclusive) in alone(&all).into_iter().enumerate() {
                let counted = (0..80).filter(|unit| (0..raw.len()).all(|other| holds(other, *unit) == (other == index))).count() as u64;
                prop_assert_eq!(exclusive, counted);
            }
        }
    }
}
