//! A database's schema, read from PostgreSQL's catalogs.

use ocore_model::rehearsal::{Column, Constraint, Index, Schema, Table};
use sqlx::PgConnection;

use crate::error::{HostError, Result};

const TABLES: &str = "
    select relname::text, relfilenode::int8, reltuples::int8, pg_catalog.pg_relation_size(oid)
    from pg_catalog.pg_class where relkind in ('r', 'p') and relnamespace = 'public'::pg_catalog.regnamespace limit 100000";
const COLUMNS: &str = "
    select c.relname::text, a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef
    from pg_catalog.pg_attribute as a join pg_catalog.pg_class as c on c.oid = a.attrelid
    where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p') and c.relnamespace = 'public'::pg_catalog.regnamespace limit 1000000";
const CONSTRAINTS: &str = "
    select c.relname::text, k.conname::text, pg_catalog.left(pg_catalog.pg_get_constraintdef(k.oid), 10000),
        array(select a.attname::text from pg_catalog.pg_attribute as a where a.attrelid = k.conrelid and a.attnum = any(k.conkey))
    from pg_catalog.pg_constraint as k join pg_catalog.pg_class as c on c.oid = k.conrelid
    where k.contype in ('c', 'f', 'p', 'u', 'x') and c.relnamespace = 'public'::pg_catalog.regnamespace limit 200000";
const INDEXES: &str = "
    select t.relname::text, i.relname::text, pg_catalog.left(pg_catalog.pg_get_indexdef(x.indexrelid), 10000), x.indisunique,
        array(select a.attname::text from pg_catalog.pg_attribute as a where a.attrelid = x.indrelid and a.attnum = any(x.indkey))
    from pg_catalog.pg_index as x join pg_catalog.pg_class as i on i.oid = x.indexrelid join pg_catalog.pg_class as t on t.oid = x.indrelid
    where t.relnamespace = 'public'::pg_catalog.regnamespace
        and not exists (select from pg_catalog.pg_constraint as k where k.conindid = x.indexrelid and k.contype in ('p', 'u', 'x')) limit 200000";

/// The tables of Odoo with all that belongs to them. The connection must be the owner's.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Schema> {
    let lost = |error| HostError::machine_from("the schema could not be read from the database", error);
    let mut schema = Schema::default();
    let tables: Vec<(String, i64, i64, i64)> = sqlx::query_as(TABLES).fetch_all(&mut *connection).await.map_err(lost)?;
    for (name, storage, rows, bytes) in tables {
        schema.tables.insert(name, Table { storage, rows, bytes, ..Table::default() });
    }
    let columns: Vec<(String, String, String, bool, bool)> = sqlx::query_as(COLUMNS).fetch_all(&mut *connection).await.map_err(lost)?;
    for (table, name, kind, required, has_default) in columns {
        if let Some(table) = schema.tables.get_mut(&table) {
            table.columns.insert(name, Column { kind, required, has_default });
        }
    }
    let constraints: Vec<(String, String, String, Vec<String>)> =
        sqlx::query_as(CONSTRAINTS).fetch_all(&mut *connection).await.map_err(lost)?;
    for (table, name, definition, columns) in constraints {
        if let Some(table) = schema.tables.get_mut(&table) {
            table.constraints.insert(name, Constraint { definition, columns });
        }
    }
    let indexes: Vec<(String, String, String, bool, Vec<String>)> = sqlx::query_as(INDEXES).fetch_all(connection).await.map_err(lost)?;
    for (table, name, definition, unique, columns) in indexes {
        if let Some(table) = schema.tables.get_mut(&table) {
            table.indexes.insert(name, Index { definition, unique, columns });
        }
    }
    Ok(schema)
}
