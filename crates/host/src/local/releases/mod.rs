//! Releases: immutable builds that Odoo runs from, named by what went into them.
//!
//! ```text
//! <pool>/releases/<release id>/source/…        the sealed files as hard links, with their byte code
//! <pool>/releases/<release id>/release.json
//! ```
//!
//! A release is made beside its place and renamed: one that has its name is whole. Nobody but root and the release's own group gets past its
//! directory; the instances that run it are in that group.
//!
//! Byte code is taken without a look at its source, so whoever could write it could write the code. It is made by a user that runs nobody's code and reaches
//! nothing else, it is root's before anything of the project runs, and it is taken over from releases of the same project alone.

mod environment;
mod gateway;
mod missing;
mod requirements;
mod seal;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use ocore_model::names::ModuleName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;

use self::{
    requirements::Requirements,
    seal::{Kind, seal},
};
use super::{
    LocalHost,
    build_users::BuildUser,
    copy::{self, WorkDirectory},
    data_sets::open_to_group,
    distribution::InstalledDistribution,
    durable::{self, blocking},
    exec::Program,
    slots,
    sources::check_digest,
};
use crate::{
    api::{BuildRelease, Progress, Release, ReleaseId, Source},
    error::{HostError, Result},
};

const COMPILE_MODULES: &str = include_str!("compile_modules.py");
const COMPILE_TIME: Duration = Duration::from_mins(10);
const RECORD: &str = "release.json";
/// What is younger than this is not pruned: an operation may be about to use it.
const PRUNE_AGE: Duration = Duration::from_hours(1);

/// What is written down of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReleaseRecord {
    pub(super) release: Release,
    /// The `python` that runs it.
    pub(super) python: PathBuf,
    /// The environment on top of the distribution's, when the project has requirements.
    pub(super) environment: Option<String>,
    /// The groups that a process needs to read it.
    pub(super) groups: Vec<u32>,
    /// Directories that hold its modules, relative to its source tree.
    addons: Vec<PathBuf>,
    /// Where each module is, relative to its source tree.
    module_paths: BTreeMap<ModuleName, String>,
    /// Whose it is; `None` in one from before that was written down, whose byte code nobody takes over.
    #[serde(default)]
    isolation_key: Option<String>,
}

impl ReleaseRecord {
    /// Where its modules are, relative to its source tree.
    pub(super) fn modules(&self) -> BTreeMap<ModuleName, String> {
        self.module_paths.clone()
    }
}

/// One file that Python cannot read.
#[derive(Debug, Deserialize)]
struct CompileError {
    path: String,
    line: Option<u32>,
    message: String,
    text: Option<String>,
    /// Whether Odoo would import it.
    imported: bool,
}

/// What goes into a release.
struct Parts<'a> {
    id: &'a ReleaseId,
    isolation_key: &'a str,
    source: &'a Source,
    distribution: &'a InstalledDistribution,
    /// With the name of the environment that they make.
    requirements: Option<(Requirements, String)>,
    addons: Vec<PathBuf>,
}

/// One build of the same thing at a time.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub(super) async fn take(&self, name: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(name.to_owned()).or_default())
        };
        turn.lock_owned().await
    }
}

impl LocalHost {
    pub(super) async fn build(&self, request: &BuildRelease, progress: &Progress) -> Result<Release> {
        let found = self.sealed(&request.source).await?;
        let source = found.ok_or_else(|| HostError::NotFound { what: "source", id: request.source.to_string() })?;
        let distribution = self.installed_distribution(&request.odoo_version).await?;
        let requirements = Requirements::read(&source, &self.source_tree(&source.id)?)?;
        let environment_id =
            requirements.as_ref().map(|requirements| requirements.id(&request.isolation_key, &distribution.distribution.id, &source));
        let id = release_id(&request.isolation_key, &source, environment_id.as_deref(), &distribution.distribution.id);
        let _turn = self.builds.take(&id.0).await;
        if let Some(record) = self.release(&id)? {
            progress.log.line("This release is there already.");
            // It is about to be used: pruning counts from now.
            touch(&self.release_directory(&id)?.join(RECORD))?;
            return Ok(record.release);
        }
        refuse_names_of_odoo(&source, &distribution)?;
        let addons = tree::addons_directories(installable(&source).map(|module| module.path.as_str()))?;
        let requirements = requirements.zip(environment_id);
        let isolation_key = &request.isolation_key;
        let parts = Parts { id: &id, isolation_key, source: &source, distribution: &distribution, requirements, addons };
        let built = self.build_anew(parts, progress).await;
        if built.is_err() {
            self.ledger.forget_release(&id).await?;
        }
        built
    }

