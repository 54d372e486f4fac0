//! A whole module: its manifest, and each file by what it is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Change, Content, Database, FileDescription, ModuleDescription, Way, python, records, translations};

/// What of the difference between two states of a module that is installed in this database asks for what. Empty when there is none.
pub fn compare(module: &str, old: &ModuleDescription, new: &ModuleDescription, database: &Database) -> Vec<Change> {
    if !database.has_demo && (has_demo(old) || has_demo(new)) {
        return without_demo(module, old, new, database);
    }
    let mut changes = Vec::new();
    manifest(module, old, new, &mut changes);
    let roles = Roles::of(old, new);
    let paths: BTreeSet<&String> = old.files.keys().chain(new.files.keys()).collect();
    let mut code = Vec::new();
    for path in paths {
        let (before, now) = (old.files.get(path), new.files.get(path));
        if before.map(|file| &file.digest) == now.map(|file| &file.digest) {
            continue;
        }
        file(module, path, [before, now], &roles, &mut changes);
        if now.is_some_and(|file| matches!(file.content, Content::Python(_))) && roles.loaded.contains(path.as_str()) {
            code.push(path);
        }
    }
    python::compare(module, old, new, &mut changes);
    records::compare(module, old, new, &mut changes);
    translations::compare(module, old, new, database, &mut changes);
    for path in code {
        if !changes.iter().any(|change| change.file.as_ref() == Some(path)) {
            changes.push(Change::new(module, Way::Reload, (Some(path), None), "imports, texts or layout of the code have changed"));
        }
    }
    changes.sort_by(|one, other| (other.way, &one.file, one.line).cmp(&(one.way, &other.file, other.line)));
    changes
}

const DEMO: [&str; 2] = ["demo", "demo_xml"];

fn has_demo(description: &ModuleDescription) -> bool {
    description.manifest.as_ref().is_some_and(|manifest| DEMO.iter().any(|key| manifest.contains_key(*key)))
}

/// The files that nothing but demo data are in are none of the module's.
fn without_demo(module: &str, old: &ModuleDescription, new: &ModuleDescription, database: &Database) -> Vec<Change> {
    let mut left_out = BTreeSet::new();
    let mut strip = |description: &ModuleDescription| {
        let before: BTreeSet<String> = records::data_files(description).into_iter().map(str::to_owned).collect();
        let mut stripped = description.clone();
        if let Some(manifest) = &mut stripped.manifest {
            manifest.retain(|key, _| !DEMO.contains(&key.as_str()));
        }
        let after: BTreeSet<String> = records::data_files(&stripped).into_iter().map(str::to_owned).collect();
        left_out.extend(before.difference(&after).cloned());
        let read = records::mentions(&stripped);
        left_out.extend(records::mentions(description).into_keys().filter(|path| !read.contains_key(path)).map(str::to_owned));
        stripped
    };
    let (mut stripped_old, mut stripped_new) = (strip(old), strip(new));
    let needed: BTreeSet<String> =
        [&stripped_old, &stripped_new].into_iter().flat_map(|description| records::data_files(description)).map(str::to_owned).collect();
    left_out.retain(|path| !needed.contains(path));
    for stripped in [&mut stripped_old, &mut stripped_new] {
        stripped.files.retain(|path, _| !left_out.contains(path));
    }
    let mut changes = compare(module, &stripped_old, &stripped_new, database);
    for path in
        left_out.iter().filter(|path| old.files.get(*path).map(|file| &file.digest) != new.files.get(*path).map(|file| &file.digest))
    {
        changes.push(Change::new(module, Way::Nothing, (Some(path), None), "demo data, which this database does not have"));
    }
    if changes.is_empty() && old.manifest != new.manifest {
        changes.push(Change::new(
            module,
            Way::Nothing,
            (Some("__manifest__.py"), None),
            "other demo data, which this database does not have",
        ));
    }
    changes
}

