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

/// Which entries are wanted. The default: all of them, the newest first.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// An action, or with a dot at its end all that begin so: `member.`
    pub action: Option<String>,
    pub subject: Option<String>,
    pub user: Option<UserId>,
    pub api_key: Option<ApiKeyId>,
    /// From this moment on, and before that one.
    pub since: Option<DateTime<Utc>>,
    pub until: Option<DateTime<Utc>>,
    pub oldest_first: bool,
}

impl AuditFilter {
    /// The beginning that an action has to have, and the action that it has to be.
    fn action(&self) -> (Option<&str>, Option<&str>) {
        match self.action.as_deref() {
            Some(start) if start.ends_with('.') => (Some(start), None),
            action => (None, action),
        }
    }
}

pub(crate) async fn list(connection: &mut PgConnection, scope: &Scope, filter: &AuditFilter, page: Page) -> Result<Vec<AuditEntry>> {
    let (start, action) = filter.action();
    Ok(sqlx::query_as!(
        AuditEntry,
        r#"select id, user_id as "user_id: UserId", user_name, user_email, api_key_id as "api_key_id: ApiKeyId", action, subject, detail,
                  created_at
           from audit_entries
           where organization_id = $1 and ($4::text is null or starts_with(action, $4)) and ($5::text is null or action = $5)
             and ($6::text is null or subject = $6) and ($7::uuid is null or user_id = $7) and ($8::uuid is null or api_key_id = $8)
             and ($9::timestamptz is null or created_at >= $9) and ($10::timestamptz is null or created_at < $10)
           order by case when $11 then created_at end, case when $11 then id end, created_at desc, id desc limit $2 offset $3"#,
        scope.organization_id.as_uuid(),
        page.limit,
        page.offset,
        start,
        action,
        filter.subject.as_deref(),
        filter.user.map(UserId::as_uuid),
        filter.api_key.map(ApiKeyId::as_uuid),
        filter.since,
        filter.until,
        filter.oldest_first,
    )
    .fetch_all(connection)
    .await?)
}

pub(crate) async fn count(connection: &mut PgConnection, scope: &Scope, filter: &AuditFilter) -> Result<i64> {
    let (start, action) = filter.action();
    Ok(sqlx::query_scalar!(
        r#"select count(*) as "count!" from audit_entries
           where organization_id = $1 and ($2::text is null or starts_with(action, $2)) and ($3::text is null or action = $3)
             and ($4::text is null or subject = $4) and ($5::uuid is null or user_id = $5) and ($6::uuid is null or api_key_id = $6)
             and ($7::timestamptz is null or created_at >= $7) and ($8::timestamptz is null or created_at < $8)"#,
        scope.organization_id.as_uuid(),
        start,
        action,
        filter.subject.as_deref(),
        filter.user.map(UserId::as_uuid),
        filter.api_key.map(ApiKeyId::as_uuid),
        filter.since,
        filter.until,
    )
    .fetch_one(connection)
    .await?)
}
