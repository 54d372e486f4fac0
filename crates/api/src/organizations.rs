//! Organizations: the caller's own, and the one in use.

use axum::{Json, extract::State, http::StatusCode};
use chrono::{DateTime, Utc};
use ocore_control::{
    authorization::{ManageOrganization, ViewOrganization},
    organizations::{self, NewOrganization, OrganizationPatch, OwnOrganization, Removed},
};
use ocore_model::ids::OrganizationId;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;

use crate::{
    AppState,
    authorized::{Authorized, Caller, SignedIn},
    extract::{Confirmation, FromQuery, Input},
    problem::Problem,
    wire::{Message, permission_words},
};

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateOrganization {
    /// 2 to 100 characters.
    #[schema(min_length = 2, max_length = 100)]
    name: String,
    /// 3 to 50 of `a-z`, `0-9` and `-`, unique in the installation; made from the name when left out.
    #[schema(min_length = 3, max_length = 50, pattern = "^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$")]
    slug: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateOrganization {
    #[schema(min_length = 2, max_length = 100)]
    name: Option<String>,
    /// Changes the addresses of the built-in repositories too.
    #[schema(min_length = 3, max_length = 50, pattern = "^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$")]
    slug: Option<String>,
    /// An http or https address; empty for none.
    #[schema(max_length = 2000)]
    logo_url: Option<String>,
    /// False brings one back that is being removed; its projects are brought back one by one.
    removed: Option<bool>,
}

/// An organization as the caller sees it.
#[skip_serializing_none]
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Organization {
    #[schema(value_type = Uuid)]
    id: OrganizationId,
    name: String,
    slug: String,
    logo_url: String,
    /// The name of the caller's role in it.
    role: String,
    /// What the caller may do in it.
    #[schema(value_type = Vec<crate::wire::PermissionWord>)]
    permissions: Vec<String>,
    /// It is being removed since then: it goes when the last snapshots of its productions have gone, and its owners can bring it back until then.
    removal_requested_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Organizations {
    organizations: Vec<Organization>,
    total: usize,
}

impl From<OwnOrganization> for Organization {
    fn from(own: OwnOrganization) -> Self {
        let OwnOrganization { organization, role, permissions } = own;
        Self {
            id: organization.id,
            name: organization.name,
            slug: organization.slug,
            logo_url: organization.logo_url,
            role,
            permissions: permission_words(&permissions),
            removal_requested_at: organization.removal_requested_at,
            created_at: organization.created_at,
            updated_at: organization.updated_at,
        }
    }
}

/// List one's organizations.
#[utoipa::path(get, path = "/user/orgs", tag = "Organizations",
    responses((status = 200, description = "Those that the caller belongs to, by name.", body = Organizations)))]
pub(crate) async fn list(State(state): State<AppState>, Caller(identity): Caller) -> Result<Json<Organizations>, Problem> {
    let organizations: Vec<Organization> = organizations::own(&state.control, &identity).await?.into_iter().map(Into::into).collect();
    let total = organizations.len();
    Ok(Json(Organizations { organizations, total }))
}

/// Make an organization.
///
/// The caller becomes its owner.
#[utoipa::path(post, path = "/user/orgs", tag = "Organizations", request_body = CreateOrganization,
    responses((status = 201, description = "The organization.", body = Organization)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    SignedIn(person): SignedIn,
    Input(body): Input<CreateOrganization>,
) -> Result<(StatusCode, Json<Organization>), Problem> {
    let new = NewOrganization { name: body.name, slug: body.slug };
    Ok((StatusCode::CREATED, Json(organizations::create(&state.control, &person, new).await?.into())))
}

/// Show the organization.
#[utoipa::path(get, path = "/org", tag = "Organizations", responses((status = 200, description = "The organization.", body = Organization)))]
pub(crate) async fn show(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ViewOrganization>,
) -> Result<Json<Organization>, Problem> {
    Ok(Json(organizations::show(&state.control, &grant).await?.into()))
}

/// Change the organization.
///
/// What is left out stays.
#[utoipa::path(put, path = "/org", tag = "Organizations", request_body = UpdateOrganization,
    responses((status = 200, description = "The organization.", body = Organization)))]
pub(crate) async fn update(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageOrganization>,
    Input(body): Input<UpdateOrganization>,
) -> Result<Json<Organization>, Problem> {
    let patch = OrganizationPatch { name: body.name, slug: body.slug, logo_url: body.logo_url, removed: body.removed };
    Ok(Json(organizations::update(&state.control, &grant, patch).await?.into()))
}

/// Delete the organization.
///
/// With its members, keys, projects and their data. One that has projects only with its slug as `confirm` (409 `organization_in_use` says so): the last
/// snapshots of its productions are kept for 30 days, and so long its owners can bring it back with `PUT /org {"removed": false}`.
#[utoipa::path(delete, path = "/org", tag = "Organizations", params(Confirmation), responses(
    (status = 200, description = "It is gone.", body = Message),
    (status = 202, description = "It is going; only its owners see it any more.", body = Message)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageOrganization>,
    FromQuery(query): FromQuery<Confirmation>,
) -> Result<(StatusCode, Json<Message>), Problem> {
    let slug = &grant.organization_slug;
    Ok(match organizations::remove(&state.control, &grant, query.confirm.as_deref()).await? {
        Removed::Gone => (StatusCode::OK, Message::json(format!("{slug} is deleted"))),
        Removed::Going => (
            StatusCode::ACCEPTED,
            Message::json(format!(
                "{slug} is being deleted with all its data; the last snapshots of its productions are kept for 30 days, and so long its owners can \
                 bring it back"
            )),
        ),
    })
}
