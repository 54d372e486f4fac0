//! A module's Python, compared by what it declares. Where something stands does not matter, only whether Odoo loads it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Content, Expression, Method, ModelClass, ModuleDescription, Place, PythonFile, TableObject, Way, fields};

/// Attributes of a model that decide about its table or its place among the models.
const ATTRIBUTES_OF_THE_TABLE: &[&str] = &[
    "_name",
    "_inherit",
    "_inherits",
    "_table",
    "_auto",
    "_log_access",
    "_parent_store",
    "_parent_name",
    "_abstract",
    "_transient",
    "_register",
];
/// Odoo runs them while it updates the module.
const METHODS_OF_UPDATES: &[&str] = &["init", "_auto_init", "_table_query"];
/// Parts of the query that makes a view in the database, by the conventions of Odoo's own reports.
const PARTS_OF_QUERIES: &[&str] = &["_query", "_select", "_from", "_where", "_group_by", "_with", "_join", "_union"];
/// They make the models what they are.
const METHODS_OF_MODELS: &[&str] = &["_setup_", "_build_", "_register_hook", "_unregister_hook", "_add_"];

/// The Python of one module, as Odoo loads it.
struct Code<'a> {
    /// Files that are loaded, in the order in which that happens.
    loaded: Vec<(&'a str, &'a PythonFile)>,
    models: BTreeMap<&'a str, Model<'a>>,
}

/// Everything that the module says about one model.
#[derive(Default)]
struct Model<'a> {
    classes: Vec<(&'a str, &'a ModelClass)>,
}

/// Something with the file that says it.
type Found<'a, T> = (&'a str, &'a T);

impl<'a> Model<'a> {
    fn gathered<T>(&self, of: impl Fn(&'a ModelClass) -> &'a BTreeMap<String, T>) -> BTreeMap<&'a str, Vec<Found<'a, T>>> {
        let mut gathered: BTreeMap<&str, Vec<Found<'_, T>>> = BTreeMap::new();
        for (file, class) in &self.classes {
            for (name, value) in of(class) {
                gathered.entry(name).or_default().push((file, value));
            }
        }
        gathered
    }

    /// The module makes it, so that its table comes with the module.
    fn is_made_here(&self, key: &str) -> bool {
        self.classes.iter().any(|(_, class)| class.attributes.contains_key("_name") && !inherited(class).contains(&key))
            || self.classes.iter().all(|(_, class)| !class.attributes.contains_key("_inherit"))
    }

    /// Its classes take nothing from any other model.
    fn only_extends(&self, key: &str) -> bool {
        self.classes.iter().all(|(_, class)| inherited(class) == [key])
    }

    /// Its methods may be parts of what `init` runs.
    fn runs_sql_on_update(&self) -> bool {
        self.classes
            .iter()
            .any(|(_, class)| class.methods.contains_key("init") || class.attributes.get("_auto").is_some_and(|auto| auto.source != "True"))
    }
}

fn inherited(class: &ModelClass) -> Vec<&str> {
    let value = class.attributes.get("_inherit").and_then(|inherit| inherit.value.as_ref());
    match value {
        Some(serde_json::Value::String(name)) => vec![name],
        Some(serde_json::Value::Array(names)) => names.iter().filter_map(|name| name.as_str()).collect(),
        _ => Vec::new(),
    }
}

/// The model that a class is about: its `_name`, else what it extends, else what it is called.
fn key(class: &ModelClass) -> &str {
    let name = class.attributes.get("_name").and_then(|name| name.value.as_ref()?.as_str());
    name.or_else(|| inherited(class).first().copied()).unwrap_or(&class.class)
}

impl<'a> Code<'a> {
    fn of(description: &'a ModuleDescription) -> Self {
        let python = |path: &str| match description.files.get_key_value(path) {
            Some((path, file)) => match &file.content {
                Content::Python(python) => Some((path.as_str(), python)),
                _ => None,
            },
            None => None,
        };
        let mut loaded = Vec::new();
        let mut seen = BTreeSet::new();
        let mut waiting = vec!["__init__.py".to_owned()];
        let mut sees_all = true;
        while let Some(path) = waiting.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let Some((path, file)) = python(&path) else {
                sees_all &= !matches!(description.files.get(&path).map(|file| &file.content), Some(Content::Unreadable { .. }));
                continue;
            };
            sees_all &= !file.dynamic_imports;
            loaded.push((path, file));
            waiting.extend(file.imports.iter().rev().cloned());
        }
        if !sees_all {
            // What else is loaded cannot be seen: everything, then.
            for path in description.files.keys().filter(|path| !seen.contains(*path) && !is_apart(path)) {
                loaded.extend(python(path));
            }
        }
        let mut models: BTreeMap<&str, Model<'_>> = BTreeMap::new();
        for (path, file) in &loaded {
            for class in &file.models {
                models.entry(key(class)).or_default().classes.push((path, class));
            }
        }
        Self { loaded, models }
    }

