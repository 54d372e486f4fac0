//! Snapshots: database and file store of an instance at one moment, immutable, in the pool beside the instances.

use chrono::{DateTime, Utc};
use ocore_model::ids::{DataSetId, InstanceId, SnapshotId};
use serde::{Deserialize, Serialize};

use super::{InstalledModule, ReleaseId};

/// Whose data a data set or a snapshot holds, as far as it decides who may reach it. The server writes it down with the data and trusts
/// nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The instance's own data: made fresh there, brought in as production's own, or a copy of such within the same instance.
    Own,
    /// A copy of another instance's own data that has not been made harmless. No slot and no cron ever starts on it.
    Raw,
    /// A copy that was neutralized and checked, or a copy of such.
    Neutralized,
}

/// What [`Host::take_snapshot`](super::Host::take_snapshot) does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeSnapshot {
    pub snapshot: SnapshotId,
    pub instance: InstanceId,
    pub data_set: DataSetId,
    /// The release that ran on the data, kept as long as the snapshot.
    pub release: Option<ReleaseId>,
}

/// What is known of a snapshot; its `snapshot.json`, written last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub id: SnapshotId,
    pub instance: InstanceId,
    pub data_set: DataSetId,
    pub release: Option<ReleaseId>,
    /// The moment that the data show.
    pub taken_at: DateTime<Utc>,
    /// It was taken while the database served.
    pub live: bool,
    pub standing: Standing,
    /// PostgreSQL's major version, which is the only one that can read it.
    pub postgres_version: String,
    /// The modules of its database.
    pub modules: Vec<InstalledModule>,
    /// Sizes of the files, as a plain copy would need them.
    pub database_bytes: u64,
    pub file_store_bytes: u64,
    pub file_store_files: u64,
    /// It shares its blocks with its source; false where the file system cannot.
    pub shares_blocks: bool,
    /// How long the copy took, in seconds.
    pub seconds: f64,
    /// Files of the file store whose content is not what their name says (Odoo's write is not atomic), relative to the file store.
    pub damaged_files: Vec<String>,
}

/// What a snapshot of a data set would hold, without taking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotEstimate {
    pub database_bytes: u64,
    pub file_store_bytes: u64,
    pub file_store_files: u64,
    /// The pool would have to give that much: with reflinks the new directory entries and what source and copy will soon no longer share, an estimate.
    pub needed_bytes: u64,
    pub available_bytes: u64,
}

/// What checking all of a snapshot found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    pub checked_files: u64,
    /// Paths relative to the snapshot, each with what is wrong.
    pub damaged: Vec<Damage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    pub path: String,
    pub problem: String,
}

/// The blocks behind a directory, as the file system tells them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Everything that it refers to.
    pub referenced_bytes: u64,
    /// What would come free if it alone were removed. Equal to `referenced_bytes` where nothing can be shared.
    pub exclusive_bytes: u64,
}

/// Space of an instance's data sets and of snapshots, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpaceReport {
    pub instances: Vec<(InstanceId, Usage)>,
    pub snapshots: Vec<(SnapshotId, Usage)>,
    pub pool_total_bytes: u64,
    pub pool_available_bytes: u64,
}
