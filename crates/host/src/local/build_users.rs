//! Users of builds: numbers without entries in the user database, each lent to one build at a time.
//!
//! A claim is a lock on a file that the kernel lets go when its holder dies, so a crash loses no number. The files are the machine's, not a
//! home's: two homes must never run builds as one user, since ending one build's processes would end the other's.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    durable::{self, blocking},
    exec::RunAs,
    ledger::{Ledger, open_lock},
    process,
};
use crate::error::{HostError, Result};

const CLAIMS: &str = "/run/ocore";

/// The user of one build, for as long as this value lives. It has no entry in the user database and owns nothing.
#[derive(Debug)]
pub struct BuildUser {
    pub uid: u32,
    _claim: Flock<File>,
}

impl BuildUser {
    /// As a user to run programs as, with these supplementary groups.
    pub fn run_as(&self, groups: Vec<u32>) -> RunAs {
        RunAs { uid: self.uid, gid: self.uid, groups }
    }

    /// Ends everything that the build has left running and gives the user back. (When it is dropped, the next one does the ending.)
    pub async fn release(self) -> Result<()> {
        process::end_users(&BTreeSet::from([self.uid])).await
    }
}

impl Ledger {
    /// A user for one build that nobody on this machine has now, and that nothing runs as.
    pub async fn claim_build_user(&self) -> Result<BuildUser> {
        let range = self.build_uids();
        let user = blocking(move || {
            for uid in range {
                if let Some(claim) = try_claim(&build_claim(uid))? {
                    return Ok(BuildUser { uid, _claim: claim });
                }
            }
            Err(HostError::machine("all users for builds are in use; try again when a build has ended, or configure a larger range"))
        })
        .await?;
        process::end_users(&BTreeSet::from([user.uid])).await?;
        Ok(user)
    }

    /// Removes the files of claims that nobody holds. They are the machine's, not the home's: other homes go on with theirs.
    pub async fn remove_build_claims(&self) -> Result<()> {
        let range = self.build_uids();
        blocking(move || {
            for uid in range {
                let path = build_claim(uid);
                if path.exists()
                    && let Some(_claim) = try_claim(&path)?
                {
                    durable::remove_fleeting(&path)
                        .map_err(|error| HostError::machine_from(format!("{} could not be removed", path.display()), error))?;
                }
            }
            // Not empty means that somebody else builds.
            let _ = std::fs::remove_dir(CLAIMS);
            Ok(())
        })
        .await
    }
}

fn build_claim(uid: u32) -> PathBuf {
    Path::new(CLAIMS).join(format!("build-{uid}.lock"))
}

/// `None` when somebody else has it.
fn try_claim(path: &Path) -> Result<Option<Flock<File>>> {
    let file = open_lock(path).or_else(|_| {
        // The first claim since the machine started, or a purge has just removed the directory.
        durable::make_directory(Path::new(CLAIMS), 0o755)?;
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
