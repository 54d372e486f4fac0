//! A project: a repository of Odoo modules and how its branches become environments.

use serde::{Deserialize, Serialize};

use crate::{environment::Stage, names::ModuleName, state::words};

/// Which modules a fresh database gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModuleSelection {
    /// Those of the repository itself, without its submodules.
    Own,
    /// These.
    List {
        #[schema(value_type = Vec<String>)]
        modules: Vec<ModuleName>,
    },
    /// Every installable one in the repository and its submodules.
    All,
}

words! {
    /// Where a project's commits come from.
    RepositoryKind, "repository kind" {
        /// oCore's own remote: one pushes to it.
        BuiltIn = "built_in",
        /// Any other Git URL: oCore fetches from it.
        External = "external",
    }
}

/// The stage that a branch gets when it becomes an environment by a push: `main` and `master` of a project without production are production,
/// branches named `staging` are staging, the rest are development.
pub fn stage_for_new_branch(branch: &str, has_production: bool) -> Stage {
    match branch {
        "main" | "master" if !has_production => Stage::Production,
        "staging" => Stage::Staging,
        _ => Stage::Development,
    }
}
