//! Which modules a deployment installs and updates: a pure decision from what the commit holds, what is live and what the database has.

use std::collections::{BTreeMap, BTreeSet};

use ocore_host::{Distribution, InstalledModule, Release, SourceModule};
use ocore_model::{
    deployment::{DataMode, ModulePlan},
    names::ModuleName,
    project::ModuleSelection,
};

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    pub(super) data: DataMode,
    pub(super) selection: &'a ModuleSelection,
    /// The modules of the commit.
    pub(super) source: &'a [SourceModule],
    pub(super) distribution: &'a Distribution,
    /// What is live. `None` when nothing is, or when it is not known any more; then everything counts as changed.
    pub(super) live: Option<&'a Release>,
    /// The modules of the live database; empty for a fresh one.
    pub(super) installed: &'a [InstalledModule],
}

/// The plan, or one sentence that says what to change.
pub(super) fn decide(situation: Situation<'_>) -> Result<ModulePlan, String> {
    let catalogue = Catalogue::new(&situation);
    let wanted = catalogue.wanted()?;
    let installed: BTreeSet<&str> = match situation.data {
        DataMode::Fresh => BTreeSet::new(),
        DataMode::Keep => {
            situation.installed.iter().filter(|module| counts_as_installed(&module.state)).map(|module| &*module.name).collect()
        }
    };
    catalogue.check_still_there(&installed)?;
    let of_the_source = installed.iter().copied().filter(|name| catalogue.source.contains_key(name));
    catalogue.check_dependencies(wanted.iter().copied().chain(of_the_source))?;

    let install: Vec<String> = wanted.iter().filter(|name| !installed.contains(*name)).map(|name| (*name).to_owned()).collect();
    let mut reasons = Vec::new();
    let update = match situation.data {
        DataMode::Fresh => {
            reasons.push("a fresh database".to_owned());
            Vec::new()
        }
        DataMode::Keep => catalogue.changed(&installed, &mut reasons),
    };
    if !install.is_empty() {
        reasons.push(format!("{} to install: {}", count(install.len()), install.join(", ")));
    }
    if install.is_empty() && update.is_empty() {
        reasons.push("no installed module has changed".to_owned());
    }
    Ok(ModulePlan { data: situation.data, install, update, reasons })
}

/// Odoo's states of a module that is in the database's registry.
fn counts_as_installed(state: &str) -> bool {
    matches!(state, "installed" | "to upgrade" | "to remove")
}

fn count(modules: usize) -> String {
    if modules == 1 { "1 module".to_owned() } else { format!("{modules} modules") }
}

struct Catalogue<'a> {
    situation: Situation<'a>,
    source: BTreeMap<&'a str, Vec<&'a SourceModule>>,
    standard: BTreeSet<&'a str>,
}

impl<'a> Catalogue<'a> {
    fn new(situation: &Situation<'a>) -> Self {
        let mut source: BTreeMap<&str, Vec<&SourceModule>> = BTreeMap::new();
        for module in situation.source {
            source.entry(module.name.as_str()).or_default().push(module);
        }
        let standard = situation.distribution.modules.iter().map(ModuleName::as_str).collect();
        Self { situation: *situation, source, standard }
    }

    fn odoo(&self) -> String {
        format!("Odoo {}", self.situation.distribution.odoo_version)
    }

    /// The names that the project wants installed, sorted.
    fn wanted(&self) -> Result<BTreeSet<&'a str>, String> {
        let source = self.situation.source;
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
    fn check_known(&self, name: &str, who: &str) -> Result<(), String> {
        match self.source.get(name).map(Vec::as_slice) {
            Some([one]) if one.installable => Ok(()),
            Some([_]) => Err(format!("{who} `{name}`, which its manifest marks as not installable")),
            Some(several) => {
                let paths: Vec<&str> = several.iter().map(|module| module.path.as_str()).collect();
                Err(format!("{who} `{name}`, which the commit holds more than once ({}); keep one of them", paths.join(", ")))
            }
            None if self.standard.contains(name) => Ok(()),
            None => Err(format!("{who} `{name}`, which is neither in the repository nor part of {}", self.odoo())),
        }
    }