    async fn build_anew(&self, parts: Parts<'_>, progress: &Progress) -> Result<Release> {
        let Parts { id, isolation_key, source, distribution, requirements, addons } = parts;
        let gid = self.ledger.release_gid(id).await?;
        durable::make_directory(&self.layout.releases(), 0o711)?;
        let work = WorkDirectory::create(&self.release_directory(id)?).await?;
        open_to_group(work.path(), gid)?;
        let tree = work.path().join("source");
        self.fill(isolation_key, source, &tree, gid, distribution, progress).await?;
        let environment = match &requirements {
            Some((requirements, id)) => Some(self.environment(id, requirements, distribution, source, progress).await?),
            None => None,
        };
        let release = Release {
            id: id.clone(),
            source: source.id.clone(),
            odoo_version: distribution.distribution.odoo_version.clone(),
            distribution_id: distribution.distribution.id.clone(),
            modules: installable(source).map(|module| (module.name.clone(), module.digest.clone())).collect(),
        };
        let record = ReleaseRecord {
            release: release.clone(),
            python: environment.as_ref().map_or_else(|| distribution.python.clone(), |environment| environment.python.clone()),
            groups: std::iter::once(gid).chain(environment.as_ref().map(|environment| environment.gid)).collect(),
            environment: environment.map(|environment| environment.id),
            addons,
            module_paths: installable(source).map(|module| (module.name.clone(), module.path.clone())).collect(),
            isolation_key: Some(isolation_key.to_owned()),
        };
        durable::write_json(&work.path().join(RECORD), &record)?;
        work.keep().await?;
        progress.log.line(&format!("Built release {}.", &release.id.0[..12]));
        Ok(release)
    }

    /// Source tree with byte code, all of it root's.
    async fn fill(
        &self,
        isolation_key: &str,
        source: &Source,
        tree: &Path,
        gid: u32,
        distribution: &InstalledDistribution,
        progress: &Progress,
    ) -> Result<()> {
        let known = self.byte_code_of(isolation_key, source, &distribution.distribution.id)?;
        let user = self.claim_build_user().await?;
        let (sealed, target, owner) = (self.source_tree(&source.id)?, tree.to_owned(), user.uid);
        let modules: Vec<(String, Option<PathBuf>)> =
            installable(source).map(|module| (module.path.clone(), known.get(&module.digest).cloned())).collect();
        let anew: Vec<String> = modules.iter().filter(|(_, known)| known.is_none()).map(|(path, _)| path.clone()).collect();
        let made = {
            let anew = anew.clone();
            blocking(move || {
                tree::link_tree(&sealed, &target, 0)?;
                tree::replace_links(&sealed, &target, &tree::picking_links(&sealed, modules.iter().map(|(path, _)| path.as_str())))?;
                let made = anew.iter().map(|path| tree::make_room(&target.join(path), owner)).collect::<Result<Vec<_>>>()?;
                for (path, from) in &modules {
                    if let Some(from) = from {
                        tree::link_byte_code(from, &target.join(path))?;
                    }
                }
                Ok(made.concat())
            })
            .await?
        };
        let compiled = compile(&anew, tree, gid, &user, distribution, progress).await;
        user.release().await?;
        judge_code(compiled?, source, progress)?;
        blocking(move || made.iter().try_for_each(|directory| seal(directory, owner, Kind::ByteCode))).await
    }

