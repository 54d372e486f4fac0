//! Imports in the store.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{DeploymentId, EnvironmentId, ImportId, OrganizationId, ProjectId, ServerId, UserId},
    import::ImportStatus,
};
use serde_json::Value;
use sqlx::PgConnection;

use crate::{Result, authorization::Scope};

/// An import with the name of who began it.
#[derive(Debug, Clone, PartialEq)]
pub struct Import {
    pub id: ImportId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub server_id: ServerId,
    pub status: ImportStatus,
    pub message: String,
    pub file_name: String,
    pub size: i64,
    pub file_store_name: Option<String>,
    pub file_store_size: Option<i64>,
    /// An [`ocore_host::ImportFacts`].
    pub facts: Option<Value>,
    pub deployment_id: Option<DeploymentId>,
    pub created_by: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

macro_rules! select_imports {
    ($filter:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            Import,
            r#"select imports.id as "id: ImportId", imports.organization_id as "organization_id: OrganizationId",
                      imports.project_id as "project_id: ProjectId", imports.environment_id as "environment_id: EnvironmentId",
                      imports.server_id as "server_id: ServerId", imports.status as "status: ImportStatus", imports.message,
                      imports.file_name, imports.size, imports.file_store_name, imports.file_store_size, imports.facts,
                      imports.deployment_id as "deployment_id: DeploymentId", users.name as "created_by?", imports.created_at,
                      imports.updated_at, imports.expires_at
               from imports left join users on users.id = imports.created_by
               where "# + $filter
            $(, $argument)*
        )
    };
}

/// One of the organization.
pub async fn find(connection: &mut PgConnection, scope: &Scope, id: ImportId) -> Result<Option<Import>> {
    Ok(select_imports!("imports.id = $2 and imports.organization_id = $1", scope.organization_id.as_uuid(), id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// One of the organization, locked until the end of the transaction.
pub async fn lock(connection: &mut PgConnection, scope: &Scope, id: ImportId) -> Result<Option<Import>> {
    Ok(select_imports!(
        "imports.id = $2 and imports.organization_id = $1 for update of imports",
        scope.organization_id.as_uuid(),
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// The newest of an environment.
pub async fn list(connection: &mut PgConnection, scope: &Scope, environment: EnvironmentId, limit: i64) -> Result<Vec<Import>> {
    Ok(select_imports!(
        "imports.environment_id = $2 and imports.organization_id = $1 order by imports.created_at desc, imports.id desc limit $3",
        scope.organization_id.as_uuid(),
        environment.as_uuid(),
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Those of a server whose uploads are still needed, or have to go.
pub async fn open_of_server(connection: &mut PgConnection, server: ServerId) -> Result<Vec<Import>> {
    Ok(select_imports!(
        "imports.server_id = $1 and imports.status not in ('done', 'expired') order by imports.created_at",
        server.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// What [`insert`] writes.
#[derive(Debug, Clone)]
pub struct NewImport {
    pub id: ImportId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub server_id: ServerId,
    pub file_name: String,
    pub size: i64,
    pub created_by: UserId,
    pub expires_at: DateTime<Utc>,
}

pub async fn insert(connection: &mut PgConnection, new: &NewImport) -> Result<()> {
    sqlx::query!(
        "insert into imports (id, organization_id, project_id, environment_id, server_id, status, file_name, size, created_by, expires_at)
         values ($1, $2, $3, $4, $5, 'receiving', $6, $7, $8, $9)",
        new.id.as_uuid(),
        new.organization_id.as_uuid(),
        new.project_id.as_uuid(),
        new.environment_id.as_uuid(),
        new.server_id.as_uuid(),
        new.file_name,
        new.size,
        new.created_by.as_uuid(),
        new.expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Announces the separate archive of the file store; the import waits for it from then on.
pub async fn add_file_store(connection: &mut PgConnection, id: ImportId, name: &str, size: i64) -> Result<()> {
    sqlx::query!(
        "update imports set file_store_name = $2, file_store_size = $3, status = 'receiving', facts = null, message = '', updated_at = now()
         where id = $1",
        id.as_uuid(),
        name,
        size,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// From one status to another, with what is to be known of it; false when it is not in the first any more. Its time begins anew.
pub async fn set_status(
    connection: &mut PgConnection,
    id: ImportId,
    from: &[ImportStatus],
    to: ImportStatus,
    message: &str,
    expires_at: DateTime<Utc>,
) -> Result<bool> {
    let from: Vec<String> = from.iter().map(|status| status.as_str().to_owned()).collect();
    let done = sqlx::query!(
        "update imports set status = $3, message = $4, expires_at = greatest(expires_at, $5), updated_at = now()
         where id = $1 and status = any($2)",
        id.as_uuid(),
        &from,
        to.as_str(),
        message,
        expires_at,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What the check found; nothing when it has been given up meanwhile.
pub async fn set_facts(connection: &mut PgConnection, id: ImportId, facts: &Value, to: ImportStatus, message: &str) -> Result<()> {
    sqlx::query!(
        "update imports set facts = $2, status = $3, message = $4, updated_at = now() where id = $1 and status in ('received', 'checked', 'failed')",
        id.as_uuid(),
        facts,
        to.as_str(),
        message,
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn set_deployment(connection: &mut PgConnection, id: ImportId, deployment: DeploymentId) -> Result<()> {
    sqlx::query!(
        "update imports set status = 'importing', deployment_id = $2, message = '', updated_at = now() where id = $1",
        id.as_uuid(),
        deployment.as_uuid(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
