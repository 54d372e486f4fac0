//! Environments in the store.

use chrono::{DateTime, Utc};
use ocore_model::{
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::{DeploymentId, EnvironmentId, InstanceId, OrganizationId, ProjectId, ServerId},
    instance::InstanceStatus,
    names::CommitSha,
};
use sqlx::PgConnection;

use crate::{Result, authorization::Scope};

/// An environment with what a reader wants to know of its project, instance and branch.
#[derive(Debug, Clone)]
pub struct Environment {
    pub id: EnvironmentId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub project_name: String,
    pub instance_id: InstanceId,
    pub instance_name: String,
    pub instance_slug: String,
    pub instance_status: InstanceStatus,
    pub odoo_version: String,
    pub server_id: ServerId,
    /// What is live in it.
    pub active_deployment_id: Option<DeploymentId>,
    pub name: String,
    pub description: String,
    pub branch: String,
    pub branch_deleted_at: Option<DateTime<Utc>>,
    pub stage: Stage,
    pub commit_behavior: CommitBehavior,
    pub status: EnvironmentStatus,
    /// Its own, or else that of its instance.
    pub status_message: String,
    pub auto_destroy_on_merge: bool,
    pub cloned_from_id: Option<EnvironmentId>,
    pub is_neutralized: bool,
    /// Of the mail catcher on the server's loopback interface; `None` where there is none.
    pub mail_port: Option<i32>,
    pub pending_commit_count: i32,
    pub pending_commit_sha: Option<CommitSha>,
    pub last_commit_at: Option<DateTime<Utc>>,
    pub last_commit_author: Option<String>,
    pub live_commit_sha: Option<CommitSha>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The one select behind everything that holds an [`Environment`]; further columns go behind its columns, the rest behind its joins.
macro_rules! select_environments {
    (@into $row:ident, $columns:tt, $filter:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            $row,
            r#"select environments.id as "id: EnvironmentId", environments.organization_id as "organization_id: OrganizationId",
                      environments.project_id as "project_id: ProjectId", projects.name as project_name,
                      instances.id as "instance_id: InstanceId", instances.name as instance_name, instances.slug as instance_slug,
                      instances.status as "instance_status: InstanceStatus", instances.odoo_version,
                      instances.server_id as "server_id: ServerId", instances.active_deployment_id as "active_deployment_id: DeploymentId",
                      environments.name, environments.description, environments.branch,
                      branches.deleted_at as "branch_deleted_at?", environments.stage as "stage: Stage",
                      environments.commit_behavior as "commit_behavior: CommitBehavior",
                      environments.status as "status: EnvironmentStatus",
                      coalesce(nullif(environments.status_message, ''), instances.status_message) as "status_message!",
                      environments.auto_destroy_on_merge, environments.cloned_from_id as "cloned_from_id: EnvironmentId",
                      environments.is_neutralized, instances.mail_port, environments.pending_commit_count,
                      environments.pending_commit_sha as "pending_commit_sha: CommitSha", environments.last_commit_at,
                      environments.last_commit_author, environments.live_commit_sha as "live_commit_sha: CommitSha",
                      environments.created_at, environments.updated_at
               "# + $columns + r#"
               from environments
               join instances on instances.id = environments.instance_id
               join projects on projects.id = environments.project_id
               left join branches on branches.project_id = environments.project_id and branches.name = environments.branch
               "# + $filter
            $(, $argument)*
        )
    };
    ($filter:tt $(, $argument:expr)*) => {
        select_environments!(@into Environment, "", $filter $(, $argument)*)
    };
}

pub(super) use select_environments;

