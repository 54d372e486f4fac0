//! A raw copy that could not be made harmless, and is kept for a person to see why.

use crate::state::words;

words! {
    QuarantineStatus, "quarantine status" {
        /// Its deployment is being taken back; the copy is on its way aside.
        SettingAside = "setting_aside",
        /// It can be looked at and destroyed, and nothing else.
        Kept = "kept",
        /// It goes.
        Removing = "removing",
    }
}
