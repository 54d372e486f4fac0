//! The nodes that make a release: commit, plan, build. Nothing of the instance is touched by them.

use std::sync::Arc;

use ocore_host::{BuildRelease, ReleaseId, SourceId};
use ocore_model::deployment::{DataMode, ModulePlan};

use super::{short, step::Step};
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
    let parameters = &step.parameters;
    step.say(&format!("commit {} of {}", parameters.commit, parameters.branch));
    let source = git::export(step.control(), parameters.project, &parameters.commit, step.progress()).await?;
    let modules = match source.modules.len() {
        1 => "1 module".to_owned(),
        count => format!("{count} modules"),
    };
    Ok((source.id, format!("{} with {modules}", short(&parameters.commit))))
}

/// Which modules are installed and updated, on which data.
pub(super) async fn plan(step: Arc<Step>) -> Result<(ModulePlan, String), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let source: SourceId = step.context.output("deploy::checkout")?;
    let source =
        host.find_source(&source).await?.ok_or_else(|| Failure::broken("the source tree has vanished from the server; deploy again"))?;
    let distribution = host.distribution(&parameters.odoo_version).await?;
    let (release, installed) = match parameters.live_to_rest() {
        None => (None, Vec::new()),
        Some(live) => {
            let release = host.find_release(&live.release).await?;
            let installed = host.installed_modules(parameters.instance, live.data_set, step.fence()).await?;
            (release, installed)
        }
    };
    let plan = plan::decide(Situation {
        data: parameters.data,
        selection: &parameters.selection,
        source: &source.modules,
        distribution: &distribution,
        live: release.as_ref(),
        installed: &installed,
    })
    .map_err(Failure::rejected)?;
    for reason in &plan.reasons {
        step.say(reason);
    }
    let json = serde_json::to_value(&plan).map_err(|error| Error::internal("writing a plan", error))?;
    store::deploy::set_plan(&mut *step.control().pool.acquire().await?, parameters.deployment, &json).await?;
    let summary = match (parameters.data, plan.install.len(), plan.update.len()) {
        (DataMode::Fresh, install, _) => format!("a fresh database with {install} to install"),
        (DataMode::Keep, 0, 0) => "nothing to install or update".to_owned(),
        (DataMode::Keep, install, update) => format!("{update} to update, {install} to install"),
    };
    Ok((plan, summary))
}

/// The immutable release. Nothing of the instance has been touched yet.
pub(super) async fn build(step: Arc<Step>) -> Result<(ReleaseId, String), Failure> {
    let parameters = &step.parameters;
    let request = BuildRelease {
        source: step.context.output("deploy::checkout")?,
        odoo_version: parameters.odoo_version.clone(),
        isolation_key: parameters.project.to_string(),
    };
    let release = step.control().host.build_release(request, step.progress()).await?;
    store::deploy::set_release(&mut *step.control().pool.acquire().await?, parameters.deployment, &release.id.0).await?;
    let summary = format!("release {}", release.id.0.get(..12).unwrap_or(&release.id.0));
    Ok((release.id, summary))
}
