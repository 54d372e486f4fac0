//! What an update did on a throw-away copy of the live data, and what follows from it for the real one.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;

use crate::state::words;

/// A database's schema, as far as an update can change it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schema {
    pub tables: BTreeMap<String, Table>,
}

/// One table of a [`Schema`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Changes when all of its rows are written anew.
    pub storage: i64,
    pub rows: i64,
    pub bytes: i64,
    pub columns: BTreeMap<String, Column>,
    pub constraints: BTreeMap<String, Constraint>,
    pub indexes: BTreeMap<String, Index>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Column {
    /// As PostgreSQL writes it: `character varying(64)`.
    pub kind: String,
    pub required: bool,
    pub has_default: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Constraint {
    /// As PostgreSQL writes it: `CHECK ((price > 0))`.
    pub definition: String,
    pub columns: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    pub definition: String,
    pub unique: bool,
    pub columns: Vec<String>,
}

words! {
    /// What a difference between two schemas is.
    SchemaChangeKind, "kind of a schema's change" {
        TableAdded = "table_added",
        TableDropped = "table_dropped",
        ColumnAdded = "column_added",
        ColumnDropped = "column_dropped",
        ColumnRetyped = "column_retyped",
        ColumnRequired = "column_required",
        ColumnOptional = "column_optional",
        ConstraintAdded = "constraint_added",
        ConstraintDropped = "constraint_dropped",
        IndexAdded = "index_added",
        IndexDropped = "index_dropped",
    }
}

/// One difference that an update made.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SchemaChange {
    pub kind: SchemaChangeKind,
    pub table: String,
    /// Of the column, constraint or index.
    pub name: Option<String>,
    /// The type or the definition that it has now, or had.
    pub definition: String,
    /// What the code before wrote there may be refused from now on, or be lost.
    pub tightens: bool,
}

/// A table whose rows were all written anew; nobody else reads or writes it meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RewrittenTable {
    pub table: String,
    /// As PostgreSQL estimates.
    pub rows: i64,
    pub bytes: i64,
}

/// A lock on a table that was there before, under which nobody else can write to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableLock {
    pub table: String,
    /// The strongest, in PostgreSQL's word: `AccessExclusiveLock`.
    pub mode: String,
    /// The longest time without a break, to some hundredths.
    pub seconds: f64,
}

/// What was seen of an update on a copy.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rehearsal {
    /// Of Odoo's run.
    pub seconds: f64,
    pub schema: Vec<SchemaChange>,
    /// The longest first.
    pub locks: Vec<TableLock>,
    pub rewritten: Vec<RewrittenTable>,
    /// Warnings of Odoo's log, each kind once, without what differs from run to run ([`without_details`]).
    pub warnings: Vec<String>,
    /// Those of them that the rehearsal before, of the last deployment that went well, did not have. `None` when there was none.
    #[serde(default)]
    pub new_warnings: Option<Vec<String>>,
}

impl Rehearsal {
    /// Whether what the live code writes meanwhile could be refused, lost or wait long: then nobody may write during the update.
    pub fn needs_held_writes(&self) -> bool {
        self.schema.iter().any(|change| change.tightens) || !self.rewritten.is_empty()
    }

    /// Tells which warnings are new against an earlier rehearsal.
    pub fn compare(&mut self, before: Option<&Self>) {
        self.new_warnings =
            before.map(|before| self.warnings.iter().filter(|warning| !before.warnings.contains(warning)).cloned().collect());
    }

    /// In words, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("the update took {:.1} s", self.seconds)];
        lines.extend(self.schema.iter().map(ToString::to_string));
        lines.extend(
            self.rewritten
                .iter()
                .map(|table| format!("all of {} was written anew: about {} rows, {}", table.table, table.rows.max(0), size(table.bytes))),
        );
        lines.extend(
            self.locks
                .iter()
                .filter(|lock| lock.seconds >= 0.1)
                .map(|lock| format!("{} was locked for {:.1} s ({})", lock.table, lock.seconds, lock.mode)),
        );
        lines.extend(self.new_warnings.iter().flatten().map(|warning| format!("new in the log: {warning}")));
        lines
    }

    /// In one sentence.
    pub fn summary(&self) -> String {
        let tightened = self.schema.iter().filter(|change| change.tightens).count();
        let mut parts = vec![format!("the update went well on a copy, in {:.1} s", self.seconds)];
        parts.push(match (self.schema.len(), tightened) {
            (0, _) => "the schema stays as it is".to_owned(),
            (1, 0) => "one change of the schema".to_owned(),
            (changes, 0) => format!("{changes} changes of the schema"),
            (changes, tightened) => format!("{changes} changes of the schema, of which {tightened} make it stricter"),
        });
        match self.rewritten.len() {
            0 => {}
            1 => parts.push("one table rewritten".to_owned()),
            tables => parts.push(format!("{tables} tables rewritten")),
        }
        if let Some(new) = self.new_warnings.as_ref().filter(|new| !new.is_empty()) {
            parts.push(format!("{} new in the log", new.len()));
        }
        parts.join("; ")
    }
}

