//! Organizations.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{OrganizationId, UserId},
    permission::SystemRole,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result,
    accounts::Thing,
    authorization::Scope,
    organizations::{Organization, OwnOrganization},
    store::accounts::permissions,
};

/// False when the slug is taken.
pub(crate) async fn insert(connection: &mut PgConnection, organization: &Organization, made_by: UserId) -> Result<bool> {
    let done = sqlx::query!(
        "insert into organizations (id, name, slug, logo_url, created_at, updated_at, made_by) values ($1, $2, $3, $4, $5, $5, $6)
         on conflict (slug) do nothing",
        organization.id.as_uuid(),
        organization.name,
        organization.slug,
        organization.logo_url,
        organization.created_at,
        made_by.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// How many organizations that user has made that are still there.
pub(crate) async fn count_made_by(connection: &mut PgConnection, user: UserId) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"select count(*) as "count!" from organizations where made_by = $1"#, user.as_uuid())
        .fetch_one(connection)
        .await?)
}

/// False when the slug is taken by another one.
pub(crate) async fn update(connection: &mut PgConnection, organization: &Organization) -> Result<bool> {
    let done = sqlx::query!(
        "update organizations set name = $2, slug = $3, logo_url = $4, updated_at = $5, removal_requested_at = $6
         where id = $1 and not exists (select from organizations other where other.slug = $3 and other.id <> $1)",
        organization.id.as_uuid(),
        organization.name,
        organization.slug,
        organization.logo_url,
        organization.updated_at,
        organization.removal_requested_at,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The slugs that begin so, to choose a free one.
pub(crate) async fn slugs_like(connection: &mut PgConnection, start: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar!("select slug from organizations where starts_with(slug, $1)", start).fetch_all(connection).await?)
}

/// A user's organizations by name, with their role and what it allows.
pub(crate) async fn of_user(connection: &mut PgConnection, user: UserId) -> Result<Vec<OwnOrganization>> {
    let rows = sqlx::query!(
        r#"select o.id as "id: OrganizationId", o.name, o.slug, o.logo_url, o.removal_requested_at, o.created_at, o.updated_at,
                  r.name as role, r.permissions
           from members m join organizations o on o.id = m.organization_id join roles r on r.id = m.role_id
           where m.user_id = $1
           order by lower(o.name), o.id"#,
        user.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| OwnOrganization {
            organization: Organization {
                id: row.id,
                name: row.name,
                slug: row.slug,
                logo_url: row.logo_url,
                removal_requested_at: row.removal_requested_at,
                created_at: row.created_at,
                updated_at: row.updated_at,
            },
            role: row.role,
            permissions: permissions(&row.permissions),
        })
        .collect())
}

/// Members but the owners go, with all keys and invitations; from now on nothing new comes to it.
pub(crate) async fn begin_removal(connection: &mut PgConnection, scope: &Scope, now: DateTime<Utc>) -> Result<()> {
    let id = scope.organization_id.as_uuid();
    sqlx::query!(
        "update organizations set removal_requested_at = coalesce(removal_requested_at, $2), updated_at = $2 where id = $1",
        id,
        now
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "delete from members using roles
         where members.organization_id = $1 and roles.id = members.role_id and not (roles.is_system and roles.name = $2)",
        id,
        SystemRole::Owner.as_str()
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("update api_keys set revoked_at = $2 where organization_id = $1 and revoked_at is null", id, now)
        .execute(&mut *connection)
        .await?;
    sqlx::query!("update invitations set status = 'cancelled' where organization_id = $1 and status = 'pending'", id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether it never had a project, or its last one is gone for good.
pub(crate) async fn is_empty(connection: &mut PgConnection, scope: &Scope) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select not exists (select from projects where organization_id = $1) as "empty!""#,
        scope.organization_id.as_uuid()
    )
    .fetch_one(connection)
    .await?)
}

pub(crate) async fn stands(connection: &mut PgConnection, id: OrganizationId) -> Result<bool> {
    Ok(sqlx::query_scalar!(r#"select exists (select from organizations where id = $1) as "stands!""#, id.as_uuid())
        .fetch_one(connection)
        .await?)
}

/// Which organization has the thing with that id. For everybody: whether the caller belongs to it, who asks decides.
pub(crate) async fn that_has(connection: &mut PgConnection, thing: Thing, id: Uuid) -> Result<Option<OrganizationId>> {
    Ok(match thing {
        Thing::ApiKey => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from api_keys where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Deployment => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from deployments where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Environment => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from environments where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Export => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from exports where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Import => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from imports where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Instance => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from instances where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Invitation => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from invitations where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Member => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from members where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Project => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from projects where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Role => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from roles where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
        Thing::Snapshot => {
            sqlx::query_scalar!(r#"select organization_id as "id: OrganizationId" from snapshots where id = $1"#, id)
                .fetch_optional(connection)
                .await?
        }
    })
}
