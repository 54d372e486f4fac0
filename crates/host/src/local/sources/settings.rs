//! The files at the root of a repository that are for oCore, and what `ocore.toml` says of deployments. Its other sections belong to others.

use std::{fs, io, path::Path};

use ocore_model::project::DeploySettings;
use serde::Deserialize;

use crate::error::{HostError, Result};

/// A script or a settings file beyond this is none, in bytes.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

#[derive(Debug, Default, Deserialize)]
struct Sections {
    #[serde(default)]
    deploy: DeploySettings,
}

/// Of an unpacked tree. Without a file, what is usual.
pub(super) fn of_tree(tree: &Path) -> Result<DeploySettings> {
    match read_inside(tree, "ocore.toml")? {
        Some(text) => read(&text),
        None => Ok(DeploySettings::default()),
    }
}

fn read(text: &str) -> Result<DeploySettings> {
    let sections: Sections = toml::from_str(text).map_err(|error| HostError::Rejected {
        summary: format!("ocore.toml of the project cannot be read: {}", error.message()),
        excerpt: error.to_string(),
    })?;
    sections.deploy.check().map_err(|reason| HostError::rejected(format!("ocore.toml of the project: {reason}")))?;
    Ok(sections.deploy)
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
        assert_eq!(read("[masking]\nwhatever = 1\n").unwrap(), DeploySettings::default());
        let settings = read("[deploy]\nrehearse = [\"production\", \"staging\"]\nsmoke_paths = [\"/shop\"]\n").unwrap();
        assert_eq!(settings.rehearse, [Stage::Production, Stage::Staging]);
        assert_eq!(settings.smoke_paths, ["/shop"]);
        for (text, expected) in [
            ("[deploy]\nrehearse = [\"live\"]\n", "unknown variant `live`"),
            ("[deploy]\nsmoke_path = []\n", "unknown field `smoke_path`"),
            ("[deploy]\nsmoke_paths = [\"shop\"]\n", "`shop` is no path of a page"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("ocore.toml"), "{error}");
        }
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
