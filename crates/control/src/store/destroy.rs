//! The rows of an instance that is gone.

use chrono::{DateTime, Utc};
use ocore_model::ids::InstanceId;
use sqlx::PgConnection;

use crate::Result;

/// Instance and environment become `deleted`; they stay for the history. What was stuck on the instance is over, and what was in quarantine there is
/// gone with it.
pub(crate) async fn forget(connection: &mut PgConnection, instance: InstanceId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update instances
         set status = 'deleted', status_message = '', active_color = null, active_data_set_id = null, active_release = null,
             active_deployment_id = null, active_http = null, active_websocket = null, previous_data_set_id = null, admin_password = null,
             env_vars = null, settings = settings - 'envVars',
             updating = false, updated_at = $2
         where id = $1",
        instance.as_uuid(),
        now,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("delete from quarantines where instance_id = $1", instance.as_uuid()).execute(&mut *connection).await?;
    sqlx::query!(
        "update operations set status = 'failed', completed_at = $2 where instance_id = $1 and status = 'stuck'",
        instance.as_uuid(),
        now,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "update environments
         set status = 'deleted', status_message = '', pending_commit_count = 0, pending_commit_sha = null, updated_at = $2
         where instance_id = $1 and status <> 'deleted'",
        instance.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn set_environment_message(
    connection: &mut PgConnection,
    instance: InstanceId,
    message: &str,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "update environments set status_message = $2, updated_at = $3 where instance_id = $1 and status <> 'deleted'",
        instance.as_uuid(),
        message,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}
