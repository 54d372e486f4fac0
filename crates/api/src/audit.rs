//! The audit log.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use ocore_control::{
    audit::{self, AuditEntry, AuditFilter},
    authorization::ViewAudit,
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{AppState, Problem, authorized::Authorized, deployments, extract::FromQuery, wire::ByTime};

pub(crate) const TAG: &str = "Audit";

/// A change that somebody made.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditEntry)]
pub(crate) struct AuditEntryBody {
    id: Uuid,
    created_at: DateTime<Utc>,
    user_id: Uuid,
    user_name: String,
    user_email: String,
    /// A program made it, with this key of the user.
    api_key_id: Option<Uuid>,
    /// `egress.opened`, `egress.closed`, `egress.changed`, …
    action: String,
    /// `<kind>:<id>`
    subject: String,
    /// What it was before and after, by the action.
    detail: serde_json::Value,
}

impl From<AuditEntry> for AuditEntryBody {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id,
            created_at: entry.created_at,
            user_id: entry.user_id.as_uuid(),
            user_name: entry.user_name,
            user_email: entry.user_email,
            api_key_id: entry.api_key_id.map(Uuid::from),
            action: entry.action,
            subject: entry.subject,
            detail: entry.detail,
        }
    }
}

/// A page of the audit log, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditLog {
    entries: Vec<AuditEntryBody>,
    limit: i64,
    offset: i64,
    total: i64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// default 20, max 100
    #[param(minimum = 1, maximum = 100)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
    /// Those of this action; of all that begin so, when it ends with a dot: `member.`
    action: Option<String>,
    /// Those about this thing: `<kind>:<id>`
    subject: Option<String>,
    /// Those of this person
    user_id: Option<Uuid>,
    /// Those of a program with this key
    api_key_id: Option<Uuid>,
    /// Those from this moment on
    since: Option<DateTime<Utc>>,
    /// Those before this moment
    until: Option<DateTime<Utc>>,
    /// default `-createdAt`, the newest first
    #[serde(default)]
    #[param(value_type = Option<ByTime>)]
    sort: ByTime,
}

/// List the audit log
///
/// Who changed what keeps the organization safe. Entries are never changed and never removed.
#[utoipa::path(get, path = "/audit", tag = TAG, params(AuditQuery),
    responses((status = 200, description = "A page of it", body = AuditLog)))]
pub(crate) async fn list(
    Authorized(grant): Authorized<ViewAudit>,
    State(state): State<AppState>,
    FromQuery(query): FromQuery<AuditQuery>,
) -> Result<Json<AuditLog>, Problem> {
    let page = deployments::page(query.limit, query.offset)?;
    let filter = AuditFilter {
        action: query.action,
        subject: query.subject,
        user: query.user_id.map(Into::into),
        api_key: query.api_key_id.map(Into::into),
        since: query.since,
        until: query.until,
        oldest_first: query.sort.oldest_first(),
    };
    let (entries, total) = audit::list(&state.control, &grant, &filter, page).await?;
    Ok(Json(AuditLog { entries: entries.into_iter().map(AuditEntryBody::from).collect(), limit: page.limit, offset: page.offset, total }))
}
