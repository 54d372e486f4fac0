//! Roles: named sets of permissions in one organization.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{OrganizationId, RoleId},
    permission::SystemRole,
};
use sqlx::PgConnection;

use crate::{
    Result,
    authorization::Scope,
    roles::Role,
    store::accounts::{permission_words, permissions},
};

/// Writes the roles that every organization has; gives the id of `Owner`.
pub(crate) async fn insert_system_roles(connection: &mut PgConnection, organization: OrganizationId, now: DateTime<Utc>) -> Result<RoleId> {
    let mut owner = RoleId::new();
    for role in SystemRole::ALL {
        let id = RoleId::new();
        if *role == SystemRole::Owner {
            owner = id;
        }
        sqlx::query!(
            "insert into roles (id, organization_id, name, description, is_system, permissions, created_at, updated_at)
             values ($1, $2, $3, $4, true, $5, $6, $6)",
            id.as_uuid(),
            organization.as_uuid(),
            role.as_str(),
            crate::roles::description(*role),
            &permission_words(&role.permissions()),
            now
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(owner)
}

/// System roles first, from the strongest; then the others by name.
pub(crate) async fn list(connection: &mut PgConnection, scope: &Scope) -> Result<Vec<Role>> {
    let rows = sqlx::query!(
        r#"select id as "id: RoleId", name, description, is_system, permissions, created_at, updated_at,
                  (select count(*) from members m where m.role_id = r.id) as "member_count!"
           from roles r where organization_id = $1
           order by is_system desc, cardinality(permissions) desc, name"#,
        scope.organization_id.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Role {
            id: row.id,
            name: row.name,
            description: row.description,
            is_system: row.is_system,
            permissions: permissions(&row.permissions),
            member_count: row.member_count,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
        .collect())
}

/// A role of the organization, locked until the end of the transaction.
pub(crate) async fn for_update(connection: &mut PgConnection, scope: &Scope, id: RoleId) -> Result<Option<Role>> {
    let locked = sqlx::query_scalar!(
        r#"select id as "id: RoleId" from roles where id = $1 and organization_id = $2 for update"#,
        id.as_uuid(),
        scope.organization_id.as_uuid()
    )
    .fetch_optional(&mut *connection)
    .await?;
    if locked.is_none() {
        return Ok(None);
    }
    Ok(list(connection, scope).await?.into_iter().find(|role| role.id == id))
}

/// False when the name is taken in the organization.
pub(crate) async fn insert(connection: &mut PgConnection, scope: &Scope, role: &Role) -> Result<bool> {
    let done = sqlx::query!(
        "insert into roles (id, organization_id, name, description, is_system, permissions, created_at, updated_at)
         values ($1, $2, $3, $4, false, $5, $6, $6)
         on conflict (organization_id, name) do nothing",
        role.id.as_uuid(),
        scope.organization_id.as_uuid(),
        role.name,
        role.description,
        &permission_words(&role.permissions),
        role.created_at
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// False when the name is taken by another role.
pub(crate) async fn update(connection: &mut PgConnection, scope: &Scope, role: &Role) -> Result<bool> {
    let done = sqlx::query!(
        "update roles r set name = $3, description = $4, permissions = $5, updated_at = $6
         where id = $1 and organization_id = $2 and not is_system
           and not exists (select from roles other where other.organization_id = $2 and other.name = $3 and other.id <> $1)",
        role.id.as_uuid(),
        scope.organization_id.as_uuid(),
        role.name,
        role.description,
        &permission_words(&role.permissions),
        role.updated_at
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn delete(connection: &mut PgConnection, scope: &Scope, id: RoleId) -> Result<()> {
    sqlx::query!(
        "delete from roles where id = $1 and organization_id = $2 and not is_system",
        id.as_uuid(),
        scope.organization_id.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(())
}
