//! One control group: what runs in it is limited together and ends together.
//!
//! Ending by group needs nothing that the group's processes could change: no mark in an environment, no session, no main thread that still lives, no race
//! with one that forks. The kernel offers that in the unified hierarchy (cgroups(7), `cgroup.freeze`), also when that one has no controllers because those
//! are in hierarchies of their own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{io::Errno, process::Signal};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    error::{HostError, Result},
    local::process::Identity,
};

/// How long what was killed may take to be gone.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long what shall stand still may take to. One that waits for a disk does not, and does not fork either.
const STILL_LIMIT: Duration = Duration::from_millis(200);
const POPULATED: &str = "populated 1";
const FROZEN: &str = "frozen 1";
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// Where a process belongs. One without any directory holds nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// `cgroup.procs` files that a process is written to before it becomes what it shall be.
    pub(super) enter: Vec<PathBuf>,
    /// Its directory in the unified hierarchy; `None` where there is no such hierarchy.
    pub(super) whole: Option<PathBuf>,
}

impl Group {
    /// The `cgroup.procs` files that put a process into it.
    pub fn procs_files(&self) -> &[PathBuf] {
        &self.enter
    }

    /// Whether it can be ended as a whole.
    pub fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// The processes in it and in the groups below it, also those whose main thread has ended. None where it cannot be ended as a whole.
    pub fn processes(&self) -> Vec<i32> {
        self.whole.as_deref().map(processes_below).unwrap_or_default()
    }

    /// Ends all that runs in it and in the groups below it, whatever it forks meanwhile, and waits until nothing is left. Nothing there is done.
    ///
    /// First it stands still, so that nobody forks. Then each process is killed as such: `cgroup.kill` speaks to main threads alone (`__cgroup_kill` in the
    /// kernel's `kernel/cgroup/cgroup.c`), and a process whose main thread has ended does not hear it.
    pub async fn end(&self) -> Result<()> {
        let Some(whole) = &self.whole else { return Ok(()) };
        let failed = |error: io::Error| HostError::machine_from(format!("the processes in {} could not be ended", whole.display()), error);
        let deadline = Instant::now() + DEADLINE;
        let mut look = FIRST_LOOK;
        while is(whole, POPULATED).map_err(failed)? {
            if Instant::now() >= deadline {
                let left = processes_below(whole);
                return Err(HostError::machine(format!(
                    "the processes {left:?} do not end, not even by SIGKILL; they probably wait for a disk: see `dmesg`"
                )));
            }
            write(whole, "cgroup.freeze", "1").map_err(failed)?;
            let still_at = Instant::now() + STILL_LIMIT;
            while Instant::now() < still_at && !is(whole, FROZEN).map_err(failed)? {
                tokio::time::sleep(FIRST_LOOK).await;
            }
            for process in processes_below(whole).into_iter().filter_map(Identity::of) {
                process.signal(Signal::KILL);
            }
            write(whole, "cgroup.freeze", "0").map_err(failed)?;
            tokio::time::sleep(look).await;
            look = (look * 2).min(LAST_LOOK);
        }
        Ok(())
    }

    /// Removes the group that could be ended as a whole, with those below it. One that somebody runs in stays. Absent is done.
    pub fn remove(&self) {
        if let Some(whole) = &self.whole {
            remove_empty(whole);
        }
    }
}

/// Whether `cgroup.events` has the line. A group that is not there any more has none.
fn is(group: &Path, line: &str) -> io::Result<bool> {
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(text) => Ok(text.lines().any(|found| found == line)),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn write(group: &Path, file: &str, value: &str) -> io::Result<()> {
    match fs::write(group.join(file), value) {
        Err(error) if is_gone(&error) => Ok(()),
        written => written,
    }
}

fn processes_below(group: &Path) -> Vec<i32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own.lines().filter_map(|line| line.parse().ok()).chain(below.flat_map(|entry| processes_below(&entry.path()))).collect()
}

/// Removes a group with those below it, as far as nobody runs there. Absent is done.
pub(super) fn remove_empty(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(group)
        && !is_gone(&error)
    {
        tracing::warn!(%error, path = %group.display(), "a control group could not be removed; the next look at it tries again");
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}
