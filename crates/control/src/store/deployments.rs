//! Deployments, their steps and the lines of those in the store.

use chrono::{DateTime, Utc};
use ocore_model::{
    deployment::{DataOrigin, DeploymentStatus, StepName, StepStatus, Trigger},
    ids::{DeploymentId, EnvironmentId, InstanceId, OrganizationId, ProjectId, SnapshotId, StepId, UserId},
    instance::Color,
    names::CommitSha,
};
use serde::Deserialize;
use sqlx::{PgConnection, types::Json};

use crate::{Result, authorization::Scope};

/// A deployment with its steps and what a reader wants to know of its instance.
#[derive(Debug, Clone)]
pub struct Deployment {
    pub id: DeploymentId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub instance_id: InstanceId,
    pub instance_slug: String,
    pub status: DeploymentStatus,
    pub trigger: Trigger,
    /// Name of the person who asked for it.
    pub triggered_by: Option<String>,
    pub branch: String,
    pub commit_sha: CommitSha,
    pub commit_author: String,
    pub commit_author_email: String,
    pub commit_message: String,
    pub previous_commit_sha: Option<CommitSha>,
    pub previous_deployment_id: Option<DeploymentId>,
    pub data_origin: Json<DataOrigin>,
    pub color: Option<Color>,
    pub release: Option<String>,
    /// What keeps the data as they were before.
    pub snapshot_id: Option<SnapshotId>,
    pub cancel_requested_at: Option<DateTime<Utc>>,
    pub error_message: Option<String>,
    pub error_excerpt: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub updated_at: DateTime<Utc>,
    /// In the order in which they run.
    pub steps: Json<Vec<Step>>,
}

/// One step of a deployment.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    pub id: StepId,
    pub name: StepName,
    pub sort_order: i32,
    pub status: StepStatus,
    pub summary: String,
    pub version: i32,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
}

/// The one select behind every [`Deployment`]; what is given is put behind it.
macro_rules! select_deployments {
    ($filter:tt $(+ $more:tt)* $(, $argument:expr)*) => {
        sqlx::query_as!(
            Deployment,
            r#"select deployments.id as "id: DeploymentId", deployments.organization_id as "organization_id: OrganizationId",
                      deployments.project_id as "project_id: ProjectId", deployments.environment_id as "environment_id: EnvironmentId",
                      deployments.instance_id as "instance_id: InstanceId", instances.slug as instance_slug,
                      deployments.status as "status: DeploymentStatus", deployments.trigger_type as "trigger: Trigger",
                      users.name as "triggered_by?", deployments.branch, deployments.commit_sha as "commit_sha: CommitSha",
                      deployments.commit_author, deployments.commit_author_email, deployments.commit_message,
                      deployments.previous_commit_sha as "previous_commit_sha: CommitSha",
                      deployments.previous_deployment_id as "previous_deployment_id: DeploymentId",
                      deployments.data_origin as "data_origin: Json<DataOrigin>",
                      deployments.color as "color: Color", deployments.release,
                      deployments.snapshot_id as "snapshot_id: SnapshotId", deployments.cancel_requested_at,
                      deployments.error_message, deployments.error_excerpt, deployments.created_at, deployments.started_at,
                      deployments.completed_at, deployments.updated_at,
                      (select coalesce(jsonb_agg(to_jsonb(deployment_steps) order by sort_order), '[]')
                       from deployment_steps where deployment_id = deployments.id) as "steps!: Json<Vec<Step>>"
               from deployments
               join instances on instances.id = deployments.instance_id
               left join users on users.id = deployments.triggered_by
               "# + $filter $(+ $more)*
            $(, $argument)*
        )
    };
}

/// Part of a list, the newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    pub limit: i64,
    pub offset: i64,
}

/// Which deployments of a list are wanted. The default: all of them, the newest first.
#[derive(Debug, Clone, Default)]
pub struct DeploymentFilter {
    pub status: Option<DeploymentStatus>,
    pub trigger: Option<Trigger>,
    pub branch: Option<String>,
    /// When they were asked for: from this moment on, and before that one.
    pub since: Option<DateTime<Utc>>,
    pub until: Option<DateTime<Utc>>,
    pub oldest_first: bool,
}

/// Those of one environment or project, in one order: each order has its index.
macro_rules! select_listed {
    ($of:tt, $order:tt, $connection:expr, $scope:expr, $id:expr, $filter:expr, $page:expr) => {
        select_deployments!(
            $of + " and deployments.organization_id = $1
         and ($5::text is null or deployments.status = $5) and ($6::text is null or deployments.trigger_type = $6)
         and ($7::text is null or deployments.branch = $7) and ($8::timestamptz is null or deployments.created_at >= $8)
         and ($9::timestamptz is null or deployments.created_at < $9)
         " + $order
                + " limit $3 offset $4",
            $scope.organization_id.as_uuid(),
            $id.as_uuid(),
            $page.limit,
            $page.offset,
            $filter.status.map(DeploymentStatus::as_str),
            $filter.trigger.map(Trigger::as_str),
            $filter.branch.as_deref(),
            $filter.since,
            $filter.until
        )
        .fetch_all($connection)
        .await?
    };
}

