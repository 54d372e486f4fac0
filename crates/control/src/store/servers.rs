//! Servers.

use chrono::{DateTime, Utc};
use ocore_host::HostFacts;
use ocore_model::ids::ServerId;
use sqlx::PgConnection;

use crate::{Error, Result, authorization::Scope, servers::Server};

/// Those of the organization and those of the installation.
pub(crate) async fn list(connection: &mut PgConnection, scope: &Scope) -> Result<Vec<Server>> {
    let rows = sqlx::query!(
        r#"select id as "id: ServerId", name, description, host, status, status_message, os_name, os_version, cpu_cores, ram_total_bytes,
                  pool, odoo_versions, last_seen_at, created_at, updated_at
           from servers
           where (organization_id is null or organization_id = $1) and status <> 'deleted'
           order by name"#,
        scope.organization_id.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Server {
            id: row.id,
            name: row.name,
            description: row.description,
            host: row.host,
            status: row.status,
            status_message: row.status_message,
            os_name: row.os_name,
            os_version: row.os_version,
            cpu_cores: row.cpu_cores,
            ram_total_bytes: row.ram_total_bytes,
            // Empty until the first heartbeat of a server that somebody else registered.
            pool: serde_json::from_value(row.pool).ok(),
            odoo_versions: row.odoo_versions,
            last_seen_at: row.last_seen_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
        .collect())
}

struct Columns {
    cpu_cores: i32,
    ram_total_bytes: i64,
    pool: serde_json::Value,
    odoo_versions: Vec<String>,
}

fn columns(facts: &HostFacts) -> Result<Columns> {
    let mut odoo_versions: Vec<String> = facts.distributions.iter().map(|distribution| distribution.odoo_version.to_string()).collect();
    odoo_versions.sort();
    odoo_versions.dedup();
    Ok(Columns {
        cpu_cores: facts.cpu_cores.try_into().unwrap_or(i32::MAX),
        ram_total_bytes: facts.ram_total_bytes.try_into().unwrap_or(i64::MAX),
        pool: serde_json::to_value(&facts.pool).map_err(|error| Error::internal("the facts of the pool as JSON", error))?,
        odoo_versions,
    })
}

/// Makes the row of a machine of the installation, or takes the one of its host name.
pub(crate) async fn register(connection: &mut PgConnection, facts: &HostFacts, now: DateTime<Utc>) -> Result<ServerId> {
    let columns = columns(facts)?;
    Ok(sqlx::query_scalar!(
        r#"insert into servers (id, name, host, status, os_name, os_version, cpu_cores, ram_total_bytes, pool, odoo_versions,
                                last_seen_at, created_at, updated_at)
           values ($1, $2, $2, 'active', $3, $4, $5, $6, $7, $8, $9, $9, $9)
           on conflict (name) do update set
               status = 'active', status_message = '', os_name = excluded.os_name, os_version = excluded.os_version,
               cpu_cores = excluded.cpu_cores, ram_total_bytes = excluded.ram_total_bytes, pool = excluded.pool,
               odoo_versions = excluded.odoo_versions, last_seen_at = excluded.last_seen_at, updated_at = excluded.updated_at
           returning id as "id: ServerId""#,
        ServerId::new().as_uuid(),
        facts.hostname,
        facts.os_name,
        facts.os_version,
        columns.cpu_cores,
        columns.ram_total_bytes,
        columns.pool,
        &columns.odoo_versions,
        now
    )
    .fetch_one(connection)
    .await?)
}

/// Writes what a server is now. False when there is no such row.
pub(crate) async fn refresh(connection: &mut PgConnection, id: ServerId, facts: &HostFacts, now: DateTime<Utc>) -> Result<bool> {
    let columns = columns(facts)?;
    let done = sqlx::query!(
        "update servers set host = $2, status = 'active', status_message = '', os_name = $3, os_version = $4, cpu_cores = $5,
                ram_total_bytes = $6, pool = $7, odoo_versions = $8, last_seen_at = $9, updated_at = $9
         where id = $1 and status in ('active', 'unreachable')",
        id.as_uuid(),
        facts.hostname,
        facts.os_name,
        facts.os_version,
        columns.cpu_cores,
        columns.ram_total_bytes,
        columns.pool,
        &columns.odoo_versions,
        now
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}
