//! Roles: four that every organization has and nobody changes, and others that it makes itself.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::RoleId,
    permission::{PermissionSet, SystemRole},
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    Control, Error, FieldError, Result,
    api_keys::{may_give, parse_permissions},
    audit,
    authorization::{Grant, ManageRoles, Scope, ViewRoles},
    store,
};

#[derive(Debug, Clone)]
pub struct Role {
    pub id: RoleId,
    pub name: String,
    pub description: String,
    pub is_system: bool,
    pub permissions: PermissionSet,
    pub member_count: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub struct NewRole {
    pub name: String,
    pub description: String,
    /// Words such as `view:projects`.
    pub permissions: Vec<String>,
}

/// What changes; `None` stays.
#[derive(Debug, Clone, Default)]
pub struct RolePatch {
    pub name: Option<String>,
    pub description: Option<String>,
    pub permissions: Option<Vec<String>>,
}

/// What a system role is for.
pub(crate) fn description(role: SystemRole) -> &'static str {
    match role {
        SystemRole::Owner => "Everything, also the deletion of the organization.",
        SystemRole::Admin => "Everything but the organization itself.",
        SystemRole::Developer => "Projects, environments, instances, deployments and snapshots.",
        SystemRole::Viewer => "Reads.",
    }
}

pub async fn list(control: &Control, grant: &Grant<ViewRoles>) -> Result<Vec<Role>> {
    store::roles::list(&mut *control.pool.acquire().await?, grant).await
}

/// Makes a role with no more permissions than the caller has. A name that is taken is `Conflict`.
pub async fn create(control: &Control, grant: &Grant<ManageRoles>, new: NewRole) -> Result<Role> {
    let now = control.clock.now();
    let mut fields = Vec::new();
    check_texts(&new.name, &new.description, &mut fields);
    let permissions = parse_permissions("permissionIds", &new.permissions, &mut fields);
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    may_give(&grant.permissions, &permissions)?;
    let role = Role {
        id: RoleId::new(),
        name: new.name.trim().to_owned(),
        description: new.description.trim().to_owned(),
        is_system: false,
        permissions,
        member_count: 0,
        created_at: now,
        updated_at: now,
    };
    let mut transaction = control.pool.begin().await?;
    refuse_a_name_like_another(&mut transaction, grant, &role).await?;
    if !store::roles::insert(&mut transaction, grant, &role).await? {
        return Err(name_taken(&role.name));
    }
    note(&mut transaction, control, grant, "role.created", &role).await?;
    transaction.commit().await?;
    Ok(role)
}

/// Who gives which rights a name is audited.
async fn note(connection: &mut PgConnection, control: &Control, scope: &Scope, action: &str, role: &Role) -> Result<()> {
    let detail = json!({ "name": role.name, "permissions": role.permissions });
    audit::record(connection, control, scope, action, &format!("role:{}", role.id), &detail).await
}

/// Changes a role. One that has permissions which the caller lacks cannot be changed by them, nor can a system role.
pub async fn update(control: &Control, grant: &Grant<ManageRoles>, id: RoleId, patch: RolePatch) -> Result<Role> {
    let mut transaction = control.pool.begin().await?;
    let mut role = own_role(&mut transaction, grant, id).await?;
    if let Some(name) = patch.name {
        name.trim().clone_into(&mut role.name);
    }
    if let Some(description) = patch.description {
        description.trim().clone_into(&mut role.description);
    }
    let mut fields = Vec::new();
    check_texts(&role.name, &role.description, &mut fields);
    if let Some(words) = &patch.permissions {
        role.permissions = parse_permissions("permissionIds", words, &mut fields);
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    may_give(&grant.permissions, &role.permissions)?;
    role.updated_at = control.clock.now();
    refuse_a_name_like_another(&mut transaction, grant, &role).await?;
    if !store::roles::update(&mut transaction, grant, &role).await? {
        return Err(name_taken(&role.name));
    }
    note(&mut transaction, control, grant, "role.changed", &role).await?;
    transaction.commit().await?;
    Ok(role)
}

/// Deletes a role that no member has; invitations that would give it go with it.
pub async fn delete(control: &Control, grant: &Grant<ManageRoles>, id: RoleId) -> Result<()> {
    let mut transaction = control.pool.begin().await?;
    let role = own_role(&mut transaction, grant, id).await?;
    if role.member_count > 0 {
        let members = if role.member_count == 1 { "1 member has".to_owned() } else { format!("{} members have", role.member_count) };
        return Err(Error::conflict("role_in_use", format!("{members} this role; give them another first")));
    }
    store::roles::delete(&mut transaction, grant, id).await?;
    note(&mut transaction, control, grant, "role.deleted", &role).await?;
    transaction.commit().await?;
    Ok(())
}

async fn own_role(connection: &mut PgConnection, grant: &Grant<ManageRoles>, id: RoleId) -> Result<Role> {
    let role = store::roles::for_update(connection, grant, id).await?.ok_or(Error::NotFound { what: "role" })?;
    if role.is_system {
        return Err(Error::conflict("system_role", format!("{} is a role of the system; nobody can change or delete it", role.name)));
    }
    may_give(&grant.permissions, &role.permissions)?;
    Ok(role)
}

fn check_texts(name: &str, description: &str, fields: &mut Vec<FieldError>) {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > 50 || name.chars().any(char::is_control) {
        fields.push(FieldError { field: "name".to_owned(), message: "give a name of 1 to 50 characters".to_owned() });
    }
    if description.chars().count() > 500 {
        fields.push(FieldError { field: "description".to_owned(), message: "use at most 500 characters".to_owned() });
    }
}

/// `owner` beside `Owner` would be taken for it.
async fn refuse_a_name_like_another(connection: &mut PgConnection, scope: &Scope, role: &Role) -> Result<()> {
    let name = role.name.to_lowercase();
    match store::roles::list(connection, scope).await?.into_iter().find(|other| other.id != role.id && other.name.to_lowercase() == name) {
        Some(other) => Err(name_taken(&other.name)),
        None => Ok(()),
    }
}

fn name_taken(name: &str) -> Error {
    Error::conflict("role_name_taken", format!("the organization has a role named {name} already"))
}