pub async fn list_of_environment(
    connection: &mut PgConnection,
    scope: &Scope,
    environment: EnvironmentId,
    filter: &DeploymentFilter,
    page: Page,
) -> Result<Vec<Deployment>> {
    Ok(if filter.oldest_first {
        select_listed!(
            "where deployments.environment_id = $2",
            "order by deployments.created_at asc, deployments.id asc",
            connection,
            scope,
            environment,
            filter,
            page
        )
    } else {
        select_listed!(
            "where deployments.environment_id = $2",
            "order by deployments.created_at desc, deployments.id desc",
            connection,
            scope,
            environment,
            filter,
            page
        )
    })
}

pub async fn list_of_project(
    connection: &mut PgConnection,
    scope: &Scope,
    project: ProjectId,
    filter: &DeploymentFilter,
    page: Page,
) -> Result<Vec<Deployment>> {
    Ok(if filter.oldest_first {
        select_listed!(
            "where deployments.project_id = $2",
            "order by deployments.created_at asc, deployments.id asc",
            connection,
            scope,
            project,
            filter,
            page
        )
    } else {
        select_listed!(
            "where deployments.project_id = $2",
            "order by deployments.created_at desc, deployments.id desc",
            connection,
            scope,
            project,
            filter,
            page
        )
    })
}

/// How many deployments of that kind the environment has had; `None` when the organization has no such environment.
pub async fn count_of_environment(
    connection: &mut PgConnection,
    scope: &Scope,
    environment: EnvironmentId,
    filter: &DeploymentFilter,
) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar!(
        r#"select (select count(*) from deployments
                   where environment_id = environments.id and ($3::text is null or status = $3) and ($4::text is null or trigger_type = $4)
                     and ($5::text is null or branch = $5) and ($6::timestamptz is null or created_at >= $6)
                     and ($7::timestamptz is null or created_at < $7)) as "count!"
           from environments where id = $2 and organization_id = $1"#,
        scope.organization_id.as_uuid(),
        environment.as_uuid(),
        filter.status.map(DeploymentStatus::as_str),
        filter.trigger.map(Trigger::as_str),
        filter.branch.as_deref(),
        filter.since,
        filter.until,
    )
    .fetch_optional(connection)
    .await?)
}

/// How many deployments of that kind the project has had; `None` when the organization has no such project.
pub async fn count_of_project(
    connection: &mut PgConnection,
    scope: &Scope,
    project: ProjectId,
    filter: &DeploymentFilter,
) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar!(
        r#"select (select count(*) from deployments
                   where project_id = projects.id and ($3::text is null or status = $3) and ($4::text is null or trigger_type = $4)
                     and ($5::text is null or branch = $5) and ($6::timestamptz is null or created_at >= $6)
                     and ($7::timestamptz is null or created_at < $7)) as "count!"
           from projects where id = $2 and organization_id = $1"#,
        scope.organization_id.as_uuid(),
        project.as_uuid(),
        filter.status.map(DeploymentStatus::as_str),
        filter.trigger.map(Trigger::as_str),
        filter.branch.as_deref(),
        filter.since,
        filter.until,
    )
    .fetch_optional(connection)
    .await?)
}