impl fmt::Display for SchemaChange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SchemaChangeKind as Kind;
        let (table, definition) = (&self.table, &self.definition);
        let name = self.name.as_deref().unwrap_or_default();
        match self.kind {
            Kind::TableAdded => write!(formatter, "new table {table}"),
            Kind::TableDropped => write!(formatter, "table {table} is gone"),
            Kind::ColumnAdded => write!(formatter, "new column {table}.{name}, {definition}"),
            Kind::ColumnDropped => write!(formatter, "column {table}.{name}, {definition}, is gone"),
            Kind::ColumnRetyped => write!(formatter, "column {table}.{name} is now {definition}"),
            Kind::ColumnRequired => write!(formatter, "column {table}.{name} is required now"),
            Kind::ColumnOptional => write!(formatter, "column {table}.{name} may be empty now"),
            Kind::ConstraintAdded => write!(formatter, "new constraint on {table}: {definition}"),
            Kind::ConstraintDropped => write!(formatter, "constraint on {table} is gone: {definition}"),
            Kind::IndexAdded => write!(formatter, "new index on {table}: {definition}"),
            Kind::IndexDropped => write!(formatter, "index on {table} is gone: {definition}"),
        }?;
        if self.tightens { formatter.write_str(" (stricter)") } else { Ok(()) }
    }
}

impl Schema {
    /// What is different in `after`, table by table. A new table is one difference, whatever it has.
    pub fn changes(&self, after: &Self) -> Vec<SchemaChange> {
        let mut changes = Vec::new();
        for (name, before) in &self.tables {
            match after.tables.get(name) {
                Some(after) => before.changes(name, after, &mut changes),
                None => changes.push(change(SchemaChangeKind::TableDropped, name, None, "", true)),
            }
        }
        let new = after.tables.keys().filter(|name| !self.tables.contains_key(*name));
        changes.extend(new.map(|name| change(SchemaChangeKind::TableAdded, name, None, "", false)));
        changes
    }

    /// The tables whose rows were all written anew, of those that had any.
    pub fn rewritten(&self, after: &Self) -> Vec<RewrittenTable> {
        self.tables
            .iter()
            .filter(|(name, before)| before.bytes > 0 && after.tables.get(*name).is_some_and(|after| after.storage != before.storage))
            .map(|(name, before)| RewrittenTable { table: name.clone(), rows: before.rows, bytes: before.bytes })
            .collect()
    }
}

impl Table {
    fn changes(&self, table: &str, after: &Self, changes: &mut Vec<SchemaChange>) {
        use SchemaChangeKind as Kind;
        for (name, before) in &self.columns {
            let Some(now) = after.columns.get(name) else {
                changes.push(change(Kind::ColumnDropped, table, Some(name), &before.kind, true));
                continue;
            };
            if before.kind != now.kind {
                changes.push(change(Kind::ColumnRetyped, table, Some(name), &now.kind, true));
            }
            match (before.required, now.required) {
                (false, true) => changes.push(change(Kind::ColumnRequired, table, Some(name), &now.kind, true)),
                (true, false) => changes.push(change(Kind::ColumnOptional, table, Some(name), &now.kind, false)),
                _ => {}
            }
        }
        for (name, now) in after.columns.iter().filter(|(name, _)| !self.columns.contains_key(*name)) {
            let definition = if now.required { format!("{}, required", now.kind) } else { now.kind.clone() };
            // The code before does not give it a value.
            changes.push(change(Kind::ColumnAdded, table, Some(name), &definition, now.required && !now.has_default));
        }
        // Of the new columns alone: the code before does not write there.
        let is_new = |columns: &[String]| !columns.is_empty() && columns.iter().all(|name| !self.columns.contains_key(name));
        let same = |now: Option<&Constraint>, before: &Constraint| now.is_some_and(|now| now.definition == before.definition);
        for (name, before) in self.constraints.iter().filter(|(name, before)| !same(after.constraints.get(*name), before)) {
            changes.push(change(Kind::ConstraintDropped, table, Some(name), &before.definition, false));
        }
        for (name, now) in after.constraints.iter().filter(|(name, now)| !same(self.constraints.get(*name), now)) {
            changes.push(change(Kind::ConstraintAdded, table, Some(name), &now.definition, !is_new(&now.columns)));
        }
        let same = |now: Option<&Index>, before: &Index| now.is_some_and(|now| now.definition == before.definition);
        for (name, before) in self.indexes.iter().filter(|(name, before)| !same(after.indexes.get(*name), before)) {
            changes.push(change(Kind::IndexDropped, table, Some(name), &before.definition, false));
        }
        for (name, now) in after.indexes.iter().filter(|(name, now)| !same(self.indexes.get(*name), now)) {
            changes.push(change(Kind::IndexAdded, table, Some(name), &now.definition, now.unique && !is_new(&now.columns)));
        }
    }
}

