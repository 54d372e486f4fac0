//! Operations: the rows that say what is to be done, who does it, and what has been done of it.
//!
//! No tenant reads these rows, so nothing here takes a scope. Lock order, wherever more than one row is locked: instance, operation, deployment.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{DeploymentId, EnvironmentId, InstanceId, OperationId, OrganizationId},
    operation::OperationStatus,
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// An operation's row.
#[derive(Debug, Clone)]
pub(crate) struct OperationRow {
    pub id: OperationId,
    pub instance_id: InstanceId,
    pub deployment_id: Option<DeploymentId>,
    /// An [`crate::operations::OperationKind`].
    pub parameters: Value,
    pub status: OperationStatus,
    pub schema_version: i32,
    /// The saga's graph; `None` until it was begun.
    pub dag: Option<Value>,
    pub generation: i64,
    pub claimed_by: Option<Uuid>,
}

/// What holds an instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InstanceHold {
    pub operation_id: Option<OperationId>,
    /// The holder's status; `None` when nobody holds it.
    pub operation_status: Option<OperationStatus>,
}

pub(crate) struct NewOperation<'a> {
    pub id: OperationId,
    pub kind: &'a str,
    pub organization_id: OrganizationId,
    pub instance_id: InstanceId,
    pub deployment_id: Option<DeploymentId>,
    pub parameters: &'a Value,
    pub schema_version: i32,
}

