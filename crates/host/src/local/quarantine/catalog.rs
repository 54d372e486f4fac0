//! The columns of a database that can hold a word, and what they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};

use super::{
    parameters,
    rules::{AttachmentRule, CREDENTIAL_CONTENT, ENDPOINT_CONTENT, look_of_name},
    run_sql::lost,
};
use crate::{api::FindingKind, error::Result};

/// Tables up to this size are searched whole for contents, in bytes. Larger ones hold no settings but business data: a sample shows what kind.
const SEARCH_WHOLE: i64 = 8 * 1024 * 1024;
/// Up to this size all rows are counted in which a column is filled, in bytes; a copy must not wait for a scan of gigabytes.
const COUNT_WHOLE: i64 = 64 * 1024 * 1024;
/// About how much of a larger table is read, in bytes.
const SAMPLE: i64 = 4 * 1024 * 1024;

/// What a column can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnType {
    Text,
    Json,
    Bytes,
}

/// A column of a table in the schema of Odoo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) kind: ColumnType,
    pub(super) is_required: bool,
    /// The module that made it, where Odoo knows.
    pub(super) module: Option<String>,
    table_bytes: i64,
}

impl Column {
    pub(super) fn place(&self) -> String {
        format!("{}.{}", self.table, self.name)
    }

    /// SQL that is true when the column holds something.
    pub(super) fn is_filled(&self) -> String {
        let column = quote(&self.name);
        match self.kind {
            ColumnType::Text => format!("{column}::text <> ''"),
            ColumnType::Json => format!("{column}::text not in ('', 'null', '{{}}', '[]', '\"\"', 'false')"),
            ColumnType::Bytes => format!("octet_length({column}) > 0"),
        }
    }
}

/// The columns of a database, and its modules that are rows and nothing else.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    pub(super) columns: Vec<Column>,
}

/// A place that looks like something of ours and is filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) kind: FindingKind,
    pub(super) rows: u64,
    /// Its name says so; otherwise its content does.
    pub(super) by_name: bool,
}

/// By place: `table.column`, `ir_config_parameter:key` or `ir_attachment:model.field`.
pub(super) type Sightings = BTreeMap<String, Seen>;

/// The prefix of a parameter's place.
pub(super) const PARAMETER: &str = "ir_config_parameter:";
/// The prefix of the place of a file.
pub(super) const ATTACHMENT: &str = "ir_attachment:";

