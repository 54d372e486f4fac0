//! Long-running processes that outlive this one and are found again.
//!
//! A process is known by its pid *and* the kernel's start time and boot: a pid alone is soon another process'. Both are written to a record
//! as soon as the process runs. (Not synced to the disk: a power cut that takes the record takes the process too.) Between the start and the record lies a moment in which a crash leaves a process without a record; each
//! process therefore carries a mark in its environment, and whatever carries the mark is ended before another start.

mod ending;
mod pause;
mod priority;

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use chrono::{DateTime, Utc};
use ocore_model::ids::DataSetId;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

pub use self::ending::{end_all, end_marked, end_users, groups_of_the_living, living};
pub(super) use self::priority::YIELDING;
use super::{
    cgroups::Group,
    durable,
    exec::{ExecError, Finished, Program},
};
use crate::error::{HostError, Result};

/// The environment variable that says whose a process is.
pub const MARK: &str = "OCORE_UNIT";

/// How long processes may take to disappear after SIGKILL, or to stand still after SIGSTOP.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// One process, distinguishable from any that later gets its pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat` (proc(5)): clock ticks since boot.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`: ticks of different boots are not comparable.
    pub boot_id: String,
}

impl Identity {
    /// Of a process that exists now; `None` when it does not.
    pub fn of(pid: i32) -> Option<Self> {
        ProcEntry::read(pid).map(|entry| Self { pid, start_ticks: entry.start_ticks, boot_id: boot_id().to_owned() })
    }

    /// It exists and has not ended.
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id()
            && ProcEntry::read(self.pid).is_some_and(|entry| entry.start_ticks == self.start_ticks && !entry.is_dead())
    }

    /// A handle that can only ever mean this process; `None` when it is gone.
    fn open(&self) -> Option<OwnedFd> {
        let handle = open_pidfd(self.pid)?;
        // Opened first, compared second: when the start time still fits, the handle is of the right process.
        self.is_alive().then_some(handle)
    }

    /// Sends a signal. A process that is gone is done.
    pub fn signal(&self, signal: Signal) {
        if let Some(handle) = self.open() {
            let _ = pidfd_send_signal(handle, signal);
        }
    }

    /// Waits until it has ended, whether it is our child or not.
    pub async fn exited(&self) -> Result<()> {
        let Some(handle) = self.open() else { return Ok(()) };
        let wait_error = |error| HostError::machine_from("a process could not be waited for", error);
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an `OwnedFd` keeps the same descriptor open, which is all that that one asks for"
        )]
        let handle = AsyncFd::with_interest(handle, Interest::READABLE).map_err(wait_error)?;
        handle.readable().await.map_err(wait_error).map(drop)
    }
}

/// What is written down of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub identity: Identity,
    /// The value of [`MARK`] in its environment.
    pub mark: String,
    /// Whom it runs as; `None` for ourselves.
    pub uid: Option<u32>,
    /// The data set that it uses.
    pub data_set: Option<DataSetId>,
    /// The control group that it runs in with all that it has started. In records of earlier versions there is none.
    #[serde(default)]
    pub group: Group,
    pub started_at: DateTime<Utc>,
    /// Whatever the one who started it needs to know again.
    pub details: serde_json::Value,
}

/// A process to start.
pub struct NewProcess {
    pub program: Program,
    /// Where its record goes.
    pub record: PathBuf,
    /// Unique among all processes of this server, e.g. `<instance>/slot-blue`.
    pub mark: String,
    pub data_set: Option<DataSetId>,
    pub details: serde_json::Value,
}

/// A recorded process that was alive when it was looked at.
#[derive(Debug, Clone)]
pub struct Process {
    pub record: ProcessRecord,
    path: PathBuf,
}

impl Process {
    /// Starts a detached process with both output streams appended to `log`. What an earlier start of the same mark left is ended first, and whatever is in
    /// its control group.
    pub async fn start(new: NewProcess, log: &Path) -> Result<Self> {
        let group = new.program.control_group().clone();
        group.end().await?;
        end_marked(&new.mark).await?;
        let log_file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(log)
            .map_err(|error| HostError::machine_from(format!("the log {} could not be opened: {error}", log.display()), error))?;
        let uid = new.program.user().map(|user| user.uid);
        let program = new.program.env(MARK, &new.mark);
        let mut child = program.start_detached(log_file).await?;
        let identity = child.identity();
        // The parent reaps; after a restart of ours, init does.
        tokio::spawn(async move { child.wait().await });
        let identity = identity.ok_or_else(|| HostError::machine(format!("`{}` ended at once", program.name())))?;
        let record =
            ProcessRecord { identity, mark: new.mark, uid, data_set: new.data_set, group, started_at: Utc::now(), details: new.details };
        if let Err(error) = durable::write_fleeting_json(&new.record, &record) {
            record.group.end().await?;
            end_all(|entry| entry.session == record.identity.pid).await?;
            return Err(error);
        }
        Ok(Self { record, path: new.record })
    }

