//! Empties the columns, parameters and files that the rules say to empty.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{
    catalog::{Catalog, Column, ColumnType, quote},
    rules::{Rules, Treatment},
    run_sql::lost,
};
use crate::error::Result;

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
    for column in &catalog.columns {
        let rule = rules.column(&column.table, &column.name, odoo.made(column));
        if rule.is_some_and(|rule| rule.treatment == Treatment::Empty) {
            tables.entry(&column.table).or_default().push(column);
        }
    }
    tables
}

/// Columns of rows that are in the table only to hold a credential cannot be emptied; the rows have gone before.
pub(super) async fn empty(connection: &mut PgConnection, catalog: &Catalog, rules: &Rules, odoo: &OdooModules<'_>) -> Result<()> {
    for (table, columns) in columns_to_empty(catalog, rules, odoo) {
        let set: Vec<String> = columns.iter().map(|column| format!("{} = {}", quote(&column.name), nothing(column))).collect();
        let filled: Vec<String> = columns.iter().map(|column| column.is_filled()).collect();
        let update = format!("update public.{} set {} where {}", quote(table), set.join(", "), filled.join(" or "));
        sqlx::query(AssertSqlSafe(update)).execute(&mut *connection).await.map_err(lost)?;
    }
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
    for (table, columns) in columns_to_empty(catalog, rules, odoo) {
        // One pass over the table, whatever its size: nothing of this is a sample.
        let counts: Vec<String> = columns.iter().map(|column| format!("coalesce(bool_or({}), false)", column.is_filled())).collect();
        let query = format!("select {} from public.{}", counts.join(", "), quote(table));
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

fn nothing(column: &Column) -> &'static str {
    match (column.is_required, column.kind) {
        (false, _) => "null",
        (true, ColumnType::Json) => "'{}'",
        (true, ColumnType::Text | ColumnType::Bytes) => "''",
    }
}
