//! Servers that the organization can use.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use ocore_control::{authorization::ViewServers, servers};
use ocore_model::ids::ServerId;
use serde::Serialize;
use serde_with::skip_serializing_none;
use utoipa::ToSchema;

use crate::{AppState, authorized::Authorized, extract::FromPath, problem::Problem};

/// A machine that carries instances.
#[skip_serializing_none]
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Server {
    #[schema(value_type = Uuid)]
    id: ServerId,
    name: String,
    description: String,
    host: String,
    /// `active`, `unreachable`, `removing` or `deleted`.
    status: String,
    status_message: String,
    os_name: String,
    os_version: String,
    cpu_cores: i32,
    ram_total_bytes: i64,
    /// As it was when the server was last heard of; null before.
    pool: Option<Pool>,
    /// The Odoo series that are installed.
    odoo_versions: Vec<String>,
    last_seen_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// Where a server keeps the data of its instances.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pool {
    /// `xfs`, `btrfs`, `ext4` …
    file_system: String,
    /// Copies share their blocks and take about two seconds at any size. When false, they take the data's full size and time.
    reflinks: bool,
    total_bytes: u64,
    available_bytes: u64,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Servers {
    servers: Vec<Server>,
    total: usize,
}

impl From<servers::Server> for Server {
    fn from(server: servers::Server) -> Self {
        Self {
            id: server.id,
            name: server.name,
            description: server.description,
            host: server.host,
            status: server.status,
            status_message: server.status_message,
            os_name: server.os_name,
            os_version: server.os_version,
            cpu_cores: server.cpu_cores,
            ram_total_bytes: server.ram_total_bytes,
            pool: server.pool.map(|pool| Pool {
                file_system: pool.file_system,
                reflinks: pool.reflinks,
                total_bytes: pool.total_bytes,
                available_bytes: pool.available_bytes,
            }),
            odoo_versions: server.odoo_versions,
            last_seen_at: server.last_seen_at,
            created_at: server.created_at,
            updated_at: server.updated_at,
        }
    }
}

/// List the servers.
#[utoipa::path(get, path = "/servers", tag = "Servers", responses((status = 200, description = "By name.", body = Servers)))]
pub(crate) async fn list(State(state): State<AppState>, Authorized(grant): Authorized<ViewServers>) -> Result<Json<Servers>, Problem> {
    let servers: Vec<Server> = servers::list(&state.control, &grant).await?.into_iter().map(Into::into).collect();
    let total = servers.len();
    Ok(Json(Servers { servers, total }))
}

/// Show a server.
#[utoipa::path(get, path = "/servers/{id}", tag = "Servers", params(("id" = Uuid, Path)), responses((status = 200, description = "The server.", body = Server)))]
pub(crate) async fn show(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ViewServers>,
    FromPath(id): FromPath<ServerId>,
) -> Result<Json<Server>, Problem> {
    Ok(Json(servers::show(&state.control, &grant, id).await?.into()))
}
