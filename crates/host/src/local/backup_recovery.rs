//! The first recovery of a cluster that was copied while it served, when it was cut off.
//!
//! PostgreSQL reads the label of the backup, notes in `pg_control` where the backup begins, puts the label aside, and recovers. Cut off after that,
//! its next start is an ordinary crash recovery. That one does not look for the end of the backup, finds none, and refuses for good: `WAL ends before
//! end of online backup` (src/backend/access/transam/xlog.c, `StartupXLOG`, PostgreSQL 15). With the label back in its place it recovers from the
//! beginning, which may be done again, since every page that the backup's log changes is in the log whole.

use std::io;

use super::{
    cluster::{self, Cluster},
    durable,
    exec::Program,
};
use crate::error::{HostError, Result};

impl Cluster {
    /// Before a start; nobody runs here.
    pub(super) async fn find_backup_label_again(&self) -> Result<()> {
        let (label, aside) = (self.pgdata.join("backup_label"), self.pgdata.join("backup_label.old"));
        if label.exists() || !aside.exists() {
            return Ok(());
        }
        let program = cluster::postgres_bin(&self.pgdata)?.join("pg_controldata");
        let described = Program::new(program).arg(&self.pgdata).run().await?.expect_success("the state of a cluster could not be read")?;
        let moved = if is_within_backup(&described.stdout_text()) {
            tracing::info!(pgdata = %self.pgdata.display(), "the first recovery of a copy was cut off; it begins again");
            std::fs::rename(&aside, &label).and_then(|()| durable::sync_parent(&label))
        } else {
            durable::remove_fleeting(&aside)
        };
        moved.map_err(|error: io::Error| {
            HostError::machine_from(format!("the backup label of {} cannot be moved", self.pgdata.display()), error)
        })
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
