//! Templates: databases with modules installed that nobody has used yet, immutable, in the pool. A new data set takes the nearest one instead
//! of installing everything again.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{DataSetId, TemplateId},
    names::{ModuleName, OdooVersion},
};
use serde::{Deserialize, Serialize};

use super::ReleaseId;

/// What went into a template, and so its name: the same again is the same template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateContent {
    /// Of Odoo itself: [`Distribution::id`](super::Distribution::id).
    pub distribution_id: String,
    pub with_demo: bool,
    /// Only builds with this key may use it. `None`: only Odoo's own modules are in it, run by nobody's code but Odoo's, and everybody may.
    pub isolation_key: Option<String>,
    /// The modules that were asked for, sorted. What they depend on is in it, too.
    pub requested: Vec<ModuleName>,
    /// The Python packages that the project has besides Odoo's, by a name made from what they are.
    pub environment: Option<String>,
    /// The modules of the project that are installed in it, with the digests of their files.
    pub modules: BTreeMap<ModuleName, String>,
}

/// A template as it lies in the pool; its `template.json`, written last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    pub id: TemplateId,
    pub content: TemplateContent,
    pub odoo_version: OdooVersion,
    /// The major version of PostgreSQL, which alone reads it.
    pub postgres: String,
    /// What is not the same in all clusters of that version that oCore has made.
    pub shape: u32,
    /// Odoo's own modules that were asked for, by name or by the project's modules, sorted.
    pub standard: Vec<ModuleName>,
    /// Every module that is installed in it, sorted.
    pub installed: Vec<String>,
    pub created_at: DateTime<Utc>,
    /// When a data set was last made from it.
    #[serde(default)]
    pub used_at: DateTime<Utc>,
    /// Lengths of all files together.
    pub bytes: u64,
    /// How many files, directories and links there are.
    pub entries: u64,
}

/// What [`Host::make_template`](super::Host::make_template) makes: a database with modules of Odoo's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeTemplate {
    pub odoo_version: OdooVersion,
    pub modules: Vec<ModuleName>,
    pub with_demo: bool,
    /// A template for everybody to begin with; only what it lacks is installed.
    pub from: Option<TemplateId>,
}

/// What [`Host::keep_template`](super::Host::keep_template) keeps: a data set in which modules have just been installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepTemplate {
    pub data_set: DataSetId,
    /// What installed them.
    pub release: ReleaseId,
    /// As given to [`BuildRelease`](super::BuildRelease).
    pub isolation_key: String,
    pub requested: Vec<ModuleName>,
    /// As in [`Template::standard`].
    pub standard: Vec<ModuleName>,
    pub with_demo: bool,
}

/// How much of templates is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateLimits {
    /// All together, in bytes of [`Template::bytes`]; those that were not used for longest go first. So they do when the pool is nearly full.
    pub bytes: u64,
    /// One that was not used for so many days goes in any case.
    pub unused_days: u32,
    /// The isolation keys that still stand for something; templates with another one go.
    pub keys: Vec<String>,
}
