//! Exports in the store.

use chrono::{DateTime, Utc};
use ocore_model::{
    export::{ExportFormat, ExportStatus},
    ids::{DataSetId, EnvironmentId, ExportId, InstanceId, OrganizationId, ProjectId, ServerId, SnapshotId, UserId},
};
use sqlx::PgConnection;

use crate::{Result, authorization::Scope};

/// An export with the name of who asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    pub id: ExportId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub server_id: ServerId,
    pub status: ExportStatus,
    pub message: String,
    pub format: ExportFormat,
    pub neutralized: bool,
    pub with_file_store: bool,
    pub snapshot_id: SnapshotId,
    pub scratch_instance_id: InstanceId,
    pub scratch_data_set_id: DataSetId,
    pub file_name: String,
    pub bytes: Option<i64>,
    pub sha256: Option<String>,
    pub admin_password: Option<Vec<u8>>,
    pub created_by: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub expires_at: DateTime<Utc>,
}

macro_rules! select_exports {
    ($filter:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            Export,
            r#"select exports.id as "id: ExportId", exports.organization_id as "organization_id: OrganizationId",
                      exports.project_id as "project_id: ProjectId", exports.environment_id as "environment_id: EnvironmentId",
                      exports.server_id as "server_id: ServerId", exports.status as "status: ExportStatus", exports.message,
                      exports.format as "format: ExportFormat", exports.neutralized, exports.with_file_store,
                      exports.snapshot_id as "snapshot_id: SnapshotId", exports.scratch_instance_id as "scratch_instance_id: InstanceId",
                      exports.scratch_data_set_id as "scratch_data_set_id: DataSetId", exports.file_name, exports.bytes, exports.sha256,
                      exports.admin_password, users.name as "created_by?", exports.created_at, exports.started_at, exports.completed_at,
                      exports.expires_at
               from exports left join users on users.id = exports.created_by
               where "# + $filter
            $(, $argument)*
        )
    };
}

/// One of the organization.
pub async fn find(connection: &mut PgConnection, scope: &Scope, id: ExportId) -> Result<Option<Export>> {
    Ok(select_exports!("exports.id = $2 and exports.organization_id = $1", scope.organization_id.as_uuid(), id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// The newest of an environment.
pub async fn list(connection: &mut PgConnection, scope: &Scope, environment: EnvironmentId, limit: i64) -> Result<Vec<Export>> {
    Ok(select_exports!(
        "exports.environment_id = $2 and exports.organization_id = $1 order by exports.created_at desc, exports.id desc limit $3",
        scope.organization_id.as_uuid(),
        environment.as_uuid(),
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Those of a server that are not over, the oldest first.
pub async fn open_of_server(connection: &mut PgConnection, server: ServerId) -> Result<Vec<Export>> {
    Ok(select_exports!("exports.server_id = $1 and exports.status <> 'expired' order by exports.created_at", server.as_uuid())
        .fetch_all(connection)
        .await?)
}

/// Those of a server that were given up while they were written, and nobody has cleared away since.
pub async fn abandoned_of_server(connection: &mut PgConnection, server: ServerId) -> Result<Vec<Export>> {
    Ok(select_exports!(
        "exports.server_id = $1 and exports.status = 'expired' and exports.started_at is not null and exports.completed_at is null
         order by exports.created_at",
        server.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// When the export that had this scratch instance ended: `None` when it is of no export, `Some(None)` when that is not over.
pub async fn end_of_scratch(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<Option<DateTime<Utc>>>> {
    Ok(sqlx::query_scalar!("select completed_at from exports where scratch_instance_id = $1", instance.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// What [`insert`] writes.
#[derive(Debug, Clone)]
pub struct NewExport {
    pub id: ExportId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub server_id: ServerId,
    pub format: ExportFormat,
    pub neutralized: bool,
    pub with_file_store: bool,
    pub file_name: String,
    pub created_by: UserId,
    pub expires_at: DateTime<Utc>,
}

pub async fn insert(connection: &mut PgConnection, new: &NewExport) -> Result<()> {
    sqlx::query!(
        "insert into exports (id, organization_id, project_id, environment_id, server_id, status, format, neutralized, with_file_store,
                              snapshot_id, scratch_instance_id, scratch_data_set_id, file_name, created_by, expires_at)
         values ($1, $2, $3, $4, $5, 'waiting', $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        new.id.as_uuid(),
        new.organization_id.as_uuid(),
        new.project_id.as_uuid(),
        new.environment_id.as_uuid(),
        new.server_id.as_uuid(),
        new.format.as_str(),
        new.neutralized,
        new.with_file_store,
        SnapshotId::new().as_uuid(),
        InstanceId::new().as_uuid(),
        DataSetId::new().as_uuid(),
        new.file_name,
        new.created_by.as_uuid(),
        new.expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// It runs now; false when it has been given up.
pub async fn begin(connection: &mut PgConnection, id: ExportId, now: DateTime<Utc>) -> Result<bool> {
    let done = sqlx::query!(
        "update exports set status = 'running', started_at = coalesce(started_at, $2), updated_at = $2
         where id = $1 and status in ('waiting', 'running')",
        id.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// It can be downloaded until then; false when it has been given up meanwhile.
pub async fn finish(
    connection: &mut PgConnection,
    id: ExportId,
    file: &ocore_host::ExportedFile,
    admin_password: Option<&[u8]>,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query!(
        "update exports set status = 'done', message = '', bytes = $2, sha256 = $3, admin_password = $4, completed_at = $5, updated_at = $5,
                expires_at = $6
         where id = $1 and status = 'running'",
        id.as_uuid(),
        i64::try_from(file.bytes).unwrap_or(i64::MAX),
        file.sha256,
        admin_password,
        now,
        expires_at,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn fail(connection: &mut PgConnection, id: ExportId, message: &str, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update exports set status = 'failed', message = $2, completed_at = $3, updated_at = $3 where id = $1 and status = 'running'",
        id.as_uuid(),
        message,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Nothing of it is left but its row.
pub async fn set_cleared(connection: &mut PgConnection, id: ExportId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update exports set completed_at = coalesce(completed_at, $2) where id = $1", id.as_uuid(), now)
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn expire(connection: &mut PgConnection, id: ExportId) -> Result<()> {
    sqlx::query!("update exports set status = 'expired', updated_at = now() where id = $1", id.as_uuid()).execute(connection).await?;
    Ok(())
}

/// What is exported: the live data of an environment.
#[derive(Debug, Clone)]
pub struct Source {
    pub instance_id: InstanceId,
    pub data_set_id: Option<DataSetId>,
    pub release: Option<String>,
    pub odoo_version: String,
    pub slug: String,
}

pub async fn source(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Option<Source>> {
    Ok(sqlx::query_as!(
        Source,
        r#"select instances.id as "instance_id: InstanceId", instances.active_data_set_id as "data_set_id: DataSetId",
                  instances.active_release as release, instances.odoo_version, instances.slug
           from environments join instances on instances.id = environments.instance_id
           where environments.id = $1 and environments.status = 'active'"#,
        environment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}
