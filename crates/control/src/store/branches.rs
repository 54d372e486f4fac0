//! Branches and their heads in the store, and what of a project decides where they lead.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{InstanceId, OrganizationId, ProjectId},
    names::{CommitSha, OdooVersion},
};
use sqlx::PgConnection;

use crate::{Result, authorization::Scope, git::Commit};

/// What a push needs to know of its project.
#[derive(Debug, Clone)]
pub struct PushedProject {
    pub id: ProjectId,
    pub organization_id: OrganizationId,
    pub slug: String,
    pub odoo_version: OdooVersion,
    pub create_environment_on_push: bool,
    /// The branch that an external repository was connected with.
    pub repository_branch: Option<String>,
    pub archived_at: Option<DateTime<Utc>>,
}

/// The project, locked until the end of the transaction: pushes to one project are taken note of one after the other.
pub async fn lock_project(connection: &mut PgConnection, id: ProjectId) -> Result<Option<PushedProject>> {
    Ok(sqlx::query_as!(
        PushedProject,
        r#"select id as "id: ProjectId", organization_id as "organization_id: OrganizationId", slug,
                  odoo_version as "odoo_version: OdooVersion", create_environment_on_push, repository_branch, archived_at
           from projects where id = $1 for no key update"#,
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// The project, if it is the organization's.
pub async fn find_project(connection: &mut PgConnection, scope: &Scope, id: ProjectId) -> Result<Option<PushedProject>> {
    Ok(sqlx::query_as!(
        PushedProject,
        r#"select id as "id: ProjectId", organization_id as "organization_id: OrganizationId", slug,
                  odoo_version as "odoo_version: OdooVersion", create_environment_on_push, repository_branch, archived_at
           from projects where id = $2 and organization_id = $1"#,
        scope.organization_id.as_uuid(),
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Whether the project's repository is our own, where branches can be made.
pub async fn is_built_in(connection: &mut PgConnection, id: ProjectId) -> Result<bool> {
    let kind = sqlx::query_scalar!("select repository_kind from projects where id = $1", id.as_uuid()).fetch_one(connection).await?;
    Ok(kind == "built_in")
}

/// A branch as it was when oCore last looked.
#[derive(Debug, Clone)]
pub struct Branch {
    pub head_sha: CommitSha,
    pub deleted_at: Option<DateTime<Utc>>,
}

pub async fn find(connection: &mut PgConnection, project: ProjectId, name: &str) -> Result<Option<Branch>> {
    Ok(sqlx::query_as!(
        Branch,
        r#"select head_sha as "head_sha: CommitSha", deleted_at from branches where project_id = $1 and name = $2"#,
        project.as_uuid(),
        name
    )
    .fetch_optional(connection)
    .await?)
}

/// Whether anything was ever pushed or fetched.
pub async fn any(connection: &mut PgConnection, project: ProjectId) -> Result<bool> {
    Ok(sqlx::query_scalar!(r#"select exists (select 1 from branches where project_id = $1) as "any!""#, project.as_uuid())
        .fetch_one(connection)
        .await?)
}

pub async fn set_head(connection: &mut PgConnection, project: ProjectId, name: &str, head: &Commit) -> Result<()> {
    sqlx::query!(
        "insert into branches (project_id, name, head_sha, commit_author, commit_author_email, commit_message, committed_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (project_id, name) do update set
             head_sha = excluded.head_sha, commit_author = excluded.commit_author, commit_author_email = excluded.commit_author_email,
             commit_message = excluded.commit_message, committed_at = excluded.committed_at, deleted_at = null, updated_at = now()",
        project.as_uuid(),
        name,
        head.sha.as_str(),
        head.author,
        head.author_email,
        head.message,
        head.committed_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Remembers that the branch is gone. Nothing when it was known as gone.
pub async fn set_deleted(connection: &mut PgConnection, project: ProjectId, name: &str) -> Result<bool> {
    let done = sqlx::query!(
        "update branches set deleted_at = now(), updated_at = now() where project_id = $1 and name = $2 and deleted_at is null",
        project.as_uuid(),
        name
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A rule that leads branches to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub pattern: String,
    pub instance_id: InstanceId,
}

/// The project's rules for instances that still stand, the one that decides first: by priority, then the longer pattern, then the older.
pub async fn mappings(connection: &mut PgConnection, project: ProjectId) -> Result<Vec<Mapping>> {
    Ok(sqlx::query_as!(
        Mapping,
        r#"select branch_pattern as pattern, instance_id as "instance_id: InstanceId"
           from branch_mappings join instances on instances.id = branch_mappings.instance_id
           where branch_mappings.project_id = $1 and instances.project_id = $1 and instances.status not in ('removing', 'deleted')
           order by priority desc, length(branch_pattern) desc, branch_mappings.created_at, branch_mappings.id"#,
        project.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}