pub async fn find(connection: &mut PgConnection, scope: &Scope, id: DeploymentId) -> Result<Option<Deployment>> {
    Ok(select_deployments!("where deployments.id = $2 and deployments.organization_id = $1", scope.organization_id.as_uuid(), id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// The environment's newest deployment.
pub async fn newest(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Option<Deployment>> {
    Ok(select_deployments!(
        "where deployments.environment_id = $1 order by deployments.created_at desc, deployments.id desc limit 1",
        environment.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// What [`insert`] writes.
#[derive(Debug, Clone)]
pub struct NewDeployment {
    pub id: DeploymentId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub instance_id: InstanceId,
    pub trigger: Trigger,
    pub triggered_by: Option<UserId>,
    pub branch: String,
    pub commit_sha: CommitSha,
    pub commit_author: String,
    pub commit_author_email: String,
    pub commit_message: String,
    pub previous_commit_sha: Option<CommitSha>,
    pub previous_deployment_id: Option<DeploymentId>,
    pub data_origin: DataOrigin,
    /// What was live before becomes a snapshot, as far as the environment's settings want one.
    pub keeps_previous: bool,
}

impl NewDeployment {
    fn source_snapshot(&self) -> Option<SnapshotId> {
        match self.data_origin {
            DataOrigin::Snapshot { snapshot, .. } => Some(snapshot),
            _ => None,
        }
    }
}

/// Writes a queued deployment. Its steps come with its operation.
pub async fn insert(connection: &mut PgConnection, new: &NewDeployment) -> Result<()> {
    sqlx::query!(
        "insert into deployments (id, organization_id, project_id, environment_id, instance_id, status, trigger_type, triggered_by, branch,
                                  commit_sha, commit_author, commit_author_email, commit_message, previous_commit_sha,
                                  previous_deployment_id, data_origin, keeps_previous, source_snapshot_id, created_at)
         values ($1, $2, $3, $4, $5, 'queued', $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, clock_timestamp())",
        new.id.as_uuid(),
        new.organization_id.as_uuid(),
        new.project_id.as_uuid(),
        new.environment_id.as_uuid(),
        new.instance_id.as_uuid(),
        new.trigger.as_str(),
        new.triggered_by.map(UserId::as_uuid),
        new.branch,
        new.commit_sha.as_str(),
        new.commit_author,
        new.commit_author_email,
        new.commit_message,
        new.previous_commit_sha.as_ref().map(CommitSha::as_str),
        new.previous_deployment_id.map(DeploymentId::as_uuid),
        Json(new.data_origin) as _,
        new.keeps_previous,
        new.source_snapshot().map(SnapshotId::as_uuid),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// An open deployment of an environment.
#[derive(Debug, Clone)]
pub struct Open {
    pub id: DeploymentId,
    pub commit_sha: CommitSha,
    pub data_origin: Json<DataOrigin>,
    /// It works on the instance; from then on it runs to its end.
    pub changing: bool,
}

/// The environment's open deployments, the newest first. Not locked: what may be superseded is decided by who supersedes.
pub async fn open_of_environment(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Vec<Open>> {
    Ok(sqlx::query_as!(
        Open,
        r#"select id as "id: DeploymentId", commit_sha as "commit_sha: CommitSha",
                  data_origin as "data_origin: Json<DataOrigin>", changing
           from deployments where environment_id = $1 and status in ('queued', 'running')
           order by created_at desc, id desc"#,
        environment.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// One line of a step's log.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// Its place in the deployment's stream; grows.
    pub id: i64,
    pub step: StepName,
    pub logged_at: DateTime<Utc>,
    pub text: String,
}

/// The lines after a place, at most `limit`; of one step, if given.
pub async fn lines(
    connection: &mut PgConnection,
    scope: &Scope,
    deployment: DeploymentId,
    step: Option<StepName>,
    after: i64,
    limit: i64,
) -> Result<Vec<LogLine>> {
    Ok(sqlx::query_as!(
        LogLine,
        r#"select step_log_lines.id, deployment_steps.name as "step: StepName", step_log_lines.logged_at, step_log_lines.text
           from step_log_lines
           join deployments on deployments.id = step_log_lines.deployment_id
           join deployment_steps on deployment_steps.id = step_log_lines.step_id
           where step_log_lines.deployment_id = $2 and deployments.organization_id = $1 and step_log_lines.id > $3
             and ($4::text is null or deployment_steps.name = $4)
           order by step_log_lines.id limit $5"#,
        scope.organization_id.as_uuid(),
        deployment.as_uuid(),
        after,
        step.map(StepName::as_str),
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// One entry of a deployment's stream: an event, or a line.
#[derive(Debug, Clone)]
pub struct StreamEntry {
    pub position: i64,
    pub kind: String,
    pub payload: Json<serde_json::Value>,
}

/// A deployment's status and what its stream has after a position, at most `limit` entries, both of one moment. `None` when there is no
/// such deployment.
pub async fn stream_after(
    connection: &mut PgConnection,
    deployment: DeploymentId,
    position: i64,
    limit: i64,
) -> Result<Option<(DeploymentStatus, Vec<StreamEntry>)>> {
    struct Row {
        status: DeploymentStatus,
        position: Option<i64>,
        kind: Option<String>,
        payload: Option<Json<serde_json::Value>>,
    }
    let rows = sqlx::query_as!(
        Row,
        r#"select deployments.status as "status: DeploymentStatus", entries.position as "position?", entries.kind as "kind?",
                  entries.payload as "payload?: Json<serde_json::Value>"
           from deployments
           left join lateral (
               (select id as position, kind, payload from events
                where deployment_id = deployments.id and kind in ('deployment.status', 'deployment.step') and id > $2 order by id limit $3)
               union all
               (select step_log_lines.id, 'line', jsonb_build_object('step', deployment_steps.name, 'text', step_log_lines.text)
                from step_log_lines join deployment_steps on deployment_steps.id = step_log_lines.step_id
                where step_log_lines.deployment_id = deployments.id and step_log_lines.id > $2 order by step_log_lines.id limit $3)
               order by position limit $3
           ) as entries on true
           where deployments.id = $1
           order by entries.position"#,
        deployment.as_uuid(),
        position,
        limit
    )
    .fetch_all(connection)
    .await?;
    let Some(status) = rows.first().map(|row| row.status) else { return Ok(None) };
    let entries =
        rows.into_iter().filter_map(|row| Some(StreamEntry { position: row.position?, kind: row.kind?, payload: row.payload? })).collect();
    Ok(Some((status, entries)))
}
