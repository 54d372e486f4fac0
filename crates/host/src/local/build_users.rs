//! Users of builds: numbers without entries in the user database, each lent to one build at a time.
//!
//! A claim is a lock on a file that the kernel lets go when its holder dies, so a crash loses no number. The files are the machine's, not a
//! home's: two homes must never run builds as one user, since ending one build's processes would end the other's.
//!
//! Whatever a build leaves running has the number, too, and so the rights of the next one that gets it. Therefore a build ends as a whole, by its control
//! group and by its number; a number is lent again only when nothing has it any more, and the one that was lent longest ago comes first.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    LocalHost,
    cgroups::{Cgroups, Group},
    durable::{self, blocking},
    exec::{Program, RunAs},
    ledger::{Ledger, open_lock},
    private::Private,
    process,
};
use crate::error::{HostError, Result};

/// Where builds of all homes on this machine find each other; it exists as long as one of them has a user.
pub(super) const PLACE: &str = "/run/ocore";

/// The user of one build, for as long as this value lives. It has no entry in the user database and owns nothing.
#[derive(Debug)]
pub struct BuildUser {
    pub uid: u32,
    group: Group,
    cgroups: Cgroups,
    _claim: Flock<File>,
}

impl BuildUser {
    /// Ends everything that the build has left running and gives the user back. (When it is dropped, the next one does the ending.)
    pub async fn release(self) -> Result<()> {
        self.end().await?;
        self.cgroups.remove_build(&group_name(self.uid));
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        self.group.end().await?;
        process::end_users(&BTreeSet::from([self.uid])).await
    }
}

impl Program {
    /// Runs as the build's user, with these supplementary groups, in the build's control group, with temporary directories that are gone with it.
    pub(super) fn of_build(self, user: &BuildUser, groups: Vec<u32>) -> Self {
        self.run_as(RunAs { uid: user.uid, gid: user.uid, groups }).group(user.group.clone()).private(&Private::Fleeting)
    }

    /// Runs for a build, as somebody else: within the build's limits, and ended with it.
    pub(super) fn beside_build(self, user: &BuildUser) -> Self {
        self.group(user.group.clone())
    }
}

impl LocalHost {
    /// A user for one build that nobody on this machine has now, and that nothing runs as.
    pub async fn claim_build_user(&self) -> Result<BuildUser> {
        let range = self.ledger.build_uids();
        let mut passed_over = BTreeSet::new();
        loop {
            let (range, skipped) = (range.clone(), passed_over.clone());
            let claimed = blocking(move || claim(range.filter(|uid| !skipped.contains(uid)))).await?;
            let Some((uid, claim)) = claimed else {
                return Err(HostError::machine(
                    "all users for builds are in use; try again when a build has ended, or configure a larger range",
                ));
            };
            let group = self.cgroups.prepare_build(&group_name(uid));
            let user = BuildUser { uid, group, cgroups: self.cgroups.clone(), _claim: claim };
            match user.end().await {
                Ok(()) => return Ok(user),
                // It may wait for a disk for ever; nobody gets its number until it has gone.
                Err(error) => tracing::warn!(uid, %error, "what an earlier build has left does not end; its user is not lent"),
            }
            passed_over.insert(uid);
        }
    }
}

/// The free one that was lent longest ago.
fn claim(range: impl Iterator<Item = u32>) -> Result<Option<(u32, Flock<File>)>> {
    let lent_at = |uid: u32| std::fs::metadata(build_claim(uid)).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut all: Vec<(SystemTime, u32)> = range.map(|uid| (lent_at(uid), uid)).collect();
    all.sort_unstable();
    for (_, uid) in all {
        if let Some(claim) = try_claim(&build_claim(uid))? {
            claim
                .set_modified(SystemTime::now())
                .map_err(|error| HostError::machine_from("when a user was lent to a build could not be written down", error))?;
            return Ok(Some((uid, claim)));
        }
    }
    Ok(None)
}

/// Unique on this machine, as the number is.
fn group_name(uid: u32) -> String {
    format!("build-{uid}")
}

impl Ledger {
    /// Removes the files of claims that nobody holds, and the control groups that a build which was broken off has left. They are the machine's, not the home's: other homes go on with theirs.
    pub(super) async fn remove_build_claims(&self, cgroups: &Cgroups) -> Result<()> {
        let (range, cgroups) = (self.build_uids(), cgroups.clone());
        blocking(move || {
            for uid in range {
                let path = build_claim(uid);
                if path.exists()
                    && let Some(_claim) = try_claim(&path)?
                {
                    cgroups.remove_build(&group_name(uid));
                    durable::remove_fleeting(&path)
                        .map_err(|error| HostError::machine_from(format!("{} could not be removed", path.display()), error))?;
                }
            }
            // Not empty means that somebody else builds.
            let _ = std::fs::remove_dir(PLACE);
            Ok(())
        })
        .await
    }
}

fn build_claim(uid: u32) -> PathBuf {
    Path::new(PLACE).join(format!("build-{uid}.lock"))
}

/// `None` when somebody else has it.
fn try_claim(path: &Path) -> Result<Option<Flock<File>>> {
    let file = open_lock(path).or_else(|_| {
        // The first claim since the machine started, or a purge has just removed the directory.
        durable::make_directory(Path::new(PLACE), 0o755)?;
        open_lock(path)
    })?;
    let Ok(claim) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
    // Between opening and locking, a purge may have removed the file, and another claim may have made it anew.
    let is_same = claim
        .metadata()
        .and_then(|ours| std::fs::metadata(path).map(|current| (ours.dev(), ours.ino()) == (current.dev(), current.ino())))
        .unwrap_or(false);
    Ok(is_same.then_some(claim))
}
