//! One mailbox while it is in use: its index, the task that alone writes to its disk, and who listens to what happens in it.
//!
//! Messages that come at the same time are written together and synced once; each sender is answered when that is done.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use chrono::Utc;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use uuid::Uuid;

use crate::{
    config::Limits,
    error::{MailError, Result},
    events::Event,
    index::{Index, Mark},
    message::{Envelope, Kept, Summary},
    segments::{self, Writer},
};

/// Messages, and bytes of them, that are written together at most.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 16 << 20;
/// The list of marks is written anew when it has grown by this.
const MARKS_BYTES: u64 = 1 << 20;
/// What the list of one mailbox may take in memory, in bytes: messages are many, and each may have long names and many receivers.
const MEMORY: usize = 128 << 20;
/// Of messages larger than this so many are taken apart at once, of all mailboxes: one may take ten times its own size meanwhile.
const LARGE: usize = 64 << 10;
static LARGE_AT_ONCE: Semaphore = Semaphore::const_new(4);
const QUEUE: usize = 512;
const EVENTS: usize = 1024;

enum Order {
    Append { kept: Box<Kept>, id: Uuid, raw: Bytes, done: oneshot::Sender<Result<()>> },
    Mark { mark: Mark, done: oneshot::Sender<Result<()>> },
    End { done: oneshot::Sender<()> },
}

/// A mailbox in use. The task ends when the last of these goes.
pub(crate) struct Mailbox {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
}

struct Shared {
    directory: PathBuf,
    limits: Limits,
    index: Mutex<Index>,
    events: broadcast::Sender<Event>,
    counts: Counts,
    opened: Instant,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) accepted: AtomicU64,
    pub(crate) accepted_bytes: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) deleted: AtomicU64,
}

impl Mailbox {
    /// Reads the index from the disk and starts the writing task.
    pub(crate) async fn open(directory: PathBuf, limits: Limits) -> Result<Self> {
        let place = directory.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&place)).await.map_err(|_| MailError::Stopping)?;
        let (index, writer, marks) = loaded.map_err(|source| MailError::storage(&directory, source))?;
        let shared = Arc::new(Shared {
            directory,
            limits,
            index: Mutex::new(index),
            events: broadcast::Sender::new(EVENTS),
            counts: Counts::default(),
            opened: Instant::now(),
        });
        let (orders, queue) = mpsc::channel(QUEUE);
        tokio::spawn(work(Arc::clone(&shared), queue, Disk { writer, marks }));
        Ok(Self { shared, orders })
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        self.shared.index()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub(crate) fn uptime(&self) -> u64 {
        self.shared.opened.elapsed().as_secs()
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Keeps a message. When this says so, it is on the disk.
    pub(crate) async fn append(&self, envelope: Envelope, raw: Bytes) -> Result<Uuid> {
        let id = Uuid::now_v7();
        let kept = if raw.len() > LARGE {
            let whole = raw.clone();
            take_apart(raw.len(), move || Kept::new(id, envelope, &whole, Utc::now())).await?
        } else {
            Kept::new(id, envelope, &raw, Utc::now())
        };
        let (done, answer) = oneshot::channel();
        self.order(Order::Append { kept: Box::new(kept), id, raw, done }, answer).await?;
        Ok(id)
    }

    /// Changes messages. When this says so, the change is on the disk.
    pub(crate) async fn mark(&self, mark: Mark) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Mark { mark, done }, answer).await
    }

    /// Ends the writing task after what it has to do. Nothing can be kept or changed afterwards; the next to open the mailbox finds its files free.
    pub(crate) async fn ended(&self) {
        let (done, answer) = oneshot::channel();
        if self.orders.send(Order::End { done }).await.is_ok() {
            let _ = answer.await;
        }
    }

    async fn order(&self, order: Order, answer: oneshot::Receiver<Result<()>>) -> Result<()> {
        self.orders.send(order).await.map_err(|_| MailError::Stopping)?;
        answer.await.map_err(|_| MailError::Stopping)?
    }

    /// A message as it came; `None` when it is not there.
    pub(crate) async fn read(&self, id: Uuid) -> Result<Option<(Kept, Bytes)>> {
        let Some((kept, place)) = self.index().get(id).map(|entry| (entry.kept.clone(), entry.place)) else { return Ok(None) };
        let directory = self.shared.directory.clone();
        let read = tokio::task::spawn_blocking(move || segments::read(&directory, place)).await.map_err(|_| MailError::Stopping)?;
        match read {
            Ok(raw) => Ok(Some((kept, raw.into()))),
            // Its segment was rewritten or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let Some(place) = self.index().get(id).map(|entry| entry.place) else { return Ok(None) };
                let raw =
                    segments::read(&self.shared.directory, place).map_err(|source| MailError::storage(&self.shared.directory, source))?;
                Ok(Some((kept, raw.into())))
            }
            Err(source) => Err(MailError::storage(&self.shared.directory, source)),
        }
    }
}

