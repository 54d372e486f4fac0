//! Empties the columns, parameters and files that the rules say to empty.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{
    catalog::{Catalog, Column, ColumnType, quote},
    rules::{Rules, Treatment, look_of_name},
    run_sql::{lost, of_the_data},
};
use crate::{api::FindingKind, error::Result};

/// Knows which modules come with Odoo.
pub(super) struct OdooModules<'a>(pub(super) &'a BTreeSet<String>);

impl OdooModules<'_> {
    pub(super) fn made(&self, column: &Column) -> bool {
        column.module.as_ref().is_some_and(|module| self.0.contains(module))
    }
}

/// The columns that must be empty.
pub(super) fn columns_to_empty<'a>(catalog: &'a Catalog, rules: &Rules, odoo: &OdooModules<'_>) -> BTreeMap<&'a str, Vec<&'a Column>> {
    let mut tables: BTreeMap<&str, Vec<&Column>> = BTreeMap::new();
    for column in catalog.columns.iter().filter(|column| column.is_odoos()) {
        let rule = rules.column(&column.table, &column.name, odoo.made(column));
        if rule.is_some_and(|rule| rule.treatment == Treatment::Empty) {
            tables.entry(&column.table).or_default().push(column);
        }
    }
    tables
}

/// Columns that no value of ours fits, by place, and why.
pub(super) type Stuck = BTreeMap<String, String>;

/// Columns of rows that are in the table only to hold a credential cannot be emptied; the rows have gone before. In a transaction.
pub(super) async fn empty(connection: &mut PgConnection, catalog: &Catalog, rules: &Rules, odoo: &OdooModules<'_>) -> Result<Stuck> {
    // A constraint that waits for the end would be somebody else's failure.
    sqlx::raw_sql("set constraints all immediate").execute(&mut *connection).await.map_err(lost)?;
    let mut stuck = Stuck::new();
    for columns in columns_to_empty(catalog, rules, odoo).values() {
        let all: Vec<(&Column, String)> = columns.iter().map(|column| (*column, values(column).swap_remove(0))).collect();
        if attempt(connection, &all).await?.is_none() {
            continue;
        }
        for column in columns {
            let mut reason = None;
            for value in values(column) {
                reason = attempt(connection, &[(column, value)]).await?;
                if reason.is_none() {
                    break;
                }
            }
            if let Some(reason) = reason {
                stuck.insert(column.place(), reason);
            }
        }
    }
    empty_tracked(connection, catalog, rules, odoo).await?;
    if catalog.has_table("ir_config_parameter") {
        let keys: Vec<String> = parameters(connection, rules).await?;
        sqlx::query("delete from public.ir_config_parameter where key = any($1)")
            .bind(&keys)
            .execute(&mut *connection)
            .await
            .map_err(lost)?;
    }
    if catalog.has("ir_attachment", "res_field") {
        for rule in &rules.attachments {
            sqlx::query("delete from public.ir_attachment where res_model = $1 and res_field = any($2)")
                .bind(&rule.model)
                .bind(&rule.fields)
                .execute(&mut *connection)
                .await
                .map_err(lost)?;
        }
    }
    Ok(stuck)
}

/// Sets columns of one table where they are filled, or tells why the table does not allow it; nothing has changed then.
async fn attempt(connection: &mut PgConnection, columns: &[(&Column, String)]) -> Result<Option<String>> {
    let Some((first, _)) = columns.first() else { return Ok(None) };
    let set: Vec<String> = columns.iter().map(|(column, value)| format!("{} = {value}", quote(&column.name))).collect();
    let filled: Vec<String> = columns.iter().map(|(column, _)| is_left(column)).collect();
    let update = format!("update {} set {} where {}", first.of(), set.join(", "), filled.join(" or "));
    sqlx::raw_sql("savepoint ocore_empty").execute(&mut *connection).await.map_err(lost)?;
    let updated = sqlx::raw_sql(AssertSqlSafe(update)).execute(&mut *connection).await;
    let refused = match updated {
        Ok(_) => None,
        Err(error) => Some(of_the_data(&error).ok_or_else(|| lost(error))?),
    };
    let end = if refused.is_some() { "rollback to ocore_empty; release ocore_empty" } else { "release ocore_empty" };
    sqlx::raw_sql(end).execute(connection).await.map_err(lost)?;
    Ok(refused)
}

