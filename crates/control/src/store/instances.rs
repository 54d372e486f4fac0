//! Instances in the store.

use chrono::{DateTime, Utc};
use ocore_host::OdooSettings;
use ocore_model::{
    environment::{EnvironmentStatus, Stage},
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, OrganizationId, ProjectId, ServerId},
    instance::{Color, InstanceStatus},
    names::OdooVersion,
};
use sqlx::{PgConnection, types::Json};

use crate::{Result, authorization::Scope};

/// An instance with the environment that it serves.
#[derive(Debug, Clone)]
pub struct Instance {
    pub id: InstanceId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub server_id: ServerId,
    pub name: String,
    pub slug: String,
    pub status: InstanceStatus,
    pub status_message: String,
    pub odoo_version: OdooVersion,
    /// With the variables once [`crate::instances`] has opened them.
    pub settings: Json<OdooSettings>,
    /// Sealed; see [`crate::variables`].
    pub env_vars: Option<Vec<u8>>,
    pub active_color: Option<Color>,
    pub active_data_set_id: Option<DataSetId>,
    pub active_release: Option<String>,
    pub active_deployment_id: Option<DeploymentId>,
    pub restart_count: i32,
    pub last_restart_at: Option<DateTime<Utc>>,
    pub environment_id: Option<EnvironmentId>,
    pub environment_status: Option<EnvironmentStatus>,
    pub branch: Option<String>,
    pub stage: Option<Stage>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The one select behind every [`Instance`]; what is given is put behind it.
macro_rules! select_instances {
    ($filter:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            Instance,
            r#"select instances.id as "id: InstanceId", instances.organization_id as "organization_id: OrganizationId",
                      instances.project_id as "project_id: ProjectId", instances.server_id as "server_id: ServerId",
                      instances.name, instances.slug, instances.status as "status: InstanceStatus", instances.status_message,
                      instances.odoo_version as "odoo_version: OdooVersion", instances.settings as "settings: Json<OdooSettings>",
                      instances.env_vars,
                      instances.active_color as "active_color: Color", instances.active_data_set_id as "active_data_set_id: DataSetId",
                      instances.active_release, instances.active_deployment_id as "active_deployment_id: DeploymentId",
                      instances.restart_count, instances.last_restart_at,
                      environments.id as "environment_id?: EnvironmentId", environments.status as "environment_status?: EnvironmentStatus",
                      environments.branch as "branch?", environments.stage as "stage?: Stage",
                      instances.created_at, instances.updated_at
               from instances
               left join environments on environments.instance_id = instances.id and environments.status <> 'deleted'
               "# + $filter
            $(, $argument)*
        )
    };
}

/// Every instance of the organization that is not deleted, the oldest first; those of one server, if given.
pub async fn list(connection: &mut PgConnection, scope: &Scope, server: Option<ServerId>) -> Result<Vec<Instance>> {
    Ok(select_instances!(
        "where instances.organization_id = $1 and instances.status <> 'deleted' and ($2::uuid is null or instances.server_id = $2)
         order by instances.created_at, instances.id",
        scope.organization_id.as_uuid(),
        server.map(ServerId::as_uuid)
    )
    .fetch_all(connection)
    .await?)
}

/// One of the organization, also when it is deleted.
pub async fn find(connection: &mut PgConnection, scope: &Scope, id: InstanceId) -> Result<Option<Instance>> {
    Ok(select_instances!("where instances.id = $2 and instances.organization_id = $1", scope.organization_id.as_uuid(), id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// One of the organization, locked until the end of the transaction.
pub async fn lock(connection: &mut PgConnection, organization: OrganizationId, id: InstanceId) -> Result<Option<Instance>> {
    Ok(select_instances!(
        "where instances.id = $2 and instances.organization_id = $1 for no key update of instances",
        organization.as_uuid(),
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// What [`insert`] writes.
#[derive(Debug, Clone)]
pub struct NewInstance {
    pub id: InstanceId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub server_id: ServerId,
    pub name: String,
    pub slug: String,
    pub odoo_version: OdooVersion,
    /// Its variables are not written.
    pub settings: OdooSettings,
    /// Sealed.
    pub env_vars: Option<Vec<u8>>,
}

/// Nothing when an instance of that slug stands anywhere in the installation.
pub async fn insert(connection: &mut PgConnection, new: &NewInstance) -> Result<bool> {
    let done = sqlx::query!(
        "insert into instances (id, organization_id, project_id, server_id, name, slug, status, odoo_version, settings, env_vars)
         values ($1, $2, $3, $4, $5, $6, 'creating', $7, $8::jsonb - 'envVars', $9)
         on conflict (slug) where status <> 'deleted' do nothing",
        new.id.as_uuid(),
        new.organization_id.as_uuid(),
        new.project_id.as_uuid(),
        new.server_id.as_uuid(),
        new.name,
        new.slug,
        new.odoo_version.as_str(),
        Json(&new.settings) as _,
        new.env_vars,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn rename(connection: &mut PgConnection, id: InstanceId, name: &str) -> Result<()> {
    sqlx::query!("update instances set name = $2, updated_at = now() where id = $1", id.as_uuid(), name).execute(connection).await?;
    Ok(())
}

/// Writes the settings, and the variables as they are sealed.
pub async fn set_settings(connection: &mut PgConnection, id: InstanceId, settings: &OdooSettings, env_vars: Option<&[u8]>) -> Result<()> {
    sqlx::query!(
        "update instances set settings = $2::jsonb - 'envVars', env_vars = $3, updated_at = now() where id = $1",
        id.as_uuid(),
        Json(settings) as _,
        env_vars,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// One whose variables lie in the clear, locked.
pub(crate) async fn lock_unsealed(connection: &mut PgConnection) -> Result<Option<(InstanceId, OdooSettings)>> {
    let row = sqlx::query!(
        r#"select id as "id: InstanceId", settings as "settings: Json<OdooSettings>" from instances
           where coalesce(settings -> 'envVars', '{}') <> '{}' order by id limit 1 for no key update"#
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| (row.id, row.settings.0)))
}

/// From one status to another, or nothing when it is not in the first any more.
pub async fn set_status(
    connection: &mut PgConnection,
    id: InstanceId,
    from: InstanceStatus,
    to: InstanceStatus,
    message: &str,
) -> Result<bool> {
    let done = sqlx::query!(
        "update instances set status = $3, status_message = $4, updated_at = now() where id = $1 and status = $2",
        id.as_uuid(),
        from.as_str(),
        to.as_str(),
        message,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The sealed password of Odoo's `admin`; `None` before a fresh database was installed.
pub async fn admin_password(connection: &mut PgConnection, scope: &Scope, id: InstanceId) -> Result<Option<Vec<u8>>> {
    Ok(sqlx::query_scalar!(
        "select admin_password from instances where id = $2 and organization_id = $1",
        scope.organization_id.as_uuid(),
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?
    .flatten())
}

/// The live data of a server's productions that serve and that nobody works on, whose file stores have warm copies.
pub(crate) async fn kept_warm(connection: &mut PgConnection, server: ServerId) -> Result<Vec<(InstanceId, DataSetId)>> {
    let rows = sqlx::query!(
        r#"select instances.id as "id: InstanceId", instances.active_data_set_id as "data_set!: DataSetId"
           from instances join environments on environments.instance_id = instances.id and environments.status <> 'deleted'
           where instances.server_id = $1 and instances.status = 'running' and instances.operation_id is null
                 and instances.active_data_set_id is not null and environments.stage = 'production'
           order by instances.id"#,
        server.as_uuid(),
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.data_set)).collect())
}