    /// That no installed module has left the repository: Odoo would start without it and say so only in its log.
    fn check_still_there(&self, installed: &BTreeSet<&str>) -> Result<(), String> {
        for name in installed {
            if self.source.contains_key(name) || self.standard.contains(name) {
                continue;
            }
            return Err(format!(
                "the module `{name}` is installed in the database but no longer in the repository; uninstall it in Odoo first, or put it back"
            ));
        }
        Ok(())
    }

    /// That everything that the modules need, directly or not, is there, and that no module needs itself.
    fn check_dependencies(&self, modules: impl Iterator<Item = &'a str>) -> Result<(), String> {
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
    fn changed(&self, installed: &BTreeSet<&str>, reasons: &mut Vec<String>) -> Vec<String> {
        let distribution = self.situation.distribution;
        if let Some(live) = self.situation.live.filter(|live| live.distribution_id != distribution.id) {
            reasons.push(format!("Odoo itself changed ({} to {}): everything is updated", live.distribution_id, distribution.id));
            return vec!["base".to_owned()];
        }
        let live = self.situation.live.map(|release| &release.modules);
        let changed: Vec<String> = self
            .source
            .iter()
            .filter(|(name, _)| installed.contains(*name))
            .filter(|(name, modules)| {
                let before =
                    live.and_then(|modules| modules.iter().find(|(module, _)| module.as_str() == **name)).map(|(_, digest)| digest);
                before != modules.first().map(|module| &module.digest)
            })
            .map(|(name, _)| (*name).to_owned())
            .collect();
        if !changed.is_empty() {
            let why = if live.is_some() { "changed" } else { "to update, since what is live is not known" };
            reasons.push(format!("{} {why}: {}", count(changed.len()), changed.join(", ")));
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use ocore_host::{ReleaseId, SourceId};

    use super::*;

    fn module(name: &str, depends: &[&str], digest: &str) -> SourceModule {
        SourceModule {
            name: name.parse().unwrap(),
            path: name.to_owned(),
            in_submodule: false,
            installable: true,
            auto_install: false,
            version: "19.0.1.0.0".to_owned(),
            depends: depends.iter().map(|name| (*name).to_owned()).collect(),
            digest: digest.to_owned(),
        }
    }

    fn distribution(id: &str) -> Distribution {
        Distribution {
            odoo_version: "19.0".parse().unwrap(),
            id: id.to_owned(),
            modules: ["base", "web", "sale"].iter().map(|name| name.parse().unwrap()).collect(),
        }
    }

    fn live(distribution: &str, modules: &[(&str, &str)]) -> Release {
        Release {
            id: ReleaseId("r".repeat(64)),
            source: SourceId("s".repeat(64)),
            odoo_version: "19.0".parse().unwrap(),
            distribution_id: distribution.to_owned(),
            modules: modules.iter().map(|(name, digest)| (name.parse().unwrap(), (*digest).to_owned())).collect(),
        }
    }

    fn installed(names: &[&str]) -> Vec<InstalledModule> {
        names.iter().map(|name| InstalledModule { name: (*name).to_owned(), state: "installed".to_owned(), version: None }).collect()
    }

    fn list(names: &[&str]) -> ModuleSelection {
        ModuleSelection::List { modules: names.iter().map(|name| name.parse().unwrap()).collect() }
    }

    fn fresh(selection: &ModuleSelection, source: &[SourceModule]) -> Result<ModulePlan, String> {
        let distribution = distribution("19.0-1");
        decide(Situation { data: DataMode::Fresh, selection, source, distribution: &distribution, live: None, installed: &[] })
    }

    fn keep(source: &[SourceModule], live: Option<&Release>, names: &[&str]) -> Result<ModulePlan, String> {
        let (distribution, installed) = (distribution("19.0-1"), installed(names));
        let selection = &ModuleSelection::Own;
        decide(Situation { data: DataMode::Keep, selection, source, distribution: &distribution, live, installed: &installed })
    }

    #[test]
    fn a_fresh_database_gets_the_repositorys_own_modules_without_those_of_submodules() {
        let mut theirs = module("theirs", &["base"], "1");
        theirs.in_submodule = true;
        let mut draft = module("draft", &["base"], "1");
        draft.installable = false;
        let source = [module("b", &["theirs"], "1"), module("a", &["sale"], "1"), theirs, draft];
        assert_eq!(fresh(&ModuleSelection::Own, &source).unwrap().install, ["a", "b"]);
        assert_eq!(fresh(&ModuleSelection::All, &source).unwrap().install, ["a", "b", "theirs"]);
        assert_eq!(fresh(&list(&["sale", "b"]), &source).unwrap().install, ["b", "sale"]);
    }

    #[test]
    fn what_cannot_work_is_said_in_one_sentence() {
        let cases = [
            (fresh(&ModuleSelection::Own, &[]), "no Odoo module"),
            (fresh(&list(&["nope"]), &[module("a", &[], "1")]), "neither in the repository nor part of Odoo 19.0"),
            (fresh(&list(&[]), &[module("a", &[], "1")]), "list of modules is empty"),
            (fresh(&ModuleSelection::Own, &[module("a", &["gone"], "1")]), "`a` depends on `gone`"),
            (fresh(&ModuleSelection::Own, &[module("a", &["b"], "1"), module("b", &["a"], "1")]), "a → b → a"),
            (fresh(&ModuleSelection::Own, &[module("a", &["a"], "1")]), "a → a"),
            (fresh(&ModuleSelection::Own, &[module("a", &[], "1"), module("a", &[], "2")]), "more than once"),
        ];
        for (result, part) in cases {
            let sentence = result.unwrap_err();
            assert!(sentence.contains(part), "{sentence}");
        }
        let mut draft = module("draft", &[], "1");
        draft.installable = false;
        let sentence = fresh(&ModuleSelection::Own, &[module("a", &["draft"], "1"), draft.clone()]).unwrap_err();
        assert!(sentence.contains("not installable"), "{sentence}");
        let sentence = fresh(&ModuleSelection::All, &[draft]).unwrap_err();
        assert!(sentence.contains("every module"), "{sentence}");
    }

    #[test]
    fn a_dependency_that_two_modules_share_is_no_circle() {
        let source = [module("a", &["c"], "1"), module("b", &["a", "c"], "1"), module("c", &["base"], "1")];
        assert_eq!(fresh(&ModuleSelection::Own, &source).unwrap().install, ["a", "b", "c"]);
    }

    #[test]
    fn kept_data_updates_what_changed_and_installs_what_is_new() {
        let source = [module("a", &["base"], "2"), module("b", &["base"], "1"), module("c", &["base"], "1")];
        let live = live("19.0-1", &[("a", "1"), ("b", "1")]);
        let plan = keep(&source, Some(&live), &["base", "a", "b"]).unwrap();
        assert_eq!((plan.install, plan.update), (vec!["c".to_owned()], vec!["a".to_owned()]));
    }

    #[test]
    fn nothing_changed_means_no_run_of_modules() {
        let live = live("19.0-1", &[("a", "1")]);
        let plan = keep(&[module("a", &["base"], "1")], Some(&live), &["base", "a"]).unwrap();
        assert!(plan.install.is_empty() && plan.update.is_empty());
        assert_eq!(plan.reasons, ["no installed module has changed"]);
    }

    #[test]
    fn another_odoo_updates_everything() {
        let live = live("19.0-0", &[("a", "1")]);
        let plan = keep(&[module("a", &["base"], "1")], Some(&live), &["base", "a"]).unwrap();
        assert_eq!(plan.update, ["base"]);
    }

    #[test]
    fn an_unknown_live_release_updates_every_installed_module_of_the_repository() {
        let plan = keep(&[module("a", &["base"], "1"), module("b", &["base"], "1")], None, &["base", "a"]).unwrap();
        assert_eq!((plan.update, plan.install), (vec!["a".to_owned()], vec!["b".to_owned()]));
    }

    #[test]
    fn an_installed_module_may_not_leave_the_repository() {
        let live = live("19.0-1", &[("a", "1"), ("gone", "1")]);
        let sentence = keep(&[module("a", &["base"], "1")], Some(&live), &["base", "a", "gone"]).unwrap_err();
        assert!(sentence.contains("`gone` is installed in the database but no longer in the repository"), "{sentence}");
    }
}
