//! What the deploy operation reads and writes of a deployment, its instance and its environment.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ocore_model::{
    deployment::{DataOrigin, DeploymentStatus, Trigger},
    environment::Stage,
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, ProjectId, SnapshotId},
    instance::{Color, InstanceStatus},
    names::{CommitSha, OdooVersion},
};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use crate::{Result, routes};

/// A deployment with everything around it that decides how it runs.
#[derive(Debug, Clone)]
pub(crate) struct DeployRow {
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub stage: Stage,
    /// The data that are live are a copy that was made harmless.
    pub is_neutralized: bool,
    /// The environment that this one was cloned from, while it stands.
    pub cloned_from_id: Option<EnvironmentId>,
    pub instance_id: InstanceId,
    pub slug: String,
    pub status: DeploymentStatus,
    pub trigger: Trigger,
    pub branch: String,
    pub commit_sha: CommitSha,
    pub data_origin: Json<DataOrigin>,
    pub keeps_previous: bool,
    pub odoo_version: OdooVersion,
    /// An [`ocore_model::project::ModuleSelection`].
    pub module_selection: Value,
    pub with_demo: bool,
    /// An [`ocore_host::OdooSettings`].
    pub settings: Value,
    /// Sealed.
    pub env_vars: Option<Vec<u8>>,
}

