//! Exports: a data set written down so that another Odoo, or another oCore, can take it in.

use ocore_model::ids::{DataSetId, ExportId};
use serde::{Deserialize, Serialize};

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// The zip of Odoo's database manager: `dump.sql`, `manifest.json`, `filestore/`.
    Zip,
    /// `pg_dump --format=custom`; with a file store, a tar of `database.dump`, `manifest.json` and `filestore/`.
    Custom,
    /// A tar of `pg_dump --format=directory` in `database/`, `manifest.json` and `filestore/`.
    Directory,
}

impl ExportFormat {
    /// How the file's name ends.
    pub fn extension(self, with_file_store: bool) -> &'static str {
        match (self, with_file_store) {
            (Self::Zip, _) => "zip",
            (Self::Custom, false) => "dump",
            (Self::Custom | Self::Directory, _) => "tar",
        }
    }
}

/// What [`Host::write_export`](super::Host::write_export) writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteExport {
    pub export: ExportId,
    /// Nothing but the export uses it.
    pub data_set: DataSetId,
    pub format: ExportFormat,
    pub with_file_store: bool,
}

/// An export that is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedFile {
    pub bytes: u64,
    /// 64 hexadecimal digits.
    pub sha256: String,
}
