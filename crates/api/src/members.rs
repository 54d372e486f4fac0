//! Members of the organization and invitations to it.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use ocore_control::{
    authorization::{ManageMembers, ViewMembers},
    members,
};
use ocore_model::ids::{MemberId, OrganizationId, RoleId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState,
    authorized::{Authorized, InOrganization, SignedIn},
    extract::{FromPath, Input, Peer},
    problem::Problem,
    wire::{Message, permission_words},
};

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Invite {
    #[schema(format = Email)]
    #[schema(min_length = 3, max_length = 254)]
    email: String,
    #[schema(value_type = Uuid)]
    role_id: RoleId,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ChangeRole {
    #[schema(value_type = Uuid)]
    role_id: RoleId,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AcceptInvitation {
    token: String,
}

/// A member of the organization.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Member {
    #[schema(value_type = Uuid)]
    id: MemberId,
    #[schema(value_type = Uuid)]
    user_id: UserId,
    email: String,
    name: String,
    role: MemberRole,
    created_at: DateTime<Utc>,
}

/// What a member is in the organization.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberRole {
    #[schema(value_type = Uuid)]
    id: RoleId,
    name: String,
    #[schema(value_type = Vec<crate::wire::PermissionWord>)]
    permissions: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Members {
    members: Vec<Member>,
    total: usize,
}

/// An invitation that waits for its answer.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Invitation {
    id: Uuid,
    email: String,
    #[schema(value_type = Uuid)]
    role_id: RoleId,
    role: String,
    /// `pending`
    status: &'static str,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

/// A new invitation, with what its receiver needs. Shown this once; pass it on, oCore sends no mail.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreatedInvitation {
    #[serde(flatten)]
    invitation: Invitation,
    token: String,
    /// A page that says how to accept.
    url: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Invitations {
    invitations: Vec<Invitation>,
    total: usize,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Joined {
    #[schema(value_type = Uuid)]
    organization_id: OrganizationId,
    message: String,
}

impl From<members::Member> for Member {
    fn from(member: members::Member) -> Self {
        Self {
            id: member.id,
            user_id: member.user_id,
            email: member.email,
            name: member.name,
            role: MemberRole { id: member.role_id, name: member.role_name, permissions: permission_words(&member.permissions) },
            created_at: member.created_at,
        }
    }
}

impl From<members::Invitation> for Invitation {
    fn from(invitation: members::Invitation) -> Self {
        Self {
            id: invitation.id,
            email: invitation.email,
            role_id: invitation.role_id,
            role: invitation.role_name,
            status: "pending",
            created_at: invitation.created_at,
            expires_at: invitation.expires_at,
        }
    }
}

/// List the members.
#[utoipa::path(get, path = "/members", tag = "Members", responses((status = 200, description = "In the order in which they came.", body = Members)))]
pub(crate) async fn list(State(state): State<AppState>, Authorized(grant): Authorized<ViewMembers>) -> Result<Json<Members>, Problem> {
    let members: Vec<Member> = members::list(&state.control, &grant).await?.into_iter().map(Into::into).collect();
    let total = members.len();
    Ok(Json(Members { members, total }))
}

/// Invite somebody.
///
/// The role may give no more than the caller has. An earlier invitation of the same address is cancelled.
#[utoipa::path(post, path = "/members/invite", tag = "Members", request_body = Invite,
    responses((status = 201, description = "The invitation, with the link to pass on.", body = CreatedInvitation)))]
pub(crate) async fn invite(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageMembers>,
    Input(body): Input<Invite>,
) -> Result<(StatusCode, Json<CreatedInvitation>), Problem> {
    let created = members::invite(&state.control, &grant, &body.email, body.role_id).await?;
    let url = format!("{}/invitations/{}", state.control.settings.public_url, created.token);
    Ok((StatusCode::CREATED, Json(CreatedInvitation { invitation: created.invitation.into(), token: created.token, url })))
}

