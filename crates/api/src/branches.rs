//! What a branch has that a commit does not.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use ocore_control::{Error, authorization::ViewProjects, branches, git::Commit};
use ocore_model::names::InvalidName;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    environments::TAG,
    extract::{FromPath, FromQuery},
};

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Commit)]
pub(crate) struct CommitBody {
    sha: String,
    author: String,
    author_email: String,
    authored_at: DateTime<Utc>,
    committed_at: DateTime<Utc>,
    message: String,
}

impl From<Commit> for CommitBody {
    fn from(commit: Commit) -> Self {
        Self {
            sha: commit.sha.into(),
            author: commit.author,
            author_email: commit.author_email,
            authored_at: commit.authored_at,
            committed_at: commit.committed_at,
            message: commit.message,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CommitsSince {
    /// The newest first, at most 250.
    commits: Vec<CommitBody>,
    /// How many there are in all.
    total_count: u32,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CommitsSinceQuery {
    /// A full commit id.
    #[param(pattern = "^(?:[0-9a-f]{40}|[0-9a-f]{64})$")]
    since: String,
    #[param(min_length = 1, max_length = 255)]
    branch: String,
}

/// List commits since a SHA
///
/// The commits of the branch that `since` does not have, the newest first.
#[utoipa::path(get, path = "/projects/{projectId}/commits-since", tag = TAG,
    params(("projectId" = Uuid, Path, description = "The project"), CommitsSinceQuery),
    responses((status = 200, description = "The commits", body = CommitsSince)))]
pub(crate) async fn commits_since(
    Authorized(grant): Authorized<ViewProjects>,
    State(state): State<AppState>,
    FromPath(project): FromPath<Uuid>,
    FromQuery(query): FromQuery<CommitsSinceQuery>,
) -> Result<Json<CommitsSince>, Problem> {
    let since = query.since.parse().map_err(|error: InvalidName| Error::invalid("since", error.to_string()))?;
    let branch = query.branch.parse().map_err(|error: InvalidName| Error::invalid("branch", error.to_string()))?;
    let (commits, total_count) = branches::commits_since(&state.control, &grant, project.into(), &since, &branch).await?;
    Ok(Json(CommitsSince { commits: commits.into_iter().map(CommitBody::from).collect(), total_count }))
}