    /// Where byte code of modules with the same digest is, in the project's other releases for the same distribution.
    fn byte_code_of(&self, isolation_key: &str, source: &Source, distribution: &str) -> Result<HashMap<String, PathBuf>> {
        let wanted: BTreeSet<&str> = installable(source).map(|module| module.digest.as_str()).collect();
        let mut known = HashMap::new();
        for record in self.release_records()? {
            if record.release.distribution_id != distribution || record.isolation_key.as_deref() != Some(isolation_key) {
                continue;
            }
            let tree = self.release_tree(&record.release.id)?;
            for (name, digest) in &record.release.modules {
                if wanted.contains(digest.as_str())
                    && let Some(path) = record.module_paths.get(name)
                {
                    known.entry(digest.clone()).or_insert_with(|| tree.join(path));
                }
            }
        }
        Ok(known)
    }

    /// The whole release of that name.
    pub(super) fn release(&self, id: &ReleaseId) -> Result<Option<ReleaseRecord>> {
        durable::read_json(&self.release_directory(id)?.join(RECORD))
    }

    /// The source tree of a release, which errors of its Odoo name.
    pub(super) fn release_tree(&self, id: &ReleaseId) -> Result<PathBuf> {
        Ok(self.release_directory(id)?.join("source"))
    }

    /// The release with the distribution that it was built for: what is needed to run it.
    pub(super) async fn runnable(&self, id: &ReleaseId) -> Result<(ReleaseRecord, InstalledDistribution)> {
        let record = self.release(id)?.ok_or_else(|| HostError::NotFound { what: "release", id: id.to_string() })?;
        let distribution = self.installed_distribution(&record.release.odoo_version).await?;
        if distribution.distribution.id != record.release.distribution_id {
            return Err(HostError::rejected(format!(
                "this release was built for another Odoo {} than the one that is on the server now; deploy the commit again",
                record.release.odoo_version
            )));
        }
        Ok((record, distribution))
    }

    /// Odoo's addons path for a release.
    pub(super) fn addons_path(&self, record: &ReleaseRecord, distribution: &InstalledDistribution) -> Result<Vec<PathBuf>> {
        let tree = self.release_tree(&record.release.id)?;
        let join = |directory: &PathBuf| if directory.as_os_str().is_empty() { tree.clone() } else { tree.join(directory) };
        Ok(record.addons.iter().map(join).chain(distribution.addons.iter().cloned()).collect())
    }

    pub(super) async fn prune(&self, keep: &[ReleaseId]) -> Result<()> {
        let mut kept: BTreeSet<ReleaseId> = keep.iter().cloned().collect();
        for instance in self.ledger.instances().await? {
            kept.extend(slots::running(&self.layout, instance)?.into_iter().map(|slot| slot.release));
        }
        // A snapshot without the release that ran on it could not be gone back to.
        kept.extend(self.whole_snapshots()?.into_iter().filter_map(|snapshot| snapshot.release));
        let mut sources = BTreeSet::new();
        let mut environments = BTreeSet::new();
        for record in self.release_records()? {
            let id = record.release.id.clone();
            let directory = self.release_directory(&id)?;
            if kept.contains(&id) || is_young(&directory.join(RECORD)) {
                sources.insert(record.release.source.0);
                environments.extend(record.environment);
                continue;
            }
            let _turn = self.builds.take(&id.0).await;
            tracing::info!(release = %id, "a release that nobody needs is removed");
            copy::remove(&directory).await?;
            self.ledger.forget_release(&id).await?;
        }
        for (directory, needed) in [(self.layout.environments(), &environments), (self.layout.sources(), &sources)] {
            for (name, path) in digests_in(&directory) {
                if needed.contains(&name) && directory == self.layout.environments() {
                    environment::remove_leftovers(&path).await?;
                }
                if needed.contains(&name) || is_young(&path) {
                    continue;
                }
                let _turn = self.builds.take(&path.display().to_string()).await;
                copy::remove(&path).await?;
                if directory == self.layout.environments() {
                    self.ledger.forget_release(&ReleaseId(name)).await?;
                }
            }
        }
        Ok(())
    }

    fn release_records(&self) -> Result<Vec<ReleaseRecord>> {
        let found = digests_in(&self.layout.releases());
        found.into_iter().filter_map(|(_, path)| durable::read_json(&path.join(RECORD)).transpose()).collect()
    }

    fn release_directory(&self, id: &ReleaseId) -> Result<PathBuf> {
        check_digest("release", &id.0)?;
        Ok(self.layout.releases().join(&id.0))
    }
}

