//! Users, sessions, refresh tokens, counted attempts, the first account. These rows belong to people, not to tenants.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{OrganizationId, SessionId, UserId},
    permission::{Action, Permission, PermissionSet, Resource},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result,
    accounts::{Membership, User},
};

/// Permissions as they lie in a column. A word that this version does not know gives no right.
pub(crate) fn permissions(words: &[String]) -> PermissionSet {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

/// The words of a set, for a column.
pub(crate) fn permission_words(permissions: &PermissionSet) -> Vec<String> {
    permissions.iter().map(|permission| permission.to_string()).collect()
}

/// Held until the end of the transaction: two first users cannot sign up at once.
pub(crate) async fn lock_sign_up(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!("select pg_advisory_xact_lock(hashtext('ocore sign-up'))").execute(connection).await?;
    Ok(())
}

pub(crate) async fn any_user(connection: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar!(r#"select exists (select from users) as "exists!""#).fetch_one(connection).await?)
}

/// What the token of the first account is made from; made at the first question.
pub(crate) async fn first_account_nonce(connection: &mut PgConnection) -> Result<Uuid> {
    sqlx::query!("insert into first_account (nonce) values ($1) on conflict do nothing", Uuid::new_v4()).execute(&mut *connection).await?;
    Ok(sqlx::query_scalar!("select nonce from first_account").fetch_one(connection).await?)
}

pub(crate) async fn known_first_account_nonce(connection: &mut PgConnection) -> Result<Option<Uuid>> {
    Ok(sqlx::query_scalar!("select nonce from first_account").fetch_optional(connection).await?)
}

/// The next first account, if there ever is one, has another token.
pub(crate) async fn forget_first_account(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!("delete from first_account").execute(connection).await?;
    Ok(())
}

/// Held until the end of the transaction: a user's organizations are counted and made one after the other.
pub(crate) async fn lock_user(connection: &mut PgConnection, id: UserId) -> Result<()> {
    sqlx::query!("select id from users where id = $1 for no key update", id.as_uuid()).fetch_optional(connection).await?;
    Ok(())
}

/// False when the e-mail is taken.
pub(crate) async fn insert_user(connection: &mut PgConnection, user: &User, password_hash: &str) -> Result<bool> {
    let done = sqlx::query!(
        "insert into users (id, email, name, password_hash, created_at, updated_at) values ($1, $2, $3, $4, $5, $5)
         on conflict do nothing",
        user.id.as_uuid(),
        user.email,
        user.name,
        password_hash,
        user.created_at,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn user(connection: &mut PgConnection, id: UserId) -> Result<Option<User>> {
    Ok(sqlx::query_as!(User, r#"select id as "id: UserId", email, name, created_at, updated_at from users where id = $1"#, id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// The user with that (normalized) e-mail and the hash of their password.
pub(crate) async fn user_by_email(connection: &mut PgConnection, email: &str) -> Result<Option<(User, String)>> {
    let row = sqlx::query!(
        r#"select id as "id: UserId", email, name, created_at, updated_at, password_hash from users where lower(email) = $1"#,
        email
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| {
        let user = User { id: row.id, email: row.email, name: row.name, created_at: row.created_at, updated_at: row.updated_at };
        (user, row.password_hash)
    }))
}

pub(crate) async fn password_hash(connection: &mut PgConnection, id: UserId) -> Result<Option<String>> {
    Ok(sqlx::query_scalar!("select password_hash from users where id = $1", id.as_uuid()).fetch_optional(connection).await?)
}

pub(crate) async fn set_password(connection: &mut PgConnection, id: UserId, password_hash: &str, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update users set password_hash = $2, updated_at = $3 where id = $1", id.as_uuid(), password_hash, now)
        .execute(connection)
        .await?;
    Ok(())
}

/// With the sessions, keys and memberships, and the invitations that the user gave.
pub(crate) async fn delete_user(connection: &mut PgConnection, id: UserId) -> Result<()> {
    sqlx::query!("delete from users where id = $1", id.as_uuid()).execute(connection).await?;
    Ok(())
}

pub(crate) async fn revoke_other_sessions(connection: &mut PgConnection, user: UserId, keep: SessionId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update sessions set revoked_at = $3 where user_id = $1 and id <> $2 and revoked_at is null",
        user.as_uuid(),
        keep.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn insert_session(
    connection: &mut PgConnection,
    id: SessionId,
    user: UserId,
    user_agent: &str,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "insert into sessions (id, user_id, user_agent, created_at, expires_at) values ($1, $2, $3, $4, $5)",
        id.as_uuid(),
        user.as_uuid(),
        user_agent,
        now,
        expires_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn extend_session(connection: &mut PgConnection, id: SessionId, expires_at: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update sessions set expires_at = $2 where id = $1", id.as_uuid(), expires_at).execute(connection).await?;
    Ok(())
}

pub(crate) async fn revoke_session(connection: &mut PgConnection, id: SessionId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update sessions set revoked_at = $2 where id = $1 and revoked_at is null", id.as_uuid(), now).execute(connection).await?;
    Ok(())
}

/// The memberships of the user of a session that stands; `None` when it does not.
pub(crate) async fn session_memberships(
    connection: &mut PgConnection,
    session: SessionId,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<Option<Vec<Membership>>> {
    let rows = sqlx::query!(
        r#"select o.id as "organization_id?: OrganizationId", o.slug as "slug?", r.permissions as "permissions?",
                  o.removal_requested_at is not null as "is_going?"
           from sessions s
           left join members m on m.user_id = s.user_id
           left join organizations o on o.id = m.organization_id
           left join roles r on r.id = m.role_id
           where s.id = $1 and s.user_id = $2 and s.revoked_at is null and s.expires_at > $3
           order by o.slug"#,
        session.as_uuid(),
        user.as_uuid(),
        now
    )
    .fetch_all(connection)
    .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    Ok(Some(
        rows.into_iter()
            .filter_map(|row| {
                let permissions = permissions(&row.permissions?);
                // Of what is being removed, its owners see what is left, and can bring it back.
                let left = |permission: &Permission| permission.action == Action::View || permission.resource == Resource::Organization;
                let permissions = if row.is_going? { permissions.iter().filter(left).collect() } else { permissions };
                Some(Membership { organization_id: row.organization_id?, slug: row.slug?, permissions })
            })
            .collect(),
    ))
}

pub(crate) async fn insert_refresh_token(connection: &mut PgConnection, hash: &[u8], session: SessionId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("insert into refresh_tokens (token_hash, session_id, created_at) values ($1, $2, $3)", hash, session.as_uuid(), now)
        .execute(connection)
        .await?;
    Ok(())
}

/// A refresh token with the session that it renews.
pub(crate) struct RefreshToken {
    pub(crate) session_id: SessionId,
    pub(crate) user_id: UserId,
    pub(crate) used_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
}

/// Locks the token and its session, so that two uses of one token come one after the other.
pub(crate) async fn refresh_token_for_update(connection: &mut PgConnection, hash: &[u8]) -> Result<Option<RefreshToken>> {
    Ok(sqlx::query_as!(
        RefreshToken,
        r#"select s.id as "session_id: SessionId", s.user_id as "user_id: UserId", t.used_at, s.expires_at, s.revoked_at
           from refresh_tokens t join sessions s on s.id = t.session_id
           where t.token_hash = $1
           for update"#,
        hash
    )
    .fetch_optional(connection)
    .await?)
}

pub(crate) async fn use_refresh_token(connection: &mut PgConnection, hash: &[u8], now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update refresh_tokens set used_at = $2 where token_hash = $1", hash, now).execute(connection).await?;
    Ok(())
}

/// How often it was tried in the window that is open.
pub(crate) struct CountedAttempts {
    pub(crate) attempts: i32,
    pub(crate) window_ends_at: DateTime<Utc>,
}

pub(crate) async fn count_attempt(
    connection: &mut PgConnection,
    key: &[u8],
    now: DateTime<Utc>,
    window_ends_at: DateTime<Utc>,
) -> Result<CountedAttempts> {
    Ok(sqlx::query_as!(
        CountedAttempts,
        "insert into attempts as known (key, attempts, window_ends_at) values ($1, 1, $3)
         on conflict (key) do update set
             attempts = case when known.window_ends_at <= $2 then 1 else known.attempts + 1 end,
             window_ends_at = case when known.window_ends_at <= $2 then $3 else known.window_ends_at end
         returning attempts, window_ends_at",
        key,
        now,
        window_ends_at
    )
    .fetch_one(connection)
    .await?)
}

pub(crate) async fn forget_attempts(connection: &mut PgConnection, key: &[u8]) -> Result<()> {
    sqlx::query!("delete from attempts where key = $1", key).execute(connection).await?;
    Ok(())
}

pub(crate) async fn take_back_attempt(connection: &mut PgConnection, key: &[u8]) -> Result<()> {
    sqlx::query!("update attempts set attempts = attempts - 1 where key = $1 and attempts > 0", key).execute(connection).await?;
    Ok(())
}

/// Removes what has no use any more: windows that are over, sessions that ended before `before` with their tokens.
pub(crate) async fn prune(connection: &mut PgConnection, now: DateTime<Utc>, before: DateTime<Utc>) -> Result<()> {
    sqlx::query!("delete from attempts where window_ends_at <= $1", now).execute(&mut *connection).await?;
    sqlx::query!("delete from sessions where expires_at < $1 or revoked_at < $1", before).execute(connection).await?;
    Ok(())
}
