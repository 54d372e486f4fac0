//! The audit log in the store: only ever written to at its end.

use chrono::{DateTime, Utc};
use ocore_model::ids::{ApiKeyId, UserId};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::deployments::Page;
use crate::{
    Result,
    authorization::{Credential, Scope},
};

/// One change, with who made it.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    pub id: Uuid,
    /// Who it was, as they were called then; the account may be gone by now.
    pub user_id: UserId,
    pub user_name: String,
    pub user_email: String,
    /// A program made it, with this key of the user.
    pub api_key_id: Option<ApiKeyId>,
    pub action: String,
    pub subject: String,
    pub detail: Value,
    pub created_at: DateTime<Utc>,
}

pub(crate) async fn insert(
    connection: &mut PgConnection,
    scope: &Scope,
    action: &str,
    subject: &str,
    detail: &Value,
    now: DateTime<Utc>,
) -> Result<()> {
    let key = match scope.credential {
        Credential::Session => None,
        Credential::ApiKey(key) => Some(key.as_uuid()),
    };
    sqlx::query!(
        "insert into audit_entries (id, organization_id, user_id, user_name, user_email, api_key_id, action, subject, detail, created_at)
         select $1, $2, id, name, email, $4, $5, $6, $7, $8 from users where id = $3",
        Uuid::now_v7(),
        scope.organization_id.as_uuid(),
        scope.user_id.as_uuid(),
        key,
        action,
        subject,
        detail,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The newest first.
pub(crate) async fn list(connection: &mut PgConnection, scope: &Scope, page: Page) -> Result<Vec<AuditEntry>> {
    Ok(sqlx::query_as!(
        AuditEntry,
        r#"select id, user_id as "user_id: UserId", user_name, user_email, api_key_id as "api_key_id: ApiKeyId", action, subject, detail,
                  created_at
           from audit_entries where organization_id = $1 order by created_at desc, id desc limit $2 offset $3"#,
        scope.organization_id.as_uuid(),
        page.limit,
        page.offset,
    )
    .fetch_all(connection)
    .await?)
}

pub(crate) async fn count(connection: &mut PgConnection, scope: &Scope) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"select count(*) as "count!" from audit_entries where organization_id = $1"#, scope.organization_id.as_uuid())
        .fetch_one(connection)
        .await?)
}