/// What the module's files are for, before or now.
struct Roles<'a> {
    loaded: BTreeSet<&'a str>,
    data: BTreeSet<&'a str>,
    mentions: BTreeMap<&'a str, &'a str>,
}

impl<'a> Roles<'a> {
    fn of(old: &'a ModuleDescription, new: &'a ModuleDescription) -> Self {
        Self {
            loaded: python::loaded(old).into_iter().chain(python::loaded(new)).collect(),
            data: records::data_files(old).into_iter().chain(records::data_files(new)).collect(),
            mentions: records::mentions(old).into_iter().chain(records::mentions(new)).collect(),
        }
    }
}

/// What installing a module does to what is there already.
pub fn appears(module: &str, new: &ModuleDescription) -> Vec<Change> {
    let mut changes = Vec::new();
    let hold = |text: String| Change::new(module, Way::UpdateAndHoldWrites, (Some("__manifest__.py"), None), text);
    match &new.manifest {
        None => changes.push(hold("it is to be installed, and its manifest cannot be read".to_owned())),
        Some(manifest) => {
            let hooks = ["pre_init_hook", "post_init_hook"].into_iter().filter(|key| manifest.contains_key(*key));
            changes.extend(hooks.map(|key| hold(format!("`{key}` runs when it is installed"))));
        }
    }
    for (path, file) in &new.files {
        if let Content::Unreadable { line, reason } = &file.content
            && !python::is_apart(path)
        {
            changes.push(Change::new(module, Way::UpdateAndHoldWrites, (Some(path), *line), format!("it cannot be read: {reason}")));
        }
    }
    for path in records::data_files(new).into_iter().filter(|path| path.rsplit_once('.').is_some_and(|(_, ending)| ending == "sql")) {
        changes.push(Change::new(module, Way::UpdateAndHoldWrites, (Some(path), None), "it is run on the database"));
    }
    python::appear(module, new, &mut changes);
    records::appear(module, new, &mut changes);
    changes.retain(|change| change.way == Way::UpdateAndHoldWrites);
    changes
}

fn manifest(module: &str, old: &ModuleDescription, new: &ModuleDescription, changes: &mut Vec<Change>) {
    let place = (Some("__manifest__.py"), None);
    let (Some(before), Some(now)) = (&old.manifest, &new.manifest) else {
        if old.manifest != new.manifest || old.manifest.is_none() {
            changes.push(Change::new(module, Way::UpdateAndHoldWrites, place, "the manifest holds more than plain values"));
        }
        return;
    };
    for key in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        if before.get(key) == now.get(key) {
            continue;
        }
        let (way, text) = match key.as_str() {
            "version" => (Way::Update, format!("the version is {} instead of {}", word(now.get(key)), word(before.get(key)))),
            "depends" => dependencies(before, now),
            // What the lists name is compared record by record.
            "data" | "demo" | "init_xml" | "update_xml" | "demo_xml" => {
                (Way::Update, format!("`{key}` names other files, or in another order"))
            }
            "assets" => (Way::Reload, "the assets have changed".to_owned()),
            "pre_init_hook" | "post_init_hook" | "uninstall_hook" => (Way::UpdateAndHoldWrites, format!("`{key}` has changed")),
            "post_load" => (Way::Reload, "`post_load` has changed, which runs when Odoo starts".to_owned()),
            "external_dependencies" => (Way::Reload, "it needs other programs or Python packages".to_owned()),
            "summary" | "description" | "author" | "website" | "license" | "maintainers" | "maintainer" | "contributors" | "images"
            | "live_test_url" | "price" | "currency" | "support" | "development_status" | "icon" | "sequence" => {
                (Way::Nothing, format!("`{key}` has changed, which only describes the module"))
            }
            _ => (Way::Update, format!("`{key}` has changed")),
        };
        changes.push(Change::new(module, way, place, text));
    }
}