pub(crate) async fn find(connection: &mut PgConnection, deployment: DeploymentId) -> Result<Option<DeployRow>> {
    Ok(sqlx::query_as!(
        DeployRow,
        r#"select deployments.project_id as "project_id: ProjectId",
                  deployments.environment_id as "environment_id: EnvironmentId", environments.stage as "stage: Stage",
                  environments.is_neutralized, sources.id as "cloned_from_id?: EnvironmentId",
                  deployments.instance_id as "instance_id: InstanceId", instances.slug,
                  deployments.status as "status: DeploymentStatus", deployments.trigger_type as "trigger: Trigger", deployments.branch, deployments.commit_sha as "commit_sha: CommitSha",
                  deployments.data_origin as "data_origin: Json<DataOrigin>", deployments.keeps_previous,
                  instances.odoo_version as "odoo_version: OdooVersion", projects.module_selection, projects.with_demo, instances.settings,
                  instances.env_vars
           from deployments
               join environments on environments.id = deployments.environment_id
               join instances on instances.id = deployments.instance_id
               join projects on projects.id = deployments.project_id
               left join environments as sources on sources.id = environments.cloned_from_id and sources.status = 'active'
           where deployments.id = $1"#,
        deployment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// The deployment has a worker. One that has ended meanwhile stays ended.
pub(crate) async fn start(connection: &mut PgConnection, deployment: DeploymentId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update deployments set status = 'running', started_at = coalesce(started_at, $2), updated_at = $2
         where id = $1 and status in ('queued', 'running')",
        deployment.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What the deployment works with, known from its start.
pub(crate) async fn set_place(
    connection: &mut PgConnection,
    deployment: DeploymentId,
    color: Color,
    data_set: DataSetId,
    origin: DataOrigin,
) -> Result<()> {
    sqlx::query!(
        "update deployments set color = $2, data_set_id = $3, data_origin = $4 where id = $1",
        deployment.as_uuid(),
        color.as_str(),
        data_set.as_uuid(),
        Json(origin) as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What of another environment's instance is live now, for a copy of it.
#[derive(Debug, Clone)]
pub(crate) struct SourceRow {
    pub name: String,
    pub instance_id: InstanceId,
    pub data_set_id: Option<DataSetId>,
    pub release: Option<String>,
}

/// `None` when the environment is gone.
pub(crate) async fn source(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Option<SourceRow>> {
    Ok(sqlx::query_as!(
        SourceRow,
        r#"select environments.name, instances.id as "instance_id: InstanceId", instances.active_data_set_id as "data_set_id: DataSetId",
                  instances.active_release as release
           from environments join instances on instances.id = environments.instance_id
           where environments.id = $1 and environments.status = 'active'"#,
        environment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// The snapshot that the deployment brings to life: it is not removed while the deployment is open.
pub(crate) async fn set_source_snapshot(connection: &mut PgConnection, deployment: DeploymentId, snapshot: SnapshotId) -> Result<()> {
    sqlx::query!("update deployments set source_snapshot_id = $2 where id = $1", deployment.as_uuid(), snapshot.as_uuid())
        .execute(connection)
        .await?;
    Ok(())
}

pub(crate) async fn set_plan(connection: &mut PgConnection, deployment: DeploymentId, plan: &Value) -> Result<()> {
    sqlx::query!("update deployments set plan = $2 where id = $1", deployment.as_uuid(), plan).execute(connection).await?;
    Ok(())
}

pub(crate) async fn set_release(connection: &mut PgConnection, deployment: DeploymentId, release: &str) -> Result<()> {
    sqlx::query!("update deployments set release = $2 where id = $1", deployment.as_uuid(), release).execute(connection).await?;
    Ok(())
}

/// Where a deployment is, as far as it decides whether to go on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub status: DeploymentStatus,
    pub cancel_requested: bool,
}

pub(crate) async fn standing(connection: &mut PgConnection, deployment: DeploymentId) -> Result<Option<Standing>> {
    Ok(sqlx::query_as!(
        Standing,
        r#"select status as "status: DeploymentStatus", cancel_requested_at is not null as "cancel_requested!" from deployments where id = $1"#,
        deployment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// From here on the deployment is not superseded. False when somebody has superseded or cancelled it before.
pub(crate) async fn begin_changing(connection: &mut PgConnection, deployment: DeploymentId) -> Result<bool> {
    let updated = sqlx::query!(
        "update deployments set changing = true where id = $1 and status = 'running' and cancel_requested_at is null",
        deployment.as_uuid(),
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// Ends a deployment that has changed nothing yet in favour of a newer one. False when it has begun to, or has ended.
pub(crate) async fn supersede(
    connection: &mut PgConnection,
    deployment: DeploymentId,
    newer: DeploymentId,
    now: DateTime<Utc>,
) -> Result<bool> {
    let updated = sqlx::query!(
        "update deployments
         set status = 'superseded', completed_at = $3, updated_at = $3,
             error_message = 'a later deployment of commit ' || (select left(commit_sha, 10) from deployments where id = $2) || ' took its place'
         where id = $1 and status in ('queued', 'running') and not changing",
        deployment.as_uuid(),
        newer.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

pub(crate) async fn request_cancel(connection: &mut PgConnection, deployment: DeploymentId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update deployments set cancel_requested_at = coalesce(cancel_requested_at, $2), updated_at = $2
         where id = $1 and status in ('queued', 'running')",
        deployment.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Asks everything that runs on an instance to stop. Returns what was asked.
pub(crate) async fn request_cancel_of_instance(
    connection: &mut PgConnection,
    instance: InstanceId,
    now: DateTime<Utc>,
) -> Result<Vec<DeploymentId>> {
    Ok(sqlx::query_scalar!(
        r#"update deployments set cancel_requested_at = coalesce(cancel_requested_at, $2), updated_at = $2
           where instance_id = $1 and status = 'running' returning id as "id: DeploymentId""#,
        instance.as_uuid(),
        now,
    )
    .fetch_all(connection)
    .await?)
}

/// How a deployment ended.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub status: DeploymentStatus,
    pub message: Option<String>,
    pub excerpt: Option<String>,
}

impl End {
    pub(crate) fn cancelled() -> Self {
        Self { status: DeploymentStatus::Cancelled, message: Some("somebody cancelled it".to_owned()), excerpt: None }
    }
}

/// Ends a deployment. One that has ended already (superseded) stays as it is.
pub(crate) async fn end(connection: &mut PgConnection, deployment: DeploymentId, end: &End, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update deployments set status = $2, error_message = $3, error_excerpt = $4, completed_at = $5, updated_at = $5
         where id = $1 and status in ('queued', 'running')",
        deployment.as_uuid(),
        end.status.as_str(),
        end.message,
        end.excerpt,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What is live on an instance. Addresses are `<address>:<port>`.
#[derive(Debug, Clone)]
pub(crate) struct LiveRow {
    pub status: InstanceStatus,
    pub status_message: String,
    pub settings: Value,
    /// Sealed.
    pub env_vars: Option<Vec<u8>>,
    pub active_color: Option<Color>,
    pub active_data_set_id: Option<DataSetId>,
    pub active_release: Option<String>,
    pub active_deployment_id: Option<DeploymentId>,
    pub active_http: Option<String>,
    pub active_websocket: Option<String>,
    pub previous_data_set_id: Option<DataSetId>,
    pub admin_password: Option<Vec<u8>>,
}

pub(crate) async fn live(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<LiveRow>> {
    Ok(sqlx::query_as!(
        LiveRow,
        r#"select status as "status: InstanceStatus", status_message, settings, env_vars,
                  active_color as "active_color: Color",
                  active_data_set_id as "active_data_set_id: DataSetId", active_release,
                  active_deployment_id as "active_deployment_id: DeploymentId", active_http, active_websocket,
                  previous_data_set_id as "previous_data_set_id: DataSetId", admin_password
           from instances where id = $1"#,
        instance.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// What becomes live.
#[derive(Debug, Clone)]
pub(crate) struct NewLive<'a> {
    pub color: Option<Color>,
    pub data_set: Option<DataSetId>,
    pub release: Option<&'a str>,
    pub deployment: Option<DeploymentId>,
    pub http: Option<String>,
    pub websocket: Option<String>,
    pub previous_data_set: Option<DataSetId>,
    pub admin_password: Option<&'a [u8]>,
    pub status: InstanceStatus,
    pub status_message: &'a str,
    /// The live slot rests.
    pub updating: bool,
    /// The data are a copy that was made harmless.
    pub is_neutralized: bool,
}

/// Locks an instance for a claim. False when a newer one holds it.
pub(crate) async fn holds(connection: &mut PgConnection, instance: InstanceId, generation: i64) -> Result<bool> {
    let held =
        sqlx::query_scalar!("select id from instances where id = $1 and generation = $2 for no key update", instance.as_uuid(), generation)
            .fetch_optional(connection)
            .await?;
    Ok(held.is_some())
}

/// Whether the data that are live in the environment are a copy that was made harmless. Written where they become live and nowhere else.
pub(crate) async fn set_neutralized(connection: &mut PgConnection, environment: EnvironmentId, is_neutralized: bool) -> Result<()> {
    sqlx::query!("update environments set is_neutralized = $2 where id = $1", environment.as_uuid(), is_neutralized)
        .execute(connection)
        .await?;
    Ok(())
}

/// Makes a slot, a data set and a release the live ones; an instance that is being removed stays so. False when a newer claim holds the instance.
pub(crate) async fn set_live(
    connection: &mut PgConnection,
    instance: InstanceId,
    generation: i64,
    live: NewLive<'_>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let limit = hold_limit(connection, instance, live.updating, None).await?;
    let updated = sqlx::query!(
        "update instances
         set active_color = $3, active_data_set_id = $4, active_release = $5, active_deployment_id = $6, active_http = $7,
             active_websocket = $8, previous_data_set_id = $9, admin_password = $10,
             status = case status when 'removing' then status else $11 end, status_message = $12,
             updated_at = $13, updating = $14,
             held_until = case when $14 then coalesce(held_until, now() + make_interval(secs => $15)) end
         where id = $1 and generation = $2",
        instance.as_uuid(),
        generation,
        live.color.map(Color::as_str),
        live.data_set.map(DataSetId::as_uuid),
        live.release,
        live.deployment.map(DeploymentId::as_uuid),
        live.http,
        live.websocket,
        live.previous_data_set.map(DataSetId::as_uuid),
        live.admin_password,
        live.status.as_str(),
        live.status_message,
        now,
        live.updating,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// The live slot rests, and its requests are held for a bounded time; or it does not rest any more. False when a newer claim holds the instance.
pub(crate) async fn set_updating(
    connection: &mut PgConnection,
    instance: InstanceId,
    generation: i64,
    updating: bool,
    foreseen: Option<Duration>,
) -> Result<bool> {
    let limit = hold_limit(connection, instance, updating, foreseen).await?;
    let updated = sqlx::query!(
        "update instances set updating = $3, held_until = case when $3 then coalesce(held_until, now() + make_interval(secs => $4)) end
         where id = $1 and generation = $2",
        instance.as_uuid(),
        generation,
        updating,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// For how many seconds the instance's requests are held at most, by how long its last deployments made them wait, and by what is foreseen of this one.
async fn hold_limit(connection: &mut PgConnection, instance: InstanceId, updating: bool, foreseen: Option<Duration>) -> Result<f64> {
    let mut held = Vec::new();
    if updating {
        held = sqlx::query_scalar!(
            r#"select extract(epoch from switched.completed_at - rested.started_at)::float8 as "seconds!"
               from deployments
                   join deployment_steps as rested on rested.deployment_id = deployments.id and rested.name = 'copy'
                   join deployment_steps as switched on switched.deployment_id = deployments.id and switched.name = 'switch'
               where deployments.instance_id = $1 and deployments.status = 'succeeded' and deployments.plan ->> 'data' = 'keep'
                   and coalesce(deployments.plan ->> 'way', '') not in ('nothing', 'reload')
                   and rested.started_at is not null and switched.completed_at is not null
               order by deployments.completed_at desc limit 9"#,
            instance.as_uuid(),
        )
        .fetch_all(connection)
        .await?;
    }
    let held = held.into_iter().map(|seconds: f64| Duration::from_secs_f64(seconds.max(0.0))).chain(foreseen);
    Ok(routes::hold_limit(held.collect()).as_secs_f64())
}

/// Where the live slot answers now.
pub(crate) async fn set_addresses(
    connection: &mut PgConnection,
    instance: InstanceId,
    generation: i64,
    http: &str,
    websocket: Option<&str>,
) -> Result<bool> {
    let updated = sqlx::query!(
        "update instances set active_http = $3, active_websocket = $4 where id = $1 and generation = $2",
        instance.as_uuid(),
        generation,
        http,
        websocket,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// What the instance's Odoo does now; one that is being removed stays so. False when a newer claim holds the instance.
pub(crate) async fn set_status(
    connection: &mut PgConnection,
    instance: InstanceId,
    generation: i64,
    status: InstanceStatus,
    message: &str,
    now: DateTime<Utc>,
) -> Result<bool> {
    let updated = sqlx::query!(
        "update instances
         set status = case status when 'removing' then status else $3 end, status_message = $4, updated_at = $5
         where id = $1 and generation = $2",
        instance.as_uuid(),
        generation,
        status.as_str(),
        message,
        now,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// An environment's place in its branch.
#[derive(Debug, Clone)]
pub(crate) struct BranchPlace {
    pub live_commit_sha: Option<CommitSha>,
    /// The branch's head; `None` when the branch is gone.
    pub head: Option<CommitSha>,
}

pub(crate) async fn branch_place(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Option<BranchPlace>> {
    Ok(sqlx::query_as!(
        BranchPlace,
        r#"select environments.live_commit_sha as "live_commit_sha: CommitSha", branches.head_sha as "head?: CommitSha"
           from environments
               left join branches on branches.project_id = environments.project_id and branches.name = environments.branch
                   and branches.deleted_at is null
           where environments.id = $1"#,
        environment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// The commit that is live, and what of its branch is not.
pub(crate) async fn set_branch_place(
    connection: &mut PgConnection,
    environment: EnvironmentId,
    live: Option<&CommitSha>,
    pending_count: i32,
    pending: Option<&CommitSha>,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "update environments set live_commit_sha = $2, pending_commit_count = $3, pending_commit_sha = $4, updated_at = $5 where id = $1",
        environment.as_uuid(),
        live.map(CommitSha::as_str),
        pending_count,
        pending.map(CommitSha::as_str),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}
