//! What a deployment has to do with the data, decided by what has changed in the modules' content, never by version numbers alone.
//!
//! [`compare`] takes two descriptions of one module and says, in words and with places, what of the difference needs what: nothing, new processes,
//! Odoo's `-u`, or `-u` while nobody writes. What cannot be told counts as the worst that it could be.

mod description;
mod fields;
mod files;
mod python;
mod records;
mod translations;

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    description::*,
    files::{appears, compare},
    translations::{Correction, corrections},
};
use crate::state::words;

words! {
    /// What a deployment has to do, from the least to the most.
    Way, "way of a deployment" {
        /// What runs is what ran.
        Nothing = "nothing",
        /// Other code and static files, the same data: new processes take over.
        Reload = "reload",
        /// Odoo updates modules, in a manner that the code before bears.
        Update = "update",
        /// Odoo updates modules, and the schema becomes stricter or data are changed: nobody may write meanwhile.
        UpdateAndHoldWrites = "update_and_hold_writes",
    }
}

impl Way {
    /// Odoo's `-u` or `-i` runs.
    pub fn updates(self) -> bool {
        self >= Self::Update
    }

    /// As people read it.
    pub fn in_words(self) -> String {
        self.as_str().replace('_', " ")
    }

    /// Of plans that were made before plans had a way.
    pub fn unknown() -> Self {
        Self::UpdateAndHoldWrites
    }
}

/// What of a database decides which files of a module Odoo loads into it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Database {
    /// Odoo's codes of its active languages, e.g. `fr_BE`; `None` when they are not known, which counts as all.
    pub languages: Option<Vec<String>>,
    /// The module in question has its demo data.
    pub has_demo: bool,
}

impl Database {
    /// Whether Odoo loads the file of this language, e.g. `fr`, `fr_BE` or `es_419`: a language takes those of its relatives, too.
    fn speaks(&self, language: &str) -> bool {
        let family = |code: &str| code.split(['_', '@']).next().unwrap_or_default().to_owned();
        self.languages.as_ref().is_none_or(|languages| languages.iter().any(|active| family(active) == family(language)))
    }
}

/// One change, and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    pub way: Way,
    /// The module's technical name.
    pub module: String,
    /// Relative to the module.
    pub file: Option<String>,
    pub line: Option<u32>,
    /// What has changed and why that matters, a sentence without its end.
    pub text: String,
}

impl Change {
    fn new(module: &str, way: Way, place: Place<'_>, text: impl Into<String>) -> Self {
        let (file, line) = place;
        Self { way, module: module.to_owned(), file: file.map(str::to_owned), line, text: text.into() }
    }
}

/// A file and a line, as far as they are known.
type Place<'a> = (Option<&'a str>, Option<u32>);

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.module)?;
        if let Some(file) = &self.file {
            write!(formatter, "/{file}")?;
        }
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        write!(formatter, ": {}", self.text)
    }
}
