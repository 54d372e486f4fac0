//! The files at the root of a repository that are for oCore, and what `ocore.toml` says of deployments, modules and Odoo. Its sections about copies are
//! read where copies are made.

use std::{collections::BTreeMap, fs, io, path::Path};

use ocore_model::{
    names::ModuleName,
    odoo_options::{self, OdooOptions},
    project::DeploySettings,
};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{HostError, Result};

/// A script or a settings file beyond this is none, in bytes.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// What people call the configuration of an Odoo in a repository.
const CONFIGURATIONS: &[&str] =
    &["odoo.conf", ".odoorc", "odoo-server.conf", "openerp-server.conf", "config/odoo.conf", "conf/odoo.conf", "etc/odoo.conf"];
/// Whose sections are read elsewhere.
const OF_COPIES: [&str; 2] = ["masking", "neutralization"];

/// What a repository says to oCore.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Settings {
    pub(super) deploy: DeploySettings,
    pub(super) odoo: OdooOptions,
    pub(super) renamed: BTreeMap<ModuleName, ModuleName>,
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Sections {
    #[serde(default)]
    deploy: DeploySettings,
    #[serde(default)]
    odoo: BTreeMap<String, Value>,
    #[serde(default)]
    modules: Modules,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Modules {
    /// The earlier name first.
    renamed: BTreeMap<ModuleName, ModuleName>,
}

/// Of an unpacked tree. Without files, what is usual.
pub(super) fn of_tree(tree: &Path) -> Result<Settings> {
    let mut settings = match read_inside(tree, "ocore.toml")? {
        Some(text) => read(&text)?,
        None => Settings::default(),
    };
    for name in CONFIGURATIONS {
        // One that cannot be read is not read anyway.
        if let Ok(Some(text)) = read_inside(tree, name) {
            settings.notes.push(note(name, &text));
        }
    }
    Ok(settings)
}

/// What a release says of Odoo's own options. An earlier oCore took what this one would refuse: then nothing of it counts.
pub(in crate::local) fn odoo_options(tree: &Path) -> OdooOptions {
    let read = || -> Option<OdooOptions> {
        let text = read_inside(tree, "ocore.toml").ok()??;
        let sections: Sections = toml::from_str(&text).ok()?;
        OdooOptions::read(&sections.odoo).ok()
    };
    read().unwrap_or_default()
}

fn read(text: &str) -> Result<Settings> {
    let sections: Sections = toml::from_str(text).map_err(|error| HostError::Rejected {
        summary: format!("ocore.toml of the project cannot be read: {}", error.message()),
        excerpt: error.to_string(),
    })?;
    if let Some(unknown) = sections.others.keys().find(|name| !OF_COPIES.contains(&name.as_str())) {
        return Err(HostError::rejected(format!(
            "ocore.toml of the project: there is no section or key `{unknown}`; the sections are [deploy], [modules], [odoo], [masking] and [neutralization]"
        )));
    }
    sections.deploy.check().map_err(|reason| HostError::rejected(format!("ocore.toml of the project: {reason}")))?;
    let odoo =
        OdooOptions::read(&sections.odoo).map_err(|reason| HostError::rejected(format!("ocore.toml of the project, [odoo]: {reason}")))?;
    let renamed = sections.modules.renamed;
    if let Some((from, to)) = renamed.iter().find(|(from, to)| from == to || renamed.contains_key(*to)) {
        return Err(HostError::rejected(format!(
            "ocore.toml of the project, [modules]: {from} is renamed to {to}, which is itself an earlier name; name the last one"
        )));
    }
    Ok(Settings { deploy: sections.deploy, odoo, renamed, notes: Vec::new() })
}

/// What becomes of a configuration file of Odoo, key by key.
fn note(name: &str, text: &str) -> String {
    let mut section = "options".to_owned();
    let (mut movable, mut others, mut sections) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(begun) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = begun.trim().chars().take(40).filter(|letter| !letter.is_control()).collect();
            if section != "options" && !section.is_empty() {
                sections.push(section.clone());
            }
        }
        let Some((key, _)) = line.split_once('=').filter(|_| section == "options" && !line.starts_with(['#', ';'])) else { continue };
        let key = key.trim();
        if odoo_options::is_allowed(key) {
            movable.push(key.to_owned());
        } else if odoo_options::reason(key).is_some() {
            others.push(key.to_owned());
        }
    }
    let mut parts = vec![format!("{name} of the repository is not read, since oCore writes Odoo's configuration")];
    if !movable.is_empty() {
        parts.push(format!("put {} into [odoo] of ocore.toml", movable.join(", ")));
    }
    parts.extend(sections.iter().map(|section| format!("what is in [{section}] goes into [odoo.section.{section}] of ocore.toml")));
    if !others.is_empty() {
        others.truncate(20);
        parts.push(format!("oCore or the instance's settings decide about {}", others.join(", ")));
    }
    parts.join("; ")
}

