//! The audit log.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use ocore_control::{
    audit::{self, AuditEntry},
    authorization::ViewAudit,
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{AppState, Problem, authorized::Authorized, deployments::PageQuery, extract::FromQuery};

pub(crate) const TAG: &str = "Audit";

/// A change that somebody made.
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

/// List the audit log
///
/// Who changed what keeps the organization safe, the newest first. Entries are never changed and never removed.
#[utoipa::path(get, path = "/audit", tag = TAG, params(PageQuery),
    responses((status = 200, description = "A page of it", body = AuditLog)))]
pub(crate) async fn list(
    Authorized(grant): Authorized<ViewAudit>,
    State(state): State<AppState>,
    FromQuery(query): FromQuery<PageQuery>,
) -> Result<Json<AuditLog>, Problem> {
    let page = query.page()?;
    let (entries, total) = audit::list(&state.control, &grant, page).await?;
    Ok(Json(AuditLog { entries: entries.into_iter().map(AuditEntryBody::from).collect(), limit: page.limit, offset: page.offset, total }))
}
