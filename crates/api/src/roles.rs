//! Roles of the organization, and the permissions that they are made of.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use ocore_control::{
    authorization::{ManageRoles, ViewRoles},
    roles::{self, NewRole, RolePatch},
};
use ocore_model::{
    ids::RoleId,
    permission::{Action, Permission, Resource},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AppState,
    authorized::Authorized,
    extract::{FromPath, Input},
    problem::Problem,
    wire::{Message, begun, permission_words},
};

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateRole {
    #[schema(min_length = 1, max_length = 50)]
    name: String,
    #[serde(default)]
    #[schema(max_length = 500)]
    description: String,
    /// Words such as `view:projects`.
    #[schema(value_type = Vec<crate::wire::PermissionWord>)]
    permission_ids: Vec<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateRole {
    #[schema(min_length = 1, max_length = 50)]
    name: Option<String>,
    #[schema(max_length = 500)]
    description: Option<String>,
    #[schema(value_type = Option<Vec<crate::wire::PermissionWord>>)]
    permission_ids: Option<Vec<String>>,
}

/// A named set of permissions.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Role {
    #[schema(value_type = Uuid)]
    id: RoleId,
    name: String,
    description: String,
    /// Every organization has it and nobody changes it.
    is_system: bool,
    #[schema(value_type = Vec<crate::wire::PermissionWord>)]
    permissions: Vec<String>,
    member_count: i64,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Roles {
    roles: Vec<Role>,
    total: usize,
}

/// A right. `manage` on a resource implies `view` on it.
#[derive(Serialize, ToSchema)]
#[schema(as = Permission)]
pub(crate) struct PermissionView {
    /// `manage:projects`
    id: String,
    action: Action,
    resource: Resource,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Permissions {
    permissions: Vec<PermissionView>,
    total: usize,
}

impl From<roles::Role> for Role {
    fn from(role: roles::Role) -> Self {
        Self {
            id: role.id,
            name: role.name,
            description: role.description,
            is_system: role.is_system,
            permissions: permission_words(&role.permissions),
            member_count: role.member_count,
        }
    }
}

/// List all permissions.
#[utoipa::path(get, path = "/permissions", tag = "Roles", responses((status = 200, description = "Every right there is.", body = Permissions)))]
pub(crate) async fn permissions(Authorized(_grant): Authorized<ViewRoles>) -> Json<Permissions> {
    let permissions: Vec<PermissionView> = Permission::all()
        .map(|permission| PermissionView { id: permission.to_string(), action: permission.action, resource: permission.resource })
        .collect();
    let total = permissions.len();
    Json(Permissions { permissions, total })
}

/// List the roles.
#[utoipa::path(get, path = "/roles", tag = "Roles", responses((status = 200, description = "Those of the system first.", body = Roles)))]
pub(crate) async fn list(State(state): State<AppState>, Authorized(grant): Authorized<ViewRoles>) -> Result<Json<Roles>, Problem> {
    let roles: Vec<Role> = roles::list(&state.control, &grant).await?.into_iter().map(Into::into).collect();
    let total = roles.len();
    Ok(Json(Roles { roles, total }))
}

/// Make a role.
///
/// With no more permissions than the caller has.
#[utoipa::path(post, path = "/roles", tag = "Roles", request_body = CreateRole, responses((status = 201, description = "The role.", body = Role)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageRoles>,
    Input(body): Input<CreateRole>,
) -> Result<Response, Problem> {
    let new = NewRole { name: body.name, description: body.description, permissions: body.permission_ids };
    let role: Role = roles::create(&state.control, &grant, new).await?.into();
    Ok(begun(StatusCode::CREATED, &format!("/roles/{}", role.id), role))
}

/// Change a role.
///
/// Not one of the system, nor one that gives more than the caller has. What is left out stays.
#[utoipa::path(put, path = "/roles/{id}", tag = "Roles", params(("id" = Uuid, Path)), request_body = UpdateRole,
    responses((status = 200, description = "The role.", body = Role)))]
pub(crate) async fn update(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageRoles>,
    FromPath(id): FromPath<RoleId>,
    Input(body): Input<UpdateRole>,
) -> Result<Json<Role>, Problem> {
    let patch = RolePatch { name: body.name, description: body.description, permissions: body.permission_ids };
    Ok(Json(roles::update(&state.control, &grant, id, patch).await?.into()))
}

/// Delete a role.
///
/// Not one of the system, nor one that a member has.
#[utoipa::path(delete, path = "/roles/{id}", tag = "Roles", params(("id" = Uuid, Path)), responses((status = 200, description = "It is gone.", body = Message)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageRoles>,
    FromPath(id): FromPath<RoleId>,
) -> Result<Json<Message>, Problem> {
    roles::delete(&state.control, &grant, id).await?;
    Ok(Message::json("the role is deleted"))
}
