//! What decides the routes of a server, and the generation that numbers them.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{InstanceId, ServerId},
    instance::InstanceStatus,
};
use sqlx::PgConnection;

use crate::Result;

/// An instance as far as its route depends on it.
#[derive(Debug, Clone)]
pub(crate) struct RouteRow {
    pub instance_id: InstanceId,
    pub name: String,
    pub slug: String,
    pub status: InstanceStatus,
    pub updating: bool,
    /// Until when requests are held while the live slot rests.
    pub held_until: Option<DateTime<Utc>>,
    /// `<address>:<port>`
    pub http: Option<String>,
    pub websocket: Option<String>,
    /// A deployment is queued or runs.
    pub deploying: bool,
}

/// A server's generation with one of its instances; a server without instances has one row without any.
#[derive(Debug, Clone)]
pub(crate) struct ServerRoute {
    pub generation: i64,
    pub route: Option<RouteRow>,
}

/// The generation of a server grows past `above`, unless it is there already.
pub(crate) async fn lift(connection: &mut PgConnection, server: ServerId, above: i64) -> Result<()> {
    sqlx::query!("update servers set route_generation = $2 + 1 where id = $1 and route_generation < $2", server.as_uuid(), above)
        .execute(connection)
        .await?;
    Ok(())
}

/// The generation of an instance's server grows.
pub(crate) async fn raise(connection: &mut PgConnection, instance: InstanceId) -> Result<()> {
    sqlx::query!(
        "update servers set route_generation = route_generation + 1 where id = (select server_id from instances where id = $1)",
        instance.as_uuid(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The generation that a server's edge should have.
pub(crate) async fn generation(connection: &mut PgConnection, server: ServerId) -> Result<i64> {
    Ok(sqlx::query_scalar!("select route_generation from servers where id = $1", server.as_uuid())
        .fetch_optional(connection)
        .await?
        .unwrap_or(0))
}

/// All instances of a server that are not deleted, by id, with its generation.
pub(crate) async fn list(connection: &mut PgConnection, server: ServerId) -> Result<Vec<ServerRoute>> {
    Ok(sqlx::query!(
        r#"select servers.route_generation, instances.id as "id?: InstanceId", instances.name as "name?", instances.slug as "slug?",
                  instances.status as "status?: InstanceStatus",
                  instances.updating as "updating?", instances.held_until, instances.active_http, instances.active_websocket,
                  exists (
                      select 1 from operations where operations.instance_id = instances.id and operations.kind = 'deploy'
                          and operations.status in ('queued', 'running')) as "deploying!"
           from servers left join instances on instances.server_id = servers.id and instances.status <> 'deleted'
           where servers.id = $1 order by instances.id"#,
        server.as_uuid(),
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| ServerRoute {
        generation: row.route_generation,
        route: match (row.id, row.name, row.slug, row.status, row.updating) {
            (Some(instance_id), Some(name), Some(slug), Some(status), Some(updating)) => Some(RouteRow {
                instance_id,
                name,
                slug,
                status,
                updating,
                held_until: row.held_until,
                http: row.active_http,
                websocket: row.active_websocket,
                deploying: row.deploying,
            }),
            _ => None,
        },
    })
    .collect())
}
