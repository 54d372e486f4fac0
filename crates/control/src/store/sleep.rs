//! Who may sleep, and who does, in the store.

use chrono::{DateTime, Utc};
use ocore_model::{
    environment::Stage,
    ids::{DataSetId, EnvironmentId, InstanceId, OrganizationId, ServerId},
    instance::InstanceStatus,
};
use sqlx::PgConnection;

use crate::{Result, authorization::Scope};

/// An environment's rule, and whether it sleeps.
#[derive(Debug, Clone)]
pub(crate) struct SleepRow {
    pub stage: Stage,
    pub after_minutes: Option<i32>,
    pub wakes_for_actions: bool,
    pub asleep_since: Option<DateTime<Utc>>,
    pub wake_at: Option<DateTime<Utc>>,
    pub freed_bytes: Option<i64>,
}

pub(crate) async fn find(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId) -> Result<Option<SleepRow>> {
    Ok(sqlx::query_as!(
        SleepRow,
        r#"select environments.stage as "stage: Stage", environments.sleep_after_minutes as after_minutes, environments.wakes_for_actions,
                  instances.asleep_since, instances.wake_at, instances.freed_bytes
           from environments join instances on instances.id = environments.instance_id
           where environments.status <> 'deleted' and environments.organization_id = $1 and environments.id = $2"#,
        scope.organization_id.as_uuid(),
        id.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// Returns whether the organization has that environment.
pub(crate) async fn set_rule(
    connection: &mut PgConnection,
    scope: &Scope,
    id: EnvironmentId,
    minutes: Option<i32>,
    wakes_for_actions: bool,
) -> Result<bool> {
    let changed = sqlx::query!(
        "update environments set sleep_after_minutes = $3, wakes_for_actions = $4
         where organization_id = $1 and id = $2 and status <> 'deleted'",
        scope.organization_id.as_uuid(),
        id.as_uuid(),
        minutes,
        wakes_for_actions,
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() > 0)
}

/// One that runs, and that nothing but time keeps from falling asleep.
#[derive(Debug, Clone)]
pub(crate) struct AwakeRow {
    pub id: InstanceId,
    pub organization_id: OrganizationId,
    pub name: String,
    pub stage: Stage,
    pub after_minutes: Option<i32>,
    pub data_set: Option<DataSetId>,
    pub woken_by_clock: bool,
    /// Since when it runs, or the end of its last deployment, if that is later.
    pub since: DateTime<Utc>,
}

/// Those of a server that are no production, that no operation has or waits for, and that no clone is being taken of.
pub(crate) async fn awake(connection: &mut PgConnection, server: ServerId) -> Result<Vec<AwakeRow>> {
    Ok(sqlx::query_as!(
        AwakeRow,
        r#"select instances.id as "id: InstanceId", instances.organization_id as "organization_id: OrganizationId", instances.name,
                  environments.stage as "stage: Stage", environments.sleep_after_minutes as after_minutes,
                  instances.active_data_set_id as "data_set: DataSetId", instances.woken_by_clock,
                  greatest(instances.awake_since, (select max(coalesce(completed_at, created_at)) from deployments
                                                   where deployments.instance_id = instances.id)) as "since!"
           from instances join environments on environments.instance_id = instances.id and environments.status <> 'deleted'
           where instances.server_id = $1 and instances.status = 'running' and instances.operation_id is null
                 and instances.active_color is not null and instances.awake_since is not null and environments.stage <> 'production'
                 and not exists (select 1 from operations
                                 where operations.instance_id = instances.id and operations.status in ('queued', 'running'))
                 and not exists (select 1 from snapshots
                                 where snapshots.instance_id = instances.id and snapshots.status = 'creating')
           order by instances.id"#,
        server.as_uuid(),
    )
    .fetch_all(connection)
    .await?)
}

/// The sleepers of a server whose next scheduled action is due, where such a one is to be woken for.
pub(crate) async fn due(connection: &mut PgConnection, server: ServerId, now: DateTime<Utc>) -> Result<Vec<(InstanceId, String)>> {
    let rows = sqlx::query!(
        r#"select instances.id as "id: InstanceId", instances.name
           from instances join environments on environments.instance_id = instances.id and environments.status <> 'deleted'
           where instances.server_id = $1 and instances.status = 'asleep' and environments.wakes_for_actions and instances.wake_at <= $2
           order by instances.wake_at"#,
        server.as_uuid(),
        now,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}

/// Notes of a sleeper when its next scheduled action is due.
pub(crate) async fn set_wake_at(connection: &mut PgConnection, instance: InstanceId, at: Option<DateTime<Utc>>) -> Result<()> {
    sqlx::query!("update instances set wake_at = $2 where id = $1 and status = 'asleep'", instance.as_uuid(), at)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes of a sleeper that nobody but the clock wakes it.
pub(crate) async fn set_woken_by_clock(connection: &mut PgConnection, instance: InstanceId) -> Result<()> {
    sqlx::query!("update instances set woken_by_clock = true where id = $1 and status = 'asleep'", instance.as_uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// The stage of the environment that an instance serves; `None` when it serves none.
pub(crate) async fn stage(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<Stage>> {
    Ok(sqlx::query_scalar!(
        r#"select stage as "stage: Stage" from environments where instance_id = $1 and status <> 'deleted'"#,
        instance.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// A sleeper's organization, with its row locked; `None` when it does not sleep, or somebody starts it already.
pub(crate) async fn lock_sleeper(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<OrganizationId>> {
    Ok(sqlx::query_scalar!(
        r#"select organization_id as "organization_id: OrganizationId" from instances
           where id = $1 and status = 'asleep'
                 and not exists (select 1 from operations where operations.instance_id = instances.id and operations.kind = 'control'
                                 and operations.status in ('queued', 'running') and operations.parameters ->> 'action' is distinct from 'sleep')
           for update"#,
        instance.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

pub(crate) async fn status(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<InstanceStatus>> {
    Ok(sqlx::query_scalar!(r#"select status as "status: InstanceStatus" from instances where id = $1"#, instance.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// Notes what its processes had before they were stopped.
pub(crate) async fn set_freed(connection: &mut PgConnection, instance: InstanceId, bytes: i64) -> Result<()> {
    sqlx::query!(
        "update instances set freed_bytes = greatest(freed_bytes, $2) where id = $1 and status = 'asleep'",
        instance.as_uuid(),
        bytes
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What the sleep of all sleepers frees, in bytes.
pub(crate) async fn freed(connection: &mut PgConnection) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"select coalesce(sum(freed_bytes), 0)::int8 as "freed!" from instances where status = 'asleep'"#)
        .fetch_one(connection)
        .await?)
}
