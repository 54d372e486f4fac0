//! Ending processes that have no control group of their own to be ended by: by what they are, or by whose they are.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::Signal;
use tokio::time::Instant;

use super::{Identity, KILL_DEADLINE, MARK, ProcEntry, scan};
use crate::{
    error::{HostError, Result},
    local::exec::{Program, RunAs},
};

/// Between two looks at what does not end at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Ends with SIGKILL every process that is `chosen`, until there is none; one that forks meanwhile is caught at the next look. An error, which names what is
/// left, when that has no end.
pub async fn end_all(chosen: impl Fn(&ProcEntry) -> bool) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    let ourselves = std::process::id().cast_signed();
    loop {
        let left: Vec<Identity> =
            scan().iter().filter(|entry| entry.pid != ourselves && !entry.is_dead() && chosen(entry)).map(ProcEntry::identity).collect();
        if left.is_empty() {
            return Ok(());
        }
        for identity in &left {
            identity.signal(Signal::KILL);
        }
        for identity in &left {
            if tokio::time::timeout_at(deadline, identity.exited()).await.is_err() {
                return Err(not_ended(&[identity.pid]));
            }
        }
        if Instant::now() >= deadline {
            return Err(not_ended(&left.iter().map(|identity| identity.pid).collect::<Vec<_>>()));
        }
    }
}

/// Ends all processes of these users, also those that fork faster than anybody could look. They must be users that oCore itself allocated.
///
/// The kernel ends all that a user may signal in one go (kill(2), -1): it lets nobody fork in between. So each of them sends that to itself.
pub async fn end_users(uids: &BTreeSet<u32>) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let left = living(uids);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(not_ended(&left.iter().map(|entry| entry.pid).collect::<Vec<_>>()));
        }
        let users: BTreeSet<u32> = left.iter().filter_map(ProcEntry::uid).filter(|uid| uids.contains(uid)).collect();
        for uid in users {
            let user = RunAs { uid, gid: uid, groups: Vec::new() };
            Program::new("kill").args(["-KILL", "--", "-1"]).run_as(user).run().await?;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The processes of these users that have not ended with all their threads. Root's are nobody's.
pub fn living(uids: &BTreeSet<u32>) -> Vec<ProcEntry> {
    let is_theirs = |entry: &ProcEntry| entry.uid().is_some_and(|uid| uid != 0 && uids.contains(&uid));
    scan().into_iter().filter(|entry| is_theirs(entry) && !entry.is_dead()).collect()
}

/// Which of these groups a process has that has not ended, as its own or as a supplementary one.
pub fn groups_of_the_living(gids: &[u32]) -> BTreeSet<u32> {
    let all = scan().into_iter().filter(|entry| !entry.is_dead()).flat_map(|entry| entry.groups());
    all.filter(|gid| gids.contains(gid)).collect()
}

/// Ends all processes that carry the mark.
pub async fn end_marked(mark: &str) -> Result<()> {
    end_all(|entry| entry.mark().is_some_and(|found| found == mark)).await
}

fn not_ended(pids: &[i32]) -> HostError {
    HostError::machine(format!(
        "the processes {pids:?} do not end, not even by SIGKILL; they probably wait for a disk ({MARK} in their environment says whose they are): see `dmesg`"
    ))
}
