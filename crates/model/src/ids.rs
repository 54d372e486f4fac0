//! Typed ids. Every id is a UUID v7 (sortable by creation); a different thing has a different type, so that they cannot be mixed up.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "store", derive(sqlx::Type), sqlx(transparent))]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id; ids made later sort after ids made earlier.
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            pub fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }
    )*};
}

id! {
    /// A database with modules installed that new ones begin with. Made from what went in, not from the time.
    TemplateId,
    /// A person.
    UserId,
    /// A tenant. Everything else belongs to exactly one.
    OrganizationId,
    /// A named set of permissions in one organization.
    RoleId,
    /// A user's place in an organization.
    MemberId,
    /// A key for programs, limited to chosen permissions.
    ApiKeyId,
    /// One login: the family of refresh tokens that came from it.
    SessionId,
    /// A repository of Odoo modules and the environments that run it.
    ProjectId,
    /// One branch at one stage.
    EnvironmentId,
    /// One Odoo: its data sets, its slots, its processes.
    InstanceId,
    /// One try to bring one commit live.
    DeploymentId,
    /// One node of a deployment as its user sees it.
    StepId,
    /// Something a person asked for, with an end and an undo.
    OperationId,
    /// One machine that carries instances.
    ServerId,
    /// Database and file store of one instance at one moment, in one directory of the pool.
    DataSetId,
    /// Database and file store of an environment at one moment, kept.
    SnapshotId,
    /// An existing Odoo's data on their way in.
    ImportId,
    /// An environment's data on their way out.
    ExportId,
    /// A rule that leads pushes of matching branches to an instance.
    BranchMappingId,
}