/// Every environment of the organization that is not deleted, the oldest first.
pub async fn list(connection: &mut PgConnection, scope: &Scope) -> Result<Vec<Environment>> {
    Ok(select_environments!(
        "where environments.organization_id = $1 and environments.status <> 'deleted' order by environments.created_at, environments.id",
        scope.organization_id.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// Those of one project. Empty when the project is not there.
pub async fn list_of_project(connection: &mut PgConnection, scope: &Scope, project: ProjectId) -> Result<Vec<Environment>> {
    Ok(select_environments!(
        "where environments.project_id = $2 and environments.organization_id = $1 and environments.status <> 'deleted'
         order by environments.created_at, environments.id",
        scope.organization_id.as_uuid(),
        project.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// One of the organization, also when it is deleted.
pub async fn find(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId) -> Result<Option<Environment>> {
    Ok(select_environments!(
        "where environments.id = $2 and environments.organization_id = $1",
        scope.organization_id.as_uuid(),
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// One of any organization, locked until the end of the transaction; for what runs as the installation itself, and for use cases that
/// found it by their scope before.
pub async fn lock(connection: &mut PgConnection, id: EnvironmentId) -> Result<Option<Environment>> {
    Ok(select_environments!("where environments.id = $1 for no key update of environments", id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// The one that follows a branch, locked.
pub async fn lock_by_branch(connection: &mut PgConnection, project: ProjectId, branch: &str) -> Result<Option<Environment>> {
    Ok(select_environments!(
        "where environments.project_id = $1 and environments.branch = $2 and environments.status <> 'deleted'
         for no key update of environments",
        project.as_uuid(),
        branch
    )
    .fetch_optional(connection)
    .await?)
}

/// The one that an instance serves, locked.
pub async fn lock_by_instance(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<Environment>> {
    Ok(select_environments!(
        "where environments.instance_id = $1 and environments.status <> 'deleted' for no key update of environments",
        instance.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// The project's production.
pub async fn production_of(connection: &mut PgConnection, project: ProjectId) -> Result<Option<EnvironmentId>> {
    Ok(sqlx::query_scalar!(
        r#"select id as "id: EnvironmentId" from environments where project_id = $1 and stage = 'production' and status <> 'deleted'"#,
        project.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// What [`insert`] writes.
#[derive(Debug, Clone)]
pub struct NewEnvironment {
    pub id: EnvironmentId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub instance_id: InstanceId,
    pub name: String,
    pub branch: String,
    pub stage: Stage,
    pub commit_behavior: CommitBehavior,
}

/// Fails with a unique violation when the branch or the instance has an environment already, or the project a production.
pub async fn insert(connection: &mut PgConnection, new: &NewEnvironment) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into environments (id, organization_id, project_id, instance_id, name, branch, stage, commit_behavior, status)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 'active')",
        new.id.as_uuid(),
        new.organization_id.as_uuid(),
        new.project_id.as_uuid(),
        new.instance_id.as_uuid(),
        new.name,
        new.branch,
        new.stage.as_str(),
        new.commit_behavior.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes one that was just written a clone of another.
pub async fn set_clone(
    connection: &mut PgConnection,
    id: EnvironmentId,
    source: EnvironmentId,
    auto_destroy_on_merge: bool,
    behavior: CommitBehavior,
) -> Result<()> {
    sqlx::query!(
        "update environments set cloned_from_id = $2, auto_destroy_on_merge = $3, commit_behavior = $4 where id = $1",
        id.as_uuid(),
        source.as_uuid(),
        auto_destroy_on_merge,
        behavior.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The clones of an environment that go when their branch is merged into its own. Not locked: who removes one locks it.
pub async fn clones_to_destroy(connection: &mut PgConnection, source: EnvironmentId) -> Result<Vec<Environment>> {
    Ok(select_environments!(
        "where environments.cloned_from_id = $1 and environments.auto_destroy_on_merge and environments.status = 'active'
            and environments.stage <> 'production'
         order by environments.created_at, environments.id",
        source.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// The one that follows a branch, as [`lock_by_branch`], not locked.
pub async fn find_by_branch(connection: &mut PgConnection, project: ProjectId, branch: &str) -> Result<Option<Environment>> {
    Ok(select_environments!(
        "where environments.project_id = $1 and environments.branch = $2 and environments.status <> 'deleted'",
        project.as_uuid(),
        branch
    )
    .fetch_optional(connection)
    .await?)
}

/// Changes what is given.
pub async fn rename(
    connection: &mut PgConnection,
    scope: &Scope,
    id: EnvironmentId,
    name: Option<&str>,
    description: Option<&str>,
) -> Result<bool> {
    let done = sqlx::query!(
        "update environments set name = coalesce($3, name), description = coalesce($4, description), updated_at = now()
         where id = $2 and organization_id = $1 and status <> 'deleted'",
        scope.organization_id.as_uuid(),
        id.as_uuid(),
        name,
        description,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn set_commit_behavior(
    connection: &mut PgConnection,
    scope: &Scope,
    id: EnvironmentId,
    behavior: CommitBehavior,
) -> Result<bool> {
    let done = sqlx::query!(
        "update environments set commit_behavior = $3, updated_at = now()
         where id = $2 and organization_id = $1 and status = 'active'",
        scope.organization_id.as_uuid(),
        id.as_uuid(),
        behavior.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// From one status to another, or nothing when it is not in the first any more.
pub async fn set_status(
    connection: &mut PgConnection,
    id: EnvironmentId,
    from: EnvironmentStatus,
    to: EnvironmentStatus,
    message: &str,
) -> Result<bool> {
    let done = sqlx::query!(
        "update environments set status = $3, status_message = $4, updated_at = now() where id = $1 and status = $2",
        id.as_uuid(),
        from.as_str(),
        to.as_str(),
        message,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What a person should know of it; empty when there is nothing.
pub async fn set_message(connection: &mut PgConnection, id: EnvironmentId, message: &str) -> Result<()> {
    sqlx::query!(
        "update environments set status_message = $2, updated_at = now() where id = $1 and status_message <> $2",
        id.as_uuid(),
        message
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes it follow another branch.
pub async fn set_branch(connection: &mut PgConnection, id: EnvironmentId, branch: &str) -> Result<()> {
    sqlx::query!("update environments set branch = $2, updated_at = now() where id = $1", id.as_uuid(), branch).execute(connection).await?;
    Ok(())
}

/// The branch's newest commit, and what of it is not live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending<'a> {
    pub count: i32,
    /// `None` when the branch's head is live.
    pub sha: Option<&'a CommitSha>,
    pub last_commit_at: Option<DateTime<Utc>>,
    pub last_commit_author: Option<&'a str>,
}

pub async fn set_pending(connection: &mut PgConnection, id: EnvironmentId, pending: &Pending<'_>) -> Result<()> {
    sqlx::query!(
        "update environments set pending_commit_count = $2, pending_commit_sha = $3, last_commit_at = coalesce($4, last_commit_at),
                last_commit_author = coalesce($5, last_commit_author), updated_at = now()
         where id = $1
           and (pending_commit_count, pending_commit_sha, last_commit_at, last_commit_author)
               is distinct from ($2, $3, coalesce($4, last_commit_at), coalesce($5, last_commit_author))",
        id.as_uuid(),
        pending.count,
        pending.sha.map(CommitSha::as_str),
        pending.last_commit_at,
        pending.last_commit_author,
    )
    .execute(connection)
    .await?;
    Ok(())
}
