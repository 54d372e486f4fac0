//! An import: an existing Odoo's data on their way into an environment.

use crate::state::words;

words! {
    ImportStatus, "import status" {
        /// Its parts are being uploaded.
        Receiving = "receiving",
        /// They are whole; they wait to be looked at, or are looked at now.
        Received = "received",
        /// It can be imported.
        Checked = "checked",
        /// It cannot; the message and the facts say why.
        Rejected = "rejected",
        /// A deployment brings it in.
        Importing = "importing",
        Done = "done",
        /// The deployment failed and what was live before is live; it may be started again.
        Failed = "failed",
        /// Nobody went on with it, or somebody gave it up; its upload is gone.
        Expired = "expired",
    }
}

impl ImportStatus {
    /// Its upload is still needed.
    pub fn is_open(self) -> bool {
        !matches!(self, Self::Done | Self::Expired)
    }
}