/// The text of a file; `None` when there is none. A link that leads out of the directory is refused: we read as root, and errors show what we
/// read.
pub(in crate::local) fn read_inside(directory: &Path, name: &str) -> Result<Option<String>> {
    let path = directory.join(name);
    let read = || -> io::Result<Option<String>> {
        let real = match fs::canonicalize(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            real => real?,
        };
        if !real.starts_with(fs::canonicalize(directory)?) {
            return Err(io::Error::other("it is a link that leads out of its directory"));
        }
        let metadata = fs::metadata(&real)?;
        if !metadata.is_file() || metadata.len() > FILE_LIMIT {
            return Err(io::Error::other("it is no file of a sensible size"));
        }
        fs::read_to_string(&real).map(Some)
    };
    read().map_err(|error| HostError::rejected(format!("{name} in {} cannot be used: {error}", directory_name(directory))))
}

fn directory_name(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use ocore_model::environment::Stage;

    use super::*;

    #[test]
    fn the_section_is_read_and_others_are_left_alone() {
        assert_eq!(read("[masking]\nwhatever = 1\n").unwrap(), Settings::default());
        let read_deploy = |text: &str| read(text).map(|settings| settings.deploy);
        let settings = read_deploy("[deploy]\nrehearse = [\"production\", \"staging\"]\nsmoke_paths = [\"/shop\"]\n").unwrap();
        assert_eq!(settings.rehearse, [Stage::Production, Stage::Staging]);
        assert_eq!(settings.smoke_paths, ["/shop"]);
        for (text, expected) in [
            ("[deploy]\nrehearse = [\"live\"]\n", "unknown variant `live`"),
            ("[deploy]\nsmoke_path = []\n", "unknown field `smoke_path`"),
            ("[deploy]\nsmoke_paths = [\"shop\"]\n", "`shop` is no path of a page"),
            ("[deploi]\nsmoke_paths = []\n", "no section or key `deploi`"),
            ("[odoo]\nworkers = 4\n", "a setting of the instance"),
            ("[modules]\nrename = {}\n", "unknown field `rename`"),
            ("[modules.renamed]\na = \"b\"\nb = \"c\"\n", "name the last one"),
            ("[modules.renamed]\na = \"../b\"\n", "`../b`"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("ocore.toml"), "{error}");
        }
    }

    #[test]
    fn a_configuration_of_odoo_is_answered_key_by_key() {
        let directory = tempfile::tempdir().unwrap();
        let text = "[options]\nserver_wide_modules = base,web,beacon\ndb_host = x\n; limit_request = 1\n\n[beacon]\nchannels = root:2\n";
        fs::write(directory.path().join("odoo.conf"), text).unwrap();
        let settings = of_tree(directory.path()).unwrap();
        assert_eq!(
            settings.notes,
            [
                "odoo.conf of the repository is not read, since oCore writes Odoo's configuration; put server_wide_modules into [odoo] of ocore.toml; \
              what is in [beacon] goes into [odoo.section.beacon] of ocore.toml; oCore or the instance's settings decide about db_host"
            ]
        );
    }

    #[test]
    fn a_script_that_is_a_link_to_another_file_of_the_server_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_inside(directory.path(), "neutralize.sql").unwrap(), None);
        fs::write(directory.path().join("neutralize.sql"), "select 1").unwrap();
        assert_eq!(read_inside(directory.path(), "neutralize.sql").unwrap().unwrap(), "select 1");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("neutralize.py")).unwrap();
        let error = read_inside(directory.path(), "neutralize.py").unwrap_err().to_string();
        assert!(error.contains("leads out"), "{error}");
    }
}