fn change(kind: SchemaChangeKind, table: &str, name: Option<&String>, definition: &str, tightens: bool) -> SchemaChange {
    SchemaChange { kind, table: table.to_owned(), name: name.cloned(), definition: definition.to_owned(), tightens }
}

/// A line of a log without its numbers, so that two runs can be compared.
pub fn without_details(line: &str) -> String {
    let mut told = String::with_capacity(line.len());
    for character in line.chars() {
        match character {
            '0'..='9' if told.ends_with('#') => {}
            '0'..='9' => told.push('#'),
            other => told.push(other),
        }
    }
    told
}

fn size(bytes: i64) -> String {
    format!("{:.1} MB", bytes as f64 / 1_000_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: &str, required: bool) -> Column {
        Column { kind: kind.to_owned(), required, has_default: false }
    }

    fn constraint(definition: &str, column: &str) -> Constraint {
        Constraint { definition: definition.to_owned(), columns: vec![column.to_owned()] }
    }

    fn shop() -> Table {
        Table {
            storage: 1,
            rows: 7,
            bytes: 8192,
            columns: [("id", column("integer", true)), ("name", column("text", false)), ("price", column("numeric", true))]
                .map(|(name, column)| (name.to_owned(), column))
                .into(),
            constraints: [("shop_price".to_owned(), constraint("CHECK ((price > 0))", "price"))].into(),
            indexes: BTreeMap::new(),
        }
    }

    fn told(after: Table) -> Vec<String> {
        let schema = |table: Table| Schema { tables: [("shop".to_owned(), table)].into() };
        schema(shop()).changes(&schema(after)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_only_adds_is_not_stricter() {
        let mut after = shop();
        after.columns.insert("colour".to_owned(), column("text", false));
        after.constraints.insert("shop_colour".to_owned(), constraint("CHECK ((colour <> ''))", "colour"));
        after.indexes.insert(
            "shop_name".to_owned(),
            Index { definition: "btree (name)".to_owned(), unique: false, columns: vec!["name".to_owned()] },
        );
        after.columns.get_mut("price").unwrap().required = false;
        assert_eq!(
            told(after),
            [
                "column shop.price may be empty now",
                "new column shop.colour, text",
                "new constraint on shop: CHECK ((colour <> ''))",
                "new index on shop: btree (name)",
            ]
        );
    }

    #[test]
    fn what_the_code_before_could_run_into_is_stricter() {
        let mut after = shop();
        after.columns.remove("name");
        after.columns.insert("size".to_owned(), column("integer", true));
        after.columns.get_mut("price").unwrap().kind = "integer".to_owned();
        after.constraints.insert("shop_price".to_owned(), constraint("CHECK ((price > 1))", "price"));
        after.indexes.insert(
            "shop_price_unique".to_owned(),
            Index { definition: "btree (price)".to_owned(), unique: true, columns: vec!["price".to_owned()] },
        );
        assert_eq!(
            told(after),
            [
                "column shop.name, text, is gone (stricter)",
                "column shop.price is now integer (stricter)",
                "new column shop.size, integer, required (stricter)",
                "constraint on shop is gone: CHECK ((price > 0))",
                "new constraint on shop: CHECK ((price > 1)) (stricter)",
                "new index on shop: btree (price) (stricter)",
            ]
        );
        let gone = Schema { tables: [("shop".to_owned(), shop())].into() }.changes(&Schema::default());
        assert!(gone.len() == 1 && gone[0].tightens);
    }

    #[test]
    fn a_table_that_was_written_anew_holds_writes() {
        let before = Schema { tables: [("shop".to_owned(), shop()), ("empty".to_owned(), Table { bytes: 0, ..shop() })].into() };
        let mut after = before.clone();
        for table in after.tables.values_mut() {
            table.storage += 1;
        }
        let rewritten = before.rewritten(&after);
        assert_eq!(rewritten, [RewrittenTable { table: "shop".to_owned(), rows: 7, bytes: 8192 }]);
        assert!(Rehearsal { rewritten, ..Rehearsal::default() }.needs_held_writes());
        assert!(!Rehearsal::default().needs_held_writes());
    }

    #[test]
    fn warnings_are_new_when_the_last_good_run_did_not_have_them() {
        let with = |warnings: &[&str]| Rehearsal {
            warnings: warnings.iter().map(|warning| without_details(warning)).collect(),
            ..Rehearsal::default()
        };
        let mut now = with(&["odoo.a: 12 rows left", "odoo.b: gone"]);
        now.compare(Some(&with(&["odoo.a: 9 rows left"])));
        assert_eq!(now.new_warnings.as_deref(), Some(["odoo.b: gone".to_owned()].as_slice()));
        now.compare(None);
        assert_eq!(now.new_warnings, None);
    }
}
