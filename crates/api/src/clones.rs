//! Clones of environments, by the contract.

use axum::{extract::State, http::StatusCode, response::Response};
use ocore_control::{
    Error,
    authorization::ManageEnvironments,
    clones::{self, CloneRequest},
};
use ocore_model::{environment::Stage, names::InvalidName};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    environments::{self, EnvironmentBody, TAG},
    extract::{FromPath, Input},
};

/// What to make of the source.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CloneEnvironment {
    /// Without one, a free name like the source's.
    #[schema(min_length = 1, max_length = 255)]
    target_branch: Option<String>,
    /// `staging`, or `development` when it is not given.
    target_type: Option<Stage>,
    /// The clone goes when its branch is merged into the source's, or deleted.
    auto_destroy: Option<bool>,
}

/// Clone an environment
///
/// A new environment on a new branch, with a copy of the source's live data, which serve on. The copy is made harmless before anybody reaches
/// it: `isNeutralized` is true from the moment when it serves. In a built-in repository the branch is made at the source's live commit when it
/// is not there. Follow the new environment's deployment for the progress. 409 `nothing_live` when the source has no data yet, `branch_taken`
/// when the branch has an environment, `branch_missing` when a connected repository does not have it.
#[utoipa::path(post, path = "/environments/{id}/clone", tag = TAG, params(("id" = Uuid, Path, description = "The source")),
    request_body = CloneEnvironment, responses((status = 202, description = "The new environment; its data are on their way", body = EnvironmentBody<'static>)))]
pub(crate) async fn clone(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<CloneEnvironment>,
) -> Result<Response, Problem> {
    let branch = body.target_branch.map(|branch| branch.parse()).transpose();
    let request = CloneRequest {
        branch: branch.map_err(|error: InvalidName| Error::invalid("targetBranch", error.to_string()))?,
        stage: body.target_type.unwrap_or(Stage::Development),
        auto_destroy: body.auto_destroy.unwrap_or_default(),
    };
    let environment = clones::clone(&state.control, &grant, id.into(), request).await?;
    environments::answer(StatusCode::ACCEPTED, &environment, &state)
}