/// Compiles modules. The project's code is read, not run; even so it is read by a user that may do nothing else.
async fn compile(
    modules: &[String],
    tree: &Path,
    gid: u32,
    user: &BuildUser,
    distribution: &InstalledDistribution,
    progress: &Progress,
) -> Result<Vec<CompileError>> {
    if modules.is_empty() {
        return Ok(Vec::new());
    }
    let input = serde_json::json!({ "root": tree, "modules": modules }).to_string();
    let finished = Program::new(&distribution.python)
        .args(["-I", "-S", "-c", COMPILE_MODULES])
        .yields()
        .without_network()
        .of_build(user, vec![gid])
        .stdin(input)
        .output_limit(64 * 1024 * 1024)
        .time_limit(COMPILE_TIME)
        .cancel(progress.cancel.clone())
        .run()
        .await?
        .expect_success("the byte code of the modules could not be compiled")?;
    serde_json::from_slice(&finished.stdout)
        .map_err(|error| HostError::machine_from("the answer of the byte code compiler could not be read", error))
}

/// Refuses code that Python cannot read and Odoo would import. Scripts, templates and fixtures that nobody imports are said; so is what modules of submodules
/// import, which are installed only when something needs them: Odoo says the same when it does.
fn judge_code(errors: Vec<CompileError>, source: &Source, progress: &Progress) -> Result<()> {
    let in_submodule = |error: &CompileError| {
        let is_in = |module: &&crate::api::SourceModule| error.path.strip_prefix(&module.path).is_some_and(|rest| rest.starts_with('/'));
        source.modules.iter().find(is_in).is_some_and(|module| module.in_submodule)
    };
    let (errors, left): (Vec<_>, Vec<_>) = errors.into_iter().partition(|error| error.imported && !in_submodule(error));
    for error in &left {
        let why = if error.imported { "its module is a submodule's" } else { "nothing imports it" };
        progress.log.line(&format!("Python cannot read {}; {why}, so it stays as it is.", place_and_reason(error)));
    }
    let Some(first) = errors.first() else { return Ok(()) };
    let more = if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
    let excerpt: Vec<String> = errors.iter().map(show).collect();
    Err(HostError::Rejected { summary: format!("syntax error in {}{more}", place_and_reason(first)), excerpt: excerpt.join("\n\n") })
}

fn place_and_reason(error: &CompileError) -> String {
    match error.line {
        Some(line) => format!("{}, line {line}: {}", error.path, error.message),
        None => format!("{}: {}", error.path, error.message),
    }
}

fn show(error: &CompileError) -> String {
    match &error.text {
        Some(text) => format!("{}\n    {}", place_and_reason(error), text.trim()),
        None => place_and_reason(error),
    }
}

fn installable(source: &Source) -> impl Iterator<Item = &crate::api::SourceModule> {
    source.modules.iter().filter(|module| module.installable)
}

/// An installed Odoo finds its own modules first, so that it would never load the project's.
fn refuse_names_of_odoo(source: &Source, distribution: &InstalledDistribution) -> Result<()> {
    if !distribution.addons.is_empty() {
        return Ok(());
    }
    let own: BTreeSet<&ModuleName> = distribution.distribution.modules.iter().collect();
    match installable(source).find(|module| own.contains(&module.name)) {
        Some(module) => Err(HostError::rejected(format!(
            "the module {} has the name of one of Odoo's own, which Odoo would load instead; rename it, or extend Odoo's with another module",
            module.path
        ))),
        None => Ok(()),
    }
}

fn release_id(isolation_key: &str, source: &Source, environment: Option<&str>, distribution: &str) -> ReleaseId {
    let mut digest = Sha256::new();
    for part in ["release 2", isolation_key, &source.id.0, environment.unwrap_or("none"), distribution] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    ReleaseId(hex::encode(digest.finalize()))
}

fn digests_in(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.to_owned(), entry.path())))
        .filter(|(name, _)| check_digest("release", name).is_ok())
        .collect();
    found.sort();
    found
}

fn is_young(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|age| age < PRUNE_AGE))
}

fn touch(path: &Path) -> Result<()> {
    let touched = fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    touched.map_err(|error| HostError::machine_from(format!("{} could not be touched", path.display()), error))
}
