//! Exports: a data set written down so that another Odoo, or another oCore, can take it in.
//!
//! As `zip`: the zip of Odoo's database manager (`dump.sql`, `manifest.json`, `filestore/`). As `custom`: what `pg_dump --format=custom` writes; with a
//! file store, a tar of `database.dump`, `manifest.json` and `filestore/`. As `directory`: a tar of `pg_dump --format=directory` in `database/`,
//! `manifest.json` and `filestore/`.

use ocore_model::{
    export::ExportFormat,
    ids::{DataSetId, ExportId},
};
use serde::{Deserialize, Serialize};

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
