//! Projects and their branch mappings.

use ocore_model::{
    ids::{BranchMappingId, InstanceId, OrganizationId, ProjectId},
    names::OdooVersion,
    project::{ModuleSelection, RepositoryKind},
};
use sqlx::{PgConnection, types::Json};

use crate::{
    Result,
    authorization::Scope,
    projects::{BranchMapping, Project, Repository},
};

/// What came of writing a project.
pub(crate) enum Written {
    Done,
    NameTaken,
    SlugTaken,
}

fn written(result: sqlx::Result<sqlx::postgres::PgQueryResult>) -> Result<Written> {
    match result {
        Ok(_) => Ok(Written::Done),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("projects_name") => Ok(Written::NameTaken),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("projects_organization_id_slug_key") => Ok(Written::SlugTaken),
        Err(error) => Err(error.into()),
    }
}

/// All of the organization, archived ones included.
pub(crate) async fn count(connection: &mut PgConnection, scope: &Scope) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"select count(*) as "count!" from projects where organization_id = $1"#, scope.organization_id.as_uuid())
        .fetch_one(connection)
        .await?)
}

/// By name.
pub(crate) async fn list(connection: &mut PgConnection, scope: &Scope, include_archived: bool) -> Result<Vec<Project>> {
    select(connection, scope, None, include_archived).await
}

/// Archived or not.
pub(crate) async fn find(connection: &mut PgConnection, scope: &Scope, id: ProjectId) -> Result<Option<Project>> {
    Ok(select(connection, scope, Some(id), true).await?.pop())
}

