//! Odoo distributions: a version of Odoo with the Python environment that it runs in, shared by all instances of that version.
//!
//! One is either installed below the distributions' directory ([`install`]) or pointed to by the configuration: an upstream checkout and a
//! virtual environment that the operator keeps.

mod apt_sources;
mod install;
mod owned;
mod tools;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::names::{ModuleName, OdooVersion};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(super) use self::owned::{is_all_roots_own, is_roots_own};
pub use self::{install::install, tools::tool_directory};
use super::{
    LocalHost, LocalHostConfig,
    durable::{self, blocking},
    exec::Program,
    private,
};
use crate::{
    api::Distribution,
    error::{HostError, Result},
};

const RECORD: &str = "distribution.json";
/// For a look at what the operator keeps.
const LOOK_TIME: Duration = Duration::from_mins(5);

/// An Odoo that the operator keeps: the configuration points to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalDistribution {
    /// The checkout, with `odoo-bin`.
    pub source: PathBuf,
    /// The `python` of a virtual environment in which that Odoo's requirements are installed. Users of instances must be able to run it.
    pub python: PathBuf,
}

/// A distribution with everything that is needed to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledDistribution {
    pub distribution: Distribution,
    /// Odoo's program, which Python runs.
    pub program: PathBuf,
    pub python: PathBuf,
    /// What a Python environment on top of this one must have in its path.
    pub packages: Vec<PathBuf>,
    /// Directories of modules that Odoo does not find by itself.
    pub addons: Vec<PathBuf>,
}

/// What is written down of an installed one. Paths are relative to its directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    odoo_version: OdooVersion,
    id: String,
    program: PathBuf,
    python: PathBuf,
    packages: Vec<PathBuf>,
    modules: Vec<ModuleName>,
}

/// The whole one in `directory/version`; `None` when there is none.
pub fn find_installed(directory: &Path, version: &OdooVersion) -> Result<Option<InstalledDistribution>> {
    let directory = directory.join(version.as_str());
    let Some(record) = durable::read_json::<Record>(&directory.join(RECORD))? else { return Ok(None) };
    let at = |path: &PathBuf| directory.join(path);
    Ok(Some(InstalledDistribution {
        program: at(&record.program),
        python: at(&record.python),
        packages: record.packages.iter().map(at).collect(),
        addons: Vec::new(),
        distribution: Distribution { odoo_version: record.odoo_version, id: record.id, modules: record.modules },
    }))
}

/// The distribution of an Odoo series; `Rejected` when this server has none.
pub async fn find(config: &LocalHostConfig, version: &OdooVersion) -> Result<InstalledDistribution> {
    if let Some(external) = config.external_distributions.get(version) {
        return look_at(version, external).await;
    }
    let (directory, wanted) = (config.distributions.clone(), version.clone());
    let found = blocking(move || find_installed(&directory, &wanted)).await?;
    found.ok_or_else(|| {
        HostError::rejected(format!("Odoo {version} is not installed on this server; its operator can run `ocore odoo install {version}`"))
    })
}

/// All distributions of a server. One that the configuration points to and that is not in order is left out, with a warning in the log.
pub async fn list(config: &LocalHostConfig) -> Vec<Distribution> {
    let mut versions: BTreeSet<OdooVersion> = config.external_distributions.keys().cloned().collect();
    if let Ok(entries) = std::fs::read_dir(&config.distributions) {
        versions.extend(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<OdooVersion>().ok()));
    }
    let mut distributions = Vec::new();
    for version in versions {
        match find(config, &version).await {
            Ok(found) => distributions.push(found.distribution),
            Err(error) => tracing::warn!(%error, %version, "an Odoo distribution cannot be used"),
        }
    }
    distributions
}

impl InstalledDistribution {
    /// Where the modules are that Odoo finds by itself, before any other: `odoo/addons` beside its code.
    pub(super) fn own_addons(&self) -> Vec<PathBuf> {
        let roots = self.program.parent().into_iter().chain(self.packages.iter().map(PathBuf::as_path));
        roots.map(|root| root.join("odoo/addons")).filter(|directory| directory.join("base").is_dir()).collect()
    }
}

