//! What `ocore login` remembers: one file that only its owner reads.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Profile {
    pub url: Option<String>,
    pub access_token: Option<String>,
    pub refresh_token: Option<String>,
    pub api_key: Option<String>,
    pub organization: Option<String>,
}

impl Profile {
    /// `$OCORE_PROFILE`, else `ocore/profile.json` in the user's configuration directory.
    fn path() -> Result<PathBuf> {
        if let Some(path) = std::env::var_os("OCORE_PROFILE") {
            return Ok(path.into());
        }
        let base = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
            .context("neither HOME nor XDG_CONFIG_HOME is set; name a file with OCORE_PROFILE")?;
        Ok(base.join("ocore/profile.json"))
    }

    /// The remembered login, or an empty one.
    pub fn load() -> Result<Self> {
        let path = Self::path()?;
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged; remove it and log in again", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Replaces the file in one step, so that two commands at once never leave half of one.
    pub fn save(&self) -> Result<()> {
        let path = Self::path()?;
        let directory = path.parent().context("the profile's path has no directory")?;
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}
