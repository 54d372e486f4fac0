//! The nodes that make a release: commit, plan, build. Nothing of the instance is touched by them.

use std::{collections::BTreeSet, sync::Arc};

use ocore_host::{BuildRelease, CheckImport, InstalledModule, Release, ReleaseId, Snapshot, SourceId};
use ocore_model::{
    deployment::{DataOrigin, ModulePlan, StepName},
    plan::{Correction, Way},
    report::Moment,
};
use serde::{Deserialize, Serialize};

use super::{short, step::Step, watch};
use crate::{
    Error, git,
    operations::{
        plan::{self, Decision, Situation},
        saga::Failure,
    },
    store,
};

/// The commit and its submodules as a sealed source tree.
pub(super) async fn checkout(step: Arc<Step>) -> Result<(SourceId, String), Failure> {
    watch::mark(step.control(), &step.parameters, Moment::Begun).await;
    let (source, modules) = export(&step).await?;
    let modules = match modules {
        1 => "1 module".to_owned(),
        count => format!("{count} modules"),
    };
    Ok((source, format!("{} with {modules}", short(&step.parameters.commit))))
}

async fn export(step: &Step) -> Result<(SourceId, usize), Failure> {
    let parameters = &step.parameters;
    step.say(&format!("commit {} of {}", parameters.commit, parameters.branch));
    let source = git::export(step.control(), parameters.project, &parameters.commit, step.progress()).await?;
    Ok((source.id, source.modules.len()))
}

/// What the plan step gives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Planned {
    #[serde(flatten)]
    pub(super) plan: ModulePlan,
    /// Words that the update sets anew.
    #[serde(default)]
    pub(super) corrections: Vec<Correction>,
    /// The new slot starts beside the live one, on the same data, and nothing rests. Decided once, so that each node and each undo sees the same.
    #[serde(default)]
    pub(super) beside: bool,
    /// The commit has the files of the live one, by a push: what runs goes on, and nothing starts. Decided once, too.
    #[serde(default)]
    pub(super) same: bool,
}

/// Which modules are installed and updated, on which data.
pub(super) async fn plan(step: Arc<Step>) -> Result<(Planned, String), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let source: SourceId = step.context.output("deploy::checkout")?;
    let source =
        host.find_source(&source).await?.ok_or_else(|| Failure::broken("the source tree has vanished from the server; deploy again"))?;
    let distribution = host.distribution(&parameters.odoo_version).await?;
    let found = found(&step).await?;
    let situation = Situation {
        data: parameters.origin.mode(),
        selection: &parameters.selection,
        source: &source,
        distribution: &distribution,
        live: found.release.as_ref(),
        installed: &found.installed,
        languages: found.languages.as_deref(),
        once: &found.once,
    };
    let Decision { plan, corrections } = plan::make(step.control(), situation, step.progress()).await?;
    for line in plan.lines() {
        step.say(&line);
    }
    let beside = may_start_beside(&step, &plan).await?;
    let is_live = found.release.as_ref().is_some_and(|release| release.source == source.id);
    let same = beside && plan.way == Way::Nothing && is_live && parameters.by_push;
    if same {
        step.say("the commit has the files of the one that is live: what runs goes on, and nothing is started");
    } else if beside {
        step.say("the new processes start beside the old ones, on the same data, and take over when they answer; nobody waits");
    }
    let json = serde_json::to_value(&plan).map_err(|error| Error::internal("writing a plan", error))?;
    store::deploy::set_plan(&mut *step.control().pool.acquire().await?, parameters.deployment, &json).await?;
    let summary = plan.summary();
    Ok((Planned { plan, corrections, beside, same }, summary))
}

