//! In which organization a thing lies, for callers who belong to several and name none: whoever follows a link to a thing has said which one.

use ocore_model::ids::OrganizationId;
use uuid::Uuid;

use super::Identity;
use crate::{Control, Error, Result, authorization::Scope, store};

/// A kind of thing that has an id and belongs to one organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    ApiKey,
    Deployment,
    Environment,
    Export,
    Import,
    Instance,
    Invitation,
    Member,
    Project,
    Role,
    Snapshot,
}

impl Thing {
    fn word(self) -> &'static str {
        match self {
            Self::ApiKey => "API key",
            Self::Deployment => "deployment",
            Self::Environment => "environment",
            Self::Export => "export",
            Self::Import => "import",
            Self::Instance => "instance",
            Self::Invitation => "invitation",
            Self::Member => "member",
            Self::Project => "project",
            Self::Role => "role",
            Self::Snapshot => "snapshot",
        }
    }
}

/// The caller in the organization that has this thing. `NotFound` when there is none, or they do not belong to it: the two look alike.
pub async fn scope_of(control: &Control, identity: &Identity, thing: Thing, id: Uuid) -> Result<Scope> {
    let organization: Option<OrganizationId> = store::organizations::that_has(&mut *control.pool.acquire().await?, thing, id).await?;
    organization.and_then(|organization| identity.scope_in(organization)).ok_or(Error::NotFound { what: thing.word() })
}
