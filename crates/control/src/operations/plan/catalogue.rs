//! What modules there are, and what of them is wanted: of the commit, of Odoo, and of the database.

use std::collections::{BTreeMap, BTreeSet};

use ocore_host::SourceModule;
use ocore_model::{deployment::DataMode, module_version, names::ModuleName, project::ModuleSelection};

use super::Situation;

#[derive(Debug, Clone)]
pub(super) struct Catalogue<'a> {
    situation: Situation<'a>,
    pub(super) source: BTreeMap<&'a str, Vec<&'a SourceModule>>,
    standard: BTreeSet<&'a str>,
}

impl<'a> Catalogue<'a> {
    pub(super) fn new(situation: &Situation<'a>) -> Self {
        let mut source: BTreeMap<&str, Vec<&SourceModule>> = BTreeMap::new();
        for module in &situation.source.modules {
            source.entry(module.name.as_str()).or_default().push(module);
        }
        let standard = situation.distribution.modules.iter().map(ModuleName::as_str).collect();
        Self { situation: *situation, source, standard }
    }

    pub(super) fn odoo(&self) -> String {
        format!("Odoo {}", self.situation.distribution.odoo_version)
    }

    /// The names that the project wants installed, sorted.
    pub(super) fn wanted(&self) -> Result<BTreeSet<&'a str>, String> {
        let source = &self.situation.source.modules;
        match self.situation.selection {
            ModuleSelection::List { modules } => {
                let mut wanted = BTreeSet::new();
                for name in modules {
                    self.check_known(name.as_str(), "the project's list of modules names")?;
                    wanted.insert(name.as_str());
                }
                if wanted.is_empty() {
                    return Err(
                        "the project's list of modules is empty; name at least one module, or choose the repository's own".to_owned()
                    );
                }
                Ok(wanted)
            }
            ModuleSelection::Own | ModuleSelection::All => {
                if source.is_empty() {
                    return Err(
                        "the commit holds no Odoo module; add one (a directory with a __manifest__.py), or list modules in the project's settings"
                            .to_owned(),
                    );
                }
                let all = matches!(self.situation.selection, ModuleSelection::All);
                let wanted: BTreeSet<&str> = source
                    .iter()
                    .filter(|module| module.installable && (all || !module.in_submodule))
                    .map(|module| module.name.as_str())
                    .collect();
                if wanted.is_empty() && all {
                    return Err("every module of the commit is marked as not installable in its manifest".to_owned());
                }
                if wanted.is_empty() {
                    return Err("the repository has no installable module of its own, only its submodules have; \
                                choose all modules, or list them, in the project's settings"
                        .to_owned());
                }
                Ok(wanted)
            }
        }
    }

    /// That a name is a module that Odoo can install.
    pub(super) fn check_known(&self, name: &str, who: &str) -> Result<(), String> {
        match self.source.get(name).map(Vec::as_slice) {
            Some([one]) if one.installable => module_version::check(&one.version, &self.situation.distribution.odoo_version)
                .map_err(|reason| format!("Odoo does not take the module `{name}`: its version is {reason}")),
            Some([_]) => Err(format!("{who} `{name}`, which its manifest marks as not installable")),
            Some(several) => {
                let paths: Vec<&str> = several.iter().map(|module| module.path.as_str()).collect();
                Err(format!("{who} `{name}`, which the commit holds more than once ({}); keep one of them", paths.join(", ")))
            }
            // Packages may bring modules; the build says whether they do.
            None if self.standard.contains(name) || self.has_packages() => Ok(()),
            None => Err(format!("{who} `{name}`, which is neither in the repository nor part of {}", self.odoo())),
        }
    }

    /// The project asks for Python packages, so that a module may come with one of them.
    pub(super) fn has_packages(&self) -> bool {
        !self.situation.source.requirements.is_empty()
    }

    fn is_in_source(&self, name: &str) -> bool {
        self.source.get(name).is_some_and(|modules| modules.iter().any(|module| module.installable))
    }

    /// Installed modules that neither the commit nor Odoo has: Odoo would start without them and say so only in its log.
    pub(super) fn gone(&self, installed: &BTreeSet<&'a str>) -> Vec<&'a str> {
        installed.iter().copied().filter(|name| !self.is_in_source(name) && !self.standard.contains(name)).collect()
    }

    /// Why a deployment without such a module is refused. What would delete its data is not advised.
    pub(super) fn says_gone(&self, name: &str) -> String {
        let what = if self.source.contains_key(name) {
            format!(
                "the module `{name}` is installed in the database, but its manifest in the repository marks it as not installable; mark it as installable again"
            )
        } else {
            format!("the module `{name}` is installed in the database but no longer in the repository; put it back")
        };
        format!(
            "{what}, or, if it has another name now, add `{name} = \"its new name\"` to [modules.renamed] of ocore.toml. If nobody needs it and its data any \
             more, deploy it once more and uninstall it in Odoo, which deletes its data: take a snapshot before"
        )
    }

    /// Installed modules that the project says to have another name now, the earlier name first. Both names in `installed` become the later one.
    pub(super) fn take_renames(&self, installed: &mut BTreeSet<&'a str>) -> Result<Vec<(&'a str, &'a str)>, String> {
        let mut taken = Vec::new();
        for (from, to) in &self.situation.source.renamed {
            let (from, to) = (from.as_str(), to.as_str());
            if !installed.contains(from) {
                continue;
            }
            if self.is_in_source(from) || self.standard.contains(from) {
                return Err(format!(
                    "ocore.toml renames the module `{from}` to `{to}`, but `{from}` is still there; remove it, or the line in [modules.renamed]"
                ));
            }
            if !self.is_in_source(to) {
                return Err(format!(
                    "ocore.toml renames the module `{from}` to `{to}`, which is not in the repository, or not installable"
                ));
            }
            installed.remove(from);
            installed.insert(to);
            taken.push((from, to));
        }
        Ok(taken)
    }

    /// Modules that an earlier deployment has installed, that what is live has, and that are not in the database any more: somebody has uninstalled them.
    pub(super) fn uninstalled_by_hand(&self, wanted: &BTreeSet<&'a str>, installed: &BTreeSet<&'a str>) -> Vec<&'a str> {
        let Some(live) = self.situation.live.filter(|_| self.situation.data == DataMode::Keep) else { return Vec::new() };
        let was_there = |name: &str| self.situation.once.contains(name) && live.modules.keys().any(|module| module.as_str() == name);
        wanted.iter().copied().filter(|name| !installed.contains(name) && was_there(name)).collect()
    }

    /// Modules that Odoo installs by itself once others are there (`auto_install`), and that wait for these, by name.
    pub(super) fn waiting(&self, wanted: &BTreeSet<&'a str>, installed: &BTreeSet<&'a str>) -> BTreeMap<&'a str, Vec<&'a str>> {
        if matches!(self.situation.selection, ModuleSelection::List { .. }) {
            return BTreeMap::new();
        }
        let triggers = |name: &str| -> Option<Vec<&'a str>> {
            let module = *self.source.get(name)?.first()?;
            module.auto_install.then(|| module.triggers.as_ref().unwrap_or(&module.depends).iter().map(String::as_str).collect())
        };
        let mut waiting: BTreeMap<&str, Vec<&str>> =
            wanted.iter().filter(|name| !installed.contains(*name)).filter_map(|name| Some((*name, triggers(name)?))).collect();
        let mut present: BTreeSet<&str> = ["base", "web"].into_iter().chain(installed.iter().copied()).collect();
        self.add_with_needs(wanted.iter().copied().filter(|name| !waiting.contains_key(name)), &mut present);
        loop {
            let ready: Vec<&str> =
                waiting.iter().filter(|(_, needed)| needed.iter().all(|name| present.contains(name))).map(|(name, _)| *name).collect();
            if ready.is_empty() {
                break;
            }
            waiting.retain(|name, _| !ready.contains(name));
            self.add_with_needs(ready.into_iter(), &mut present);
        }
        for needed in waiting.values_mut() {
            needed.retain(|name| !present.contains(name));
        }
        waiting
    }

    fn add_with_needs(&self, names: impl Iterator<Item = &'a str>, found: &mut BTreeSet<&'a str>) {
        let mut open: Vec<&str> = names.collect();
        while let Some(name) = open.pop() {
            if found.insert(name) {
                open.extend(self.source.get(name).into_iter().flatten().flat_map(|module| &module.depends).map(String::as_str));
            }
        }
    }

    /// These and what they depend on, as far as the commit says it.
    pub(super) fn with_needs(&self, names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        self.add_with_needs(names, &mut found);
        found
    }

    /// Neither the commit nor Odoo has it.
    pub(super) fn is_elsewhere(&self, name: &str) -> bool {
        !self.source.contains_key(name) && !self.standard.contains(name)
    }

    /// That everything that the modules need, directly or not, is there, and that no module needs itself.
    pub(super) fn check_dependencies(&self, modules: impl Iterator<Item = &'a str>) -> Result<(), String> {
        let mut done = BTreeSet::new();
        for module in modules {
            self.visit(module, &mut Vec::new(), &mut done)?;
        }
        Ok(())
    }

    fn visit(&self, name: &'a str, path: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> Result<(), String> {
        if let Some(start) = path.iter().position(|earlier| *earlier == name) {
            let circle: Vec<&str> = path[start..].iter().copied().chain([name]).collect();
            return Err(format!("the modules depend on each other in a circle: {}", circle.join(" → ")));
        }
        if !done.insert(name) {
            return Ok(());
        }
        let Some(modules) = self.source.get(name) else { return Ok(()) };
        self.check_known(name, "the commit's modules need")?;
        done.remove(name);
        path.push(name);
        for module in modules {
            for dependency in &module.depends {
                self.check_known(dependency, &format!("the module `{name}` depends on"))?;
                self.visit(dependency, path, done)?;
            }
        }
        path.pop();
        done.insert(name);
        Ok(())
    }

    /// The installed modules whose files differ from those of the live release.
    pub(super) fn changed(&self, installed: &BTreeSet<&str>) -> Vec<&'a str> {
        let live = self.situation.live.map(|release| &release.modules);
        self.source
            .iter()
            .filter(|(name, _)| installed.contains(*name))
            .filter(|(name, modules)| {
                let before =
                    live.and_then(|modules| modules.iter().find(|(module, _)| module.as_str() == **name)).map(|(_, digest)| digest);
                before != modules.first().map(|module| &module.digest)
            })
            .map(|(name, _)| *name)
            .collect()
    }
}
