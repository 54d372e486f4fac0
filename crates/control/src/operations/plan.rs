//! Which modules a deployment installs and updates, and how: a pure decision from what the commit holds, what is live and what the database has.
//!
//! First [`draft`] finds out what is asked for at all and which modules differ from what is live; then, with their contents described,
//! [`Draft::decide`] says what of that needs Odoo's `-u`.

use std::collections::{BTreeMap, BTreeSet};

use ocore_host::{Distribution, HostError, InstalledModule, Progress, Release, Source, SourceModule};
use ocore_model::{
    deployment::{DataMode, ModulePlan},
    names::ModuleName,
    plan::{self, Change, ModuleDescription, Way},
    project::ModuleSelection,
};

use super::saga::Failure;
use crate::Control;

/// Of a module with very many changes only so many are kept; the weightiest come first.
const CHANGES_KEPT: usize = 100;

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) data: DataMode,
    pub(crate) selection: &'a ModuleSelection,
    /// The modules of the commit.
    pub(crate) source: &'a [SourceModule],
    pub(crate) distribution: &'a Distribution,
    /// What is live. `None` when nothing is, or when it is not known any more; then everything counts as changed.
    pub(crate) live: Option<&'a Release>,
    /// The modules of the live database; empty for a fresh one.
    pub(crate) installed: &'a [InstalledModule],
}

/// What modules declare, by name.
pub(crate) type Descriptions = BTreeMap<ModuleName, ModuleDescription>;

/// What is asked for, before it is known what it needs.
#[derive(Debug, Clone)]
pub(crate) struct Draft<'a> {
    situation: Situation<'a>,
    catalogue: Catalogue<'a>,
    installed: BTreeSet<&'a str>,
    install: Vec<ModuleName>,
    /// Installed ones whose files differ from those of the live release.
    changed: Vec<ModuleName>,
}

