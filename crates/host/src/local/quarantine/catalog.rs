//! The columns of a database that can hold a word, and what they hold.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};

use super::{
    parameters,
    rules::{AttachmentRule, is_credential, is_endpoint, look_of_name},
    run_sql::lost,
};
use crate::{api::FindingKind, error::Result};

/// Tables up to this size are searched whole for contents, in bytes. Larger ones hold no settings but business data: a sample shows what kind.
const SEARCH_WHOLE: i64 = 8 * 1024 * 1024;
/// Up to this size all rows are counted in which a column is filled, in bytes; a copy must not wait for a scan of gigabytes.
const COUNT_WHOLE: i64 = 64 * 1024 * 1024;
/// About how much of a larger table is read, in bytes.
const SAMPLE: i64 = 2 * 1024 * 1024;
/// So many tables are looked into by one request to the database.
const TOGETHER: usize = 64;

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

/// Reads the catalog. The connection is the owner's, and what the database defines itself is not used.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Catalog> {
    let rows = sqlx::query(
        "with tables as materialized (
            select oid, relname, case when pg_relation_size(oid) = 0 then 0 else pg_table_size(oid) end as bytes
              from pg_class where relnamespace = to_regnamespace('public') and relkind in ('r', 'p'))
         select c.relname::text, a.attname::text, t.typname::text, a.attnotnull, c.bytes
           from tables c
           join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
           join pg_type t on t.oid = a.atttypid
          where t.typname in ('text', 'varchar', 'bpchar', 'citext', 'json', 'jsonb', 'bytea')
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

    /// Tables whose contents are searched in a sample.
    pub(super) fn sampled(&self) -> Vec<String> {
        let tables = self.tables().into_iter();
        tables.filter(|(_, columns)| columns[0].table_bytes > SEARCH_WHOLE).map(|(table, _)| table.to_owned()).collect()
    }

    /// Everything in the database that looks like a credential, an endpoint or an address and is filled. No value leaves the database.
    pub(super) async fn look(&self, connection: &mut PgConnection, files: &[AttachmentRule]) -> Result<Sightings> {
        let mut seen = Sightings::new();
        let tables = self.tables();
        let filled = tables.iter().filter(|(table, columns)| columns[0].table_bytes > 0 && **table != "ir_config_parameter");
        let looks: Vec<Look<'_>> = filled.flat_map(|(table, columns)| looks_into(table, columns)).collect();
        for together in looks.chunks(TOGETHER) {
            let statements: Vec<&str> = together.iter().map(|look| look.statement.as_str()).collect();
            // One request, and one row of each statement.
            let rows = sqlx::raw_sql(AssertSqlSafe(statements.join(";\n"))).fetch_all(&mut *connection).await.map_err(lost)?;
            for (look, row) in together.iter().zip(rows) {
                look.tell(&row, &mut seen).map_err(lost)?;
            }
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

/// A statement that counts, in one row, what a table holds.
struct Look<'a> {
    statement: String,
    /// What each of the row's numbers counts. Of several numbers of one column the first that is not 0 is told.
    counts: Vec<(&'a Column, FindingKind, bool)>,
}

impl Look<'_> {
    fn tell(&self, row: &PgRow, seen: &mut Sightings) -> std::result::Result<(), sqlx::Error> {
        for (index, (column, kind, by_name)) in self.counts.iter().enumerate() {
            if let rows @ 1.. = row.try_get::<i64, _>(index)? {
                seen.entry(column.place()).or_insert(Seen { kind: *kind, rows: rows.cast_unsigned(), by_name: *by_name });
            }
        }
        Ok(())
    }
}

/// A table is looked into twice: columns whose names say something are counted, the contents of the others are searched.
fn looks_into<'a>(table: &str, columns: &[&'a Column]) -> Vec<Look<'a>> {
    let bytes = columns[0].table_bytes;
    let all = format!("public.{}", quote(table));
    let mut looks = Vec::new();
    let named: Vec<(&Column, FindingKind)> = columns.iter().filter_map(|column| Some((*column, look_of_name(&column.name)?))).collect();
    if !named.is_empty() {
        let counts: Vec<String> = named.iter().map(|(column, _)| format!("count(*) filter (where {})", column.is_filled())).collect();
        let sample = if bytes > COUNT_WHOLE { sample(bytes) } else { String::new() };
        looks.push(Look {
            statement: format!("select {} from {all}{sample}", counts.join(", ")),
            counts: named.into_iter().map(|(column, kind)| (column, kind, true)).collect(),
        });
    }
    let unnamed = columns.iter().copied().filter(|column| column.kind != ColumnType::Bytes && look_of_name(&column.name).is_none());
    let unnamed: Vec<&Column> = unnamed.collect();
    if !unnamed.is_empty() {
        let (mut values, mut counts, mut told) = (String::new(), String::new(), Vec::new());
        for (index, column) in unnamed.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            // Concatenated, so that a long value is unpacked once and not for each expression.
            let _ = write!(values, "{separator}{}::text || '' as c{index}", quote(&column.name));
            let value = format!("s.c{index}");
            let _ = write!(
                counts,
                "{separator}count(*) filter (where {}), count(*) filter (where {})",
                is_credential(&value),
                is_endpoint(&value)
            );
            told.extend([(column, FindingKind::Credential, false), (column, FindingKind::Endpoint, false)]);
        }
        let sample = if bytes > SEARCH_WHOLE { sample(bytes) } else { String::new() };
        // Without `offset 0` the concatenation would be put where the name stands, many times.
        looks.push(Look { statement: format!("select {counts} from (select {values} from {all}{sample} offset 0) s"), counts: told });
    }
    looks
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
