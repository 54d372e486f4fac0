//! What a deployment would do, without deploying.

use std::sync::Arc;

use ocore_host::{InstalledModule, Progress, Release, ReleaseId};
use ocore_model::{
    deployment::{DataMode, ModulePlan},
    environment::EnvironmentStatus,
    ids::{DeploymentId, EnvironmentId, ProjectId},
    names::CommitSha,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Control, Error, Result,
    authorization::{Grant, ManageDeployments, ViewDeployments},
    deployments::{self, DeployRequest},
    git,
    operations::plan::{self, Situation},
    reconcilers::Quiet,
    store,
};

/// A plan with what it is for.
#[derive(Debug, Clone)]
pub struct Preview {
    pub environment: EnvironmentId,
    pub branch: String,
    pub commit: CommitSha,
    /// What is live, as far as there is something.
    pub live_commit: Option<CommitSha>,
    pub plan: ModulePlan,
}

/// The plan of a deployment that is not asked for. The commit is brought to the server and read there, as a deployment would; nothing of the
/// environment is touched, and an operation may be at work on it. With a stopped database it rests on what earlier deployments have installed, and says so.
pub async fn preview(control: &Control, grant: &Grant<ManageDeployments>, project: ProjectId, request: DeployRequest) -> Result<Preview> {
    let mut transaction = control.pool.begin().await?;
    let (environment, commit) = deployments::target(control, &mut transaction, grant, project, &request).await?;
    // Nothing is written.
    transaction.rollback().await?;
    if environment.status != EnvironmentStatus::Active {
        return Err(Error::conflict("environment_removing", "the environment is being deleted"));
    }
    let mut connection = control.pool.acquire().await?;
    let settings = store::plans::settings(&mut connection, environment.id).await?.ok_or(Error::NotFound { what: "environment" })?;
    let live = store::deploy::live(&mut connection, environment.instance_id).await?.ok_or(Error::NotFound { what: "instance" })?;
    drop(connection);

    let progress = Progress { log: Arc::new(Quiet), cancel: CancellationToken::new() };
    let host = &control.host;
    let source = git::export(control, project, &commit.sha, progress.clone()).await?;
    let distribution = host.distribution(&settings.odoo_version).await?;
    let fresh = deployments::data_origin(&environment).mode() == DataMode::Fresh;
    let mut is_known = false;
    let (mode, release, installed) = match (live.active_data_set_id, live.active_release) {
        (Some(data_set), Some(release)) if !fresh => {
            let release = host.find_release(&ReleaseId(release)).await?;
            let installed = match host.peek_modules(environment.instance_id, data_set).await? {
                Some(installed) => {
                    is_known = true;
                    installed
                }
                None => presumed(control, environment.id, release.as_ref()).await?,
            };
            (DataMode::Keep, release, installed)
        }
        _ => (DataMode::Fresh, None, Vec::new()),
    };
    let languages = match live.active_data_set_id.filter(|_| is_known) {
        Some(data_set) => host.peek_languages(environment.instance_id, data_set).await?,
        None => None,
    };
    let once = store::plans::once_installed(&mut *control.pool.acquire().await?, environment.id).await?;
    let selection =
        serde_json::from_value(settings.module_selection).map_err(|error| Error::internal("reading a project's modules", error))?;
    let situation = Situation {
        data: mode,
        selection: &selection,
        source: &source,
        distribution: &distribution,
        live: release.as_ref(),
        installed: &installed,
        languages: languages.as_deref(),
        once: &once,
    };
    let plan = plan::make(control, situation, progress).await;
    let mut plan = plan.map_err(|failure| Error::conflict("cannot_deploy", failure.message))?.plan;
    if mode == DataMode::Keep && !is_known {
        plan.reasons.push(
            "the environment's database does not run: for installed counts what earlier deployments have installed, and every language for active"
                .to_owned(),
        );
    }
    Ok(Preview {
        environment: environment.id,
        branch: environment.branch,
        commit: commit.sha,
        live_commit: environment.live_commit_sha,
        plan,
    })
}

/// What is installed in a database that does not run, as far as it is known without it: what deployments have installed of the live release's modules.
async fn presumed(control: &Control, environment: EnvironmentId, live: Option<&Release>) -> Result<Vec<InstalledModule>> {
    let once = store::plans::once_installed(&mut *control.pool.acquire().await?, environment).await?;
    let names = live.into_iter().flat_map(|release| release.modules.keys()).filter(|name| once.contains(name.as_str()));
    Ok(names.map(|name| InstalledModule { demo: true, ..InstalledModule::new(name.as_str(), "installed") }).collect())
}

/// The plan that a deployment has made; `None` before it has, and for those that make none.
pub async fn of_deployment(control: &Control, grant: &Grant<ViewDeployments>, deployment: DeploymentId) -> Result<Option<ModulePlan>> {
    let plan = store::plans::of_deployment(&mut *control.pool.acquire().await?, grant, deployment).await?;
    plan.map(|plan| serde_json::from_value(plan).map_err(|error| Error::internal("reading a plan", error))).transpose()
}