/// Does what reads a message of so many bytes. That takes as long as whoever wrote it likes, within bounds: not where others wait for their answers, and of large
/// ones a few at once.
pub(crate) async fn take_apart<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let permit = if bytes > LARGE { Some(LARGE_AT_ONCE.acquire().await.map_err(|_| MailError::Stopping)?) } else { None };
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| MailError::Stopping);
    drop(permit);
    done
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What only the writing task touches.
struct Disk {
    writer: Writer,
    marks: Marks,
}

/// The file of marks: one JSON object a line; a torn last line was never confirmed.
struct Marks {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// After it was last written anew.
    base: u64,
}

impl Marks {
    fn open(path: PathBuf) -> io::Result<(Self, Vec<Mark>)> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut marks = Vec::new();
        let mut whole = 0;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let Some(mark) = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok()) else { break };
            marks.push(mark);
            whole += line.len() as u64;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        file.set_len(whole)?;
        Ok((Self { path, file, bytes: whole, base: whole }, marks))
    }

    fn append(&mut self, marks: &[Mark]) -> io::Result<()> {
        let mut text = Vec::new();
        for mark in marks {
            serde_json::to_writer(&mut text, mark)?;
            text.push(b'\n');
        }
        match self.file.write_all(&text).and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.bytes += text.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.bytes)?;
                Err(error)
            }
        }
    }

    fn rewrite(&mut self, marks: &[Mark]) -> io::Result<()> {
        let aside = self.path.with_extension("new");
        let _ = fs::remove_file(&aside);
        let (mut fresh, _) = Self::open(aside.clone())?;
        fresh.append(marks)?;
        fs::rename(&aside, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        *self = Self { path: self.path.clone(), base: fresh.bytes, ..fresh };
        Ok(())
    }
}

fn load(directory: &Path) -> io::Result<(Index, Writer, Marks)> {
    let mut index = Index::default();
    let numbers = segments::list(directory)?;
    let mut newest = None;
    for &number in &numbers {
        let is_newest = numbers.last() == Some(&number);
        let end = segments::scan(directory, number, is_newest, |found| {
            if let Ok(id) = found.kept.summary.id.parse() {
                index.insert(id, found.kept, found.place);
            }
        })?;
        newest = is_newest.then_some((number, end));
    }
    let (marks, list) = Marks::open(directory.join("marks"))?;
    for mark in &list {
        index.apply(mark);
    }
    let writer = Writer::open(directory, newest)?;
    Ok((index, writer, marks))
}

