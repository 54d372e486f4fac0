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

/// How a project wants to be deployed: the section `[deploy]` of the `ocore.toml` at the root of its repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeploySettings {
    /// The stages in which an update runs on a copy of the live data first.
    pub rehearse: Vec<Stage>,
    /// Paths that must answer 2xx or 3xx on a new Odoo before anybody is sent to it, beside those that every Odoo has. Each begins with `/`.
    pub smoke_paths: Vec<String>,
    /// For so long what users get from the new Odoo is compared with what they got before; worse takes the deployment back. 0: not at all.
    pub watch_seconds: u64,
}

/// Longer, and a deployment never ends.
const LONGEST_WATCH: u64 = 3600;

impl Default for DeploySettings {
    fn default() -> Self {
        Self { rehearse: vec![Stage::Production], smoke_paths: Vec::new(), watch_seconds: 15 }
    }
}

impl DeploySettings {
    /// What is wrong with them, in one sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.watch_seconds > LONGEST_WATCH {
            return Err(format!("watch_seconds is at most {LONGEST_WATCH}"));
        }
        match self.smoke_paths.iter().find(|path| !path.starts_with('/') || path.contains(char::is_whitespace) || path.contains('#')) {
            Some(path) => Err(format!("`{path}` is no path of a page; smoke_paths are written like \"/shop?page=1\"")),
            None => Ok(()),
        }
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
