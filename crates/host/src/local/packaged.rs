//! Modules that come with a release's Python packages: wheels of Odoo modules hold `odoo/addons/<module>`, where Odoo looks by itself.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use rustix::fs::FileType;

use super::{LocalHost, below::Directory, releases::ReleaseRecord};
use crate::{
    api::ReleaseId,
    error::{HostError, Result},
};

const ADDONS: &str = "site-packages/odoo/addons";
const MANIFEST: &str = "__manifest__.py";

impl LocalHost {
    /// Their technical names. `NotFound` for a release that is not there.
    pub(super) fn modules_of_packages(&self, release: &ReleaseId) -> Result<BTreeSet<String>> {
        let record = self.release(release)?.ok_or_else(|| HostError::NotFound { what: "release", id: release.to_string() })?;
        modules(&record)
    }
}

/// Where they are; `None` when the release has no packages of its own, or none with modules.
pub(super) fn addons(record: &ReleaseRecord) -> Result<Option<PathBuf>> {
    Ok(find(record).map_err(|error| unreadable(record, error))?.map(|(path, _)| path))
}

/// Technical names of the modules that come with the release's Python packages.
pub(super) fn modules(record: &ReleaseRecord) -> Result<BTreeSet<String>> {
    let read = || -> io::Result<BTreeSet<String>> {
        let Some((_, addons)) = find(record)? else { return Ok(BTreeSet::new()) };
        let mut modules = BTreeSet::new();
        for name in addons.names()? {
            let Some(name) = name.to_str().filter(|name| !name.starts_with(['.', '_'])) else { continue };
            let manifest = addons.status(Path::new(name).join(MANIFEST)).unwrap_or_default();
            if manifest.is_some_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile) {
                modules.insert(name.to_owned());
            }
        }
        Ok(modules)
    };
    read().map_err(|error| unreadable(record, error))
}

/// Packages may have anything in the place of a directory: then there are no modules.
fn find(record: &ReleaseRecord) -> io::Result<Option<(PathBuf, Directory)>> {
    let library = record.environment.as_ref().and(record.python.parent()).and_then(Path::parent).map(|venv| venv.join("lib"));
    let Some(library) = library else { return Ok(None) };
    let directory = Directory::open(&library)?;
    for version in directory.names()? {
        let place = version.join(ADDONS);
        if let Ok(addons) = directory.inside(&place) {
            return Ok(Some((library.join(place), addons)));
        }
    }
    Ok(None)
}

fn unreadable(record: &ReleaseRecord, error: io::Error) -> HostError {
    HostError::machine_from(format!("the Python packages of release {} could not be read: {error}", record.release.id), error)
}
