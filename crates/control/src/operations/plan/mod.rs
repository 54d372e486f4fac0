//! Which modules a deployment installs and updates, and how: a pure decision from what the commit holds, what is live and what the database has.
//!
//! First [`draft`] finds out what is asked for at all and which modules differ from what is live; then, with their contents described,
//! [`Draft::decide`] says what of that needs Odoo's `-u`.

mod catalogue;

use std::collections::{BTreeMap, BTreeSet};

use ocore_host::{Distribution, HostError, InstalledModule, Progress, Release, Source};
use ocore_model::{
    deployment::{DataMode, ModulePlan},
    names::ModuleName,
    plan::{self, Change, Correction, Database, ModuleDescription, Way},
    project::ModuleSelection,
};

use self::catalogue::Catalogue;
use super::saga::Failure;
use crate::Control;

/// Of a module with very many changes only so many are kept; the weightiest come first.
const CHANGES_KEPT: usize = 100;

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) data: DataMode,
    pub(crate) selection: &'a ModuleSelection,
    /// The commit.
    pub(crate) source: &'a Source,
    pub(crate) distribution: &'a Distribution,
    /// What is live. `None` when nothing is, or when it is not known any more; then everything counts as changed.
    pub(crate) live: Option<&'a Release>,
    /// The modules of the live database; empty for a fresh one.
    pub(crate) installed: &'a [InstalledModule],
    /// Odoo's codes of its active languages; `None` when they are not known.
    pub(crate) languages: Option<&'a [String]>,
    /// What earlier deployments have installed in it.
    pub(crate) once: &'a BTreeSet<String>,
}

/// The plan, and what the update needs besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) plan: ModulePlan,
    pub(crate) corrections: Vec<Correction>,
}

/// What modules declare, by name.
pub(crate) type Descriptions = BTreeMap<ModuleName, ModuleDescription>;

/// What is asked for, before it is known what it needs.
#[derive(Debug, Clone)]
pub(crate) struct Draft<'a> {
    situation: Situation<'a>,
    catalogue: Catalogue<'a>,
    /// Under the names that they have in the commit.
    installed: BTreeSet<&'a str>,
    install: Vec<ModuleName>,
    /// Installed ones whose files differ from those of the live release.
    changed: Vec<ModuleName>,
    /// The earlier name first.
    renames: Vec<(&'a str, &'a str)>,
    /// Installed ones that neither the commit nor Odoo has.
    gone: Vec<&'a str>,
    /// Wanted ones that are not installed, and why.
    left: Vec<String>,
}

