//! Projects and organizations that are being removed. One is finished when nothing of it lies on a server any more.

use ocore_model::ids::{OrganizationId, ProjectId};
use sqlx::PgConnection;

use crate::Result;

/// A project of which nothing is left but its rows and its mirror.
pub(crate) struct FinishedProject {
    pub id: ProjectId,
    pub slug: String,
}

pub(crate) struct FinishedOrganization {
    pub id: OrganizationId,
    pub slug: String,
    /// Those that still have rows.
    pub projects: Vec<ProjectId>,
}

/// Not locked: [`lock_finished_project`] looks again.
pub(crate) async fn finished_projects(connection: &mut PgConnection) -> Result<Vec<ProjectId>> {
    Ok(sqlx::query_scalar!(
        r#"select id as "id: ProjectId" from projects
           where removal_requested_at is not null
             and not exists (select from instances where project_id = projects.id and status <> 'deleted')
             and not exists (select from snapshots where project_id = projects.id and removed_at is null)
             and not exists (select from imports where project_id = projects.id and status not in ('done', 'expired'))
             and not exists (select from exports where project_id = projects.id
                             and (status <> 'expired' or (started_at is not null and completed_at is null)))
           order by id"#
    )
    .fetch_all(connection)
    .await?)
}

/// Locked against whoever would bring it back, until the end of the transaction; `None` when somebody has.
pub(crate) async fn lock_finished_project(connection: &mut PgConnection, id: ProjectId) -> Result<Option<FinishedProject>> {
    Ok(sqlx::query_as!(
        FinishedProject,
        r#"select id as "id: ProjectId", slug from projects where id = $1 and removal_requested_at is not null for update"#,
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// With everything that belongs to it.
pub(crate) async fn delete_project(connection: &mut PgConnection, id: ProjectId) -> Result<()> {
    sqlx::query!("delete from projects where id = $1", id.as_uuid()).execute(connection).await?;
    Ok(())
}

/// Not locked: [`lock_finished_organization`] looks again.
pub(crate) async fn finished_organizations(connection: &mut PgConnection) -> Result<Vec<OrganizationId>> {
    Ok(sqlx::query_scalar!(
        r#"select id as "id: OrganizationId" from organizations
           where removal_requested_at is not null
             and not exists (select from instances where organization_id = organizations.id and status <> 'deleted')
             and not exists (select from snapshots where organization_id = organizations.id and removed_at is null)
             and not exists (select from imports where organization_id = organizations.id and status not in ('done', 'expired'))
             and not exists (select from exports where organization_id = organizations.id
                             and (status <> 'expired' or (started_at is not null and completed_at is null)))
           order by id"#
    )
    .fetch_all(connection)
    .await?)
}

/// Locked against whoever would bring it back, until the end of the transaction; `None` when somebody has.
pub(crate) async fn lock_finished_organization(connection: &mut PgConnection, id: OrganizationId) -> Result<Option<FinishedOrganization>> {
    let organization = sqlx::query!(
        r#"select id as "id: OrganizationId", slug from organizations where id = $1 and removal_requested_at is not null for update"#,
        id.as_uuid()
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(organization) = organization else { return Ok(None) };
    let projects = sqlx::query_scalar!(r#"select id as "id: ProjectId" from projects where organization_id = $1"#, id.as_uuid());
    let projects = projects.fetch_all(connection).await?;
    Ok(Some(FinishedOrganization { id: organization.id, slug: organization.slug, projects }))
}

/// With everything that belongs to it.
pub(crate) async fn delete_organization(connection: &mut PgConnection, id: OrganizationId) -> Result<()> {
    sqlx::query!("delete from organizations where id = $1", id.as_uuid()).execute(connection).await?;
    Ok(())
}