    /// The process of a record, when it is still alive.
    pub fn find(record: &Path) -> Result<Option<Self>> {
        // Only a power cut damages a record, and no process outlives one.
        let found = durable::read_json::<ProcessRecord>(record).unwrap_or_else(|error| {
            tracing::warn!(%error, "a record of a process cannot be read; it is taken for gone");
            None
        });
        Ok(found.filter(|found| found.identity.is_alive()).map(|found| Self { record: found, path: record.to_owned() }))
    }

    /// Where its record is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn pid(&self) -> i32 {
        self.record.identity.pid
    }

    pub fn is_alive(&self) -> bool {
        self.record.identity.is_alive()
    }

    pub async fn exited(&self) -> Result<()> {
        self.record.identity.exited().await
    }

    pub fn signal(&self, signal: Signal) {
        self.record.identity.signal(signal);
    }

    /// Sends the signals in turn, each with the time that it has to work, then SIGKILL, to it and to all that it has started; then forgets
    /// it. What is paused would not hear them. Returns whether it ended without SIGKILL.
    pub async fn stop(&self, signals: &[(Signal, Duration)]) -> Result<bool> {
        let mut gracefully = false;
        for (signal, patience) in signals.iter().filter(|_| !self.is_paused()) {
            self.signal(*signal);
            if let Ok(result) = tokio::time::timeout(*patience, self.exited()).await {
                result?;
                gracefully = true;
                break;
            }
        }
        self.record.group.end().await?;
        if !self.record.group.is_whole() {
            end_all(|entry| entry.session == self.pid() && entry.start_ticks >= self.record.identity.start_ticks).await?;
            end_marked(&self.record.mark).await?;
        }
        self.forget()?;
        Ok(gracefully)
    }

    /// It and all living processes that it has started: what is in its control group, or, where it has none, of its session or with its mark.
    pub fn all(&self) -> Vec<ProcEntry> {
        if self.record.group.is_whole() {
            let entries = self.record.group.processes().into_iter().filter_map(ProcEntry::read);
            return entries.filter(|entry| !entry.is_dead()).collect();
        }
        let is_of = |entry: &ProcEntry| {
            entry.session == self.pid() && entry.start_ticks >= self.record.identity.start_ticks
                || entry.mark().is_some_and(|found| found == self.record.mark)
        };
        scan().into_iter().filter(|entry| !entry.is_dead() && is_of(entry)).collect()
    }

    /// Removes the record.
    pub fn forget(&self) -> Result<()> {
        durable::remove_fleeting(&self.path)
            .map_err(|error| HostError::machine_from(format!("{} could not be removed: {error}", self.path.display()), error))
    }
}

/// Runs a program to its end while a record says that it runs, so that a later call can end it if we die before it does.
///
/// Nothing of it is left afterwards, nor of whatever else was in its control group.
pub async fn run_recorded(program: Program, record: &Path, mark: &str, data_set: Option<DataSetId>) -> Result<Finished> {
    let group = program.control_group().clone();
    group.end().await?;
    end_marked(mark).await?;
    let uid = program.user().map(|user| user.uid);
    let started = program.env(MARK, mark).start_warm().await?;
    if let Some(identity) = started.identity() {
        let (mark, group) = (mark.to_owned(), group.clone());
        let entry = ProcessRecord { identity, mark, uid, data_set, group, started_at: Utc::now(), details: serde_json::Value::Null };
        durable::write_fleeting_json(record, &entry)?;
    }
    let outcome: Result<Finished, ExecError> = Box::pin(started.finish()).await;
    group.end().await?;
    group.remove();
    if !group.is_whole() {
        end_marked(mark).await?;
    }
    durable::remove_fleeting(record)
        .map_err(|error| HostError::machine_from(format!("{} could not be removed", record.display()), error))?;
    Ok(outcome?)
}

/// One line of the kernel's process table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcEntry {
    pub pid: i32,
    pub state: char,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    pub start_ticks: u64,
}

impl ProcEntry {
    /// `None` when there is no such process.
    pub fn read(pid: i32) -> Option<Self> {
        parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// All its threads have ended, and its parent has not reaped it yet. The first thread alone may end before the others: the kernel shows the whole
    /// process as a zombie then, and it works on (proc(5), `/proc/<pid>/stat` is of the first thread).
    pub fn is_dead(&self) -> bool {
        is_ended(self.state) && !self.threads().iter().any(|thread| !is_ended(thread.state))
    }

    /// Its threads, as far as they can be seen.
    fn threads(&self) -> Vec<ProcEntry> {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return Vec::new() };
        let stats = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
        stats.filter_map(|stat| parse_stat(self.pid, &stat)).collect()
    }

    /// Its real user id; `None` when it is gone.
    pub fn uid(&self) -> Option<u32> {
        self.status("Uid:").first().copied()
    }

    /// Its group ids: its own, and the supplementary ones.
    pub fn groups(&self) -> Vec<u32> {
        [self.status("Gid:"), self.status("Groups:")].concat()
    }

