//! The pipeline: a project's environments by stage, with what was deployed to them lately.

use ocore_model::ids::ProjectId;

pub use crate::store::pipeline::{PipelineEnvironment, RecentDeployment};
use crate::{
    Control, Error, Result,
    authorization::{Grant, ViewEnvironments},
    store,
};

/// The project's environments, the oldest first, each with at most that many of its newest deployments.
pub async fn list(
    control: &Control,
    grant: &Grant<ViewEnvironments>,
    project: ProjectId,
    recent_deployments: i64,
) -> Result<Vec<PipelineEnvironment>> {
    let mut connection = control.pool.acquire().await?;
    let environments = store::pipeline::list(&mut connection, grant, project, recent_deployments).await?;
    if environments.is_empty() {
        store::branches::find_project(&mut connection, grant, project).await?.ok_or(Error::NotFound { what: "project" })?;
    }
    Ok(environments)
}
