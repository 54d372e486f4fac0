//! Raw copies that could not be made harmless, set aside for a person to see why.
//!
//! One that is set aside is no data set any more: no call takes it for one, so it can be looked at and removed, and nothing else.

use chrono::{DateTime, Utc};
use ocore_model::ids::{DataSetId, InstanceId};
use serde::{Deserialize, Serialize};

use super::{DataSource, NeutralizationReport, RawDataSet};

/// What [`Host::set_aside`](super::Host::set_aside) does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    pub data_set: RawDataSet,
    /// Why it could not be made harmless, in a sentence.
    pub reason: String,
}

/// A copy that was set aside; its `aside.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined {
    pub instance: InstanceId,
    /// The data set that it was. None has that name any more.
    pub data_set: DataSetId,
    /// What that was made from.
    pub source: DataSource,
    pub reason: String,
    pub since: DateTime<Utc>,
    /// Sizes of the files, as a plain copy would need them.
    pub database_bytes: u64,
    pub file_store_bytes: u64,
    pub file_store_files: u64,
    /// What the check found, when it came so far.
    pub report: Option<NeutralizationReport>,
}

/// A question to the database of a copy that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspect {
    /// One statement that gives rows: `SELECT`, `VALUES`, `TABLE` or `WITH` … of these.
    pub sql: String,
    pub max_rows: u32,
    /// Of all values together, as text.
    pub max_bytes: u64,
    /// Of one value; what is longer is cut.
    pub max_characters: u32,
    /// How long the statement may take.
    pub seconds: u32,
}

/// What the database answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspected {
    pub columns: Vec<String>,
    /// Values as PostgreSQL writes them in text; `None` for null.
    pub rows: Vec<Vec<Option<String>>>,
    /// There is more than the limits let through.
    pub truncated: bool,
}
