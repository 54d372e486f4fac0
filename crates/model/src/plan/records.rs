//! XML and CSV data, compared record by record: where one stands, and in which order, does not matter.

use std::collections::BTreeMap;

use super::{Change, Content, ModuleDescription, Place, Record, Way};

/// One module's records of the files that its manifest names.
struct Records<'a> {
    /// What stands under one name, in the order in which it is loaded.
    named: BTreeMap<(&'a str, &'a str), Vec<(&'a str, &'a Record)>>,
    /// Files that are read while data are loaded, with the file that names them.
    mentions: BTreeMap<&'a str, &'a str>,
}

impl<'a> Records<'a> {
    fn of(description: &'a ModuleDescription) -> Self {
        let mut records = Self { named: BTreeMap::new(), mentions: BTreeMap::new() };
        for path in data_files(description) {
            let Some(file) = description.files.get(path) else { continue };
            let Content::Records(content) = &file.content else { continue };
            for record in &content.records {
                // What has no name is what it says.
                let name = if record.id.is_empty() { &record.digest } else { &record.id };
                records.named.entry((&record.tag, name)).or_default().push((path, record));
            }
            records.mentions.extend(content.mentions.iter().map(|mention| (mention.as_str(), path)));
        }
        records
    }
}

/// The files that a manifest has Odoo load into the database, in its order: `data`, then `demo`.
pub(super) fn data_files(description: &ModuleDescription) -> Vec<&str> {
    let Some(manifest) = &description.manifest else { return Vec::new() };
    let lists = ["data", "demo", "init_xml", "update_xml", "demo_xml"].iter().filter_map(|key| manifest.get(*key)?.as_array());
    lists.flatten().filter_map(|path| path.as_str()).collect()
}

/// Files of the module that are read while data files are loaded, with the data files that name them.
pub(super) fn mentions(description: &ModuleDescription) -> BTreeMap<&str, &str> {
    Records::of(description).mentions
}

pub(super) fn compare(module: &str, old: &ModuleDescription, new: &ModuleDescription, changes: &mut Vec<Change>) {
    let (old, new) = (Records::of(old), Records::of(new));
    let mut say = |way: Way, place: Place<'_>, text: String| changes.push(Change::new(module, way, place, text));
    for (key, now) in &new.named {
        let Some((file, record)) = now.last() else { continue };
        let place = (Some(*file), record.line);
        match old.named.get(key) {
            None => say(weight(record), place, format!("{} is new{}", name(record), meaning(record))),
            Some(before) if same(before, now) => {}
            Some(_) => say(weight(record), place, format!("{} has changed{}", name(record), meaning(record))),
        }
    }
    for (key, before) in &old.named {
        let Some((file, record)) = before.last().filter(|_| !new.named.contains_key(key)) else { continue };
        let place = (Some(*file), None);
        if is_statement(record) {
            say(Way::Nothing, place, format!("{} is gone, which has been done already", name(record)));
        } else if record.noupdate {
            say(
                Way::UpdateAndHoldWrites,
                place,
                format!("{} is gone; it was not to be updated, so somebody may have come to need it", name(record)),
            );
        } else if is_part_of_the_program(&record.model) {
            say(Way::Update, place, format!("{} is gone", name(record)));
        } else {
            say(Way::UpdateAndHoldWrites, place, format!("{} is gone: the update deletes data", name(record)));
        }
    }
}

/// All of a new module's records that change data when they are loaded.
pub(super) fn appear(module: &str, new: &ModuleDescription, changes: &mut Vec<Change>) {
    for ((_, _), now) in &Records::of(new).named {
        let Some((file, record)) = now.last() else { continue };
        if weight(record) == Way::UpdateAndHoldWrites {
            changes.push(Change::new(
                module,
                Way::UpdateAndHoldWrites,
                (Some(file), record.line),
                format!("{} is new{}", name(record), meaning(record)),
            ));
        }
    }
}

fn same(before: &[(&str, &Record)], now: &[(&str, &Record)]) -> bool {
    let identity = |(_, record): &(&str, &Record)| (record.digest.clone(), record.noupdate);
    before.iter().map(identity).eq(now.iter().map(identity))
}

/// It is done each time, whatever it is.
fn is_statement(record: &Record) -> bool {
    matches!(record.tag.as_str(), "function" | "delete")
        || !matches!(record.tag.as_str(), "record" | "template" | "menuitem" | "asset" | "report" | "act_window" | "url")
}

/// Views, menus, actions, rights: what belongs to the code, and nobody's data.
fn is_part_of_the_program(model: &str) -> bool {
    matches!(model, "ir.ui.view" | "ir.ui.menu" | "ir.asset" | "ir.model.access" | "ir.rule" | "ir.cron" | "report.paperformat")
        || model.starts_with("ir.actions.")
}

fn makes_schema(model: &str) -> bool {
    matches!(model, "ir.model" | "ir.model.fields" | "ir.model.fields.selection" | "ir.model.constraint" | "ir.model.relation")
}

fn weight(record: &Record) -> Way {
    if is_statement(record) || makes_schema(&record.model) { Way::UpdateAndHoldWrites } else { Way::Update }
}

fn meaning(record: &Record) -> &'static str {
    if is_statement(record) {
        ": it changes data when it is loaded"
    } else if makes_schema(&record.model) {
        ": it changes the schema"
    } else if record.noupdate {
        " (not to be updated: only new databases get it)"
    } else {
        ""
    }
}

fn name(record: &Record) -> String {
    let what = match record.tag.as_str() {
        "template" => "the template".to_owned(),
        "menuitem" => "the menu".to_owned(),
        "function" => "a function call".to_owned(),
        "delete" => "a deletion".to_owned(),
        _ if record.model == "ir.ui.view" => "the view".to_owned(),
        _ if record.model.is_empty() => format!("the element <{}>", record.tag),
        _ => format!("the record of {}", record.model),
    };
    if record.id.is_empty() { what } else { format!("{what} `{}`", record.id) }
}