/// Odoo's own log of changes in the chatter keeps old and new values of the fields that a module tracks.
async fn empty_tracked(connection: &mut PgConnection, catalog: &Catalog, rules: &Rules, odoo: &OdooModules<'_>) -> Result<()> {
    const VALUES: [&str; 4] = ["old_value_char", "new_value_char", "old_value_text", "new_value_text"];
    let values: Vec<&str> = VALUES.into_iter().filter(|value| catalog.has("mail_tracking_value", value)).collect();
    if values.is_empty() {
        return Ok(());
    }
    let tracked: Vec<(i32, String, String)> = sqlx::query_as(
        "select distinct f.id, replace(f.model, '.', '_'), f.name::text
           from public.ir_model_fields f join public.mail_tracking_value v on v.field_id = f.id",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(lost)?;
    let is_credential = |table: &str, name: &str| {
        let column = catalog.columns.iter().find(|column| column.is_odoos() && column.table == table && column.name == name);
        match column.and_then(|column| rules.column(table, name, odoo.made(column))) {
            Some(rule) => rule.treatment == Treatment::Empty,
            None => look_of_name(name) == Some(FindingKind::Credential),
        }
    };
    let fields: Vec<i32> = tracked.iter().filter(|(_, table, name)| is_credential(table, name)).map(|(id, ..)| *id).collect();
    let set: Vec<String> = values.iter().map(|value| format!("{value} = null")).collect();
    sqlx::query(AssertSqlSafe(format!("update public.mail_tracking_value set {} where field_id = any($1)", set.join(", "))))
        .bind(&fields)
        .execute(connection)
        .await
        .map_err(lost)?;
    Ok(())
}

/// Keys of the parameters that are there and must not be.
async fn parameters(connection: &mut PgConnection, rules: &Rules) -> Result<Vec<String>> {
    let keys: Vec<String> = sqlx::query_scalar("select key::text from public.ir_config_parameter where coalesce(value, '') <> ''")
        .fetch_all(&mut *connection)
        .await
        .map_err(lost)?;
    Ok(keys.into_iter().filter(|key| rules.parameter(key).is_some_and(|rule| rule.treatment == Treatment::Empty)).collect())
}

/// Places that must be empty and are not.
pub(super) async fn left(connection: &mut PgConnection, catalog: &Catalog, rules: &Rules, odoo: &OdooModules<'_>) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for columns in columns_to_empty(catalog, rules, odoo).values() {
        // One pass over the table, whatever its size: nothing of this is a sample.
        let counts: Vec<String> = columns.iter().map(|column| format!("coalesce(bool_or({}), false)", is_left(column))).collect();
        let query = format!("select {} from {}", counts.join(", "), columns[0].of());
        let row = sqlx::query(AssertSqlSafe(query)).fetch_one(&mut *connection).await.map_err(lost)?;
        for (index, column) in columns.iter().enumerate() {
            if row.try_get::<bool, _>(index).map_err(lost)? {
                left.push(column.place());
            }
        }
    }
    left.extend(parameters(connection, rules).await?.into_iter().map(|key| format!("ir_config_parameter:{key}")));
    if catalog.has("ir_attachment", "res_field") {
        for rule in &rules.attachments {
            let is_left: bool =
                sqlx::query_scalar("select exists (select from public.ir_attachment where res_model = $1 and res_field = any($2))")
                    .bind(&rule.model)
                    .bind(&rule.fields)
                    .fetch_one(&mut *connection)
                    .await
                    .map_err(lost)?;
            if is_left {
                left.push(format!("{}:{}", rule.model, rule.fields.join(",")));
            }
        }
    }
    Ok(left)
}

/// SQL that is true when the column holds something that is not ours.
fn is_left(column: &Column) -> String {
    let ours = stand_ins(column);
    if ours.is_empty() {
        return column.is_filled();
    }
    let name = match column.kind {
        ColumnType::Json => format!("{}::jsonb", quote(&column.name)),
        ColumnType::Bytes => quote(&column.name),
        _ => format!("{}::text", quote(&column.name)),
    };
    format!("({} and {name} not in ({}))", column.is_filled(), ours.join(", "))
}

/// What a column may be set to, the best first: nothing, or where its table wants a value and one a row, one that tells nothing.
fn values(column: &Column) -> Vec<String> {
    let nothing = match column.kind {
        ColumnType::Json | ColumnType::Array => "'{}'",
        ColumnType::Text | ColumnType::Bytes | ColumnType::Other => "''",
    };
    let mut values: Vec<String> = if column.is_required { vec![nothing.to_owned()] } else { vec!["null".to_owned(), nothing.to_owned()] };
    values.extend(stand_ins(column));
    values
}

/// Values that follow from the row's number alone, so that the check knows them again. The shorter and the stranger ones fit what a constraint may ask for:
/// few characters, hexadecimal digits, a UUID.
fn stand_ins(column: &Column) -> Vec<String> {
    let named = "'neutralized-' || id";
    let expressions: &[String] = match column.kind {
        _ if !column.has_id => &[],
        ColumnType::Text => &[
            format!("({named})"),
            "('n' || id)".to_owned(),
            format!("md5({named})"),
            format!("(md5({named})::uuid::text)"),
            format!("left(encode(sha256(convert_to({named}, 'UTF8')), 'hex'), 40)"),
            format!("encode(sha256(convert_to({named}, 'UTF8')), 'hex')"),
        ],
        ColumnType::Json => &["jsonb_build_object('neutralized', id)".to_owned()],
        ColumnType::Bytes => &[format!("convert_to({named}, 'UTF8')")],
        ColumnType::Array | ColumnType::Other => &[],
    };
    expressions.to_vec()
}
