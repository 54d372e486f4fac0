//! Who may do what: actions on resources, and the four roles that every organization has.
//!
//! `manage` on a resource implies `view` on it. The table below is the only place that knows roles; a test prints it whole.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::state::{UnknownWord, words};

words! {
    Action, "action" {
        View = "view",
        Manage = "manage",
    }
}

words! {
    Resource, "resource" {
        Organization = "organization",
        Members = "members",
        Roles = "roles",
        ApiKeys = "api_keys",
        Servers = "servers",
        Projects = "projects",
        Environments = "environments",
        Instances = "instances",
        Deployments = "deployments",
        Snapshots = "snapshots",
        /// What protects the data of production environments: which of their snapshots stay, and for how long.
        Production = "production",
        /// What environments that are not production may reach on the network.
        Egress = "egress",
        /// Who changed what keeps an organization safe.
        Audit = "audit",
    }
}

words! {
    /// The roles that every organization has and nobody can change.
    SystemRole, "role" {
        Owner = "Owner",
        Admin = "Admin",
        Developer = "Developer",
        Viewer = "Viewer",
    }
}

/// One right, written `view:projects`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Permission {
    pub resource: Resource,
    pub action: Action,
}

impl Permission {
    pub const fn view(resource: Resource) -> Self {
        Self { resource, action: Action::View }
    }

    pub const fn manage(resource: Resource) -> Self {
        Self { resource, action: Action::Manage }
    }

    /// Every permission there is, by resource.
    pub fn all() -> impl Iterator<Item = Self> {
        Resource::ALL.iter().flat_map(|&resource| Action::ALL.iter().map(move |&action| Self { resource, action }))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.action, self.resource)
    }
}

impl FromStr for Permission {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownWord {
            what: "permission",
            value: text.to_owned(),
            allowed: Permission::all().map(|permission| permission.to_string()).collect::<Vec<_>>().join(", "),
        };
        let (action, resource) = text.split_once(':').ok_or_else(unknown)?;
        Ok(Self { action: action.parse().map_err(|_| unknown())?, resource: resource.parse().map_err(|_| unknown())? })
    }
}

impl Serialize for Permission {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Permission {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A set of permissions; asks the implication rule, so that nobody else has to know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PermissionSet(BTreeSet<Permission>);

impl PermissionSet {
    pub fn allows(&self, wanted: Permission) -> bool {
        self.0.contains(&wanted) || self.0.contains(&Permission::manage(wanted.resource))
    }

    /// What both allow: an API key never has more than the member who made it.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Permission::all().filter(|&permission| self.allows(permission) && other.allows(permission)).collect()
    }

    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.iter().all(|&permission| other.allows(permission))
    }

    pub fn iter(&self) -> impl Iterator<Item = Permission> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<Permission> for PermissionSet {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().collect())
    }
}

impl SystemRole {
    /// The permission table. (reference: Owner alone deletes the organization; Admin manages everything and the members; Developer works on
    /// projects, environments, instances, deployments and snapshots, and takes nothing from production's safety and opens no
    /// environment; Viewer reads.)
    pub fn permissions(self) -> PermissionSet {
        Permission::all().filter(|permission| self.has(*permission)).collect()
    }

    fn has(self, Permission { resource, action }: Permission) -> bool {
        use Resource as R;
        match self {
            Self::Owner => true,
            Self::Admin => action == Action::View || resource != R::Organization,
            Self::Developer => match resource {
                // A person makes keys for what they may do themselves; a key cannot exceed its maker.
                R::Projects | R::Environments | R::Instances | R::Deployments | R::Snapshots | R::ApiKeys => true,
                R::Organization | R::Members | R::Roles | R::Servers | R::Production | R::Egress => action == Action::View,
                R::Audit => false,
            },
            Self::Viewer => action == Action::View && !matches!(resource, R::ApiKeys | R::Audit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_permission_matrix_is_what_the_documentation_prints() {
        let row = |name: String, cells: Vec<&str>| {
            let mut columns = vec![format!("{name:<22}")];
            columns.extend(cells.into_iter().map(|cell| format!("{cell:<10}")));
            columns.join(" ")
        };
        let mut matrix = vec![row("permission".to_owned(), SystemRole::ALL.iter().map(|role| role.as_str()).collect())];
        for permission in Permission::all() {
            let answers = SystemRole::ALL.iter().map(|role| if role.permissions().allows(permission) { "yes" } else { "-" });
            matrix.push(row(permission.to_string(), answers.collect()));
        }
        let matrix = matrix.join("\n");
        let trimmed: Vec<&str> = matrix.lines().map(str::trim_end).collect();
        assert_eq!(trimmed.join("\n"), include_str!("permission_matrix.txt").trim_end());
    }

    #[test]
    fn manage_implies_view_and_not_the_other_way() {
        let managing: PermissionSet = [Permission::manage(Resource::Projects)].into_iter().collect();
        assert!(managing.allows(Permission::view(Resource::Projects)));
        let viewing: PermissionSet = [Permission::view(Resource::Projects)].into_iter().collect();
        assert!(!viewing.allows(Permission::manage(Resource::Projects)));
        assert!(viewing.is_subset(&managing) && !managing.is_subset(&viewing));
    }
}
