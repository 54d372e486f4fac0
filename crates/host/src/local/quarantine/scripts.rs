//! Which scripts neutralize a database: one of each installed module, and the project's own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    api::{InstalledModule, ReleaseId},
    error::{HostError, Result},
    local::{LocalHost, distribution::InstalledDistribution, packaged, releases::ReleaseRecord, sources::read_inside},
};

/// States in which a module's code runs, as Odoo's own neutralization has them (`odoo/modules/neutralize.py`).
const INSTALLED: &[&str] = &["installed", "to upgrade", "to remove"];

/// SQL with the name that errors give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    /// `neutralize.sql of the module payment`, `neutralize.sql of the project`.
    pub(super) name: String,
    pub(super) text: String,
}

impl Script {
    /// Its author knew the parameter.
    pub(super) fn names_parameter(&self, key: &str) -> bool {
        ['\'', '"'].iter().any(|quote| self.text.contains(&format!("{quote}{key}{quote}")))
    }
}

/// The installed modules, found in the release, and their scripts.
#[derive(Debug, Default)]
pub(super) struct ModuleScripts {
    /// Every installed module, and whether it has a script.
    pub(super) modules: BTreeMap<String, bool>,
    pub(super) scripts: Vec<Script>,
}

/// The project's own, from the root of its repository.
#[derive(Debug, Default)]
pub(super) struct ProjectScripts {
    pub(super) sql: Option<Script>,
    /// Where the hook is, with its text.
    pub(super) hook: Option<(PathBuf, String)>,
    pub(super) settings: Option<String>,
}

impl LocalHost {
    /// Finds the scripts of all installed modules in the order in which Odoo looks. Odoo itself skips a module that is not there; here it is
    /// refused, since what it would have switched off stays on. Those that are only rows in the database have none.
    pub(super) fn module_scripts(
        &self,
        modules: &[InstalledModule],
        record: &ReleaseRecord,
        distribution: &InstalledDistribution,
    ) -> Result<ModuleScripts> {
        let mut path = distribution.own_addons();
        path.extend(self.addons_path(record, distribution)?);
        path.extend(packaged::addons(record)?);
        let mut found = ModuleScripts::default();
        let mut missing = Vec::new();
        for module in modules.iter().filter(|module| INSTALLED.contains(&module.state.as_str()) && !module.imported) {
            let Some(directory) = path.iter().map(|addons| addons.join(&module.name)).find(|directory| is_module(directory)) else {
                missing.push(module.name.as_str());
                continue;
            };
            let script = read_inside(&directory, "data/neutralize.sql")?;
            found.modules.insert(module.name.clone(), script.is_some());
            let name = format!("neutralize.sql of the module {}", module.name);
            found.scripts.extend(script.map(|text| Script { name, text }));
        }
        if missing.is_empty() {
            return Ok(found);
        }
        Err(HostError::rejected(format!(
            "{} installed in the copied database but not in this release, so nobody can say how to make {} harmless: {}; add {} to the branch (uninstalling {} at the source would delete what {} there)",
            if missing.len() == 1 { "a module is" } else { "modules are" },
            if missing.len() == 1 { "it" } else { "them" },
            missing.join(", "),
            if missing.len() == 1 { "it" } else { "them" },
            if missing.len() == 1 { "it" } else { "them" },
            if missing.len() == 1 { "it has" } else { "they have" },
        )))
    }

    pub(super) fn project_scripts(&self, release: &ReleaseId) -> Result<ProjectScripts> {
        let tree = self.release_tree(release)?;
        let sql = read_inside(&tree, "neutralize.sql")?;
        Ok(ProjectScripts {
            sql: sql.map(|text| Script { name: "neutralize.sql of the project".to_owned(), text }),
            hook: read_inside(&tree, "neutralize.py")?.map(|text| (tree.join("neutralize.py"), text)),
            settings: read_inside(&tree, "ocore.toml")?,
        })
    }
}

fn is_module(directory: &Path) -> bool {
    ["__manifest__.py", "__openerp__.py"].iter().any(|manifest| directory.join(manifest).is_file())
}
