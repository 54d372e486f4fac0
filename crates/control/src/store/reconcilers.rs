//! What the reconcilers compare with the world, and how one of them takes an instance that no operation holds.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{DataSetId, InstanceId, OperationId, OrganizationId, ServerId},
    instance::{Color, InstanceStatus},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// An instance as it should be.
#[derive(Debug, Clone)]
pub(crate) struct IntendedRow {
    pub id: InstanceId,
    pub organization_id: OrganizationId,
    pub name: String,
    pub status: InstanceStatus,
    /// An [`ocore_host::OdooSettings`].
    pub settings: Value,
    /// Sealed.
    pub env_vars: Option<Vec<u8>>,
    pub active_color: Option<Color>,
    pub active_data_set_id: Option<DataSetId>,
    pub active_release: Option<String>,
    pub active_http: Option<String>,
    pub active_websocket: Option<String>,
    pub previous_data_set_id: Option<DataSetId>,
    /// Data sets that are still to become snapshots.
    pub retiring: Vec<Uuid>,
    pub operation_id: Option<OperationId>,
    pub generation: i64,
    pub failed_starts: i32,
    pub last_restart_at: Option<DateTime<Utc>>,
}

/// All instances of a server, the deleted ones too.
pub(crate) async fn intended(connection: &mut PgConnection, server: ServerId) -> Result<Vec<IntendedRow>> {
    Ok(sqlx::query_as!(
        IntendedRow,
        r#"select id as "id: InstanceId", organization_id as "organization_id: OrganizationId", name, status as "status: InstanceStatus",
                  settings, env_vars, active_color as "active_color: Color", active_data_set_id as "active_data_set_id: DataSetId",
                  active_release, active_http, active_websocket, previous_data_set_id as "previous_data_set_id: DataSetId",
                  array(select snapshots.data_set_id from snapshots
                        where snapshots.instance_id = instances.id and snapshots.retires and snapshots.status = 'creating') as "retiring!",
                  operation_id as "operation_id: OperationId", generation, failed_starts, last_restart_at
           from instances where server_id = $1 order by id"#,
        server.as_uuid(),
    )
    .fetch_all(connection)
    .await?)
}

/// Raises the generation of an instance that nobody holds and that nobody has had since it was read. `None` otherwise: then it is not ours.
pub(crate) async fn take_if_free(connection: &mut PgConnection, instance: InstanceId, seen_generation: i64) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar!(
        "update instances set generation = generation + 1 where id = $1 and generation = $2 and operation_id is null returning generation",
        instance.as_uuid(),
        seen_generation,
    )
    .fetch_optional(connection)
    .await?)
}

/// A start begins: counted before it is tried, so that a crash in it counts too.
pub(crate) async fn note_start(connection: &mut PgConnection, instance: InstanceId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update instances set failed_starts = failed_starts + 1, last_restart_at = $2, updated_at = $2 where id = $1",
        instance.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// It runs again.
pub(crate) async fn note_restarted(connection: &mut PgConnection, instance: InstanceId) -> Result<()> {
    sqlx::query!("update instances set restart_count = restart_count + 1 where id = $1", instance.as_uuid()).execute(connection).await?;
    Ok(())
}

/// It has stayed up.
pub(crate) async fn note_stable(connection: &mut PgConnection, instance: InstanceId) -> Result<()> {
    sqlx::query!("update instances set failed_starts = 0 where id = $1 and failed_starts > 0", instance.as_uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// The releases that something on the server has or will have: what is live, what snapshots ran on, what open deployments have built, and the
/// last two that were live on each instance.
pub(crate) async fn needed_releases(connection: &mut PgConnection, server: ServerId) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar!(
        r#"select active_release as "release!" from instances where server_id = $1 and active_release is not null
           union
           select release from snapshots
           where server_id = $1 and release is not null and removed_at is null and status in ('creating', 'ready')
           union
           select deployments.release from deployments join instances on instances.id = deployments.instance_id
           where instances.server_id = $1 and deployments.release is not null and deployments.status in ('queued', 'running')
           union
           select release from (
               select deployments.release, row_number() over (partition by deployments.instance_id order by deployments.completed_at desc)
               from deployments join instances on instances.id = deployments.instance_id
               where instances.server_id = $1 and instances.status <> 'deleted' and deployments.status = 'succeeded'
                   and deployments.release is not null) as lately
           where row_number <= 2"#,
        server.as_uuid(),
    )
    .fetch_all(connection)
    .await?)
}
