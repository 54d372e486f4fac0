//! What a module's files declare, as far as it can be read without running them. The host's reader writes these; nothing here is checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One module at one commit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleDescription {
    /// `None` when it is no dictionary of plain values.
    pub manifest: Option<BTreeMap<String, Value>>,
    /// By path relative to the module, with `/`. Without the manifest and byte code.
    pub files: BTreeMap<String, FileDescription>,
    /// The Python packages from elsewhere that what it declares uses, by the names of their imports. Sorted.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The words in the texts of its `pre_init_hook` and of what that uses, e.g. names of modules in its SQL. Sorted, bounded.
    #[serde(default)]
    pub hook_words: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileDescription {
    /// Over the file's bytes, or over where a link leads and what is there.
    pub digest: String,
    pub content: Content,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    Python(PythonFile),
    /// An XML or CSV file outside `static/`.
    Records(RecordFile),
    /// It should say something and could not be read.
    Unreadable {
        line: Option<u32>,
        reason: String,
    },
    /// A file `*.po` of `i18n/` or `i18n_extra/`.
    Translations(TranslationFile),
    /// A link.
    Link,
    /// Anything else: only its digest counts.
    Opaque,
}

/// Names stand for their values where the module binds them itself, so that a list of constants in another file counts where it is used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PythonFile {
    /// The module's own files that it imports, in their order, packages first.
    pub imports: Vec<String>,
    /// It may import what cannot be seen.
    pub dynamic_imports: bool,
    pub models: Vec<ModelClass>,
    /// Also loggers and guarded imports, by their text.
    pub functions: BTreeMap<String, Method>,
    /// Those that are no models.
    pub classes: BTreeMap<String, Piece>,
    pub constants: BTreeMap<String, Expression>,
    /// What is neither of these, and runs when the file is loaded.
    pub statements: Vec<Piece>,
}

/// Code of which only its identity counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    pub line: Option<u32>,
    pub digest: String,
}

/// A class that makes or extends an Odoo model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelClass {
    pub class: String,
    pub line: Option<u32>,
    pub bases: Vec<String>,
    /// Decorators and a metaclass: they may change anything.
    pub dynamic: Vec<String>,
    /// Everything that is assigned and is neither a field nor an object of the table: `_name`, `_inherit`, `_sql_constraints` …
    pub attributes: BTreeMap<String, Expression>,
    pub fields: BTreeMap<String, Field>,
    /// `models.Constraint`, `models.Index`, `models.UniqueIndex`.
    pub objects: BTreeMap<String, TableObject>,
    pub methods: BTreeMap<String, Method>,
    pub statements: Vec<Piece>,
}

/// An expression in one form of writing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Expression {
    pub line: Option<u32>,
    pub source: String,
    /// When it is a plain value. Python's `None` is not told from none.
    pub value: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Field {
    /// `Char` of `fields.Char`.
    #[serde(rename = "type")]
    pub kind: String,
    pub line: Option<u32>,
    pub positional: Vec<Expression>,
    pub keywords: BTreeMap<String, Expression>,
    /// Arguments that are put together elsewhere, or a class of fields that is not Odoo's.
    pub dynamic: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableObject {
    pub line: Option<u32>,
    /// `Constraint`, `Index` or `UniqueIndex`.
    pub object: String,
    pub source: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Method {
    pub line: Option<u32>,
    /// Decorators and arguments.
    pub head: String,
    /// Over the body, without its docstring.
    pub body: String,
    /// `depends`, `constrains` … of `odoo.api`.
    pub declares: Vec<String>,
    /// It calls what makes fields or sets attributes.
    pub makes_fields: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordFile {
    pub records: Vec<Record>,
    /// Files that records read when they are loaded: `file="…"`, `web_icon="…"`. Relative to the module, as far as they are in it.
    pub mentions: Vec<String>,
}

/// Words of one language.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TranslationFile {
    /// Those that Odoo loads into the database and that have a translation, by where they stand and, in a second line, their English.
    pub words: BTreeMap<String, String>,
    /// Over those that Odoo reads from the file itself.
    pub code: String,
}

/// An element of a data file, or a line of a CSV file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// `record`, `template`, `function`, `delete` …
    pub tag: String,
    /// Without the module's own name; may be empty.
    pub id: String,
    pub model: String,
    pub line: Option<u32>,
    pub noupdate: bool,
    pub digest: String,
}