/// What is asked for, or one sentence that says what to change.
pub(crate) fn draft(situation: Situation<'_>) -> Result<Draft<'_>, String> {
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
    let named = |name: &str| name.parse::<ModuleName>().ok();
    let install = wanted.iter().filter(|name| !installed.contains(*name)).filter_map(|name| named(name)).collect();
    let changed = match situation.data {
        DataMode::Fresh => Vec::new(),
        DataMode::Keep => catalogue.changed(&installed).into_iter().filter_map(named).collect(),
    };
    Ok(Draft { situation, catalogue, installed, install, changed })
}

impl Draft<'_> {
    /// The modules whose contents decide: of the commit, and of what is live. None of them when the data are new, or Odoo itself is.
    pub(crate) fn to_describe(&self) -> (Vec<ModuleName>, Vec<ModuleName>) {
        if self.situation.data == DataMode::Fresh || self.other_odoo().is_some() {
            return (Vec::new(), Vec::new());
        }
        let of_the_source = self.install.iter().filter(|name| self.catalogue.source.contains_key(name.as_str()));
        let old = if self.situation.live.is_some() { self.changed.clone() } else { Vec::new() };
        (self.changed.iter().chain(of_the_source).cloned().collect(), old)
    }

    /// The plan. `new` and `old` are what [`to_describe`](Self::to_describe) asked for; what is missing counts as the worst.
    pub(crate) fn decide(self, new: &Descriptions, old: &Descriptions) -> ModulePlan {
        let mut reasons = Vec::new();
        let mut changes = Vec::new();
        let mut way = Way::Nothing;
        let mut update = Vec::new();
        if self.situation.data == DataMode::Fresh {
            reasons.push("a fresh database".to_owned());
            way = Way::Update;
        } else if let Some(live) = self.other_odoo() {
            let odoo = &self.situation.distribution.id;
            reasons.push(format!("Odoo itself changed ({live} to {odoo}): everything is updated"));
            update.push("base".to_owned());
            way = Way::UpdateAndHoldWrites;
        } else {
            for name in &self.changed {
                let found = self.compared(name, new.get(name), old.get(name));
                let worst = found.iter().map(|change| change.way).max().unwrap_or(Way::Nothing);
                if worst.updates() {
                    update.push(name.to_string());
                }
                way = way.max(worst);
                changes.extend(kept(found));
            }
            for name in &self.install {
                let found = self.installing(name, new.get(name));
                way = way.max(found.iter().map(|change| change.way).max().unwrap_or(Way::Update));
                changes.extend(kept(found));
            }
        }
        let dependants = self.dependants(&update);
        self.say(&update, &dependants, &mut reasons);
        let install = self.install.iter().map(ToString::to_string).collect();
        ModulePlan { data: self.situation.data, install, update, dependants, way, reasons, changes }
    }

    /// The Odoo that is live, when it is another one.
    fn other_odoo(&self) -> Option<&str> {
        let live = self.situation.live?;
        (live.distribution_id != self.situation.distribution.id).then_some(&*live.distribution_id)
    }

    fn compared(&self, name: &ModuleName, new: Option<&ModuleDescription>, old: Option<&ModuleDescription>) -> Vec<Change> {
        let unknown = |way: Way, text: &str| vec![Change { way, module: name.to_string(), file: None, line: None, text: text.to_owned() }];
        match (old, new) {
            (Some(old), Some(new)) => {
                let found = plan::compare(name.as_str(), old, new);
                if found.is_empty() { unknown(Way::Reload, "its place or the rights of its files have changed") } else { found }
            }
            (None, _) if self.situation.live.is_none() => unknown(Way::UpdateAndHoldWrites, "to update, since what is live is not known"),
            _ => unknown(Way::UpdateAndHoldWrites, "it has changed, and what it was before is not there any more"),
        }
    }

    fn installing(&self, name: &ModuleName, new: Option<&ModuleDescription>) -> Vec<Change> {
        let say = |way: Way, text: &str| Change { way, module: name.to_string(), file: None, line: None, text: text.to_owned() };
        match new {
            None => vec![say(Way::UpdateAndHoldWrites, "it is to be installed, and what it does to what is there is not known")],
            Some(new) => {
                let mut found = plan::appears(name.as_str(), new);
                let others = self.catalogue.source.get(name.as_str()).and_then(|modules| modules.first());
                let missing = others
                    .into_iter()
                    .flat_map(|module| &module.depends)
                    .find(|needed| !self.installed.contains(needed.as_str()) && !self.catalogue.source.contains_key(needed.as_str()));
                if let Some(missing) = missing {
                    found.push(say(Way::UpdateAndHoldWrites, &format!("it brings Odoo's module {missing} with it")));
                }
                if found.is_empty() {
                    found.push(say(Way::Update, "it is to be installed, and leaves what is there as it is"));
                }
                found
            }
        }
    }

    /// The installed modules of the source that depend on these, directly or not. Odoo updates them, too.
    fn dependants(&self, update: &[String]) -> Vec<String> {
        let mut found: BTreeSet<&str> = update.iter().map(String::as_str).collect();
        loop {
            let more: Vec<&str> = self
                .catalogue
                .source
                .iter()
                .filter(|(name, _)| self.installed.contains(*name) && !found.contains(*name))
                .filter(|(_, modules)| modules.iter().flat_map(|module| &module.depends).any(|needed| found.contains(needed.as_str())))
                .map(|(name, _)| *name)
                .collect();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        found.into_iter().filter(|name| !update.iter().any(|updated| updated == name)).map(str::to_owned).collect()
    }

    fn say(&self, update: &[String], dependants: &[String], reasons: &mut Vec<String>) {
        let changed: Vec<&str> = self.changed.iter().map(ModuleName::as_str).collect();
        if self.other_odoo().is_none() {
            let only_code: Vec<&str> = changed.iter().copied().filter(|name| !update.iter().any(|updated| updated == name)).collect();
            if !update.is_empty() {
                reasons.push(format!("{} to update: {}", count(update.len()), update.join(", ")));
            }
            if !only_code.is_empty() {
                reasons.push(format!(
                    "{} whose code or static files have changed, and no data: {}",
                    count(only_code.len()),
                    only_code.join(", ")
                ));
            }
        }
        if !dependants.is_empty() {
            reasons.push(format!("{} that Odoo updates with them: {}", count(dependants.len()), dependants.join(", ")));
        }
        if !self.install.is_empty() {
            let install: Vec<&str> = self.install.iter().map(ModuleName::as_str).collect();
            reasons.push(format!("{} to install: {}", count(install.len()), install.join(", ")));
        }
        if self.install.is_empty() && update.is_empty() && changed.is_empty() {
            reasons.push("no installed module has changed".to_owned());
        }
    }
}

fn kept(mut changes: Vec<Change>) -> Vec<Change> {
    let more = changes.len().saturating_sub(CHANGES_KEPT);
    if more > 0 {
        changes.truncate(CHANGES_KEPT);
        if let Some(last) = changes.last().cloned() {
            changes.push(Change { file: None, line: None, text: format!("{more} more changes that ask for no more than these"), ..last });
        }
    }
    changes
}

/// The plan, with the contents of the modules described by the host. Nothing but reading.
pub(crate) async fn make(control: &Control, situation: Situation<'_>, source: &Source, progress: Progress) -> Result<ModulePlan, Failure> {
    let draft = draft(situation).map_err(Failure::rejected)?;
    let (new, old) = draft.to_describe();
    let host = &control.host;
    let of_the_commit = host.describe_modules(&source.id, &new, progress.clone());
    let of_the_live = async {
        let Some(live) = situation.live.filter(|_| !old.is_empty()) else { return Ok(Descriptions::new()) };
        match host.describe_modules(&live.source, &old, progress).await {
            // It was pruned, or damaged: then what was before is not known.
            Err(HostError::NotFound { .. }) => Ok(Descriptions::new()),
            described => described,
        }
    };
    let (new, old) = tokio::try_join!(of_the_commit, of_the_live)?;
    let mut plan = draft.decide(&new, &old);
    if let Some(live) = situation.live
        && let Some(before) = host.find_source(&live.source).await?
        && !before.requirements_digest.is_empty()
        && before.requirements_digest != source.requirements_digest
    {
        plan.reasons.push("the Python packages that the project asks for have changed".to_owned());
        plan.way = plan.way.max(Way::Reload);
    }
    Ok(plan)
}

/// Odoo's states of a module that is in the database's registry.
fn counts_as_installed(state: &str) -> bool {
    matches!(state, "installed" | "to upgrade" | "to remove")
}

fn count(modules: usize) -> String {
    if modules == 1 { "1 module".to_owned() } else { format!("{modules} modules") }
}

#[derive(Debug, Clone)]
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
    fn changed(&self, installed: &BTreeSet<&str>) -> Vec<&'a str> {
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

#[cfg(test)]
pub(super) mod tests {
    use ocore_host::{ReleaseId, SourceId};

    use super::*;

    pub(crate) fn module(name: &str, depends: &[&str], digest: &str) -> SourceModule {
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
        let situation = Situation { data: DataMode::Fresh, selection, source, distribution: &distribution, live: None, installed: &[] };
        Ok(draft(situation)?.decide(&Descriptions::new(), &Descriptions::new()))
    }

    fn keep(source: &[SourceModule], live: Option<&Release>, names: &[&str]) -> Result<ModulePlan, String> {
        let (distribution, installed) = (distribution("19.0-1"), installed(names));
        let selection = &ModuleSelection::Own;
        let situation = Situation { data: DataMode::Keep, selection, source, distribution: &distribution, live, installed: &installed };
        let draft = draft(situation)?;
        let (new, old) = draft.to_describe();
        // Version 1 has data, version 2 other data, version 3 the data of 2 with other code.
        let described = |names: Vec<ModuleName>, digest: &dyn Fn(&ModuleName) -> String| -> Descriptions {
            names.into_iter().map(|name| (name.clone(), description(&digest(&name)))).collect()
        };
        let now = |name: &ModuleName| source.iter().find(|module| module.name == *name).unwrap().digest.clone();
        let before = |name: &ModuleName| live.unwrap().modules.get(name).cloned().unwrap_or_default();
        let (new, old) = (described(new, &now), described(old, &before));
        Ok(draft.decide(&new, &old))
    }

    /// One constant by the digest's first letter, one function by the rest.
    fn description(digest: &str) -> ModuleDescription {
        let file = serde_json::json!({
            "digest": digest,
            "content": {
                "kind": "python",
                "constants": { "VALUE": { "source": digest.get(..1) } },
                "functions": { "run": { "body": digest.get(1..) } },
            },
        });
        serde_json::from_value(serde_json::json!({ "manifest": {}, "files": { "__init__.py": file } })).unwrap()
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
        assert!(plan.install.is_empty() && plan.update.is_empty() && plan.way == Way::Nothing);
        assert_eq!(plan.reasons, ["no installed module has changed"]);
    }

    #[test]
    fn other_code_on_the_same_data_is_a_reload_and_updates_nothing() {
        let live = live("19.0-1", &[("a", "1x"), ("b", "1")]);
        let plan = keep(&[module("a", &["base"], "1y"), module("b", &["a"], "1")], Some(&live), &["base", "a", "b"]).unwrap();
        assert_eq!((plan.way, plan.update.is_empty(), plan.dependants.is_empty()), (Way::Reload, true, true));
        assert_eq!(plan.changes[0].to_string(), "a/__init__.py: the function `run` has changed");
    }

    #[test]
    fn an_update_names_those_that_odoo_updates_with_it() {
        let live = live("19.0-1", &[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1x"), ("e", "1")]);
        let source = [
            module("a", &["base"], "2"),
            module("b", &["a"], "1"),
            module("c", &["b"], "1"),
            module("d", &["base"], "1y"),
            module("e", &["a"], "1"),
        ];
        let plan = keep(&source, Some(&live), &["base", "a", "b", "c", "d"]).unwrap();
        assert_eq!((plan.way, plan.update, plan.dependants), (Way::Update, vec!["a".to_owned()], vec!["b".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn a_module_to_install_is_an_update_and_one_that_brings_others_holds_writes() {
        let live = live("19.0-1", &[("a", "1")]);
        let plan = keep(&[module("a", &["base"], "1"), module("b", &["base"], "1")], Some(&live), &["base", "a"]).unwrap();
        assert_eq!(plan.way, Way::Update);
        let plan = keep(&[module("a", &["base"], "1"), module("b", &["sale"], "1")], Some(&live), &["base", "a"]).unwrap();
        assert_eq!(plan.way, Way::UpdateAndHoldWrites);
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
        assert_eq!((plan.way, plan.update, plan.install), (Way::UpdateAndHoldWrites, vec!["a".to_owned()], vec!["b".to_owned()]));
    }

    #[test]
    fn an_installed_module_may_not_leave_the_repository() {
        let live = live("19.0-1", &[("a", "1"), ("gone", "1")]);
        let sentence = keep(&[module("a", &["base"], "1")], Some(&live), &["base", "a", "gone"]).unwrap_err();
        assert!(sentence.contains("`gone` is installed in the database but no longer in the repository"), "{sentence}");
    }
}
