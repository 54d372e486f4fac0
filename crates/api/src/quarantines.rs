//! A copy that could not be made harmless: why, a look at it, and its end.

use axum::{Json, extract::State, http::StatusCode};
use chrono::{DateTime, Utc};
use ocore_control::{
    authorization::{ManageEnvironments, ManageSnapshots, ViewEnvironments},
    neutralizations::{Fact, NeutralizationReport},
    quarantines::{self, Inspected, Quarantine},
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    environments::TAG,
    extract::{FromPath, Input},
};

/// A raw copy that could not be made harmless. Nothing serves it; values are never in what it says of itself.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Quarantine)]
pub(crate) struct QuarantineBody {
    environment_id: Uuid,
    /// The deployment that brought the copy, and failed.
    deployment_id: Uuid,
    /// `setting_aside` while that deployment is taken back, then `kept`.
    status: &'static str,
    /// The step that was refused: `update` or `neutralize`.
    step: &'static str,
    /// Why, in a sentence.
    reason: String,
    /// The lines that show it: of the script, of Odoo's log, or every fact that does not hold. Null when the reason says it all.
    excerpt: Option<String>,
    /// Whose data they are; null when they came from elsewhere.
    source_environment_id: Option<Uuid>,
    source_environment_name: Option<String>,
    /// They may be a production's data as they are: to ask them anything takes `manage:production`.
    of_production: bool,
    since: DateTime<Utc>,
    /// When it goes by itself.
    expires_at: DateTime<Utc>,
    /// Sizes of the files; null until it is kept.
    database_bytes: Option<i64>,
    file_store_bytes: Option<i64>,
    /// Of the check, when it came so far: `{name, statement, holds}`.
    #[schema(value_type = Vec<Object>)]
    failed_facts: Vec<Fact>,
    /// The neutralization report as it was then: `{facts, modules, findings, scripts, masked, sampled}`. Null when the check was not reached.
    #[schema(value_type = Option<Object>)]
    coverage: Option<NeutralizationReport>,
}

impl From<Quarantine> for QuarantineBody {
    fn from(found: Quarantine) -> Self {
        let coverage = found.report.map(|report| report.0);
        let facts = coverage.iter().flat_map(|coverage| &coverage.facts);
        Self {
            environment_id: found.environment_id.as_uuid(),
            deployment_id: found.deployment_id.as_uuid(),
            status: found.status.as_str(),
            step: found.step.as_str(),
            reason: found.message,
            excerpt: Some(found.excerpt).filter(|excerpt| !excerpt.is_empty()),
            source_environment_id: found.source_environment_id.map(Uuid::from),
            source_environment_name: found.source_name,
            of_production: found.of_production,
            since: found.created_at,
            expires_at: found.expires_at,
            database_bytes: found.database_bytes,
            file_store_bytes: found.file_store_bytes,
            failed_facts: facts.filter(|fact| !fact.holds).cloned().collect(),
            coverage,
        }
    }
}

/// Get the copy in quarantine
///
/// A clone, an import or a snapshot of another environment that could not be made harmless: the newest, until it is destroyed, a later deployment
/// goes well, or 7 days are over. 404 when there is none.
#[utoipa::path(get, path = "/environments/{id}/quarantine", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "Why it is in quarantine", body = QuarantineBody)))]
pub(crate) async fn quarantine(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<QuarantineBody>, Problem> {
    Ok(Json(quarantines::show(&state.control, &grant, id.into()).await?.into()))
}

/// A question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct QuarantineQuery {
    /// One statement that gives rows: `SELECT`, `VALUES`, `TABLE`, or `WITH` … of these.
    #[schema(min_length = 1)]
    sql: String,
}

/// Rows.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QuarantineRows {
    columns: Vec<String>,
    /// Values as PostgreSQL writes them in text.
    rows: Vec<Vec<Option<String>>>,
    /// There is more: an answer has at most 500 rows and 1 MiB, a value 4000 characters.
    truncated: bool,
}

impl From<Inspected> for QuarantineRows {
    fn from(found: Inspected) -> Self {
        Self { columns: found.columns, rows: found.rows, truncated: found.truncated }
    }
}

/// Ask the copy in quarantine
///
/// In a transaction that only reads, as Odoo's role in the database, for at most 10 s; one question at a time. The copy's database is started for it
/// and stopped again. Each question is in the audit log. It shows the source's data as they are, so a copy of a production takes
/// `manage:production` too, as an export of it that is not neutralized does. 409 `rejected` with PostgreSQL's words when the statement is refused.
#[utoipa::path(post, path = "/environments/{id}/quarantine/query", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = QuarantineQuery, responses((status = 200, description = "The answer", body = QuarantineRows)))]
pub(crate) async fn query_quarantine(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<QuarantineQuery>,
) -> Result<Json<QuarantineRows>, Problem> {
    Ok(Json(quarantines::inspect(&state.control, &grant, id.into(), body.sql).await?.into()))
}

/// Destroy the copy in quarantine
///
/// With all its data; the reason stays with the deployment. A second call is fine.
#[utoipa::path(delete, path = "/environments/{id}/quarantine", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 204, description = "It goes, or there was none")))]
pub(crate) async fn destroy_quarantine(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<StatusCode, Problem> {
    quarantines::destroy(&state.control, &grant, id.into()).await?;
    Ok(StatusCode::NO_CONTENT)
}
