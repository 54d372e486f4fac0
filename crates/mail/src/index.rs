//! A mailbox in memory: what its lists and searches need of each message. Built from the segments when somebody comes, dropped when nobody does.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{message::Kept, segments::Place};

pub(crate) struct Entry {
    pub(crate) kept: Kept,
    pub(crate) place: Place,
}

/// A change of messages that are there, as `marks` on the disk lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mark")]
pub(crate) enum Mark {
    Read { ids: Vec<Uuid>, read: bool },
    Tags { ids: Vec<Uuid>, tags: Vec<String> },
    Removed { ids: Vec<Uuid> },
}

#[derive(Default)]
struct Segment {
    bytes: u64,
    live_bytes: u64,
    /// Messages that are removed and whose records are still there.
    removed: BTreeSet<Uuid>,
}

/// Ids are in the order in which messages came.
#[derive(Default)]
pub(crate) struct Index {
    entries: BTreeMap<Uuid, Entry>,
    segments: BTreeMap<u32, Segment>,
    unread: usize,
    /// What the entries take in memory, about.
    memory: usize,
    /// Up to this one the texts are shortened.
    shortened: Option<Uuid>,
}

/// Beyond so many bytes the oldest messages are searched by the beginnings of their texts.
const TEXT_MEMORY: usize = 96 << 20;

impl Index {
    /// A message, or, when its segment was rewritten, the message in its new place.
    pub(crate) fn insert(&mut self, id: Uuid, kept: Kept, place: Place) {
        self.forget(id);
        let segment = self.segments.entry(place.segment).or_default();
        segment.bytes += place.bytes;
        segment.live_bytes += place.bytes;
        self.unread += usize::from(!kept.summary.read);
        self.memory += kept.size();
        self.entries.insert(id, Entry { kept, place });
        self.shorten(TEXT_MEMORY);
    }

    fn shorten(&mut self, memory: usize) {
        while self.memory > memory {
            let after = self.shortened.map_or(Bound::Unbounded, Bound::Excluded);
            let Some((id, entry)) = self.entries.range_mut((after, Bound::Unbounded)).next() else { return };
            let before = entry.kept.size();
            entry.kept.shorten();
            self.memory = (self.memory + entry.kept.size()).saturating_sub(before);
            self.shortened = Some(*id);
        }
    }

    fn forget(&mut self, id: Uuid) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.unread -= usize::from(!entry.kept.summary.read);
        self.memory = self.memory.saturating_sub(entry.kept.size());
        if let Some(segment) = self.segments.get_mut(&entry.place.segment) {
            segment.live_bytes -= entry.place.bytes;
        }
        Some(entry)
    }

    pub(crate) fn apply(&mut self, mark: &Mark) {
        match mark {
            Mark::Read { ids, read } => {
                for id in ids {
                    let Some(entry) = self.entries.get_mut(id) else { continue };
                    let summary = &mut entry.kept.summary;
                    self.unread = self.unread + usize::from(summary.read) - usize::from(*read);
                    summary.read = *read;
                }
            }
            Mark::Tags { ids, tags } => {
                for id in ids {
                    if let Some(entry) = self.entries.get_mut(id) {
                        let before = entry.kept.size();
                        entry.kept.summary.tags.clone_from(tags);
                        self.memory = (self.memory + entry.kept.size()).saturating_sub(before);
                    }
                }
            }
            Mark::Removed { ids } => {
                for id in ids {
                    let Some(entry) = self.forget(*id) else { continue };
                    if let Some(segment) = self.segments.get_mut(&entry.place.segment) {
                        segment.removed.insert(*id);
                    }
                }
            }
        }
    }

    /// The marks that say all that the records do not, for a list that has grown too long.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        let read = self.entries.iter().filter(|(_, entry)| entry.kept.summary.read).map(|(id, _)| *id).collect();
        let mut tags: BTreeMap<&Vec<String>, Vec<Uuid>> = BTreeMap::new();
        for (id, entry) in &self.entries {
            // Of one that brought tags and has none any more, too.
            if !entry.kept.summary.tags.is_empty() || entry.kept.came_tagged {
                tags.entry(&entry.kept.summary.tags).or_default().push(*id);
            }
        }
        let removed = self.segments.values().flat_map(|segment| segment.removed.iter().copied()).collect();
        let tags = tags.into_iter().map(|(tags, ids)| Mark::Tags { ids, tags: tags.clone() });
        [Mark::Read { ids: read, read: true }, Mark::Removed { ids: removed }].into_iter().chain(tags).collect()
    }

    /// Segments that are not worth their space: most of what they hold is removed.
    pub(crate) fn wasteful(&self, but: u32) -> Vec<u32> {
        let wasteful = |segment: &Segment| segment.live_bytes * 2 < segment.bytes;
        self.segments.iter().filter(|(number, segment)| **number != but && wasteful(segment)).map(|(number, _)| *number).collect()
    }

    /// All that a segment held is removed.
    pub(crate) fn is_hollow(&self, segment: u32) -> bool {
        self.segments.get(&segment).is_some_and(|segment| segment.live_bytes == 0 && segment.bytes > 0)
    }

    /// What of a segment is still there.
    pub(crate) fn of_segment(&self, segment: u32) -> Vec<(Uuid, Kept, Place)> {
        let in_segment = self.entries.iter().filter(|(_, entry)| entry.place.segment == segment);
        in_segment.map(|(id, entry)| (*id, entry.kept.clone(), entry.place)).collect()
    }

    pub(crate) fn forget_segment(&mut self, segment: u32) {
        self.segments.remove(&segment);
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// The newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = (Uuid, &Entry)> {
        self.entries.iter().rev().map(|(id, entry)| (*id, entry))
    }

    pub(crate) fn oldest(&self) -> impl Iterator<Item = (Uuid, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// What the entries take in memory, in bytes, about.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn unread(&self) -> usize {
        self.unread
    }

    /// Of the messages that are there.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.live_bytes).sum()
    }

    /// Every tag with how many messages have it.
    pub(crate) fn tags(&self) -> BTreeMap<String, usize> {
        let mut tags = BTreeMap::new();
        for tag in self.entries.values().flat_map(|entry| &entry.kept.summary.tags) {
            *tags.entry(tag.clone()).or_default() += 1;
        }
        tags
    }
}
