//! Raw copies that could not be made harmless, in the store. A row is written before the copy is set aside and removed after the copy is gone, so
//! that none is set aside that nobody knows.

use chrono::{DateTime, Utc};
use ocore_host::NeutralizationReport;
use ocore_model::{
    deployment::StepName,
    environment::Stage,
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, ServerId},
    quarantine::QuarantineStatus,
};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use crate::{Result, authorization::Scope};

/// A copy in quarantine.
#[derive(Debug, Clone)]
pub struct Quarantine {
    pub environment_id: EnvironmentId,
    pub instance_id: InstanceId,
    pub deployment_id: DeploymentId,
    pub data_set_id: DataSetId,
    pub status: QuarantineStatus,
    /// The step that was refused.
    pub step: StepName,
    pub message: String,
    pub excerpt: String,
    /// Whose data they are; `None` when they came from elsewhere, or when that environment's row is gone.
    pub source_environment_id: Option<EnvironmentId>,
    pub source_name: Option<String>,
    /// What that environment is now.
    pub source_stage: Option<Stage>,
    /// What they may have been when they were copied: a production's data as they are.
    pub of_production: bool,
    /// What the check found, when it came so far.
    pub report: Option<Json<NeutralizationReport>>,
    pub database_bytes: Option<i64>,
    pub file_store_bytes: Option<i64>,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

macro_rules! select_quarantines {
    ($filter:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            Quarantine,
            r#"select quarantines.environment_id as "environment_id: EnvironmentId", quarantines.instance_id as "instance_id: InstanceId",
                      quarantines.deployment_id as "deployment_id: DeploymentId", quarantines.data_set_id as "data_set_id: DataSetId",
                      quarantines.status as "status: QuarantineStatus", quarantines.step as "step: StepName", quarantines.message,
                      quarantines.excerpt, quarantines.source_environment_id as "source_environment_id: EnvironmentId",
                      sources.name as "source_name?", sources.stage as "source_stage?: Stage", quarantines.of_production,
                      quarantines.report as "report: Json<NeutralizationReport>", quarantines.database_bytes, quarantines.file_store_bytes,
                      quarantines.created_at, quarantines.expires_at
               from quarantines
               join instances on instances.id = quarantines.instance_id
               left join environments sources on sources.id = quarantines.source_environment_id
               where "# + $filter
            $(, $argument)*
        )
    };
}

/// The one of an environment of the organization.
pub async fn find(connection: &mut PgConnection, scope: &Scope, environment: EnvironmentId) -> Result<Option<Quarantine>> {
    Ok(select_quarantines!(
        "quarantines.environment_id = $2 and instances.organization_id = $1",
        scope.organization_id.as_uuid(),
        environment.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// The one of a deployment that is being taken back.
pub(crate) async fn of_deployment(connection: &mut PgConnection, deployment: DeploymentId) -> Result<Option<Quarantine>> {
    Ok(select_quarantines!("quarantines.deployment_id = $1", deployment.as_uuid()).fetch_optional(connection).await?)
}

pub(crate) async fn of_server(connection: &mut PgConnection, server: ServerId) -> Result<Vec<Quarantine>> {
    Ok(select_quarantines!("instances.server_id = $1 order by quarantines.created_at", server.as_uuid()).fetch_all(connection).await?)
}

/// What [`announce`] writes.
#[derive(Debug)]
pub(crate) struct NewQuarantine<'a> {
    pub deployment: DeploymentId,
    pub data_set: DataSetId,
    pub step: StepName,
    pub message: &'a str,
    pub excerpt: &'a str,
    /// Whose data they are; what came from elsewhere may be anybody's, so it counts as a production's.
    pub source: Option<EnvironmentId>,
    /// They were a production's when they were kept, whatever that environment is now.
    pub were_production: bool,
    pub expires_at: DateTime<Utc>,
}

/// A deployment's copy is to be set aside. It takes the place of the instance's earlier one.
pub(crate) async fn announce(connection: &mut PgConnection, new: &NewQuarantine<'_>, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "insert into quarantines (instance_id, environment_id, deployment_id, data_set_id, status, step, message, excerpt,
                                  source_environment_id, of_production, created_at, expires_at)
         select instance_id, environment_id, id, $2, 'setting_aside', $3, $4, $5, $6,
                $7 or coalesce((select stage = 'production' from environments where environments.id = $6), true), $8, $9
         from deployments where deployments.id = $1
         on conflict (instance_id) do update
         set environment_id = excluded.environment_id, deployment_id = excluded.deployment_id, data_set_id = excluded.data_set_id,
             status = excluded.status, step = excluded.step, message = excluded.message, excerpt = excluded.excerpt,
             source_environment_id = excluded.source_environment_id, of_production = excluded.of_production, report = null,
             database_bytes = null, file_store_bytes = null, created_at = excluded.created_at, expires_at = excluded.expires_at",
        new.deployment.as_uuid(),
        new.data_set.as_uuid(),
        new.step.as_str(),
        new.message,
        new.excerpt,
        new.source.map(EnvironmentId::as_uuid),
        new.were_production,
        now,
        new.expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Its copy is none, after all. Absent is done.
pub(crate) async fn withdraw(connection: &mut PgConnection, deployment: DeploymentId) -> Result<()> {
    sqlx::query!("delete from quarantines where deployment_id = $1", deployment.as_uuid()).execute(connection).await?;
    Ok(())
}

/// It is set aside. One that somebody wants to be gone meanwhile stays so.
pub(crate) async fn set_kept(
    connection: &mut PgConnection,
    deployment: DeploymentId,
    database_bytes: i64,
    file_store_bytes: i64,
    report: Option<&Value>,
) -> Result<()> {
    sqlx::query!(
        "update quarantines
         set status = case status when 'setting_aside' then 'kept' else status end, database_bytes = $2, file_store_bytes = $3, report = $4
         where deployment_id = $1",
        deployment.as_uuid(),
        database_bytes,
        file_store_bytes,
        report,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// It is to go. Whether there was one that was not going already.
pub(crate) async fn give_up(connection: &mut PgConnection, instance: InstanceId) -> Result<bool> {
    let changed =
        sqlx::query!("update quarantines set status = 'removing' where instance_id = $1 and status <> 'removing'", instance.as_uuid())
            .execute(connection)
            .await?;
    Ok(changed.rows_affected() > 0)
}

/// Those of a server are to go whose time is over; their instances.
pub(crate) async fn expire(connection: &mut PgConnection, server: ServerId, now: DateTime<Utc>) -> Result<Vec<InstanceId>> {
    let expired = sqlx::query_scalar!(
        r#"update quarantines set status = 'removing' from instances
           where instances.id = quarantines.instance_id and instances.server_id = $1 and quarantines.status = 'kept'
               and quarantines.expires_at <= $2
           returning quarantines.instance_id as "id: InstanceId""#,
        server.as_uuid(),
        now,
    );
    Ok(expired.fetch_all(connection).await?)
}

/// The copy is gone. A later one that has taken its place stays.
pub(crate) async fn forget(connection: &mut PgConnection, instance: InstanceId, data_set: DataSetId) -> Result<()> {
    sqlx::query!(
        "delete from quarantines where instance_id = $1 and data_set_id = $2 and status = 'removing'",
        instance.as_uuid(),
        data_set.as_uuid(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