/// Only code has changed, and the live Odoo runs and lets the crons of another one wait for the end of its own.
async fn may_start_beside(step: &Step, plan: &ModulePlan) -> Result<bool, Failure> {
    let parameters = &step.parameters;
    let Some(live) = parameters.live.as_ref().filter(|_| parameters.origin == DataOrigin::Live && parameters.ran()) else {
        return Ok(false);
    };
    if plan.way.updates() || !plan.install.is_empty() || !plan.update.is_empty() {
        return Ok(false);
    }
    let observed = step.control().host.observe().await?;
    let slots = observed.into_iter().filter(|observation| observation.instance == parameters.instance).flat_map(|found| found.slots);
    Ok(slots.into_iter().any(|slot| slot.color == live.color && slot.data_set == live.data_set && slot.takes_turns))
}

/// What the data hold that the commit comes live on.
#[derive(Default)]
struct Found {
    /// What ran on them, where that is known.
    release: Option<Release>,
    installed: Vec<InstalledModule>,
    languages: Option<Vec<String>>,
    once: BTreeSet<String>,
}

async fn found(step: &Step) -> Result<Found, Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let once = async |environment| {
        let mut connection = step.control().pool.acquire().await?;
        store::plans::once_installed(&mut connection, environment).await
    };
    match parameters.origin {
        DataOrigin::Fresh | DataOrigin::Snapshot { .. } => Ok(Found::default()),
        DataOrigin::Live => {
            let Some(live) = &parameters.live else { return Ok(Found::default()) };
            let installed = host.installed_modules(parameters.instance, live.data_set, step.fence()).await?;
            let languages = host.peek_languages(parameters.instance, live.data_set).await?;
            Ok(Found { release: host.find_release(&live.release).await?, installed, languages, once: once(parameters.environment).await? })
        }
        DataOrigin::Environment { environment, .. } => {
            let taken: Snapshot = step.context.output("deploy::snapshot")?;
            let release = match &taken.release {
                Some(release) => host.find_release(release).await?,
                None => None,
            };
            Ok(Found { release, installed: taken.modules, languages: None, once: once(environment).await? })
        }
        DataOrigin::Import { import } => {
            let request = CheckImport { import, odoo_version: parameters.odoo_version.clone(), release: None };
            Ok(Found { installed: host.check_import(request, step.progress()).await?.modules, ..Found::default() })
        }
    }
}

/// The immutable release. Nothing of the instance has been touched yet. A snapshot's own release is still there as a rule.
pub(super) async fn build(step: Arc<Step>) -> Result<(ReleaseId, String), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let kept = match parameters.restored.as_ref().and_then(|restored| restored.release.as_ref()) {
        Some(release) => host.find_release(release).await?,
        None => None,
    };
    let (release, how) = if let Some(release) = kept {
        (release, "of the snapshot")
    } else {
        let source = match parameters.origin {
            DataOrigin::Snapshot { .. } => export(&step).await?.0,
            _ => step.context.output("deploy::checkout")?,
        };
        let isolation_key = parameters.project.to_string();
        let request = BuildRelease { source, odoo_version: parameters.odoo_version.clone(), isolation_key };
        (host.build_release(request, step.progress()).await?, "")
    };
    check_packages(&step, &release).await?;
    store::deploy::set_release(&mut *step.control().pool.acquire().await?, parameters.deployment, &release.id.0).await?;
    let summary = format!("release {} {how}", release.id.0.get(..12).unwrap_or(&release.id.0));
    Ok((release.id, summary.trim_end().to_owned()))
}

/// That the Python packages have brought the modules that nothing else has.
async fn check_packages(step: &Step, release: &Release) -> Result<(), Failure> {
    if !step.has(StepName::Plan) {
        return Ok(());
    }
    let planned: Planned = step.context.output("deploy::plan")?;
    if planned.plan.packaged.is_empty() {
        return Ok(());
    }
    let brought = step.control().host.packaged_modules(&release.id).await?;
    match planned.plan.packaged.iter().find(|name| !brought.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(Failure::rejected(format!(
            "the module `{name}`, which is installed or needed, is neither in the repository nor part of Odoo {}, and no Python package of the project's \
             requirements brings it; put it back, or name the package that has it in requirements.txt. If it has another name now, add \
             `{name} = \"its new name\"` to [modules.renamed] of ocore.toml; uninstalling it in Odoo would delete its data",
            step.parameters.odoo_version
        ))),
    }
}
