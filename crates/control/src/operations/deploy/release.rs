//! The nodes that make a release: commit, plan, build. Nothing of the instance is touched by them.

use std::sync::Arc;

use ocore_host::{BuildRelease, CheckImport, InstalledModule, Release, ReleaseId, Snapshot, SourceId};
use ocore_model::{
    deployment::{DataMode, DataOrigin, ModulePlan},
    report::Moment,
};
use serde::{Deserialize, Serialize};

use super::{short, step::Step, watch};
use crate::{
    Error, git,
    operations::{
        plan::{self, Situation},
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
    /// The new slot starts beside the live one, on the same data, and nothing rests. Decided once, so that each node and each undo sees the same.
    #[serde(default)]
    pub(super) beside: bool,
}

/// Which modules are installed and updated, on which data.
pub(super) async fn plan(step: Arc<Step>) -> Result<(Planned, String), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let source: SourceId = step.context.output("deploy::checkout")?;
    let source =
        host.find_source(&source).await?.ok_or_else(|| Failure::broken("the source tree has vanished from the server; deploy again"))?;
    let distribution = host.distribution(&parameters.odoo_version).await?;
    let (release, installed) = found(&step).await?;
    let situation = Situation {
        data: parameters.origin.mode(),
        selection: &parameters.selection,
        source: &source.modules,
        distribution: &distribution,
        live: release.as_ref(),
        installed: &installed,
    };
    let plan = plan::make(step.control(), situation, &source, step.progress()).await?;
    for line in plan.lines() {
        step.say(&line);
    }
    let beside = may_start_beside(&step, &plan).await?;
    if beside {
        step.say("the new processes start beside the old ones, on the same data, and take over when they answer; nobody waits");
    }
    let json = serde_json::to_value(&plan).map_err(|error| Error::internal("writing a plan", error))?;
    store::deploy::set_plan(&mut *step.control().pool.acquire().await?, parameters.deployment, &json).await?;
    let summary = match (plan.data, plan.install.len(), plan.update.len()) {
        (DataMode::Fresh, install, _) => format!("a fresh database with {install} to install"),
        (DataMode::Keep, 0, 0) => format!("{}: nothing to install or update", plan.way),
        (DataMode::Keep, install, update) => format!("{}: {update} to update, {install} to install", plan.way),
    };
    Ok((Planned { plan, beside }, summary))
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

/// What the data hold that the commit comes live on: the modules, and the release that ran on them, where that is known.
async fn found(step: &Step) -> Result<(Option<Release>, Vec<InstalledModule>), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    match parameters.origin {
        DataOrigin::Fresh | DataOrigin::Snapshot { .. } => Ok((None, Vec::new())),
        DataOrigin::Live => {
            let Some(live) = &parameters.live else { return Ok((None, Vec::new())) };
            let installed = host.installed_modules(parameters.instance, live.data_set, step.fence()).await?;
            Ok((host.find_release(&live.release).await?, installed))
        }
        DataOrigin::Environment { .. } => {
            let taken: Snapshot = step.context.output("deploy::snapshot")?;
            let release = match &taken.release {
                Some(release) => host.find_release(release).await?,
                None => None,
            };
            Ok((release, taken.modules))
        }
        DataOrigin::Import { import } => {
            let request = CheckImport { import, odoo_version: parameters.odoo_version.clone(), release: None };
            Ok((None, host.check_import(request, step.progress()).await?.modules))
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
    store::deploy::set_release(&mut *step.control().pool.acquire().await?, parameters.deployment, &release.id.0).await?;
    let summary = format!("release {} {how}", release.id.0.get(..12).unwrap_or(&release.id.0));
    Ok((release.id, summary.trim_end().to_owned()))
}
