//! Imports: the data of an Odoo that ran elsewhere, on their way in.
//!
//! A backup is received in parts ([`UploadPart`]), each appended to where it was broken off; then it is checked, which changes nothing and says
//! everything that can be known before ([`ImportFacts`]); then it becomes a data set by
//! [`DataSource::Import`](super::DataSource::Import). What comes in is taken for hostile throughout.

use ocore_model::{ids::ImportId, names::OdooVersion};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

use super::{InstalledModule, ReleaseId};

/// Bytes as they come over the network or from the disk.
pub type ByteStream = Box<dyn AsyncRead + Send + Unpin>;

/// A file of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadPart {
    /// What holds the database: a zip of Odoo's database manager, a dump of `pg_dump` (custom, or a directory as tar), or SQL; with or without
    /// a file store in it.
    Backup,
    /// An archive of the file store (tar, tar.gz or zip), when the backup holds none.
    FileStore,
}

/// A part that is about to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewUpload {
    pub import: ImportId,
    pub part: UploadPart,
    /// In bytes. No more is taken, and the part is whole when it has them.
    pub size: u64,
    /// Of the whole part, 64 hexadecimal digits; checked by [`Host::check_import`](super::Host::check_import).
    pub sha256: Option<String>,
}

/// A part as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadedPart {
    pub part: UploadPart,
    pub size: u64,
    /// So much is on the disk for good, also after a power cut. The next bytes go there.
    pub received: u64,
    pub sha256: Option<String>,
}

impl UploadedPart {
    pub fn is_whole(&self) -> bool {
        self.received == self.size
    }
}

/// What [`Host::check_import`](super::Host::check_import) needs to know of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckImport {
    pub import: ImportId,
    /// The series that will run on the data.
    pub odoo_version: OdooVersion,
    /// The release whose modules count; without one, only Odoo's own do.
    pub release: Option<ReleaseId>,
}

/// How the database is written down in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupFormat {
    /// `pg_dump` without a format, as in the zip of Odoo's database manager.
    Sql,
    /// `pg_dump --format=custom`.
    Custom,
    /// `pg_dump --format=directory`.
    Directory,
}

/// What a backup is, and what would come of importing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportFacts {
    pub format: BackupFormat,
    /// The series of the Odoo that wrote it, e.g. `17.0`.
    pub odoo_series: Option<String>,
    /// The version of the server that was dumped, e.g. `15.4`.
    pub postgres_version: Option<String>,
    /// Modules that are installed, or about to be.
    pub modules: Vec<InstalledModule>,
    /// Those of them that neither the release nor Odoo has.
    pub missing_modules: Vec<String>,
    /// PostgreSQL's extensions that it asks for.
    pub extensions: Vec<String>,
    /// The database as SQL, in bytes.
    pub database_bytes: u64,
    pub file_store_files: u64,
    pub file_store_bytes: u64,
    /// What the pool must give, estimated.
    pub needed_bytes: u64,
    pub available_bytes: u64,
    /// Why it cannot be imported; empty when it can. Each is a sentence that says what to do.
    pub problems: Vec<String>,
    /// What a person should know and accept before.
    pub warnings: Vec<String>,
}