async fn work(shared: Arc<Shared>, mut queue: mpsc::Receiver<Order>, mut disk: Disk) {
    let mut orders = Vec::new();
    while let Some(first) = queue.recv().await {
        let mut bytes = size(&first);
        orders.push(first);
        while orders.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            bytes += size(&next);
            orders.push(next);
        }
        let end = orders.iter().position(|order| matches!(order, Order::End { .. }));
        let mut batch = std::mem::take(&mut orders);
        let ending = end.map(|end| batch.split_off(end));
        let shared = Arc::clone(&shared);
        let carried = tokio::task::spawn_blocking(move || {
            carry_out(&shared, &mut disk, batch);
            disk
        });
        // A panic in there has lost the disk; the next user opens the mailbox again.
        let Ok(back) = carried.await else { return };
        disk = back;
        // Who comes behind the end is told that it is one, by its dropped answer.
        if let Some(Order::End { done }) = ending.into_iter().flatten().next() {
            queue.close();
            drop(disk);
            let _ = done.send(());
            return;
        }
    }
}

fn size(order: &Order) -> usize {
    match order {
        Order::Append { raw, .. } => raw.len(),
        Order::Mark { .. } | Order::End { .. } => 0,
    }
}

fn carry_out(shared: &Shared, disk: &mut Disk, batch: Vec<Order>) {
    let mut appends = Vec::new();
    let mut marks = Vec::new();
    for order in batch {
        match order {
            Order::Append { kept, id, raw, done } => appends.push((*kept, id, raw, done)),
            Order::Mark { mark, done } => marks.push((mark, done)),
            Order::End { .. } => {}
        }
    }
    if !appends.is_empty() {
        append(shared, disk, appends);
    }
    for (mark, done) in marks {
        let _ = done.send(change(shared, disk, mark));
    }
    if let Err(error) = tidy(shared, disk) {
        tracing::warn!(%error, directory = %shared.directory.display(), "a mailbox could not be tidied up; it is tried again");
    }
}

fn append(shared: &Shared, disk: &mut Disk, appends: Vec<(Kept, Uuid, Bytes, oneshot::Sender<Result<()>>)>) {
    let outcome = check_space(shared).and_then(|()| {
        let messages: Vec<_> = appends.iter().map(|(kept, _, raw, _)| (kept.clone(), raw.as_ref())).collect();
        disk.writer.append(&messages).map_err(|source| MailError::storage(&shared.directory, source))
    });
    match outcome {
        Ok(places) => {
            let counts = &shared.counts;
            for ((kept, id, raw, done), place) in appends.into_iter().zip(places) {
                counts.accepted.fetch_add(1, Ordering::Relaxed);
                counts.accepted_bytes.fetch_add(raw.len() as u64, Ordering::Relaxed);
                let summary = (shared.events.receiver_count() > 0).then(|| kept.summary.clone());
                shared.index().insert(id, kept, place);
                if let Some(summary) = summary {
                    let _ = shared.events.send(Event::New(Box::new(summary)));
                }
                let _ = done.send(Ok(()));
            }
            stats(shared);
        }
        Err(error) => {
            tracing::warn!(%error, directory = %shared.directory.display(), "messages were not kept; their sender keeps them");
            for (_, _, _, done) in appends {
                shared.counts.rejected.fetch_add(1, Ordering::Relaxed);
                let _ = done.send(Err(match &error {
                    MailError::Storage { path, source } => {
                        MailError::Storage { path: path.clone(), source: io::Error::new(source.kind(), source.to_string()) }
                    }
                    _ => MailError::Full,
                }));
            }
        }
    }
}

fn check_space(shared: &Shared) -> Result<()> {
    let space = nix::sys::statvfs::statvfs(&shared.directory).map_err(|error| MailError::storage(&shared.directory, error.into()))?;
    if space.blocks_available() * space.fragment_size() < shared.limits.free_bytes { Err(MailError::Full) } else { Ok(()) }
}

