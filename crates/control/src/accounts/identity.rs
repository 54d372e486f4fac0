//! From a token to a caller: an [`Identity`] is who somebody is, wherever they belong; its [`Identity::scope`] is the only maker of a
//! [`Scope`], who somebody is in one organization.

use chrono::TimeDelta;
use ocore_model::{
    ids::{OrganizationId, SessionId, UserId},
    permission::PermissionSet,
};

use super::session;
use crate::{
    Control, Error, Result,
    authorization::{Credential, Scope},
    secrets, store,
};

/// A token that begins so is an API key; everything else is taken for an access token.
pub const API_KEY_PREFIX: &str = "ocore_";

/// A key's last use is written at most so often.
const LAST_USE_STEP: TimeDelta = TimeDelta::minutes(1);

/// An authenticated caller, not yet in an organization.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Identity {
    pub user_id: UserId,
    pub credential: Credential,
    session_id: Option<SessionId>,
    /// All organizations of a person; the one of an API key, with the rights that are left of both the key's and the member's.
    memberships: Vec<Membership>,
}

/// A caller's rights in one organization.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    pub(crate) organization_id: OrganizationId,
    pub(crate) slug: String,
    pub(crate) permissions: PermissionSet,
}

/// A person in a session of their own: what a program with an API key cannot be.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Person {
    pub user_id: UserId,
    pub session_id: SessionId,
}

impl Identity {
    /// The caller in the organization with that slug, or in their only one. `NotFound` for an organization that is not theirs, whether it
    /// exists or not; `Ambiguous` with the slugs to choose from when they have several and name none.
    pub fn scope(&self, slug: Option<&str>) -> Result<Scope> {
        let membership = match slug {
            Some(slug) => {
                self.memberships.iter().find(|membership| membership.slug == slug).ok_or(Error::NotFound { what: "organization" })?
            }
            None => match self.memberships.as_slice() {
                [only] => only,
                [] => {
                    return Err(Error::Ambiguous {
                        code: "no_organization",
                        message: "you belong to no organization yet; create one or accept an invitation".to_owned(),
                    });
                }
                several => {
                    let slugs: Vec<&str> = several.iter().map(|membership| membership.slug.as_str()).collect();
                    return Err(Error::Ambiguous {
                        code: "organization_required",
                        message: format!(
                            "you belong to several organizations; name one in the header X-Org-Slug or with ?org=: {}",
                            slugs.join(", ")
                        ),
                    });
                }
            },
        };
        Ok(self.scope_of(membership))
    }

    /// The caller in this organization; `None` when they do not belong to it.
    pub(crate) fn scope_in(&self, organization: OrganizationId) -> Option<Scope> {
        let membership = self.memberships.iter().find(|membership| membership.organization_id == organization)?;
        Some(self.scope_of(membership))
    }

    /// They belong to more organizations than one, so that a call has to say which one it is about.
    pub fn belongs_to_several(&self) -> bool {
        self.memberships.len() > 1
    }

    fn scope_of(&self, membership: &Membership) -> Scope {
        Scope {
            organization_id: membership.organization_id,
            organization_slug: membership.slug.clone(),
            user_id: self.user_id,
            credential: self.credential,
            permissions: membership.permissions.clone(),
        }
    }

    /// The person, when this is one; a program with an API key is `Forbidden`.
    pub fn person(&self) -> Result<Person> {
        match self.session_id {
            Some(session_id) => Ok(Person { user_id: self.user_id, session_id }),
            None => Err(Error::forbidden("session_required", "an API key cannot do this; log in as a person")),
        }
    }

    /// What the caller may do in an organization; `None` when they do not belong to it.
    pub(crate) fn permissions_in(&self, organization: OrganizationId) -> Option<&PermissionSet> {
        self.memberships.iter().find(|membership| membership.organization_id == organization).map(|membership| &membership.permissions)
    }
}

/// Who holds this token: an access token whose session stands, or an API key that has neither expired nor been revoked.
pub async fn identify(control: &Control, token: &str) -> Result<Identity> {
    if token.starts_with(API_KEY_PREFIX) { identify_key(control, token).await } else { identify_session(control, token).await }
}

/// The caller behind a token in an organization: [`identify`], then [`Identity::scope`].
pub async fn authenticate(control: &Control, token: &str, organization_slug: Option<&str>) -> Result<Scope> {
    identify(control, token).await?.scope(organization_slug)
}

async fn identify_session(control: &Control, token: &str) -> Result<Identity> {
    let claims = session::verify(control, token)?;
    let memberships =
        store::accounts::session_memberships(&mut *control.pool.acquire().await?, claims.sid, claims.sub, control.clock.now())
            .await?
            .ok_or_else(|| Error::unauthenticated("session_ended", "this session has ended; log in again"))?;
    Ok(Identity { user_id: claims.sub, credential: Credential::Session, session_id: Some(claims.sid), memberships })
}

async fn identify_key(control: &Control, token: &str) -> Result<Identity> {
    let now = control.clock.now();
    let mut connection = control.pool.acquire().await?;
    let key = store::api_keys::by_hash(&mut connection, &secrets::token_hash(token))
        .await?
        .ok_or_else(|| Error::unauthenticated("api_key_invalid", "there is no such API key"))?;
    if key.revoked_at.is_some() {
        return Err(Error::unauthenticated("api_key_revoked", "this API key has been revoked"));
    }
    if key.expires_at.is_some_and(|expires_at| expires_at <= now) {
        return Err(Error::unauthenticated("api_key_expired", "this API key has expired; make a new one"));
    }
    if key.last_used_at.is_none_or(|last| last + LAST_USE_STEP <= now) {
        store::api_keys::touch(&mut connection, key.id, now).await?;
    }
    Ok(Identity {
        user_id: key.user_id,
        credential: Credential::ApiKey(key.id),
        session_id: None,
        memberships: vec![Membership {
            organization_id: key.organization_id,
            slug: key.organization_slug,
            permissions: key.permissions.intersect(&key.member_permissions),
        }],
    })
}
