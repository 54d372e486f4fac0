//! Rollbacks.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use ocore_control::{
    Error,
    authorization::{ManageDeployments, ViewDeployments},
    deployments::{self, Cursor},
    rollbacks::{self, RollbackLog, RollbackRequest},
};
use ocore_model::deployment::{DeploymentStatus, Trigger};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    deployments::{TAG, duration_ms},
    events,
    extract::{FromPath, Input},
    wire::begun,
};

/// What to go back to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RollBack {
    /// Of an environment of the same project.
    snapshot_id: Uuid,
    /// Keeps what is live until then as a snapshot of its own. True when it is not given.
    create_safety_snapshot: Option<bool>,
    /// Another environment of the project gets the data. They are made harmless on their way, unless it is the production.
    target_environment_id: Option<Uuid>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RolledBack {
    /// The deployment that does it.
    deployment_id: Uuid,
    environment_id: Uuid,
    message: String,
    snapshot_id: Uuid,
}

/// Roll back
///
/// Database, file store and release of a snapshot become live again, together. What served goes on serving until they are ready, and after a
/// failure. What was written since is in the safety snapshot. 409 `snapshot_not_ready`, `another_odoo_version`, or `snapshot_neutralized` when
/// production would get a neutralized copy of another environment.
#[utoipa::path(post, path = "/environments/{id}/rollback", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = RollBack, responses((status = 202, description = "It is queued", body = RolledBack)))]
pub(crate) async fn roll_back(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<RollBack>,
) -> Result<Response, Problem> {
    let request = RollbackRequest {
        snapshot: body.snapshot_id.into(),
        create_safety_snapshot: body.create_safety_snapshot.unwrap_or(true),
        target: body.target_environment_id.map(Into::into),
    };
    let rollback = rollbacks::rollback(&state.control, &grant, id.into(), request).await?;
    let body = RolledBack {
        deployment_id: rollback.deployment.as_uuid(),
        environment_id: rollback.environment.as_uuid(),
        message: rollback.message,
        snapshot_id: rollback.snapshot.as_uuid(),
    };
    Ok(begun(StatusCode::ACCEPTED, &format!("/deployments/{}", body.deployment_id), body))
}

/// Follow a rollback
///
/// The events of its deployment, until its end: see `/deployments/{id}/events`. 404 when the deployment is no rollback.
#[utoipa::path(get, path = "/deployments/{id}/rollback/progress", tag = TAG,
    params(("id" = Uuid, Path, description = "The rollback's deployment"),
           ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that was seen")),
    responses((status = 200, description = "What happens", content_type = "text/event-stream", body = String),
              (status = 204, description = "There is nothing more")))]
pub(crate) async fn progress(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after: Option<Cursor> = events::last_event_id(&headers)?;
    let deployment = deployments::find(&state.control, &grant, id.into()).await?;
    if deployment.trigger != Trigger::Rollback {
        return Err(Error::NotFound { what: "rollback" }.into());
    }
    if let Some(after) = after
        && deployments::has_ended_by(&state.control, deployment.id, after).await?
    {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(events::of_deployment(deployments::follow(&state.control, deployment.id, after.unwrap_or_default())))
}

#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RollbackLog)]
pub(crate) struct RollbackLogBody {
    deployment_id: Uuid,
    environment_id: Uuid,
    /// What was gone back to; it may have been removed since.
    snapshot_id: Option<Uuid>,
    snapshot_name: Option<String>,
    /// What keeps the data that were live until then.
    safety_snapshot_id: Option<Uuid>,
    commit_sha: String,
    status: DeploymentStatus,
    /// Why it did not succeed, in one sentence.
    error_message: Option<String>,
    /// The name of who asked for it.
    triggered_by: Option<String>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    duration_ms: Option<i64>,
}

impl RollbackLogBody {
    fn new(log: RollbackLog) -> Self {
        Self {
            deployment_id: log.deployment_id.as_uuid(),
            environment_id: log.environment_id.as_uuid(),
            snapshot_id: log.snapshot_id.map(Uuid::from),
            snapshot_name: log.snapshot_name,
            safety_snapshot_id: log.safety_snapshot_id.map(Uuid::from),
            commit_sha: log.commit_sha.to_string(),
            status: log.status,
            error_message: log.error_message,
            triggered_by: log.triggered_by,
            created_at: log.created_at,
            started_at: log.started_at,
            completed_at: log.completed_at,
            duration_ms: duration_ms(log.started_at, log.completed_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RollbackLogs {
    /// The newest first, at most a hundred.
    rollback_logs: Vec<RollbackLogBody>,
}

/// List rollbacks
#[utoipa::path(get, path = "/environments/{id}/rollback-logs", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "The newest first", body = RollbackLogs)))]
pub(crate) async fn rollback_logs(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<RollbackLogs>, Problem> {
    let logs = rollbacks::logs(&state.control, &grant, id.into()).await?;
    Ok(Json(RollbackLogs { rollback_logs: logs.into_iter().map(RollbackLogBody::new).collect() }))
}
