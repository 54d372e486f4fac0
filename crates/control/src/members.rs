//! Members of an organization: who they are, what role they have, how others join and how they go. The last owner cannot go.

use chrono::{DateTime, TimeDelta, Utc};
use ocore_model::{
    ids::{MemberId, OrganizationId, RoleId, UserId},
    permission::PermissionSet,
};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Control, Error, Result,
    accounts::{
        self, Client, Person, User,
        throttle::{self, Attempt},
    },
    api_keys::may_give,
    audit,
    authorization::{Grant, ManageMembers, Scope, ViewMembers},
    secrets,
    store::{self, members::PendingInvitation},
};

const INVITATION_LIFETIME: TimeDelta = TimeDelta::days(7);
const INVITATION_PREFIX: &str = "invitation_";

#[derive(Debug, Clone)]
pub struct Member {
    pub id: MemberId,
    pub user_id: UserId,
    pub email: String,
    pub name: String,
    pub role_id: RoleId,
    pub role_name: String,
    pub is_owner: bool,
    pub permissions: PermissionSet,
    pub created_at: DateTime<Utc>,
}

/// An invitation that waits for its answer.
#[derive(Debug, Clone)]
pub struct Invitation {
    pub id: Uuid,
    pub email: String,
    pub role_id: RoleId,
    pub role_name: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// An invitation at the only moment when its token can be read. oCore sends no mail yet: the inviter passes the token on.
#[derive(Clone)]
pub struct CreatedInvitation {
    pub invitation: Invitation,
    pub token: String,
}

pub async fn list(control: &Control, grant: &Grant<ViewMembers>) -> Result<Vec<Member>> {
    store::members::list(&mut *control.pool.acquire().await?, grant).await
}

pub async fn invitations(control: &Control, grant: &Grant<ViewMembers>) -> Result<Vec<Invitation>> {
    store::members::invitations(&mut *control.pool.acquire().await?, grant, control.clock.now()).await
}

/// Invites an e-mail address to a role that gives no more than the caller has. An earlier invitation of the same address is cancelled.
pub async fn invite(control: &Control, grant: &Grant<ManageMembers>, email: &str, role: RoleId) -> Result<CreatedInvitation> {
    let email = accounts::check_email(email).map_err(|message| Error::invalid("email", message))?;
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    let role_name = check_role(&mut transaction, grant, role).await?;
    if store::members::is_member_email(&mut transaction, grant, &email).await? {
        return Err(Error::conflict("already_member", format!("{email} is a member of {} already", grant.organization_slug)));
    }
    let token = secrets::new_token(INVITATION_PREFIX);
    let invitation =
        Invitation { id: Uuid::now_v7(), email, role_id: role, role_name, created_at: now, expires_at: now + INVITATION_LIFETIME };
    store::members::insert_invitation(&mut transaction, grant, &invitation, &secrets::token_hash(&token)).await?;
    let detail = json!({ "email": invitation.email, "role": invitation.role_name });
    audit::record(&mut transaction, control, grant, "member.invited", &format!("invitation:{}", invitation.id), &detail).await?;
    transaction.commit().await?;
    Ok(CreatedInvitation { invitation, token })
}

pub async fn cancel_invitation(control: &Control, grant: &Grant<ManageMembers>, id: Uuid) -> Result<()> {
    let mut transaction = control.pool.begin().await?;
    if !store::members::cancel_invitation(&mut transaction, grant, id).await? {
        return Err(Error::NotFound { what: "invitation" });
    }
    audit::record(&mut transaction, control, grant, "member.invitation_cancelled", &format!("invitation:{id}"), &json!({})).await?;
    transaction.commit().await?;
    Ok(())
}

/// Joins the organization that invited the caller's e-mail address; gives its id.
pub async fn accept(control: &Control, person: &Person, token: &str, client: &Client) -> Result<OrganizationId> {
    let attempt = Attempt::invitation(client);
    if let Some(attempt) = &attempt {
        throttle::count(control, attempt).await?;
    }
    let mut transaction = control.pool.begin().await?;
    let user = store::accounts::user(&mut transaction, person.user_id).await?.ok_or(Error::NotFound { what: "user" })?;
    let organization = join(control, &mut transaction, &user, token).await?;
    if let Some(attempt) = &attempt {
        throttle::take_back(&mut transaction, attempt).await?;
    }
    transaction.commit().await?;
    Ok(organization)
}

/// The invitation of that token. It is for one e-mail address: a forwarded link gives nobody else a way in.
pub(crate) async fn invitation_for(
    connection: &mut PgConnection,
    email: &str,
    token: &str,
    now: DateTime<Utc>,
) -> Result<PendingInvitation> {
    store::members::pending_invitation(connection, &secrets::token_hash(token), now)
        .await?
        .filter(|invitation| invitation.email == email)
        .ok_or(Error::NotFound { what: "invitation for your e-mail address" })
}

/// Uses an invitation.
pub(crate) async fn join(control: &Control, connection: &mut PgConnection, user: &User, token: &str) -> Result<OrganizationId> {
    let now = control.clock.now();
    let invitation = invitation_for(connection, &user.email, token, now).await?;
    store::members::accept_invitation(connection, invitation.id).await?;
    store::members::insert(connection, invitation.organization_id, user.id, invitation.role_id, now).await?;
    let detail = json!({ "email": user.email, "invitation": invitation.id });
    audit::record_of_person(connection, control, invitation.organization_id, user.id, "member.joined", &detail).await?;
    Ok(invitation.organization_id)
}

/// Gives a member another role. Neither the old nor the new one may hold more than the caller has; the last owner stays owner.
pub async fn change_role(control: &Control, grant: &Grant<ManageMembers>, id: MemberId, role: RoleId) -> Result<Member> {
    let mut transaction = control.pool.begin().await?;
    let (member, others_own) = member_for_change(&mut transaction, grant, id).await?;
    may_give(&grant.permissions, &member.permissions)?;
    check_role(&mut transaction, grant, role).await?;
    if member.is_owner && member.role_id != role && !others_own {
        return Err(last_owner(&grant.organization_slug));
    }
    store::members::set_role(&mut transaction, grant, id, role).await?;
    let changed = store::members::list(&mut transaction, grant).await?.into_iter().find(|member| member.id == id);
    let changed = changed.ok_or(Error::NotFound { what: "member" })?;
    let detail = json!({ "email": changed.email, "before": member.role_name, "after": changed.role_name });
    audit::record(&mut transaction, control, grant, "member.role_changed", &subject(id), &detail).await?;
    transaction.commit().await?;
    Ok(changed)
}

/// Takes a member out; their API keys in the organization end with it. Oneself goes with [`leave`].
pub async fn remove(control: &Control, grant: &Grant<ManageMembers>, id: MemberId) -> Result<()> {
    let mut transaction = control.pool.begin().await?;
    let (member, others_own) = member_for_change(&mut transaction, grant, id).await?;
    if member.user_id == grant.user_id {
        return Err(Error::conflict("cannot_remove_self", "you cannot remove yourself; leave the organization instead"));
    }
    may_give(&grant.permissions, &member.permissions)?;
    if member.is_owner && !others_own {
        return Err(last_owner(&grant.organization_slug));
    }
    store::members::remove(&mut transaction, grant, &member, control.clock.now()).await?;
    let detail = json!({ "email": member.email, "role": member.role_name });
    audit::record(&mut transaction, control, grant, "member.removed", &subject(id), &detail).await?;
    transaction.commit().await?;
    Ok(())
}

/// The caller goes, with their API keys. The last owner must hand the organization over first.
pub async fn leave(control: &Control, scope: &Scope, person: &Person) -> Result<()> {
    let mut transaction = control.pool.begin().await?;
    store::members::lock(&mut transaction, scope).await?;
    let members = store::members::list(&mut transaction, scope).await?;
    let own = members.iter().find(|member| member.user_id == person.user_id).ok_or(Error::NotFound { what: "member" })?;
    if own.is_owner && !members.iter().any(|member| member.is_owner && member.id != own.id) {
        return Err(last_owner(&scope.organization_slug));
    }
    store::members::remove(&mut transaction, scope, own, control.clock.now()).await?;
    let detail = json!({ "email": own.email, "role": own.role_name });
    audit::record(&mut transaction, control, scope, "member.left", &subject(own.id), &detail).await?;
    transaction.commit().await?;
    Ok(())
}

fn subject(id: MemberId) -> String {
    format!("member:{id}")
}

/// The member, and whether somebody else is an owner too; the membership is locked.
async fn member_for_change(connection: &mut PgConnection, scope: &Scope, id: MemberId) -> Result<(Member, bool)> {
    store::members::lock(connection, scope).await?;
    let members = store::members::list(connection, scope).await?;
    let others_own = members.iter().any(|member| member.is_owner && member.id != id);
    let member = members.into_iter().find(|member| member.id == id).ok_or(Error::NotFound { what: "member" })?;
    Ok((member, others_own))
}

/// The name of a role that the caller may give.
async fn check_role(connection: &mut PgConnection, scope: &Scope, id: RoleId) -> Result<String> {
    let role = store::members::role_rights(connection, scope, id)
        .await?
        .ok_or_else(|| Error::invalid("roleId", "the organization has no such role"))?;
    may_give(&scope.permissions, &role.permissions)?;
    Ok(role.name)
}

fn last_owner(slug: &str) -> Error {
    Error::conflict("last_owner", format!("{slug} would have no owner left; make somebody else an owner first"))
}
