//! Imports: backups of Odoos that ran elsewhere are received, checked and restored.
//!
//! Nothing in a backup is trusted. Its bytes are parsed by users that own nothing, its SQL runs as the instance's own role and never as a
//! superuser, its names decide about no path that was not looked at, and what it declares about its sizes is a promise that is kept to.

mod archive;
mod check;
mod member;
mod missing_files;
mod restore;
mod sql;
mod survey;
mod unpack;
mod uploads;

use std::{path::Path, str::FromStr};

use ocore_model::ids::ImportId;

pub(super) use self::uploads::Uploading;
use super::layout::Layout;

/// What imports that a crash cut off have left readable is root's alone again.
pub(super) fn sweep(layout: &Layout) {
    for import in names_in::<ImportId>(&layout.uploads()) {
        if let Err(error) = survey::share_no_more(&layout.upload(import)) {
            tracing::warn!(%import, %error, "the rights of an upload could not be set");
        }
    }
}

/// The ids that directories in `directory` are named by, sorted.
pub(super) fn names_in<T: FromStr + Ord>(directory: &Path) -> Vec<T> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<T> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    found
}
