//! API keys: their hashes, and what they and their makers may do.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{ApiKeyId, OrganizationId, UserId},
    permission::PermissionSet,
};
use sqlx::PgConnection;

use crate::{
    Result,
    api_keys::ApiKey,
    authorization::Scope,
    store::accounts::{permission_words, permissions},
};

/// A key as it is needed to let its holder in.
pub(crate) struct KnownKey {
    pub(crate) id: ApiKeyId,
    pub(crate) user_id: UserId,
    pub(crate) organization_id: OrganizationId,
    pub(crate) organization_slug: String,
    /// What the key is limited to.
    pub(crate) permissions: PermissionSet,
    /// What its maker may do now.
    pub(crate) member_permissions: PermissionSet,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
}

/// The key with that hash. `None` also when its maker is no member any more.
pub(crate) async fn by_hash(connection: &mut PgConnection, hash: &[u8]) -> Result<Option<KnownKey>> {
    let row = sqlx::query!(
        r#"select k.id as "id: ApiKeyId", k.user_id as "user_id: UserId", k.organization_id as "organization_id: OrganizationId",
                  o.slug, k.permissions, r.permissions as member_permissions, k.expires_at, k.last_used_at, k.revoked_at
           from api_keys k
           join organizations o on o.id = k.organization_id
           join members m on m.organization_id = k.organization_id and m.user_id = k.user_id
           join roles r on r.id = m.role_id
           where k.key_hash = $1"#,
        hash
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| KnownKey {
        id: row.id,
        user_id: row.user_id,
        organization_id: row.organization_id,
        organization_slug: row.slug,
        permissions: permissions(&row.permissions),
        member_permissions: permissions(&row.member_permissions),
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
        revoked_at: row.revoked_at,
    }))
}

pub(crate) async fn touch(connection: &mut PgConnection, id: ApiKeyId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update api_keys set last_used_at = $2 where id = $1", id.as_uuid(), now).execute(connection).await?;
    Ok(())
}

/// The organization's keys that have not been revoked, newest first.
pub(crate) async fn list(connection: &mut PgConnection, scope: &Scope) -> Result<Vec<ApiKey>> {
    let rows = sqlx::query!(
        r#"select k.id as "id: ApiKeyId", k.user_id as "user_id: UserId", u.email, k.name, k.prefix, k.permissions, k.created_at,
                  k.expires_at, k.last_used_at
           from api_keys k join users u on u.id = k.user_id
           where k.organization_id = $1 and k.revoked_at is null
           order by k.created_at desc, k.id desc"#,
        scope.organization_id.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ApiKey {
            id: row.id,
            user_id: row.user_id,
            user_email: row.email,
            name: row.name,
            prefix: row.prefix,
            permissions: permissions(&row.permissions),
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
        })
        .collect())
}

/// `made_with`: the key that this one ends with.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    scope: &Scope,
    key: &ApiKey,
    hash: &[u8],
    made_with: Option<ApiKeyId>,
) -> Result<()> {
    sqlx::query!(
        "insert into api_keys (id, organization_id, user_id, name, prefix, key_hash, permissions, created_at, expires_at, made_with)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        key.id.as_uuid(),
        scope.organization_id.as_uuid(),
        key.user_id.as_uuid(),
        key.name,
        key.prefix,
        hash,
        &permission_words(&key.permissions),
        key.created_at,
        key.expires_at,
        made_with.map(ApiKeyId::as_uuid)
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// When a key that has not been revoked expires; `None` when there is no such key. It cannot be revoked until the end of the transaction.
pub(crate) async fn hold(connection: &mut PgConnection, id: ApiKeyId) -> Result<Option<Option<DateTime<Utc>>>> {
    Ok(sqlx::query_scalar!("select expires_at from api_keys where id = $1 and revoked_at is null for share", id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// How many keys of a user open something.
pub(crate) async fn count_of_user(connection: &mut PgConnection, user: UserId, now: DateTime<Utc>) -> Result<u64> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from api_keys where user_id = $1 and revoked_at is null and (expires_at is null or expires_at > $2)"#,
        user.as_uuid(),
        now
    )
    .fetch_one(connection)
    .await?;
    Ok(count.unsigned_abs())
}

/// Revokes every key of a user, in whichever organization.
pub(crate) async fn revoke_of_user(connection: &mut PgConnection, user: UserId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update api_keys set revoked_at = $2 where user_id = $1 and revoked_at is null", user.as_uuid(), now)
        .execute(connection)
        .await?;
    Ok(())
}

/// Revokes a key of the organization, with all that was made with it; with `of`, only when that user made it. False when there is none.
pub(crate) async fn revoke(
    connection: &mut PgConnection,
    scope: &Scope,
    id: ApiKeyId,
    of: Option<UserId>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query!(
        "update api_keys set revoked_at = $3
         where id = $1 and organization_id = $2 and revoked_at is null and ($4::uuid is null or user_id = $4)",
        id.as_uuid(),
        scope.organization_id.as_uuid(),
        now,
        of.map(UserId::as_uuid)
    )
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    // The lock on a key keeps what is made with it from coming in between, so each round sees all of its generation.
    let mut parents = vec![id.as_uuid()];
    while !parents.is_empty() {
        parents = sqlx::query_scalar!(
            "update api_keys set revoked_at = $2 where made_with = any($1) and revoked_at is null returning id",
            &parents,
            now
        )
        .fetch_all(&mut *connection)
        .await?;
    }
    Ok(true)
}
