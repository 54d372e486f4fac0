//! Calls that carry an idempotency key, and their answers.

use chrono::{DateTime, Utc};
use ocore_model::ids::{ApiKeyId, OrganizationId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, idempotency::Caller};

/// A call that came before with the same key.
pub(crate) struct Earlier {
    pub(crate) id: Uuid,
    pub(crate) digest: Vec<u8>,
    pub(crate) permissions: Vec<String>,
    pub(crate) process: Uuid,
    pub(crate) answer: Option<Vec<u8>>,
}

pub(crate) async fn forget_before(connection: &mut PgConnection, moment: DateTime<Utc>) -> Result<()> {
    sqlx::query!("delete from idempotency_keys where created_at < $1", moment).execute(connection).await?;
    Ok(())
}

/// Whether the key was free and is the caller's now.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    id: Uuid,
    caller: &Caller,
    key: &str,
    digest: &[u8],
    process: Uuid,
    now: DateTime<Utc>,
) -> Result<bool> {
    let claimed = sqlx::query!(
        "insert into idempotency_keys (id, user_id, api_key_id, organization_id, key, digest, permissions, process, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
        id,
        caller.user_id.as_uuid(),
        caller.api_key_id.map(ApiKeyId::as_uuid),
        caller.organization_id.map(OrganizationId::as_uuid),
        key,
        digest,
        &caller.permission_words(),
        process,
        now,
    )
    .execute(connection)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

pub(crate) async fn earlier(connection: &mut PgConnection, caller: &Caller, key: &str) -> Result<Option<Earlier>> {
    Ok(sqlx::query_as!(
        Earlier,
        "select id, digest, permissions, process, answer from idempotency_keys
         where user_id = $1 and api_key_id is not distinct from $2 and organization_id is not distinct from $3 and key = $4",
        caller.user_id.as_uuid(),
        caller.api_key_id.map(ApiKeyId::as_uuid),
        caller.organization_id.map(OrganizationId::as_uuid),
        key,
    )
    .fetch_optional(connection)
    .await?)
}

/// Nothing when the key has gone meanwhile, with its caller.
pub(crate) async fn answer(connection: &mut PgConnection, id: Uuid, answer: &[u8]) -> Result<()> {
    sqlx::query!("update idempotency_keys set answer = $2 where id = $1", id, answer).execute(connection).await?;
    Ok(())
}

pub(crate) async fn release(connection: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!("delete from idempotency_keys where id = $1", id).execute(connection).await?;
    Ok(())
}