    /// Everything of one kind in the files that are loaded, by name.
    fn gathered<T>(&self, of: impl Fn(&'a PythonFile) -> &'a BTreeMap<String, T>) -> BTreeMap<&'a str, Vec<Found<'a, T>>> {
        let mut gathered: BTreeMap<&str, Vec<Found<'_, T>>> = BTreeMap::new();
        for (path, file) in &self.loaded {
            for (name, value) in of(file) {
                gathered.entry(name).or_default().push((path, value));
            }
        }
        gathered
    }
}

/// Files that Odoo loads on other occasions than its start.
pub(super) fn is_apart(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "migrations" | "upgrades"))
}

/// The files that Odoo runs when it starts, as far as one can see.
pub(super) fn loaded(description: &ModuleDescription) -> BTreeSet<&str> {
    Code::of(description).loaded.into_iter().map(|(path, _)| path).collect()
}

pub(super) fn compare(module: &str, old: &ModuleDescription, new: &ModuleDescription, changes: &mut Vec<Change>) {
    let mut comparison = Comparison { module, changes, hooks: hooks(old).into_iter().chain(hooks(new)).collect() };
    let (old, new) = (Code::of(old), Code::of(new));
    let names: BTreeSet<&str> = old.models.keys().chain(new.models.keys()).copied().collect();
    let none = Model::default();
    for name in names {
        match (old.models.get(name), new.models.get(name)) {
            (None, Some(now)) => comparison.model_appears(name, now),
            (Some(before), None) if before.is_made_here(name) => {
                let file = before.classes.first().map(|(file, _)| *file);
                comparison.say(Way::UpdateAndHoldWrites, (file, None), format!("the model `{name}` is gone, with its data"));
            }
            (Some(before), now) => comparison.model(name, before, now.unwrap_or(&none)),
            (None, None) => {}
        }
    }
    comparison.top_level(&old, &new);
}

/// What a new module does to models that are there already.
pub(super) fn appear(module: &str, new: &ModuleDescription, changes: &mut Vec<Change>) {
    let mut comparison = Comparison { module, changes, hooks: BTreeSet::new() };
    for (name, model) in &Code::of(new).models {
        if !model.is_made_here(name) {
            comparison.model(name, &Model::default(), model);
        }
    }
}

/// The functions that a manifest has Odoo call around an installation.
fn hooks(description: &ModuleDescription) -> Vec<String> {
    let manifest = description.manifest.iter().flatten();
    let hooks = manifest.filter(|(key, _)| matches!(key.as_str(), "pre_init_hook" | "post_init_hook" | "uninstall_hook"));
    hooks.filter_map(|(_, name)| name.as_str().map(str::to_owned)).collect()
}

struct Comparison<'a> {
    module: &'a str,
    changes: &'a mut Vec<Change>,
    hooks: BTreeSet<String>,
}

