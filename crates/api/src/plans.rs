//! What a deployment would do, without deploying.

use axum::{Json, extract::State};
use ocore_control::{authorization::ManageDeployments, plans};
use ocore_model::deployment::ModulePlan;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    deployments::{Deploy, TAG},
    extract::{FromPath, Input},
};

/// The plan of a deployment that nobody has asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PlanPreview)]
pub(crate) struct PreviewBody {
    environment_id: Uuid,
    branch: String,
    commit_sha: String,
    /// What is live and compared with.
    live_commit_sha: Option<String>,
    plan: ModulePlan,
}

/// Plan a deployment
///
/// What a deployment of the commit would do to the environment as it is now, with the reasons: which modules it installs and updates, and whether
/// it needs `nothing`, a `reload`, an `update`, or an `update_and_hold_writes`. Nothing of the environment is touched. 409 `cannot_deploy` with
/// the sentence that a deployment would fail with. With a database that does not run, the plan rests on what earlier
/// deployments have installed, and says so.
#[utoipa::path(post, path = "/projects/{projectId}/plan", tag = TAG,
    params(("projectId" = Uuid, Path, description = "The project")),
    request_body = Deploy, responses((status = 200, description = "The plan", body = PreviewBody)))]
pub(crate) async fn preview(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(project): FromPath<Uuid>,
    Input(body): Input<Deploy>,
) -> Result<Json<PreviewBody>, Problem> {
    let preview = plans::preview(&state.control, &grant, project.into(), body.request()?).await?;
    Ok(Json(PreviewBody {
        environment_id: preview.environment.as_uuid(),
        branch: preview.branch,
        commit_sha: preview.commit.to_string(),
        live_commit_sha: preview.live_commit.as_ref().map(ToString::to_string),
        plan: preview.plan,
    }))
}