pub(crate) async fn insert(connection: &mut PgConnection, new: NewOperation<'_>) -> Result<()> {
    sqlx::query!(
        "insert into operations (id, kind, organization_id, instance_id, deployment_id, parameters, status, schema_version)
         values ($1, $2, $3, $4, $5, $6, 'queued', $7)",
        new.id.as_uuid(),
        new.kind,
        new.organization_id.as_uuid(),
        new.instance_id.as_uuid(),
        new.deployment_id.map(DeploymentId::as_uuid),
        new.parameters,
        new.schema_version,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The row, without locking it.
pub(crate) async fn find(connection: &mut PgConnection, id: OperationId) -> Result<Option<OperationRow>> {
    Ok(sqlx::query_as!(
        OperationRow,
        r#"select id as "id: OperationId", instance_id as "instance_id: InstanceId",
                  deployment_id as "deployment_id: DeploymentId", parameters, status as "status: OperationStatus", schema_version, dag,
                  generation, claimed_by
           from operations where id = $1"#,
        id.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// The row, locked until the transaction ends. Lock its instance first.
pub(crate) async fn lock(connection: &mut PgConnection, id: OperationId) -> Result<Option<OperationRow>> {
    Ok(sqlx::query_as!(
        OperationRow,
        r#"select id as "id: OperationId", instance_id as "instance_id: InstanceId",
                  deployment_id as "deployment_id: DeploymentId", parameters, status as "status: OperationStatus", schema_version, dag,
                  generation, claimed_by
           from operations where id = $1 for update"#,
        id.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// Who holds an instance, with the instance's row locked until the transaction ends.
pub(crate) async fn lock_instance(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<InstanceHold>> {
    Ok(sqlx::query_as!(
        InstanceHold,
        r#"select instances.operation_id as "operation_id: OperationId",
                  (select operations.status from operations where operations.id = instances.operation_id) as "operation_status: OperationStatus"
           from instances where id = $1 for update of instances"#,
        instance.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// Another operation of the instance that was asked for earlier and is still open.
pub(crate) async fn is_behind_another(connection: &mut PgConnection, instance: InstanceId, id: OperationId) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select 1 from operations where instance_id = $1 and id < $2 and status in ('queued', 'running')) as "behind!""#,
        instance.as_uuid(),
        id.as_uuid(),
    )
    .fetch_one(connection)
    .await?)
}

/// Gives the operation to a worker and the instance to the operation, at a new generation. Both rows are locked by the caller.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    id: OperationId,
    instance: InstanceId,
    worker: Uuid,
    now: DateTime<Utc>,
) -> Result<i64> {
    let generation = sqlx::query_scalar!(
        "update instances set operation_id = $2, generation = generation + 1, updated_at = $3 where id = $1 returning generation",
        instance.as_uuid(),
        id.as_uuid(),
        now,
    )
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query!(
        "update operations set status = 'running', claimed_by = $2, generation = $3, started_at = coalesce(started_at, $4) where id = $1",
        id.as_uuid(),
        worker,
        generation,
        now,
    )
    .execute(connection)
    .await?;
    Ok(generation)
}

/// Keeps the graph of a saga that begins. False when another claim has taken over.
pub(crate) async fn set_dag(connection: &mut PgConnection, id: OperationId, generation: i64, dag: &Value) -> Result<bool> {
    let updated = sqlx::query!("update operations set dag = $3 where id = $1 and generation = $2", id.as_uuid(), generation, dag)
        .execute(connection)
        .await?;
    Ok(updated.rows_affected() == 1)
}

/// Writes one event of the saga's log; writing one again changes nothing. False when another claim has taken over.
pub(crate) async fn record_event(
    connection: &mut PgConnection,
    id: OperationId,
    generation: i64,
    node: i64,
    kind: &str,
    event: &Value,
) -> Result<bool> {
    // The share lock makes a claim wait for us, or us for the claim: never an event of the old holder after the new one has read the log.
    let held = sqlx::query_scalar!(
        r#"with held as (select id from operations where id = $1 and generation = $2 for share),
                written as (
                    insert into operation_events (operation_id, node_id, kind, event)
                    select id, $3, $4, $5 from held on conflict do nothing)
           select count(*) as "held!" from held"#,
        id.as_uuid(),
        generation,
        node,
        kind,
        event,
    )
    .fetch_one(connection)
    .await?;
    Ok(held == 1)
}

/// The saga's log, in the order in which it was written.
pub(crate) async fn events(connection: &mut PgConnection, id: OperationId) -> Result<Vec<Value>> {
    Ok(sqlx::query_scalar!("select event from operation_events where operation_id = $1 order by sequence", id.as_uuid())
        .fetch_all(connection)
        .await?)
}

/// Forgets that undoing failed, so that it is tried again.
pub(crate) async fn forget_failed_undo(connection: &mut PgConnection, id: OperationId) -> Result<()> {
    sqlx::query!("delete from operation_events where operation_id = $1 and kind = 'undo_failed'", id.as_uuid())
        .execute(&mut *connection)
        .await?;
    sqlx::query!("update operations set status = 'running', claimed_by = null where id = $1 and status = 'stuck'", id.as_uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// Ends the operation. False when another claim has taken over. A stuck one keeps its instance, every other end lets it go.
pub(crate) async fn complete(
    connection: &mut PgConnection,
    id: OperationId,
    instance: InstanceId,
    generation: i64,
    status: OperationStatus,
    error: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let updated = sqlx::query!(
        "update operations set status = $3, error = $4, completed_at = $5 where id = $1 and generation = $2 and status = 'running'",
        id.as_uuid(),
        generation,
        status.as_str(),
        error,
        now,
    )
    .execute(&mut *connection)
    .await?;
    if updated.rows_affected() == 0 {
        return Ok(false);
    }
    if status != OperationStatus::Stuck {
        sqlx::query!(
            "update instances set operation_id = null, updated_at = $3 where id = $1 and operation_id = $2",
            instance.as_uuid(),
            id.as_uuid(),
            now,
        )
        .execute(connection)
        .await?;
    }
    Ok(true)
}

/// Ends an operation that nobody has begun. False when somebody has.
pub(crate) async fn drop_queued(connection: &mut PgConnection, id: OperationId, error: &str, now: DateTime<Utc>) -> Result<bool> {
    let updated = sqlx::query!(
        "update operations set status = 'failed', error = $2, completed_at = $3 where id = $1 and status = 'queued'",
        id.as_uuid(),
        error,
        now,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// The operation whose turn it is on an instance: the oldest queued one, when no other runs.
pub(crate) async fn next_of_instance(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<OperationId>> {
    Ok(sqlx::query_scalar!(
        r#"select id as "id: OperationId" from operations
           where instance_id = $1 and status = 'queued'
               and not exists (select 1 from operations as other where other.instance_id = $1 and other.status = 'running')
           order by id limit 1"#,
        instance.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// For every instance on which none runs: the oldest queued operation. What a crash left unqueued is among them.
pub(crate) async fn waiting(connection: &mut PgConnection) -> Result<Vec<OperationId>> {
    Ok(sqlx::query_scalar!(
        r#"select distinct on (instance_id) id as "id: OperationId" from operations
           where status = 'queued'
               and not exists (
                   select 1 from operations as other where other.instance_id = operations.instance_id and other.status = 'running')
           order by instance_id, id"#,
    )
    .fetch_all(connection)
    .await?)
}

/// The operations that run, with their workers.
pub(crate) async fn running(connection: &mut PgConnection) -> Result<Vec<(OperationId, Option<Uuid>)>> {
    Ok(sqlx::query!(r#"select id as "id: OperationId", claimed_by from operations where status = 'running' order by id"#)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| (row.id, row.claimed_by))
        .collect())
}

/// The operations whose undo has failed.
pub(crate) async fn stuck(connection: &mut PgConnection) -> Result<Vec<OperationId>> {
    Ok(sqlx::query_scalar!(r#"select id as "id: OperationId" from operations where status = 'stuck' order by id"#)
        .fetch_all(connection)
        .await?)
}

/// Queued operations of an instance, and the deployments that they would carry out.
pub(crate) async fn queued_of_instance(
    connection: &mut PgConnection,
    instance: InstanceId,
) -> Result<Vec<(OperationId, Option<DeploymentId>)>> {
    Ok(sqlx::query!(
        r#"select id as "id: OperationId", deployment_id as "deployment_id: DeploymentId" from operations
           where instance_id = $1 and status = 'queued' order by id for update"#,
        instance.as_uuid(),
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| (row.id, row.deployment_id))
    .collect())
}

/// Whether anything is asked of the instance that has not ended.
pub(crate) async fn has_any_open(connection: &mut PgConnection, instance: InstanceId) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select 1 from operations where instance_id = $1 and status in ('queued', 'running')) as "open!""#,
        instance.as_uuid(),
    )
    .fetch_one(connection)
    .await?)
}

/// An operation of this kind that is queued or running on the instance.
pub(crate) async fn has_open(connection: &mut PgConnection, instance: InstanceId, kind: &str) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select 1 from operations where instance_id = $1 and kind = $2 and status in ('queued', 'running')) as "open!""#,
        instance.as_uuid(),
        kind,
    )
    .fetch_one(connection)
    .await?)
}

/// The open operation of a deployment, locked.
pub(crate) async fn lock_of_deployment(
    connection: &mut PgConnection,
    deployment: DeploymentId,
) -> Result<Option<(OperationId, InstanceId, OperationStatus)>> {
    Ok(sqlx::query!(
        r#"select id as "id: OperationId", instance_id as "instance_id: InstanceId", status as "status: OperationStatus" from operations
           where deployment_id = $1 and status in ('queued', 'running') for update"#,
        deployment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?
    .map(|row| (row.id, row.instance_id, row.status)))
}

/// The open deployments of an environment that have changed nothing yet, with their operations, the operations locked.
pub(crate) async fn lock_unchanging_of_environment(
    connection: &mut PgConnection,
    environment: EnvironmentId,
    except: DeploymentId,
) -> Result<Vec<(OperationId, DeploymentId)>> {
    Ok(sqlx::query!(
        r#"select operations.id as "id: OperationId", deployments.id as "deployment_id: DeploymentId"
           from operations join deployments on deployments.id = operations.deployment_id
           where deployments.environment_id = $1 and deployments.id <> $2 and operations.status in ('queued', 'running')
               and not deployments.changing
               -- What somebody asked of the data is done before a later push.
               and (deployments.data_origin ->> 'kind' not in ('snapshot', 'import')
                    or (select data_origin ->> 'kind' from deployments as newer where newer.id = $2) in ('snapshot', 'import'))
           order by operations.id for update of operations"#,
        environment.as_uuid(),
        except.as_uuid(),
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| (row.id, row.deployment_id))
    .collect())
}

/// The advisory lock that a worker holds while it lives. Worker ids are random UUIDs; their low half is as unique as they are.
pub(crate) fn lock_key(worker: Uuid) -> i64 {
    worker.as_u64_pair().1 as i64
}

/// Whether a worker is dead: nobody holds its lock. Takes the lock until the transaction ends, so that of several that ask one gets yes.
pub(crate) async fn is_dead(connection: &mut PgConnection, worker: Uuid) -> Result<bool> {
    Ok(sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "free!""#, lock_key(worker)).fetch_one(connection).await?)
}