    /// Numbers of a line of `/proc/<pid>/status`.
    fn status(&self, name: &str) -> Vec<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
    }

    /// The value of [`MARK`] that it was started with. A program may overwrite its environment; PostgreSQL does.
    pub fn mark(&self) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        environment
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Its working directory; `None` when it is gone.
    pub fn cwd(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/cwd", self.pid)).ok()
    }

    /// Its share of memory, in bytes; 0 when it is gone.
    pub fn memory(&self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).unwrap_or_default();
        let kibibytes = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kibibytes.unwrap_or_default() * 1024
    }

    fn identity(&self) -> Identity {
        Identity { pid: self.pid, start_ticks: self.start_ticks, boot_id: boot_id().to_owned() }
    }
}

/// All processes of the machine.
pub fn scan() -> Vec<ProcEntry> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(ProcEntry::read).collect()
}

fn open_pidfd(pid: i32) -> Option<OwnedFd> {
    match pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()) {
        Ok(handle) => Some(handle),
        Err(Errno::SRCH) => None,
        Err(error) => {
            tracing::error!(%error, pid, "a handle of a process could not be opened");
            None
        }
    }
}

/// Of this boot of the machine.
pub fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(
            |error| {
                tracing::warn!(%error, "the kernel's boot id cannot be read");
                String::new()
            },
            |text| text.trim().to_owned(),
        )
    })
}

fn is_ended(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// proc(5): the name, in parentheses, may hold anything, also spaces and parentheses; what follows the last `)` is plain.
fn parse_stat(pid: i32, stat: &str) -> Option<ProcEntry> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(ProcEntry {
        pid,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
pub(in crate::local) mod tests {
    use super::*;

    pub(in crate::local) fn new(directory: &Path, program: Program) -> NewProcess {
        NewProcess {
            program,
            record: directory.join("record.json"),
            mark: directory.display().to_string(),
            data_set: None,
            details: serde_json::Value::Null,
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_process_table() {
        let stat = "12 (a) R (b) S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        let entry = parse_stat(12, stat).unwrap();
        assert_eq!((entry.state, entry.parent, entry.group, entry.session, entry.start_ticks), ('S', 1, 2, 3, 777));
    }

    /// A process that waits, with its directory and its record.
    async fn sleeper() -> (tempfile::TempDir, PathBuf, Process) {
        let directory = tempfile::tempdir().unwrap();
        let (record, log) = (directory.path().join("record.json"), directory.path().join("log"));
        let process = Process::start(new(directory.path(), Program::new("sleep").arg("1000")), &log).await.unwrap();
        (directory, record, process)
    }

    #[tokio::test]
    async fn a_detached_process_leads_its_session_is_found_by_its_record_and_stopped() {
        let (_directory, record, started) = sleeper().await;
        let found = Process::find(&record).unwrap().unwrap();
        assert_eq!(found.record, started.record);
        // `setsid` itself may not have run yet.
        while ProcEntry::read(found.pid()).unwrap().session != found.pid() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(found.stop(&[(Signal::TERM, Duration::from_secs(10))]).await.unwrap());
        assert!(!started.is_alive());
        assert!(Process::find(&record).unwrap().is_none());
        assert!(!record.exists());
    }

    #[tokio::test]
    async fn stopping_by_force_takes_the_children_too() {
        let directory = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; sleep 1000 & echo ready; while true; do sleep 1000; done";
        let log = directory.path().join("log");
        let process = Process::start(new(directory.path(), Program::new("sh").args(["-c", script])), &log).await.unwrap();
        while !fs::read_to_string(&log).unwrap().contains("ready") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!process.stop(&[(Signal::TERM, Duration::from_millis(50))]).await.unwrap());
        assert!(scan().iter().all(|entry| entry.session != process.pid() || entry.is_dead()));
    }

    #[tokio::test]
    async fn a_recycled_pid_is_not_adopted() {
        let (_directory, record, process) = sleeper().await;
        let mut other = process.record.clone();
        other.identity.start_ticks -= 1;
        durable::write_json(&record, &other).unwrap();
        assert!(Process::find(&record).unwrap().is_none());
        other.identity = Identity { boot_id: "another boot".to_owned(), ..process.record.identity.clone() };
        durable::write_json(&record, &other).unwrap();
        assert!(Process::find(&record).unwrap().is_none());
        other.identity.signal(Signal::KILL);
        assert!(process.is_alive(), "a signal for another process must not reach this one");
        process.stop(&[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_start_ends_what_an_earlier_start_left_without_a_record() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let first = Process::start(new(directory.path(), Program::new("sleep").arg("1000")), &log).await.unwrap();
        first.forget().unwrap();
        let second = Process::start(new(directory.path(), Program::new("sleep").arg("1000")), &log).await.unwrap();
        assert!(!first.is_alive());
        assert!(second.is_alive());
        second.stop(&[]).await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_is_not_our_child_is_seen() {
        let output = std::process::Command::new("sh").args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]).output().unwrap();
        let pid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let identity = Identity::of(pid).unwrap();
        let watched = identity.clone();
        let watch = tokio::spawn(async move { watched.exited().await });
        identity.signal(Signal::KILL);
        watch.await.unwrap().unwrap();
        assert!(!identity.is_alive());
    }
}