fn dependencies(before: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> (Way, String) {
    let of = |manifest: &BTreeMap<String, Value>| -> BTreeSet<String> {
        let names = manifest.get("depends").and_then(Value::as_array).into_iter().flatten();
        names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let (before, now) = (of(before), of(now));
    let more: Vec<&str> = now.difference(&before).map(String::as_str).collect();
    if more.is_empty() {
        (Way::Update, "it depends on fewer modules".to_owned())
    } else {
        (Way::Update, format!("it depends on {}, too", more.join(", ")))
    }
}

fn word(value: Option<&Value>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// A file that has changed, by its place and kind. What Python and data files say is compared elsewhere.
fn file(module: &str, path: &str, states: [Option<&FileDescription>; 2], roles: &Roles<'_>, changes: &mut Vec<Change>) {
    let mut say = |way: Way, line: Option<u32>, text: String| changes.push(Change::new(module, way, (Some(path), line), text));
    let is_gone = states[1].is_none();
    let top = path.split('/').next().unwrap_or(path);
    let ending = path.rsplit_once('.').map_or("", |(_, ending)| ending);
    let contents = || states.into_iter().flatten().map(|file| &file.content);
    let is_records = contents().any(|content| matches!(content, Content::Records(_)));
    if roles.data.contains(path) && !is_records {
        return say(Way::UpdateAndHoldWrites, None, "the manifest has Odoo load it, and it cannot be compared".to_owned());
    }
    if let Some(by) = roles.mentions.get(path) {
        return say(Way::Update, None, format!("{by} has Odoo load it into the database"));
    }
    match top {
        "tests" => return say(Way::Nothing, None, "tests only".to_owned()),
        "migrations" | "upgrades" if is_gone => return say(Way::Nothing, None, "a migration script is gone".to_owned()),
        "migrations" | "upgrades" => return say(Way::UpdateAndHoldWrites, None, "a migration script is new or has changed".to_owned()),
        "static" => return say(Way::Reload, None, "a static file".to_owned()),
        // Word by word, in `translations`.
        "i18n" | "i18n_extra" if contents().all(|content| matches!(content, Content::Translations(_))) => return,
        "i18n" | "i18n_extra" if ending == "po" => {
            return say(Way::Update, None, "a translation that cannot be read, part of which is in the database".to_owned());
        }
        "i18n" | "i18n_extra" if ending == "pot" => {
            return say(Way::Nothing, None, "the template of translations; what follows from it is said of each language".to_owned());
        }
        "doc" | "docs" | "readme" => return say(Way::Nothing, None, "documentation".to_owned()),
        _ => {}
    }
    for content in contents() {
        match content {
            Content::Unreadable { line, reason } => {
                return say(Way::UpdateAndHoldWrites, *line, format!("it cannot be read ({reason}), so it may be anything"));
            }
            Content::Link => return say(Way::UpdateAndHoldWrites, None, "a link leads elsewhere, or to other content".to_owned()),
            _ => {}
        }
    }
    match ending {
        "py" if roles.loaded.contains(path) => {}
        "py" => say(Way::Reload, None, "Python that Odoo does not load when it starts".to_owned()),
        _ if roles.data.contains(path) => {}
        "sql" if path == "data/neutralize.sql" => say(Way::Nothing, None, "only copies run it".to_owned()),
        "sql" => say(Way::UpdateAndHoldWrites, None, "it is SQL, which the module may run on the database".to_owned()),
        "md" | "rst" | "txt" | "cfg" | "toml" | "gitignore" | "editorconfig" => say(Way::Nothing, None, "Odoo does not read it".to_owned()),
        _ if matches!(path, "LICENSE" | "COPYING" | "README") => say(Way::Nothing, None, "Odoo does not read it".to_owned()),
        _ if is_records => {
            say(Way::Update, None, "it looks like data and stands in no list of the manifest; the module may load it itself".to_owned());
        }
        _ => say(Way::UpdateAndHoldWrites, None, "its kind is not known; the module may read it when it is updated".to_owned()),
    }
}
