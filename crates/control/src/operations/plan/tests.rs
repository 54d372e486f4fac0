use ocore_host::{ReleaseId, SourceId, SourceModule};
use ocore_model::{odoo_options::OdooOptions, project::DeploySettings};

use super::*;

pub(crate) fn module(name: &str, depends: &[&str], digest: &str) -> SourceModule {
    SourceModule {
        name: name.parse().unwrap(),
        path: name.to_owned(),
        in_submodule: false,
        installable: true,
        auto_install: false,
        triggers: None,
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
    names.iter().map(|name| InstalledModule::new(name, "installed")).collect()
}

fn list(names: &[&str]) -> ModuleSelection {
    ModuleSelection::List { modules: names.iter().map(|name| name.parse().unwrap()).collect() }
}

/// A commit of these modules.
fn commit(modules: &[SourceModule]) -> Source {
    Source {
        id: SourceId("n".repeat(64)),
        modules: modules.to_vec(),
        requirements: Vec::new(),
        requirements_digest: String::new(),
        deploy: DeploySettings::default(),
        odoo: OdooOptions::default(),
        renamed: BTreeMap::new(),
        notes: Vec::new(),
        bytes: 0,
    }
}

fn fresh(selection: &ModuleSelection, source: &[SourceModule]) -> Result<ModulePlan, String> {
    let (distribution, source, once) = (distribution("19.0-1"), commit(source), BTreeSet::new());
    let situation = Situation {
        data: DataMode::Fresh,
        selection,
        source: &source,
        distribution: &distribution,
        live: None,
        installed: &[],
        languages: None,
        once: &once,
    };
    Ok(draft(situation)?.decide(&Descriptions::new(), &Descriptions::new())?.plan)
}

/// A push to an environment that has these modules.
struct Push {
    commit: Source,
    live: Option<Release>,
    installed: Vec<InstalledModule>,
    once: BTreeSet<String>,
    /// Of modules that are to be installed.
    hook_words: Vec<String>,
}

impl Push {
    fn new(source: &[SourceModule], live: Option<&Release>, names: &[&str]) -> Self {
        Self { commit: commit(source), live: live.cloned(), installed: installed(names), once: BTreeSet::new(), hook_words: Vec::new() }
    }

    fn plan(&self) -> Result<ModulePlan, String> {
        let distribution = distribution("19.0-1");
        let (selection, live, source) = (&ModuleSelection::Own, self.live.as_ref(), &self.commit.modules);
        let situation = Situation {
            data: DataMode::Keep,
            selection,
            source: &self.commit,
            distribution: &distribution,
            live,
            installed: &self.installed,
            languages: None,
            once: &self.once,
        };
        let draft = draft(situation)?;
        let (new, old) = draft.to_describe();
        // Version 1 has data, version 2 other data, version 3 the data of 2 with other code.
        let described = |names: Vec<ModuleName>, digest: &dyn Fn(&ModuleName) -> String| -> Descriptions {
            names.into_iter().map(|name| (name.clone(), description(&digest(&name)))).collect()
        };
        let now = |name: &ModuleName| source.iter().find(|module| module.name == *name).unwrap().digest.clone();
        let before = |name: &ModuleName| live.unwrap().modules.get(name).cloned().unwrap_or_default();
        let (mut new, old) = (described(new, &now), described(old, &before));
        for description in new.values_mut() {
            description.hook_words.clone_from(&self.hook_words);
        }
        Ok(draft.decide(&new, &old)?.plan)
    }
}

fn keep(source: &[SourceModule], live: Option<&Release>, names: &[&str]) -> Result<ModulePlan, String> {
    Push::new(source, live, names).plan()
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
fn an_installed_module_may_not_leave_the_repository_and_no_advice_loses_its_data_without_saying_so() {
    let live = live("19.0-1", &[("a", "1"), ("gone", "1")]);
    let sentence = keep(&[module("a", &["base"], "1")], Some(&live), &["base", "a", "gone"]).unwrap_err();
    assert!(sentence.contains("`gone` is installed in the database but no longer in the repository; put it back"), "{sentence}");
    assert!(sentence.contains("[modules.renamed]") && sentence.contains("deletes its data: take a snapshot before"), "{sentence}");
    let mut marked = module("gone", &["base"], "2");
    marked.installable = false;
    let sentence = keep(&[module("a", &["base"], "1"), marked], Some(&live), &["base", "a", "gone"]).unwrap_err();
    assert!(sentence.contains("marks it as not installable") && sentence.contains("deletes its data"), "{sentence}");
}

#[test]
fn what_is_only_in_the_database_is_no_matter_of_the_commit() {
    let live = live("19.0-1", &[("a", "1")]);
    let mut push = Push::new(&[module("a", &["base"], "2")], Some(&live), &["base", "a", "notice"]);
    push.installed.last_mut().unwrap().imported = true;
    let plan = push.plan().unwrap();
    assert_eq!((plan.update, plan.packaged), (vec!["a".to_owned()], Vec::new()));
}

#[test]
fn a_module_that_packages_may_bring_is_left_to_the_build() {
    let live = live("19.0-1", &[("a", "1")]);
    let mut push = Push::new(&[module("a", &["base", "queue"], "1")], Some(&live), &["base", "a", "queue", "partner"]);
    assert!(push.plan().unwrap_err().contains("`queue`"));
    push.commit.requirements.push("requirements.txt".to_owned());
    let plan = push.plan().unwrap();
    assert_eq!((plan.way, plan.packaged), (Way::Nothing, vec!["partner".to_owned(), "queue".to_owned()]));
}

#[test]
fn a_renamed_module_takes_over_when_ocore_toml_says_so() {
    let live = live("19.0-1", &[("booking", "1"), ("a", "1")]);
    let mut push =
        Push::new(&[module("reservation", &["base"], "1"), module("a", &["reservation"], "1")], Some(&live), &["base", "booking", "a"]);
    push.commit.renamed.insert("booking".parse().unwrap(), "reservation".parse().unwrap());
    let plan = push.plan().unwrap();
    assert_eq!((plan.way, plan.install.len(), plan.update), (Way::UpdateAndHoldWrites, 0, vec!["reservation".to_owned()]));
    assert_eq!((plan.renames["booking"].as_str(), plan.dependants), ("reservation", vec!["a".to_owned()]));
    // Done already, in a database that never had it too: nothing to do.
    push.live.as_mut().unwrap().modules.insert("reservation".parse().unwrap(), "1".to_owned());
    push.installed = installed(&["base", "reservation", "a"]);
    assert!(push.plan().unwrap().renames.is_empty());
    push.commit.modules.push(module("booking", &["base"], "1"));
    push.installed = installed(&["base", "booking", "a"]);
    assert!(push.plan().unwrap_err().contains("`booking` is still there"));
    push.commit.modules.retain(|module| module.name.as_str() == "a");
    push.commit.modules[0].depends.clear();
    assert!(push.plan().unwrap_err().contains("`reservation`, which is not in the repository"));
}

#[test]
fn a_renamed_module_takes_over_when_a_hook_names_the_earlier_one() {
    let live = live("19.0-1", &[("booking", "1")]);
    let mut push = Push::new(&[module("reservation", &["base"], "1")], Some(&live), &["base", "booking"]);
    assert!(push.plan().unwrap_err().contains("`booking` is installed"));
    push.hook_words = vec!["booking".to_owned()];
    let plan = push.plan().unwrap();
    assert_eq!(plan.install, ["reservation"]);
    assert!(plan.reasons[0].contains("the pre_init_hook of reservation names it"), "{:?}", plan.reasons);
}

#[test]
fn what_somebody_has_uninstalled_stays_so() {
    let live = live("19.0-1", &[("a", "1"), ("b", "1")]);
    let source = [module("a", &["base"], "1"), module("b", &["base"], "2"), module("new", &["base"], "1")];
    let mut push = Push::new(&source, Some(&live), &["base", "a"]);
    push.once = ["a", "b"].map(str::to_owned).into();
    let plan = push.plan().unwrap();
    assert_eq!(plan.install, ["new"]);
    assert!(plan.reasons.iter().any(|reason| reason.starts_with("b stays uninstalled")), "{:?}", plan.reasons);
    // After a rollback to before its installation it is wanted as at first.
    push.live.as_mut().unwrap().modules.retain(|name, _| name.as_str() != "b");
    assert_eq!(push.plan().unwrap().install, ["b", "new"]);
}

#[test]
fn glue_waits_for_what_it_joins() {
    let mut glue = module("glue", &["a", "sale"], "1");
    glue.auto_install = true;
    let source = [module("a", &["base"], "1"), glue.clone()];
    let live = live("19.0-1", &[("a", "1")]);
    let plan = keep(&source, Some(&live), &["base", "a"]).unwrap();
    assert_eq!((plan.way, plan.install.len()), (Way::Nothing, 0));
    assert!(plan.reasons.iter().any(|reason| reason.contains("glue waits") && reason.contains("as soon as sale")), "{:?}", plan.reasons);
    assert_eq!(keep(&source, Some(&live), &["base", "a", "sale"]).unwrap().install, ["glue"]);
    assert_eq!(fresh(&ModuleSelection::Own, &source).unwrap().install, ["a"]);
    assert_eq!(fresh(&list(&["a", "glue"]), &source).unwrap().install, ["a", "glue"]);
    // One that waits for a part of what it needs, or for glue.
    glue.triggers = Some(vec!["a".to_owned()]);
    let mut more = module("more", &["glue"], "1");
    more.auto_install = true;
    assert_eq!(fresh(&ModuleSelection::Own, &[source[0].clone(), glue, more]).unwrap().install, ["a", "glue", "more"]);
    // One that joins what nobody has is no reason to refuse.
    let mut nowhere = module("nowhere", &["a", "enterprise"], "1");
    nowhere.auto_install = true;
    assert_eq!(fresh(&ModuleSelection::Own, &[source[0].clone(), nowhere]).unwrap().install, ["a"]);
}

#[test]
fn a_version_that_odoo_does_not_take_is_refused_before_anything() {
    let mut crane = module("crane", &["base"], "1");
    for version in ["19.0", "18.0.1.0.0", "1"] {
        version.clone_into(&mut crane.version);
        for sentence in [
            fresh(&ModuleSelection::Own, std::slice::from_ref(&crane)).unwrap_err(),
            keep(std::slice::from_ref(&crane), None, &["base", "crane"]).unwrap_err(),
            fresh(&ModuleSelection::Own, &[module("a", &["crane"], "1"), crane.clone()]).unwrap_err(),
        ] {
            assert!(sentence.contains(&format!("`{version}`")) && sentence.contains("19.0.x.y"), "{sentence}");
            assert!(!sentence.contains("ninstall"), "{sentence}");
        }
    }
    crane.in_submodule = true;
    assert_eq!(fresh(&ModuleSelection::Own, &[module("a", &["base"], "1"), crane]).unwrap().install, ["a"], "nobody wants that one");
}

#[test]
fn what_is_brought_along_is_named() {
    let source = [module("a", &["base"], "1"), module("b", &["tools"], "1"), module("tools", &["sale", "web"], "1")];
    let plan = keep(&source, Some(&live("19.0-1", &[("a", "1")])), &["base", "a"]).unwrap();
    assert!(plan.lines().iter().any(|line| line.contains("b: it brings the modules sale and web with it")), "{:?}", plan.lines());
    assert_eq!(plan.summary(), "update and hold writes: installs b, tools");
}
