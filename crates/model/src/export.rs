//! An export: an environment's data on their way out.

use crate::state::words;

words! {
    ExportStatus, "export status" {
        /// It waits for its turn.
        Waiting = "waiting",
        Running = "running",
        /// It can be downloaded.
        Done = "done",
        Failed = "failed",
        /// Its time is over, or somebody removed it.
        Expired = "expired",
    }
}

words! {
    /// What an export is written as.
    ExportFormat, "export format" {
        /// As Odoo's database manager does.
        Zip = "zip",
        /// `pg_dump --format=custom`
        Custom = "custom",
        /// `pg_dump --format=directory`
        Directory = "directory",
    }
}
