//! Who may do what, in one place and by types.
//!
//! A [`Scope`] is an authenticated caller in one organization. A use case does not take a scope: it takes a [`Grant`] of the right that it
//! needs, and the only way to a grant is [`Scope::grant`], which asks the permission table. Store functions that read or write a tenant's
//! rows take the scope (a grant gives it) and put its organization into the query; what no person asked for runs as [`System`].

use std::{marker::PhantomData, ops::Deref};

use ocore_model::{
    environment::Stage,
    ids::{ApiKeyId, OrganizationId, UserId},
    permission::{Permission, PermissionSet, Resource},
};

use crate::error::{Error, Result};

/// How the caller proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// A person, by a session's access token.
    Session,
    /// A program, by an API key.
    ApiKey(ApiKeyId),
}

/// An authenticated caller in one organization. Made by [`crate::accounts::Identity::scope`]; nothing else makes one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Scope {
    pub organization_id: OrganizationId,
    pub organization_slug: String,
    pub user_id: UserId,
    pub credential: Credential,
    pub permissions: PermissionSet,
}

impl Scope {
    /// The proof that this caller has the right `R`, or `Forbidden`.
    pub fn grant<R: Right>(&self) -> Result<Grant<R>> {
        if self.permissions.allows(R::PERMISSION) {
            return Ok(Grant { scope: self.clone(), right: PhantomData });
        }
        Err(Error::Forbidden {
            code: "permission_missing",
            message: format!("this needs the permission {}; ask an owner or admin of {} for it", R::PERMISSION, self.organization_slug),
        })
    }

    /// Whether this caller has the right `R`.
    pub fn allows<R: Right>(&self) -> bool {
        self.permissions.allows(R::PERMISSION)
    }

    /// What a caller may do at this stage with what they may do at others: at production, only with `manage:production` on top. What production adds
    /// to each operation is in docs/decisions/0017-rights.md, and proven by `crates/api/tests/it/production.rs`.
    pub fn may_touch(&self, stage: Stage) -> Result<()> {
        if stage == Stage::Production { self.grant::<ManageProduction>().map(drop) } else { Ok(()) }
    }
}

/// A right as a type.
pub trait Right: Send + Sync + 'static {
    const PERMISSION: Permission;
}

/// The proof that a caller has the right `R`.
#[derive(Debug, Clone)]
pub struct Grant<R: Right> {
    scope: Scope,
    right: PhantomData<R>,
}

impl<R: Right> Deref for Grant<R> {
    type Target = Scope;

    fn deref(&self) -> &Scope {
        &self.scope
    }
}

/// The installation itself: operations, reconcilers, start-up. Not to be had from a request.
#[derive(Debug, Clone, Copy)]
pub struct System;

macro_rules! rights {
    ($($view:ident, $manage:ident: $resource:ident;)*) => {$(
        #[doc = concat!("`view:", stringify!($resource), "`")]
        #[derive(Debug, Clone, Copy)]
        pub struct $view;
        impl Right for $view {
            const PERMISSION: Permission = Permission::view(Resource::$resource);
        }

        #[doc = concat!("`manage:", stringify!($resource), "`")]
        #[derive(Debug, Clone, Copy)]
        pub struct $manage;
        impl Right for $manage {
            const PERMISSION: Permission = Permission::manage(Resource::$resource);
        }
    )*};
}

rights! {
    ViewOrganization, ManageOrganization: Organization;
    ViewMembers, ManageMembers: Members;
    ViewRoles, ManageRoles: Roles;
    ViewApiKeys, ManageApiKeys: ApiKeys;
    ViewServers, ManageServers: Servers;
    ViewProjects, ManageProjects: Projects;
    ViewEnvironments, ManageEnvironments: Environments;
    ViewInstances, ManageInstances: Instances;
    ViewDeployments, ManageDeployments: Deployments;
    ViewSnapshots, ManageSnapshots: Snapshots;
    ViewProduction, ManageProduction: Production;
    ViewEgress, ManageEgress: Egress;
    ViewAudit, ManageAudit: Audit;
}