/// What is asked for, or one sentence that says what to change.
pub(crate) fn draft(situation: Situation<'_>) -> Result<Draft<'_>, String> {
    let catalogue = Catalogue::new(&situation);
    let mut wanted = catalogue.wanted()?;
    let mut installed: BTreeSet<&str> = match situation.data {
        DataMode::Fresh => BTreeSet::new(),
        // What is nothing but rows in the database is no matter of any commit.
        DataMode::Keep => {
            let counts = |module: &&InstalledModule| counts_as_installed(&module.state) && !module.imported;
            situation.installed.iter().filter(counts).map(|module| &*module.name).collect()
        }
    };
    let renames = catalogue.take_renames(&mut installed)?;
    let gone = catalogue.gone(&installed);
    let mut left = Vec::new();
    for name in catalogue.uninstalled_by_hand(&wanted, &installed) {
        wanted.remove(name);
        left.push(format!("{name} stays uninstalled, since somebody has uninstalled it in Odoo; to have it back, install it there"));
    }
    for (name, needed) in catalogue.waiting(&wanted, &installed) {
        wanted.remove(name);
        left.push(format!("{name} waits: Odoo installs it by itself (auto_install) as soon as {} is installed", needed.join(" and ")));
    }
    let of_the_source = installed.iter().copied().filter(|name| catalogue.source.contains_key(name) && !gone.contains(name));
    catalogue.check_dependencies(wanted.iter().copied().chain(of_the_source))?;
    for name in &situation.source.odoo.server_wide_modules {
        catalogue.check_known(name.as_str(), "server_wide_modules in [odoo] of ocore.toml names")?;
    }
    let named = |name: &str| name.parse::<ModuleName>().ok();
    let install = wanted.iter().filter(|name| !installed.contains(*name)).filter_map(|name| named(name)).collect();
    let changed = match situation.data {
        DataMode::Fresh => Vec::new(),
        DataMode::Keep => catalogue.changed(&installed).into_iter().filter_map(named).collect(),
    };
    let changed: Vec<ModuleName> = changed;
    let is_renamed = |name: &ModuleName| renames.iter().any(|(_, to)| *to == name.as_str()) || gone.contains(&name.as_str());
    let changed = changed.into_iter().filter(|name| !is_renamed(name)).collect();
    Ok(Draft { situation, catalogue, installed, install, changed, renames, gone, left })
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

    /// The plan, or one sentence that says what to change. `new` and `old` are what [`to_describe`](Self::to_describe) asked for; what is missing counts
    /// as the worst.
    pub(crate) fn decide(self, new: &Descriptions, old: &Descriptions) -> Result<Decision, String> {
        let mut reasons = Vec::new();
        let mut packaged = BTreeSet::new();
        for name in &self.gone {
            let takes_over = |module: &&ModuleName| new.get(*module).is_some_and(|new| new.hook_words.iter().any(|word| word == name));
            if let Some(by) = self.install.iter().find(takes_over) {
                reasons.push(format!(
                    "{name} is not in the repository any more: the pre_init_hook of {by} names it and is to take over what it has"
                ));
            } else if self.catalogue.has_packages() {
                packaged.insert((*name).to_owned());
            } else {
                return Err(self.catalogue.says_gone(name));
            }
        }
        packaged.extend(self.needed_elsewhere());
        let mut changes = Vec::new();
        let mut corrections = Vec::new();
        let mut way = Way::Nothing;
        let mut update: Vec<String> = self.renames.iter().map(|(_, to)| (*to).to_owned()).collect();
        for (from, to) in &self.renames {
            way = Way::UpdateAndHoldWrites;
            let text = format!("it takes over what {from} has in the database, as ocore.toml says");
            changes.push(Change { way, module: (*to).to_owned(), file: None, line: None, text });
        }
        if self.situation.data == DataMode::Fresh {
            reasons.push("a fresh database".to_owned());
            way = Way::Update;
        } else if let Some(live) = self.other_odoo() {
            let odoo = &self.situation.distribution.id;
            reasons.push(format!("Odoo itself changed ({live} to {odoo}): everything is updated"));
            update = vec!["base".to_owned()];
            way = Way::UpdateAndHoldWrites;
        } else {
            for name in &self.changed {
                let found = self.compared(name, new.get(name), old.get(name));
                let worst = found.iter().map(|change| change.way).max().unwrap_or(Way::Nothing);
                if worst.updates() {
                    update.push(name.to_string());
                    if let (Some(new), Some(old)) = (new.get(name), old.get(name)) {
                        corrections.extend(plan::corrections(old, new, &self.database(name)));
                    }
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
        update.sort_unstable();
        update.dedup();
        let dependants = self.dependants(&update);
        self.say(&update, &dependants, &mut reasons);
        let install = self.install.iter().map(ToString::to_string).collect();
        let renames = self.renames.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        let packaged = packaged.into_iter().collect();
        let plan = ModulePlan { data: self.situation.data, install, update, renames, packaged, dependants, way, reasons, changes };
        Ok(Decision { plan, corrections })
    }

    /// What the modules of the commit that are, or will be, installed need and what neither the commit nor Odoo has.
    fn needed_elsewhere(&self) -> Vec<String> {
        let roots = self.install.iter().map(ModuleName::as_str).chain(self.installed.iter().copied());
        let roots: Vec<&str> = roots.filter(|name| !self.gone.contains(name)).collect();
        let server_wide = self.situation.source.odoo.server_wide_modules.iter().map(ModuleName::as_str);
        let needed = self.catalogue.with_needs(roots.into_iter().chain(server_wide));
        needed.into_iter().filter(|name| self.catalogue.is_elsewhere(name)).map(str::to_owned).collect()
    }

    fn database(&self, name: &ModuleName) -> Database {
        let found = self.situation.installed.iter().find(|module| module.name == name.as_str());
        Database { languages: self.situation.languages.map(<[String]>::to_vec), has_demo: found.is_none_or(|module| module.demo) }
    }

    fn installed_of_source(&self) -> Vec<ModuleName> {
        let of_source = self.installed.iter().filter(|name| self.catalogue.source.contains_key(*name));
        of_source.filter_map(|name| name.parse().ok()).collect()
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
                let found = plan::compare(name.as_str(), old, new, &self.database(name));
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
                let brought = self.brought(name);
                if !brought.is_empty() {
                    let text = format!(
                        "it brings {} with it, and what {} need",
                        modules(&brought),
                        if brought.len() == 1 { "that may" } else { "these" }
                    );
                    found.push(say(Way::UpdateAndHoldWrites, &text));
                }
                if found.is_empty() {
                    found.push(say(Way::Update, "it is to be installed, and leaves what is there as it is"));
                }
                found
            }
        }
    }

    /// Modules that are not the commit's and that Odoo installs with this one.
    fn brought<'n>(&'n self, name: &'n ModuleName) -> Vec<&'n str> {
        let needed = self.catalogue.with_needs(std::iter::once(name.as_str()));
        needed.into_iter().filter(|needed| !self.installed.contains(needed) && !self.catalogue.source.contains_key(needed)).collect()
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
        reasons.extend(self.left.iter().cloned());
        reasons.extend(self.situation.source.notes.iter().cloned());
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
pub(crate) async fn make(control: &Control, situation: Situation<'_>, progress: Progress) -> Result<Decision, Failure> {
    let draft = draft(situation).map_err(Failure::rejected)?;
    let (new, old) = draft.to_describe();
    let (host, source) = (&control.host, situation.source);
    let of_the_commit = host.describe_modules(&source.id, &new, progress.clone());
    let of_the_live = async {
        let Some(live) = situation.live.filter(|_| !old.is_empty()) else { return Ok(Descriptions::new()) };
        match host.describe_modules(&live.source, &old, progress.clone()).await {
            // It was pruned, or damaged: then what was before is not known.
            Err(HostError::NotFound { .. }) => Ok(Descriptions::new()),
            described => described,
        }
    };
    let (new, old) = tokio::try_join!(of_the_commit, of_the_live)?;
    let (installed, updates) = (draft.installed_of_source(), draft.other_odoo().is_none());
    let mut decision = draft.decide(&new, &old).map_err(Failure::rejected)?;
    if let Some(live) = situation.live
        && let Some(before) = host.find_source(&live.source).await?
        && !before.requirements_digest.is_empty()
        && before.requirements_digest != source.requirements_digest
    {
        decision.plan.reasons.push("the Python packages that the project asks for have changed".to_owned());
        decision.plan.way = decision.plan.way.max(Way::Reload);
        if updates {
            let described = host.describe_modules(&source.id, &installed, progress).await?;
            packages_have_changed(&mut decision.plan, &described, situation.installed);
        }
    }
    Ok(decision)
}

/// What is installed from packages, or defined by what they hold, is updated with them.
fn packages_have_changed(plan: &mut ModulePlan, described: &Descriptions, installed: &[InstalledModule]) {
    let mut update = |name: &str, text: String| {
        if !plan.update.iter().any(|module| module == name) {
            plan.update.push(name.to_owned());
        }
        plan.dependants.retain(|module| module != name);
        plan.way = Way::UpdateAndHoldWrites;
        plan.changes.push(Change { way: Way::UpdateAndHoldWrites, module: name.to_owned(), file: None, line: None, text });
    };
    for name in plan.packaged.clone() {
        if installed.iter().any(|module| module.name == name && counts_as_installed(&module.state)) {
            update(&name, "it comes with the Python packages, which have changed".to_owned());
        }
    }
    for (name, description) in described.iter().filter(|(_, description)| !description.packages.is_empty()) {
        let used = description.packages.join(", ");
        update(name.as_str(), format!("what it defines uses the Python packages {used}, and the packages have changed"));
    }
    plan.update.sort_unstable();
}

/// Odoo's states of a module that is in the database's registry.
fn counts_as_installed(state: &str) -> bool {
    matches!(state, "installed" | "to upgrade" | "to remove")
}

/// `Odoo's module calendar`, `the modules calendar and mail`
fn modules(names: &[&str]) -> String {
    match names {
        [one] => format!("the module {one}"),
        [first @ .., last] => format!("the modules {} and {last}", first.join(", ")),
        [] => "no module".to_owned(),
    }
}

fn count(modules: usize) -> String {
    if modules == 1 { "1 module".to_owned() } else { format!("{modules} modules") }
}

#[cfg(test)]
pub(super) mod tests;