impl LocalHost {
    /// The distribution of an Odoo series; `Rejected` when this server has none.
    pub async fn installed_distribution(&self, version: &OdooVersion) -> Result<InstalledDistribution> {
        find(&self.config, version).await
    }
}

/// Looks at what the configuration points to. Its id follows the commit, the changes in the checkout, the names of its modules and
/// the packages of the environment; an Odoo that is no Git checkout is expected to stay as it is.
async fn look_at(version: &OdooVersion, external: &ExternalDistribution) -> Result<InstalledDistribution> {
    let program = external.source.join("odoo-bin");
    if !program.is_file() {
        return Err(HostError::machine(format!(
            "there is no {}; the configuration's `source` for Odoo {version} must be a checkout of Odoo",
            program.display()
        )));
    }
    private::require_visible(&[&external.source, &external.python])?;
    let script =
        "import json, sys, sysconfig; print(json.dumps([sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), sys.version]))";
    // Users of instances run it too, and what is in its environment is not ours.
    let finished = Program::new(&external.python).args(["-I", "-c", script]).run_as(owned::nobody()).time_limit(LOOK_TIME).run().await?;
    let finished = finished.expect_success(&format!("the Python of Odoo {version}, {}, does not run", external.python.display()))?;
    let mut answer: Vec<String> =
        serde_json::from_slice(&finished.stdout).map_err(|error| HostError::machine_from("Python did not name its directories", error))?;
    let python_version = answer.pop().unwrap_or_default();
    let packages: BTreeSet<PathBuf> = answer.into_iter().map(PathBuf::from).collect();
    let packages: Vec<PathBuf> = packages.into_iter().collect();
    let commit = commit_of(&external.source).await?;
    let addons = vec![external.source.join("addons")];
    let (version, source, python) = (version.clone(), external.source.clone(), external.python.clone());
    blocking(move || {
        let modules = module_names(&[source.join("odoo").join("addons"), source.join("addons")])?;
        let mut digest = Sha256::new();
        for part in [commit, python_version, python.display().to_string(), source.display().to_string()] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let modules_and_packages = modules.iter().map(|name| name.as_str().to_owned()).chain(installed_packages(&packages));
        for name in modules_and_packages {
            digest.update(name);
            digest.update([0]);
        }
        let id = format!("{version}-{}", &hex::encode(digest.finalize())[..16]);
        let distribution = Distribution { odoo_version: version, id, modules };
        Ok(InstalledDistribution { distribution, program, python, packages, addons })
    })
    .await
}

/// The commit with what is changed on top of it; empty when it is no Git checkout.
async fn commit_of(source: &Path) -> Result<String> {
    if !source.join(".git").exists() {
        return Ok(String::new());
    }
    let reader = owned::reader_of_checkout(source);
    let git = || {
        let git = Program::new("git").args(["-c", "safe.directory=*", "-C"]).arg(source).time_limit(LOOK_TIME);
        reader.iter().cloned().fold(git, Program::run_as)
    };
    let commit = git().args(["rev-parse", "HEAD"]).run().await?.expect_success("the commit of the configured Odoo could not be read")?;
    let changes = git().args(["diff", "HEAD"]).output_limit(64 * 1024 * 1024).run().await?;
    Ok(format!("{}{}", commit.stdout_text().trim(), hex::encode(Sha256::digest(changes.stdout))))
}

/// `name-version` of the packages in these directories.
fn installed_packages(directories: &[PathBuf]) -> BTreeSet<String> {
    directories
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".dist-info").map(str::to_owned))
        .collect()
}

/// Technical names of the modules in these directories, sorted.
fn module_names(directories: &[PathBuf]) -> Result<Vec<ModuleName>> {
    let mut names = BTreeSet::new();
    for directory in directories {
        let entries = std::fs::read_dir(directory).map_err(|error| {
            HostError::machine_from(format!("the modules of Odoo in {} could not be read: {error}", directory.display()), error)
        })?;
        let modules = entries.flatten().filter(|entry| entry.path().join("__manifest__.py").is_file());
        names.extend(modules.filter_map(|entry| entry.file_name().to_str()?.parse::<ModuleName>().ok()));
    }
    Ok(names.into_iter().collect())
}