impl Comparison<'_> {
    fn say(&mut self, way: Way, place: Place<'_>, text: impl Into<String>) {
        self.changes.push(Change::new(self.module, way, place, text));
    }

    fn model_appears(&mut self, name: &str, now: &Model<'_>) {
        if !now.is_made_here(name) {
            return self.model(name, &Model::default(), now);
        }
        if let Some((file, class)) = now.classes.first() {
            self.say(Way::Update, (Some(file), class.line), format!("the model `{name}` is new"));
        }
    }

    fn model(&mut self, name: &str, before: &Model<'_>, now: &Model<'_>) {
        self.shape(name, before, now);
        self.fields(name, before, now);
        self.attributes(name, before, now);
        self.objects(name, before, now);
        self.methods(name, before, now);
    }

    /// What one cannot look into.
    fn shape(&mut self, name: &str, before: &Model<'_>, now: &Model<'_>) {
        let of = |model: &Model<'_>| {
            let mut shape = BTreeSet::new();
            for (_, class) in &model.classes {
                shape.extend(class.statements.iter().map(|statement| statement.digest.clone()));
                shape.extend(class.dynamic.iter().cloned());
            }
            shape
        };
        let place = now.classes.first().or(before.classes.first()).map_or((None, None), |(file, class)| (Some(*file), class.line));
        if of(before) != of(now) {
            self.say(
                Way::UpdateAndHoldWrites,
                place,
                format!("the class of `{name}` runs code of its own, which has changed; what it makes cannot be read"),
            );
        }
        let bases = |model: &Model<'_>| {
            let mut bases: Vec<String> = model.classes.iter().flat_map(|(_, class)| class.bases.iter().cloned()).collect();
            bases.sort();
            bases.dedup();
            bases
        };
        if !before.classes.is_empty() && !now.classes.is_empty() && bases(before) != bases(now) {
            self.say(Way::UpdateAndHoldWrites, place, format!("the class of `{name}` has other bases: {}", bases(now).join(", ")));
        }
    }

    fn fields(&mut self, name: &str, before: &Model<'_>, now: &Model<'_>) {
        let (old, new) = (before.gathered(|class| &class.fields), now.gathered(|class| &class.fields));
        for (field, found) in &new {
            let Some((file, definition)) = found.last() else { continue };
            let place = (Some(*file), definition.line);
            let Some(earlier) = old.get(field) else {
                let (way, text) = fields::appears(name, field, definition);
                self.say(way, place, text);
                continue;
            };
            if earlier.len() != found.len() {
                self.say(
                    Way::UpdateAndHoldWrites,
                    place,
                    format!("the field `{field}` of `{name}` is defined in another number of classes"),
                );
                continue;
            }
            for ((_, before), (file, now)) in earlier.iter().zip(found) {
                for (way, text) in fields::changes(name, field, before, now) {
                    self.say(way, (Some(file), now.line), text);
                }
            }
        }
        for (field, found) in old.iter().filter(|(field, _)| !new.contains_key(*field)) {
            let file = found.last().map(|(file, _)| *file);
            self.say(Way::UpdateAndHoldWrites, (file, None), format!("the field `{field}` of `{name}` is gone, or has another name"));
        }
    }

    fn attributes(&mut self, name: &str, before: &Model<'_>, now: &Model<'_>) {
        let (old, new) = (before.gathered(|class| &class.attributes), now.gathered(|class| &class.attributes));
        let sources = |found: Option<&Vec<Found<'_, Expression>>>| -> Vec<String> {
            found.into_iter().flatten().map(|(_, expression)| expression.source.clone()).collect()
        };
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for attribute in names {
            let (was, is) = (sources(old.get(attribute)), sources(new.get(attribute)));
            // That a class only extends the model is no change of it.
            if was == is || (matches!(attribute, "_inherit" | "_name") && before.only_extends(name) && now.only_extends(name)) {
                continue;
            }
            let place = new.get(attribute).or(old.get(attribute)).and_then(|found| found.last());
            let place =
                place.map_or((None, None), |(file, expression)| (Some(*file), expression.line.filter(|_| new.contains_key(attribute))));
            match attribute {
                "_sql_constraints" if is_shorter(&old, &new, attribute) => {
                    self.say(Way::Update, place, format!("a constraint of `{name}` in the database is gone"));
                }
                "_sql_constraints" => {
                    self.say(Way::UpdateAndHoldWrites, place, format!("a constraint of `{name}` in the database is new or has changed"));
                }
                _ if ATTRIBUTES_OF_THE_TABLE.contains(&attribute) => {
                    self.say(Way::UpdateAndHoldWrites, place, format!("`{attribute}` of `{name}` has changed, and with it its table"));
                }
                _ => self.say(Way::Update, place, format!("`{attribute}` of `{name}` has changed")),
            }
        }
    }

    fn objects(&mut self, name: &str, before: &Model<'_>, now: &Model<'_>) {
        let (old, new) = (before.gathered(|class| &class.objects), now.gathered(|class| &class.objects));
        let of = |found: &[Found<'_, TableObject>]| -> Vec<(String, String)> {
            found.iter().map(|(_, object)| (object.object.clone(), object.source.clone())).collect()
        };
        for (object, found) in &new {
            let Some((file, definition)) = found.last() else { continue };
            let change = match old.get(object) {
                None => "is new",
                Some(earlier) if of(earlier) == of(found) => continue,
                Some(_) => "has changed",
            };
            // An index that is not unique refuses no row.
            let is_plain = definition.object == "Index" && !definition.source.to_lowercase().contains("unique");
            let (way, what) = if is_plain { (Way::Update, "index") } else { (Way::UpdateAndHoldWrites, "constraint or unique index") };
            self.say(way, (Some(file), definition.line), format!("the {what} `{object}` of `{name}` {change}"));
        }
        for (object, found) in old.iter().filter(|(object, _)| !new.contains_key(*object)) {
            let file = found.last().map(|(file, _)| *file);
            self.say(Way::Update, (file, None), format!("the constraint or index `{object}` of `{name}` is gone"));
        }
    }

    fn methods(&mut self, name: &str, before: &Model<'_>, now: &Model<'_>) {
        let (old, new) = (before.gathered(|class| &class.methods), now.gathered(|class| &class.methods));
        let runs_sql = before.runs_sql_on_update() || now.runs_sql_on_update();
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for method in names {
            let (was, is) = (old.get(method), new.get(method));
            let same = |part: fn(&Method) -> String| {
                let of = |found: Option<&Vec<Found<'_, Method>>>| -> Vec<String> {
                    found.into_iter().flatten().map(|(_, method)| part(method)).collect()
                };
                of(was) == of(is)
            };
            let same_head = same(|method| method.head.clone());
            if same_head && same(|method| method.body.clone()) {
                continue;
            }
            let Some((file, definition)) = is.or(was).and_then(|found| found.last()) else { continue };
            let place = (Some(*file), definition.line.filter(|_| is.is_some()));
            let change = match (was, is) {
                (None, _) => "is new",
                (_, None) => "is gone",
                _ => "has changed",
            };
            let said = was.into_iter().chain(is).flatten().map(|(_, method)| *method);
            let (way, meaning) = weight(method, said, same_head, runs_sql);
            self.say(way, place, format!("the method `{method}` of `{name}` {change}{meaning}"));
        }
    }

    /// What stands in files outside of models.
    fn top_level(&mut self, old: &Code<'_>, new: &Code<'_>) {
        let statements = |code: &Code<'_>| -> Vec<String> {
            let mut statements: Vec<String> =
                code.loaded.iter().flat_map(|(_, file)| file.statements.iter().map(|statement| statement.digest.clone())).collect();
            statements.sort();
            statements
        };
        let before = statements(old);
        if before != statements(new) {
            let fresh = new.loaded.iter().find_map(|(file, python)| {
                python.statements.iter().find(|statement| !before.contains(&statement.digest)).map(|statement| (*file, statement.line))
            });
            let place = fresh.map_or((None, None), |(file, line)| (Some(file), line));
            self.say(Way::UpdateAndHoldWrites, place, "code that runs when the file is loaded has changed; what it makes cannot be read");
        }
        let (was, is) = (old.gathered(|file| &file.constants), new.gathered(|file| &file.constants));
        let sources = |found: Option<&Vec<Found<'_, Expression>>>| -> Vec<String> {
            found.into_iter().flatten().map(|(_, expression)| expression.source.clone()).collect()
        };
        for name in was.keys().chain(is.keys()).copied().collect::<BTreeSet<&str>>() {
            if sources(was.get(name)) == sources(is.get(name)) {
                continue;
            }
            let place = is.get(name).and_then(|found| found.last()).map_or((None, None), |(file, constant)| (Some(*file), constant.line));
            self.say(Way::Update, place, format!("the constant `{name}` has changed, which definitions of other modules may use"));
        }
        let (was, is) = (old.gathered(|file| &file.functions), new.gathered(|file| &file.functions));
        for name in was.keys().chain(is.keys()).copied().collect::<BTreeSet<&str>>() {
            let of = |found: Option<&Vec<Found<'_, Method>>>| -> Vec<(String, String)> {
                found.into_iter().flatten().map(|(_, method)| (method.head.clone(), method.body.clone())).collect()
            };
            if of(was.get(name)) == of(is.get(name)) {
                continue;
            }
            let found = is.get(name).or(was.get(name)).and_then(|found| found.last());
            let Some((file, function)) = found else { continue };
            let place = (Some(*file), function.line.filter(|_| is.contains_key(name)));
            if self.hooks.contains(name) {
                self.say(Way::UpdateAndHoldWrites, place, format!("the hook `{name}` has changed"));
            } else if function.makes_fields {
                self.say(
                    Way::UpdateAndHoldWrites,
                    place,
                    format!("the function `{name}` makes fields or sets attributes, and has changed"),
                );
            } else {
                let what = if name.starts_with("line: ") { "an import or a logger".to_owned() } else { format!("the function `{name}`") };
                self.say(Way::Reload, place, format!("{what} has changed"));
            }
        }
        let (was, is) = (old.gathered(|file| &file.classes), new.gathered(|file| &file.classes));
        for name in was.keys().chain(is.keys()).copied().collect::<BTreeSet<&str>>() {
            let of = |found: Option<&Vec<Found<'_, super::Piece>>>| -> Vec<String> {
                found.into_iter().flatten().map(|(_, piece)| piece.digest.clone()).collect()
            };
            if of(was.get(name)) != of(is.get(name)) {
                let place = is.get(name).and_then(|found| found.last()).map_or((None, None), |(file, piece)| (Some(*file), piece.line));
                self.say(Way::Reload, place, format!("the class `{name}` has changed, which is no model"));
            }
        }
    }
}

