//! Organizations.

use ocore_model::ids::{OrganizationId, UserId};
use sqlx::PgConnection;

use crate::{
    Result,
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
        "update organizations set name = $2, slug = $3, logo_url = $4, updated_at = $5
         where id = $1 and not exists (select from organizations other where other.slug = $3 and other.id <> $1)",
        organization.id.as_uuid(),
        organization.name,
        organization.slug,
        organization.logo_url,
        organization.updated_at
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
        r#"select o.id as "id: OrganizationId", o.name, o.slug, o.logo_url, o.created_at, o.updated_at, r.name as role, r.permissions
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
                created_at: row.created_at,
                updated_at: row.updated_at,
            },
            role: row.role,
            permissions: permissions(&row.permissions),
        })
        .collect())
}

/// Instances that exist.
pub(crate) async fn count_instances(connection: &mut PgConnection, scope: &Scope) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        r#"select count(*) as "count!" from instances where organization_id = $1 and status <> 'deleted'"#,
        scope.organization_id.as_uuid()
    )
    .fetch_one(connection)
    .await?)
}

/// With everything that belongs to it.
pub(crate) async fn delete(connection: &mut PgConnection, scope: &Scope) -> Result<()> {
    sqlx::query!("delete from organizations where id = $1", scope.organization_id.as_uuid()).execute(connection).await?;
    Ok(())
}
