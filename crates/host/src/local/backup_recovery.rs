//! The first recovery of a cluster that was copied while it served, when it was cut off.
//!
//! PostgreSQL reads the label of the backup, notes in `pg_control` where the backup begins, puts the label aside, and recovers. Cut off after that,
//! its next start is an ordinary crash recovery. That one does not look for the end of the backup, finds none, and refuses for good: `WAL ends before
//! end of online backup` (src/backend/access/transam/xlog.c, `StartupXLOG`, PostgreSQL 15). With the label back in its place it recovers from the
//! beginning, which may be done again, since every page that the backup's log changes is in the log whole.

use std::{io, path::Path};

use super::{below::Directory, cluster::Cluster, exec::Program};
use crate::error::{HostError, Result};

const LABEL: &str = "backup_label";
/// Where PostgreSQL puts it.
const ASIDE: &str = "backup_label.old";

impl Cluster {
    /// Before a start; nobody runs here. `bin` is where the programs of its version are.
    pub(super) async fn find_backup_label_again(&self, bin: &Path) -> Result<()> {
        let failed = |error: io::Error| {
            HostError::machine_from(format!("the backup label of {} cannot be moved: {error}", self.pgdata.display()), error)
        };
        let pgdata = Directory::open(&self.pgdata).map_err(failed)?;
        if pgdata.status(LABEL).map_err(failed)?.is_some() || pgdata.status(ASIDE).map_err(failed)?.is_none() {
            return Ok(());
        }
        // What it reads is not ours, so that it reads it as the user whose it is.
        let described = Program::new(bin.join("pg_controldata")).arg(&self.pgdata).run_as(self.run_as()).run().await?;
        let described = described.expect_success("the state of a cluster could not be read")?;
        let moved = if is_within_backup(&described.stdout_text()) {
            tracing::info!(pgdata = %self.pgdata.display(), "the first recovery of a copy was cut off; it begins again");
            pgdata.rename(ASIDE, LABEL).and_then(|()| pgdata.sync())
        } else {
            pgdata.remove(ASIDE)
        };
        moved.map_err(failed)
    }
}

/// From what `pg_controldata` says: `Backup start location:                0/2000028`, or `0/0` when no end of a backup is waited for.
fn is_within_backup(described: &str) -> bool {
    let location = described.lines().find_map(|line| line.strip_prefix("Backup start location:"));
    location.is_some_and(|location| location.trim() != "0/0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_tells_whether_the_end_of_the_backup_was_reached() {
        assert!(is_within_backup("Minimum recovery ending location:     0/0\nBackup start location:                0/2000028\n"));
        assert!(!is_within_backup("Backup start location:                0/0\nBackup end location:                  0/0\n"));
        assert!(!is_within_backup(""));
    }
}