/// What a changed method asks for.
fn weight<'a>(name: &str, said: impl Iterator<Item = &'a Method> + Clone, same_head: bool, runs_sql: bool) -> (Way, &'static str) {
    if METHODS_OF_UPDATES.contains(&name) {
        return (Way::UpdateAndHoldWrites, ": Odoo runs it on the database when it updates the module");
    }
    if said.clone().any(|method| method.makes_fields) {
        return (Way::UpdateAndHoldWrites, ": it makes fields or sets attributes, which cannot be read");
    }
    if METHODS_OF_MODELS.iter().any(|start| name.starts_with(start)) {
        return (Way::UpdateAndHoldWrites, ": it takes part in making the model");
    }
    let declares = |what: &str| said.clone().any(|method| method.declares.iter().any(|declared| declared == what));
    if !same_head && declares("constrains") {
        return (Way::Update, ": it checks what is written");
    }
    if !same_head && (declares("depends") || declares("ondelete") || declares("depends_context")) {
        return (Way::Update, ": when it is called is declared otherwise");
    }
    if runs_sql || PARTS_OF_QUERIES.iter().any(|start| name.starts_with(start)) {
        return (Way::Update, ": it may be a part of a view in the database");
    }
    if declares("depends") {
        return (Way::Reload, "; values that are stored stay as they are, as with an update");
    }
    (Way::Reload, "")
}

/// Constraints are only gone.
fn is_shorter(old: &BTreeMap<&str, Vec<Found<'_, Expression>>>, new: &BTreeMap<&str, Vec<Found<'_, Expression>>>, attribute: &str) -> bool {
    let entries = |all: &BTreeMap<&str, Vec<Found<'_, Expression>>>| -> Option<Vec<String>> {
        let mut entries = Vec::new();
        for (_, expression) in all.get(attribute).into_iter().flatten() {
            entries.extend(expression.value.as_ref()?.as_array()?.iter().map(ToString::to_string));
        }
        Some(entries)
    };
    match (entries(old), entries(new)) {
        (Some(old), Some(new)) => new.iter().all(|entry| old.contains(entry)),
        _ => false,
    }
}