/// Leave the organization.
///
/// The caller's API keys in it end. The last owner cannot leave.
#[utoipa::path(post, path = "/members/leave", tag = "Members", responses((status = 200, description = "The caller is a member no more.", body = Message)))]
pub(crate) async fn leave(
    State(state): State<AppState>,
    SignedIn(person): SignedIn,
    InOrganization(scope): InOrganization,
) -> Result<Json<Message>, Problem> {
    members::leave(&state.control, &scope, &person).await?;
    Ok(Message::json(format!("you have left {}", scope.organization_slug)))
}

/// Change a member's role.
///
/// Neither the old nor the new role may give more than the caller has. The last owner stays owner.
#[utoipa::path(put, path = "/members/{id}/role", tag = "Members", params(("id" = Uuid, Path)), request_body = ChangeRole,
    responses((status = 200, description = "The member.", body = Member)))]
pub(crate) async fn change_role(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageMembers>,
    FromPath(id): FromPath<MemberId>,
    Input(body): Input<ChangeRole>,
) -> Result<Json<Member>, Problem> {
    Ok(Json(members::change_role(&state.control, &grant, id, body.role_id).await?.into()))
}

/// Remove a member.
///
/// Their API keys in the organization end. Not oneself, not the last owner.
#[utoipa::path(delete, path = "/members/{id}", tag = "Members", params(("id" = Uuid, Path)),
    responses((status = 200, description = "They are a member no more.", body = Message)))]
pub(crate) async fn remove(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageMembers>,
    FromPath(id): FromPath<MemberId>,
) -> Result<Json<Message>, Problem> {
    members::remove(&state.control, &grant, id).await?;
    Ok(Message::json("the member is removed"))
}

/// List invitations.
#[utoipa::path(get, path = "/invitations", tag = "Members", responses((status = 200, description = "Those that wait, newest first.", body = Invitations)))]
pub(crate) async fn invitations(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ViewMembers>,
) -> Result<Json<Invitations>, Problem> {
    let invitations: Vec<Invitation> = members::invitations(&state.control, &grant).await?.into_iter().map(Into::into).collect();
    let total = invitations.len();
    Ok(Json(Invitations { invitations, total }))
}

/// Cancel an invitation.
#[utoipa::path(delete, path = "/invitations/{id}", tag = "Members", params(("id" = Uuid, Path)),
    responses((status = 200, description = "Its link leads nowhere now.", body = Message)))]
pub(crate) async fn cancel_invitation(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageMembers>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<Message>, Problem> {
    members::cancel_invitation(&state.control, &grant, id).await?;
    Ok(Message::json("the invitation is cancelled"))
}

/// Accept an invitation.
///
/// It must be for the caller's own e-mail address; 429 after too many that were not. Who has no account yet gives the token at sign-up instead.
#[utoipa::path(post, path = "/invitations/accept", tag = "Members", request_body = AcceptInvitation,
    responses((status = 200, description = "The caller is a member now.", body = Joined)))]
pub(crate) async fn accept(
    State(state): State<AppState>,
    SignedIn(person): SignedIn,
    Peer(client): Peer,
    Input(body): Input<AcceptInvitation>,
) -> Result<Json<Joined>, Problem> {
    let organization_id = members::accept(&state.control, &person, &body.token, &client).await?;
    Ok(Json(Joined { organization_id, message: "welcome".to_owned() }))
}

/// `GET /invitations/{token}`, outside the API: where an invitation's link leads. It says how to accept and nothing of the invitation.
pub(crate) async fn invitation_page(State(state): State<AppState>, Path(token): Path<String>) -> Result<String, Problem> {
    if token.len() > 100 || !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
        return Err(crate::problem::no_such_path().await);
    }
    let url = &state.control.settings.public_url;
    Ok(format!(
        "You are invited to an organization on this oCore.\n\n\
         With an account: log in, then\n\
         \x20   POST {url}/api/invitations/accept  {{\"token\": \"{token}\"}}\n\n\
         Without one: sign up with the e-mail address that was invited\n\
         \x20   ocore --url {url} signup --email … --name … --invitation {token}\n\
         \x20   POST {url}/api/auth/signup  {{\"email\": …, \"name\": …, \"password\": …, \"invitation\": \"{token}\"}}\n\n\
         The API is described at {url}/api/docs/\n"
    ))
}
