//! Servers: the machines that carry instances. The machine of this installation registers itself.

use chrono::{DateTime, TimeDelta, Utc};
use ocore_host::{Host, PoolFacts};
use ocore_model::{clock::Clock, ids::ServerId};
use sqlx::PgPool;

use crate::{
    Control, Error, Result,
    authorization::{Grant, System, ViewServers},
    store,
};

/// A server that has not been heard of for so long is shown as `unreachable`.
const SILENCE: TimeDelta = TimeDelta::minutes(5);

#[derive(Debug, Clone)]
pub struct Server {
    pub id: ServerId,
    pub name: String,
    pub description: String,
    pub host: String,
    /// `active`, `unreachable`, `removing` or `deleted`.
    pub status: String,
    pub status_message: String,
    pub os_name: String,
    pub os_version: String,
    pub cpu_cores: i32,
    pub ram_total_bytes: i64,
    /// As it was at the last heartbeat.
    pub pool: Option<PoolFacts>,
    /// The Odoo series that are installed.
    pub odoo_versions: Vec<String>,
    pub last_seen_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The servers that the organization can use: its own and those of the installation.
pub async fn list(control: &Control, grant: &Grant<ViewServers>) -> Result<Vec<Server>> {
    let servers = store::servers::list(&mut *control.pool.acquire().await?, grant).await?;
    let now = control.clock.now();
    Ok(servers.into_iter().map(|server| with_silence(server, now)).collect())
}

pub async fn show(control: &Control, grant: &Grant<ViewServers>, id: ServerId) -> Result<Server> {
    list(control, grant).await?.into_iter().find(|server| server.id == id).ok_or(Error::NotFound { what: "server" })
}

fn with_silence(mut server: Server, now: DateTime<Utc>) -> Server {
    if server.status == "active" && server.last_seen_at.is_none_or(|last| last + SILENCE < now) {
        "unreachable".clone_into(&mut server.status);
        server.status_message = match server.last_seen_at {
            Some(last) => format!("not heard of since {}", last.to_rfc3339()),
            None => "never heard of".to_owned(),
        };
    }
    server
}

/// Writes what this machine is, before there is a [`Control`]; gives the id to make one with. `known` is the id from an earlier call, kept
/// by the caller: with it the machine keeps its row when its host name changes. Without it the row of the same host name is taken, or a new
/// one made. May run at every start.
pub async fn register_this_machine(
    _system: System,
    pool: &PgPool,
    host: &dyn Host,
    clock: &dyn Clock,
    known: Option<ServerId>,
) -> Result<ServerId> {
    let facts = host.facts().await?;
    let mut transaction = pool.begin().await?;
    let now = clock.now();
    let id = match known {
        Some(id) if store::servers::refresh(&mut transaction, id, &facts, now).await? => id,
        _ => store::servers::register(&mut transaction, &facts, now).await?,
    };
    transaction.commit().await?;
    tracing::info!(server_id = %id, hostname = facts.hostname, "this machine is registered");
    Ok(id)
}

/// Refreshes this machine's row. The program calls it once a minute.
pub async fn heartbeat(_system: System, control: &Control) -> Result<()> {
    let facts = control.host.facts().await?;
    let mut connection = control.pool.acquire().await?;
    if store::servers::refresh(&mut connection, control.server_id, &facts, control.clock.now()).await? {
        return Ok(());
    }
    Err(Error::broken(format!("this machine's row {} is gone", control.server_id)))
}
