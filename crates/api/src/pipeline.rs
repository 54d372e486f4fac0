//! The pipeline: environments by stage, with what was deployed to them lately.

use axum::{Extension, extract::State, response::Response};
use chrono::{DateTime, Utc};
use ocore_control::{
    Error, Settings,
    authorization::ViewEnvironments,
    pipeline::{self, PipelineEnvironment, RecentDeployment},
};
use ocore_model::{
    deployment::{DeploymentStatus, Trigger},
    environment::Stage,
    ids::ProjectId,
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    environments::{EnvironmentBody, TAG},
    extract::{FromPath, FromQuery},
    large::{LargeRead, LargeReads, body_of},
};

const RECENT_DEPLOYMENTS: i64 = 1;
const RECENT_DEPLOYMENTS_MOST: i64 = 10;

/// A project's environments by stage.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pipeline<'a> {
    stages: Stages<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PipelineStages)]
pub(crate) struct Stages<'a> {
    production: StageBody<'a>,
    staging: StageBody<'a>,
    development: StageBody<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PipelineStage)]
pub(crate) struct StageBody<'a> {
    /// The oldest first.
    environments: Vec<PipelineEnvironmentBody<'a>>,
}

#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PipelineEnvironment)]
pub(crate) struct PipelineEnvironmentBody<'a> {
    environment: EnvironmentBody<'a>,
    /// The newest first.
    recent_deployments: Vec<RecentDeploymentBody<'a>>,
    /// Null: tests are not run yet.
    test_status: Option<&'a str>,
}

/// A deployment in short.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RecentDeployment)]
pub(crate) struct RecentDeploymentBody<'a> {
    id: Uuid,
    status: DeploymentStatus,
    trigger_type: Trigger,
    branch: &'a str,
    commit_sha: &'a str,
    commit_author: &'a str,
    commit_message: &'a str,
    error_message: Option<&'a str>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    duration_ms: Option<i64>,
}

impl<'a> RecentDeploymentBody<'a> {
    fn new(deployment: &'a RecentDeployment) -> Self {
        Self {
            id: deployment.id.as_uuid(),
            status: deployment.status,
            trigger_type: deployment.trigger,
            branch: &deployment.branch,
            commit_sha: deployment.commit_sha.as_str(),
            commit_author: &deployment.commit_author,
            commit_message: &deployment.commit_message,
            error_message: deployment.error_message.as_deref(),
            created_at: deployment.created_at,
            started_at: deployment.started_at,
            completed_at: deployment.completed_at,
            duration_ms: crate::deployments::duration_ms(deployment.started_at, deployment.completed_at),
        }
    }
}

impl<'a> Pipeline<'a> {
    fn new(environments: &'a [PipelineEnvironment], settings: &Settings) -> Self {
        let stage = |stage: Stage| StageBody {
            environments: environments
                .iter()
                .filter(|entry| entry.environment.stage == stage)
                .map(|entry| PipelineEnvironmentBody {
                    environment: EnvironmentBody::new(&entry.environment, settings),
                    recent_deployments: entry.recent_deployments.iter().map(RecentDeploymentBody::new).collect(),
                    test_status: None,
                })
                .collect(),
        };
        Self {
            stages: Stages { production: stage(Stage::Production), staging: stage(Stage::Staging), development: stage(Stage::Development) },
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PipelineQuery {
    /// per environment, default 1, max 10
    #[param(value_type = Option<i64>, minimum = 0, maximum = 10)]
    recent_deployments: Option<i64>,
}

/// Get pipeline data
///
/// Environments, deployments and test statuses grouped by stage: `stages` has `production`, `staging` and `development`.
#[utoipa::path(get, path = "/projects/{projectId}/pipeline", tag = TAG,
    params(("projectId" = Uuid, Path, description = "The project"), PipelineQuery),
    responses((status = 200, description = "The pipeline", body = Pipeline)))]
pub(crate) async fn pipeline(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    Extension(reads): Extension<LargeReads>,
    FromPath(project): FromPath<Uuid>,
    FromQuery(query): FromQuery<PipelineQuery>,
) -> Result<Response, Problem> {
    let project = ProjectId(project);
    let recent_deployments = query.recent_deployments.unwrap_or(RECENT_DEPLOYMENTS);
    if !(0..=RECENT_DEPLOYMENTS_MOST).contains(&recent_deployments) {
        return Err(Error::invalid("recentDeployments", format!("use 0 to {RECENT_DEPLOYMENTS_MOST}")).into());
    }
    reads
        .answer(LargeRead::Pipeline { organization: grant.organization_id, project, recent_deployments }, async || {
            let environments = pipeline::list(&state.control, &grant, project, recent_deployments).await?;
            body_of(&Pipeline::new(&environments, &state.control.settings))
        })
        .await
}