fn change(shared: &Shared, disk: &mut Disk, mark: Mark) -> Result<()> {
    disk.marks.append(std::slice::from_ref(&mark)).map_err(|source| MailError::storage(&shared.directory, source))?;
    if let Mark::Removed { ids } = &mark {
        shared.counts.deleted.fetch_add(ids.len() as u64, Ordering::Relaxed);
    }
    let everything = {
        let mut index = shared.index();
        index.apply(&mark);
        matches!(mark, Mark::Removed { .. }) && index.len() == 0
    };
    if shared.events.receiver_count() > 0 {
        let events: Vec<Event> = match mark {
            Mark::Removed { .. } if everything => vec![Event::Truncate],
            Mark::Removed { ids } => ids.into_iter().map(|id| Event::Delete { id }).collect(),
            Mark::Read { ids, read } => ids.into_iter().map(|id| Event::Update { id, read: Some(read), tags: None }).collect(),
            Mark::Tags { ids, tags } => ids.into_iter().map(|id| Event::Update { id, read: None, tags: Some(tags.clone()) }).collect(),
        };
        for event in events {
            let _ = shared.events.send(event);
        }
    }
    stats(shared);
    Ok(())
}

fn stats(shared: &Shared) {
    if shared.events.receiver_count() > 0 {
        let (total, unread) = {
            let index = shared.index();
            (index.len(), index.unread())
        };
        let _ = shared.events.send(Event::Stats { total, unread });
    }
}

/// Retention, and space that is given back.
fn tidy(shared: &Shared, disk: &mut Disk) -> Result<()> {
    let outdated = outdated(shared);
    if !outdated.is_empty() {
        change(shared, disk, Mark::Removed { ids: outdated })?;
        let _ = shared.events.send(Event::Prune);
    }
    let storage = |source| MailError::storage(&shared.directory, source);
    if shared.index().is_hollow(disk.writer.segment()) {
        disk.writer.next_segment().map_err(storage)?;
    }
    let wasteful = shared.index().wasteful(disk.writer.segment());
    for segment in wasteful {
        let staying = shared.index().of_segment(segment);
        for chunk in staying.chunks(BATCH) {
            let mut messages = Vec::new();
            for (id, kept, place) in chunk {
                match segments::read(&shared.directory, *place) {
                    Ok(raw) => messages.push((*id, kept.clone(), raw)),
                    Err(source) => return Err(storage(source)),
                }
            }
            let records: Vec<_> = messages.iter().map(|(_, kept, raw)| (kept.clone(), raw.as_slice())).collect();
            let places = disk.writer.append(&records).map_err(storage)?;
            let mut index = shared.index();
            for ((id, kept, _), place) in messages.into_iter().zip(places) {
                index.insert(id, kept, place);
            }
        }
        segments::remove(&shared.directory, segment).map_err(storage)?;
        shared.index().forget_segment(segment);
    }
    if disk.marks.bytes > disk.marks.base + MARKS_BYTES {
        let marks = shared.index().marks();
        disk.marks.rewrite(&marks).map_err(storage)?;
    }
    Ok(())
}

/// The oldest messages that are too many, too much or too old. A tenth more goes at once, so that a full mailbox is not tidied with each message.
fn outdated(shared: &Shared) -> Vec<Uuid> {
    let limits = &shared.limits;
    let index = shared.index();
    let (count, bytes) = (index.len(), index.bytes());
    let surplus = if count > limits.messages { count - limits.messages + limits.messages / 10 } else { 0 };
    let surplus_bytes = if bytes > limits.mailbox_bytes { bytes - limits.mailbox_bytes + limits.mailbox_bytes / 10 } else { 0 };
    let eldest = chrono::Duration::from_std(limits.age).ok().and_then(|age| Utc::now().checked_sub_signed(age));
    let surplus_memory = if index.memory() > MEMORY { index.memory() - MEMORY + MEMORY / 10 } else { 0 };
    let (mut freed, mut freed_memory) = (0, 0);
    let too_old = |summary: &Summary| eldest.is_some_and(|eldest| summary.created < eldest);
    let leaving = index.oldest().enumerate().take_while(|(position, (_, entry))| {
        let is_surplus = *position < surplus || freed < surplus_bytes || freed_memory < surplus_memory;
        // The newest stays, however large it is, until it is too old.
        let leaves = too_old(&entry.kept.summary) || is_surplus && position + 1 < count;
        freed += entry.place.bytes;
        freed_memory += entry.kept.size();
        leaves
    });
    leaving.map(|(_, (id, _))| id).collect()
}