async fn select(connection: &mut PgConnection, scope: &Scope, id: Option<ProjectId>, include_archived: bool) -> Result<Vec<Project>> {
    let rows = sqlx::query!(
        r#"select id as "id: ProjectId", organization_id as "organization_id: OrganizationId", name, slug, description,
                  odoo_version as "odoo_version: OdooVersion", module_selection as "module_selection: Json<ModuleSelection>", with_demo,
                  create_environment_on_push, protects_production, removal_requested_at, repository_kind as "repository_kind: RepositoryKind", repository_url, repository_branch,
                  deploy_key_public, repository_fetched_at, repository_error, archived_at, created_at, updated_at
           from projects
           where organization_id = $1 and ($2::uuid is null or id = $2) and ($3 or archived_at is null)
           order by lower(name), id"#,
        scope.organization_id.as_uuid(),
        id.map(ProjectId::as_uuid),
        include_archived
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut projects: Vec<Project> = rows
        .into_iter()
        .map(|row| Project {
            id: row.id,
            organization_id: row.organization_id,
            name: row.name,
            slug: row.slug,
            description: row.description,
            odoo_version: row.odoo_version,
            module_selection: row.module_selection.0,
            with_demo: row.with_demo,
            create_environment_on_push: row.create_environment_on_push,
            protects_production: row.protects_production,
            removal_requested_at: row.removal_requested_at,
            repository: Repository {
                kind: row.repository_kind,
                url: row.repository_url,
                branch: row.repository_branch,
                deploy_key: row.deploy_key_public,
                fetched_at: row.repository_fetched_at,
                error: row.repository_error,
            },
            branch_mappings: Vec::new(),
            archived_at: row.archived_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
        .collect();
    let ids: Vec<uuid::Uuid> = projects.iter().map(|project| project.id.as_uuid()).collect();
    let mappings = sqlx::query!(
        r#"select project_id as "project_id: ProjectId", id as "id: BranchMappingId", branch_pattern,
                  instance_id as "instance_id: InstanceId", priority, created_at
           from branch_mappings where project_id = any($1)
           order by priority desc, branch_pattern, id"#,
        &ids
    )
    .fetch_all(connection)
    .await?;
    for row in mappings {
        if let Some(project) = projects.iter_mut().find(|project| project.id == row.project_id) {
            project.branch_mappings.push(BranchMapping {
                id: row.id,
                branch_pattern: row.branch_pattern,
                instance_id: row.instance_id,
                priority: row.priority,
                created_at: row.created_at,
            });
        }
    }
    Ok(projects)
}

/// Locks a project's row until the end of the transaction, so that no environment comes to it meanwhile.
pub(crate) async fn lock(connection: &mut PgConnection, scope: &Scope, id: ProjectId) -> Result<()> {
    sqlx::query!(
        "select id from projects where id = $1 and organization_id = $2 for update",
        id.as_uuid(),
        scope.organization_id.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(())
}

/// The organization's slugs that begin so, to choose a free one.
pub(crate) async fn slugs_like(connection: &mut PgConnection, scope: &Scope, start: &str) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar!(
        "select slug from projects where organization_id = $1 and starts_with(slug, $2)",
        scope.organization_id.as_uuid(),
        start
    )
    .fetch_all(connection)
    .await?)
}

/// Writes a project with a built-in repository.
pub(crate) async fn insert(connection: &mut PgConnection, scope: &Scope, project: &Project) -> Result<Written> {
    let result = sqlx::query!(
        "insert into projects (id, organization_id, name, slug, description, odoo_version, module_selection, with_demo,
                               create_environment_on_push, protects_production, repository_kind, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)",
        project.id.as_uuid(),
        scope.organization_id.as_uuid(),
        project.name,
        project.slug,
        project.description,
        project.odoo_version.as_str(),
        Json(&project.module_selection) as _,
        project.with_demo,
        project.create_environment_on_push,
        project.protects_production,
        RepositoryKind::BuiltIn.as_str(),
        project.created_at
    )
    .execute(connection)
    .await;
    written(result)
}

/// Writes what [`crate::projects::update`] changes; slug and repository stay.
pub(crate) async fn update(connection: &mut PgConnection, scope: &Scope, project: &Project) -> Result<Written> {
    let result = sqlx::query!(
        "update projects set name = $3, description = $4, odoo_version = $5, module_selection = $6, with_demo = $7,
                create_environment_on_push = $8, archived_at = $9, updated_at = $10, protects_production = $11, removal_requested_at = $12
         where id = $1 and organization_id = $2",
        project.id.as_uuid(),
        scope.organization_id.as_uuid(),
        project.name,
        project.description,
        project.odoo_version.as_str(),
        Json(&project.module_selection) as _,
        project.with_demo,
        project.create_environment_on_push,
        project.archived_at,
        project.updated_at,
        project.protects_production,
        project.removal_requested_at,
    )
    .execute(connection)
    .await;
    written(result)
}

/// Environments that exist.
pub(crate) async fn count_environments(connection: &mut PgConnection, scope: &Scope, id: ProjectId) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        r#"select count(*) as "count!" from environments where project_id = $1 and organization_id = $2 and status <> 'deleted'"#,
        id.as_uuid(),
        scope.organization_id.as_uuid()
    )
    .fetch_one(connection)
    .await?)
}

/// The project's instances that exist.
pub(crate) async fn instances(connection: &mut PgConnection, scope: &Scope, id: ProjectId) -> Result<Vec<InstanceId>> {
    Ok(sqlx::query_scalar!(
        r#"select id as "id: InstanceId" from instances
           where project_id = $1 and organization_id = $2 and status not in ('removing', 'deleted') order by id"#,
        id.as_uuid(),
        scope.organization_id.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// Whether deployments of its production are for those with `manage:production`.
pub(crate) async fn protects_production(connection: &mut PgConnection, id: ProjectId) -> Result<bool> {
    let protects = sqlx::query_scalar!("select protects_production from projects where id = $1", id.as_uuid()).fetch_optional(connection);
    Ok(protects.await?.unwrap_or_default())
}

/// The project has been found in the caller's organization before.
pub(crate) async fn replace_branch_mappings(connection: &mut PgConnection, id: ProjectId, mappings: &[BranchMapping]) -> Result<()> {
    sqlx::query!("delete from branch_mappings where project_id = $1", id.as_uuid()).execute(&mut *connection).await?;
    for mapping in mappings {
        sqlx::query!(
            "insert into branch_mappings (id, project_id, branch_pattern, instance_id, priority, created_at) values ($1, $2, $3, $4, $5, $6)",
            mapping.id.as_uuid(),
            id.as_uuid(),
            mapping.branch_pattern,
            mapping.instance_id.as_uuid(),
            mapping.priority,
            mapping.created_at
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
