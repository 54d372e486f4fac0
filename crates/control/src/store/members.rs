//! Members and invitations of an organization.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{MemberId, OrganizationId, RoleId, UserId},
    permission::{PermissionSet, SystemRole},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result,
    authorization::Scope,
    members::{Invitation, Member},
    store::accounts::permissions,
};

pub(crate) async fn list(connection: &mut PgConnection, scope: &Scope) -> Result<Vec<Member>> {
    let rows = sqlx::query!(
        r#"select m.id as "id: MemberId", m.user_id as "user_id: UserId", u.email, u.name, m.role_id as "role_id: RoleId",
                  r.name as role_name, r.is_system, r.permissions, m.created_at
           from members m join users u on u.id = m.user_id join roles r on r.id = m.role_id
           where m.organization_id = $1
           order by m.created_at, m.id"#,
        scope.organization_id.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Member {
            id: row.id,
            user_id: row.user_id,
            email: row.email,
            name: row.name,
            role_id: row.role_id,
            is_owner: row.is_system && row.role_name == SystemRole::Owner.as_str(),
            role_name: row.role_name,
            permissions: permissions(&row.permissions),
            created_at: row.created_at,
        })
        .collect())
}

/// Locks the organization's membership until the end of the transaction: who takes away an owner sees the others.
pub(crate) async fn lock(connection: &mut PgConnection, scope: &Scope) -> Result<()> {
    sqlx::query!("select id from organizations where id = $1 for update", scope.organization_id.as_uuid())
        .fetch_optional(connection)
        .await?;
    Ok(())
}

/// The names of an organization's members whose roles have all these permissions, by name.
pub(crate) async fn names_with(connection: &mut PgConnection, organization: OrganizationId, permissions: &[String]) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar!(
        "select u.name from members m join users u on u.id = m.user_id join roles r on r.id = m.role_id
         where m.organization_id = $1 and r.permissions @> $2 order by lower(u.name), u.id",
        organization.as_uuid(),
        permissions,
    )
    .fetch_all(connection)
    .await?)
}

/// False when the user is a member already.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    organization: OrganizationId,
    user: UserId,
    role: RoleId,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query!(
        "insert into members (id, organization_id, user_id, role_id, created_at) values ($1, $2, $3, $4, $5)
         on conflict (organization_id, user_id) do nothing",
        MemberId::new().as_uuid(),
        organization.as_uuid(),
        user.as_uuid(),
        role.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn set_role(connection: &mut PgConnection, scope: &Scope, id: MemberId, role: RoleId) -> Result<()> {
    sqlx::query!(
        "update members set role_id = $3 where id = $1 and organization_id = $2",
        id.as_uuid(),
        scope.organization_id.as_uuid(),
        role.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a member and revokes their keys in the organization.
pub(crate) async fn remove(connection: &mut PgConnection, scope: &Scope, member: &Member, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("delete from members where id = $1 and organization_id = $2", member.id.as_uuid(), scope.organization_id.as_uuid())
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "update api_keys set revoked_at = $3 where organization_id = $1 and user_id = $2 and revoked_at is null",
        scope.organization_id.as_uuid(),
        member.user_id.as_uuid(),
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a role gives, for the question whether somebody may hand it out.
pub(crate) struct RoleRights {
    pub(crate) name: String,
    pub(crate) permissions: PermissionSet,
}

/// A role of the organization; it stays until the end of the transaction.
pub(crate) async fn role_rights(connection: &mut PgConnection, scope: &Scope, id: RoleId) -> Result<Option<RoleRights>> {
    let row = sqlx::query!(
        "select name, permissions from roles where id = $1 and organization_id = $2 for share",
        id.as_uuid(),
        scope.organization_id.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| RoleRights { name: row.name, permissions: permissions(&row.permissions) }))
}

pub(crate) async fn is_member_email(connection: &mut PgConnection, scope: &Scope, email: &str) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select exists (
               select from members m join users u on u.id = m.user_id where m.organization_id = $1 and lower(u.email) = $2
           ) as "exists!""#,
        scope.organization_id.as_uuid(),
        email
    )
    .fetch_one(connection)
    .await?)
}

/// Writes an invitation; earlier ones that wait for the same e-mail are cancelled.
pub(crate) async fn insert_invitation(
    connection: &mut PgConnection,
    scope: &Scope,
    invitation: &Invitation,
    token_hash: &[u8],
) -> Result<()> {
    sqlx::query!(
        "update invitations set status = 'cancelled' where organization_id = $1 and email = $2 and status = 'pending'",
        scope.organization_id.as_uuid(),
        invitation.email
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "insert into invitations (id, organization_id, email, role_id, token_hash, invited_by, status, created_at, expires_at)
         values ($1, $2, $3, $4, $5, $6, 'pending', $7, $8)",
        invitation.id,
        scope.organization_id.as_uuid(),
        invitation.email,
        invitation.role_id.as_uuid(),
        token_hash,
        scope.user_id.as_uuid(),
        invitation.created_at,
        invitation.expires_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Invitations that wait, newest first.
pub(crate) async fn invitations(connection: &mut PgConnection, scope: &Scope, now: DateTime<Utc>) -> Result<Vec<Invitation>> {
    Ok(sqlx::query_as!(
        Invitation,
        r#"select i.id, i.email, i.role_id as "role_id: RoleId", r.name as role_name, i.created_at, i.expires_at
           from invitations i join roles r on r.id = i.role_id
           where i.organization_id = $1 and i.status = 'pending' and i.expires_at > $2
           order by i.created_at desc"#,
        scope.organization_id.as_uuid(),
        now
    )
    .fetch_all(connection)
    .await?)
}

/// False when no such invitation waits.
pub(crate) async fn cancel_invitation(connection: &mut PgConnection, scope: &Scope, id: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "update invitations set status = 'cancelled' where id = $1 and organization_id = $2 and status = 'pending'",
        id,
        scope.organization_id.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// An invitation as its holder's token finds it.
pub(crate) struct PendingInvitation {
    pub(crate) id: Uuid,
    pub(crate) email: String,
    pub(crate) organization_id: OrganizationId,
    pub(crate) role_id: RoleId,
}

/// The invitation that waits behind a token, locked until the end of the transaction.
pub(crate) async fn pending_invitation(
    connection: &mut PgConnection,
    token_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<PendingInvitation>> {
    Ok(sqlx::query_as!(
        PendingInvitation,
        r#"select id, email, organization_id as "organization_id: OrganizationId", role_id as "role_id: RoleId"
           from invitations where token_hash = $1 and status = 'pending' and expires_at > $2
           for update"#,
        token_hash,
        now
    )
    .fetch_optional(connection)
    .await?)
}

pub(crate) async fn accept_invitation(connection: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!("update invitations set status = 'accepted' where id = $1", id).execute(connection).await?;
    Ok(())
}
