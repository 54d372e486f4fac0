//! What a project says of its copies in `ocore.toml`, at the root of its repository. Sections that are not about copies belong to others.

use serde::Deserialize;

use super::{masking, parameters};
use crate::error::{HostError, Result};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ProjectSettings {
    pub(super) masking: masking::Section,
    pub(super) neutralization: parameters::Section,
}

impl ProjectSettings {
    /// From the text of the file; `None` when there is none.
    pub(super) fn read(text: Option<&str>) -> Result<Self> {
        let Some(text) = text else { return Ok(Self::default()) };
        toml::from_str(text).map_err(|error| HostError::Rejected {
            summary: format!("ocore.toml of the project cannot be read: {}", error.message()),
            excerpt: error.to_string(),
        })
    }
}