/// A name in SQL.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Reads the catalog. The connection is the owner's, and what the database defines itself is not used.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Catalog> {
    let rows = sqlx::query(
        "select c.relname::text, a.attname::text, t.typname::text, a.attnotnull, pg_table_size(c.oid)
           from pg_class c
           join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
           join pg_type t on t.oid = a.atttypid
          where c.relnamespace = to_regnamespace('public') and c.relkind in ('r', 'p')
            and t.typname in ('text', 'varchar', 'bpchar', 'citext', 'json', 'jsonb', 'bytea')
          order by c.relname, a.attnum",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(lost)?;
    let makers: Vec<(String, String, String)> = sqlx::query_as(
        "select replace(f.model, '.', '_'), f.name::text, (array_agg(d.module::text order by d.id))[1]
           from public.ir_model_fields f
           join public.ir_model_data d on d.model = 'ir.model.fields' and d.res_id = f.id
          where f.store
          group by 1, 2",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(lost)?;
    let makers: BTreeMap<(&str, &str), &str> =
        makers.iter().map(|(table, column, module)| ((table.as_str(), column.as_str()), module.as_str())).collect();
    let column = |row: &PgRow| -> std::result::Result<Column, sqlx::Error> {
        let (table, name, kind): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Ok(Column {
            module: makers.get(&(table.as_str(), name.as_str())).map(|module| (*module).to_owned()),
            kind: match kind.as_str() {
                "json" | "jsonb" => ColumnType::Json,
                "bytea" => ColumnType::Bytes,
                _ => ColumnType::Text,
            },
            is_required: row.try_get(3)?,
            table_bytes: row.try_get(4)?,
            table,
            name,
        })
    };
    Ok(Catalog { columns: rows.iter().map(column).collect::<std::result::Result<_, _>>().map_err(lost)? })
}

impl Catalog {
    pub(super) fn has_table(&self, table: &str) -> bool {
        self.columns.iter().any(|column| column.table == table)
    }

    pub(super) fn has(&self, table: &str, name: &str) -> bool {
        self.columns.iter().any(|column| column.table == table && column.name == name)
    }

    /// The columns by table.
    pub(super) fn tables(&self) -> BTreeMap<&str, Vec<&Column>> {
        let mut tables: BTreeMap<&str, Vec<&Column>> = BTreeMap::new();
        for column in &self.columns {
            tables.entry(&column.table).or_default().push(column);
        }
        tables
    }

    /// Everything in the database that looks like a credential, an endpoint or an address and is filled. No value leaves the database.
    pub(super) async fn look(&self, connection: &mut PgConnection, files: &[AttachmentRule]) -> Result<Sightings> {
        let mut seen = Sightings::new();
        for (table, columns) in self.tables() {
            if columns[0].table_bytes == 0 || table == "ir_config_parameter" {
                continue;
            }
            look_into(connection, table, &columns, &mut seen).await?;
        }
        if self.has("ir_config_parameter", "value") {
            let parameters = parameters::look(connection).await?.into_iter();
            seen.extend(
                parameters.map(|found| (format!("{PARAMETER}{}", found.key), Seen { kind: found.kind, rows: 1, by_name: found.by_name })),
            );
        }
        if self.has("ir_attachment", "res_field") {
            look_at_files(connection, files, &mut seen).await?;
        }
        Ok(seen)
    }
}

/// Two passes over a table: names are counted, and contents are searched.
async fn look_into(connection: &mut PgConnection, table: &str, columns: &[&Column], seen: &mut Sightings) -> Result<()> {
    let bytes = columns[0].table_bytes;
    let named: Vec<&Column> = columns.iter().copied().filter(|column| look_of_name(&column.name).is_some()).collect();
    let texts: Vec<&Column> = columns.iter().copied().filter(|column| column.kind != ColumnType::Bytes).collect();
    let all = format!("public.{}", quote(table));
    if !named.is_empty() {
        let counts: Vec<String> = named.iter().map(|column| format!("count(*) filter (where {})", column.is_filled())).collect();
        let sample = if bytes > COUNT_WHOLE { sample(bytes) } else { String::new() };
        let row = sqlx::query(AssertSqlSafe(format!("select {} from {all}{sample}", counts.join(", "))))
            .fetch_one(&mut *connection)
            .await
            .map_err(lost)?;
        for (index, column) in named.iter().enumerate() {
            let rows: i64 = row.try_get(index).map_err(lost)?;
            if let (Some(kind), 1..) = (look_of_name(&column.name), rows) {
                seen.insert(column.place(), Seen { kind, rows: rows as u64, by_name: true });
            }
        }
    }
    let unnamed: Vec<&Column> = texts.into_iter().filter(|column| look_of_name(&column.name).is_none()).collect();
    if unnamed.is_empty() {
        return Ok(());
    }
    let mut query = String::from("select ");
    for (index, column) in unnamed.iter().enumerate() {
        let value = format!("s.{}::text", quote(&column.name));
        let separator = if index == 0 { "" } else { ", " };
        let _ = write!(
            query,
            "{separator}count(*) filter (where {value} ~ {}), count(*) filter (where {value} ~ {})",
            pattern(CREDENTIAL_CONTENT),
            pattern(ENDPOINT_CONTENT)
        );
    }
    let names: Vec<String> = unnamed.iter().map(|column| quote(&column.name)).collect();
    let sample = if bytes > SEARCH_WHOLE { sample(bytes) } else { String::new() };
    let _ = write!(query, " from (select {} from {all}{sample}) s", names.join(", "));
    let row = sqlx::query(AssertSqlSafe(query)).fetch_one(&mut *connection).await.map_err(lost)?;
    for (index, column) in unnamed.iter().enumerate() {
        let credentials: i64 = row.try_get(2 * index).map_err(lost)?;
        let endpoints: i64 = row.try_get(2 * index + 1).map_err(lost)?;
        let found = [(FindingKind::Credential, credentials), (FindingKind::Endpoint, endpoints)];
        if let Some((kind, rows)) = found.into_iter().find(|(_, rows)| *rows > 0) {
            seen.insert(column.place(), Seen { kind, rows: rows as u64, by_name: false });
        }
    }
    Ok(())
}

/// Pages from all over the table. The same ones each time, so that two looks can be compared.
fn sample(bytes: i64) -> String {
    format!(" tablesample system ({:.4}) repeatable (1)", 100.0 * SAMPLE as f64 / bytes as f64)
}

async fn look_at_files(connection: &mut PgConnection, files: &[AttachmentRule], seen: &mut Sightings) -> Result<()> {
    for rule in files {
        let counts: Vec<(String, i64)> = sqlx::query_as(
            "select res_field::text, count(*) from public.ir_attachment where res_model = $1 and res_field = any($2) group by res_field",
        )
        .bind(&rule.model)
        .bind(&rule.fields)
        .fetch_all(&mut *connection)
        .await
        .map_err(lost)?;
        for (field, rows) in counts {
            let sighting = Seen { kind: FindingKind::Credential, rows: rows as u64, by_name: true };
            seen.insert(format!("{ATTACHMENT}{}.{field}", rule.model), sighting);
        }
    }
    Ok(())
}

/// A regular expression that any of these fits, as a literal of SQL.
pub(super) fn pattern(alternatives: &[&str]) -> String {
    literal(&alternatives.iter().map(|pattern| format!("(?:{pattern})")).collect::<Vec<_>>().join("|"))
}

/// Modules that somebody has imported as data: rows without files, which Odoo does not look for either.
pub(super) async fn imported_modules(connection: &mut PgConnection) -> Result<BTreeSet<String>> {
    let knows: bool = sqlx::query_scalar(
        "select exists (select from pg_attribute where attrelid = to_regclass('public.ir_module_module') and attname = 'imported' and not attisdropped)",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(lost)?;
    // Odoo Studio keeps its changes in a module without files.
    let mut imported = BTreeSet::from(["studio_customization".to_owned()]);
    if knows {
        let names: Vec<String> = sqlx::query_scalar("select name::text from public.ir_module_module where imported")
            .fetch_all(&mut *connection)
            .await
            .map_err(lost)?;
        imported.extend(names);
    }
    Ok(imported)
}
