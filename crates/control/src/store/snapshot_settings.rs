//! How an environment's snapshots are made and kept.

use chrono::{DateTime, Utc};
use ocore_model::{ids::EnvironmentId, snapshot::FailurePolicy};
use sqlx::PgConnection;

use crate::Result;

/// The settings of one environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// Deployments keep the data as they were before them.
    pub auto_enabled: bool,
    /// What a deployment does when it cannot.
    pub failure_policy: FailurePolicy,
    pub max_pinned: i32,
    /// How long those stay that no person made or pinned.
    pub retention_days: i32,
    /// How long taking one may last.
    pub timeout_seconds: i32,
}

/// The settings of an environment whose existence and owner the caller knows. They are made with the defaults of its stage when they are first
/// read: production keeps two weeks, the others one. `None` when there is no such environment.
pub(crate) async fn of_environment(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Option<SnapshotSettings>> {
    if let Some(settings) = find(connection, environment).await? {
        return Ok(Some(settings));
    }
    sqlx::query!(
        "insert into snapshot_settings (environment_id, auto_enabled, failure_policy, max_pinned, retention_days, timeout_seconds)
         select id, true, 'fail', 5, case stage when 'production' then 14 else 7 end, 600 from environments where id = $1
         on conflict (environment_id) do nothing",
        environment.as_uuid(),
    )
    .execute(&mut *connection)
    .await?;
    find(connection, environment).await
}

async fn find(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Option<SnapshotSettings>> {
    Ok(sqlx::query_as!(
        SnapshotSettings,
        r#"select auto_enabled, failure_policy as "failure_policy: FailurePolicy", max_pinned, retention_days, timeout_seconds
           from snapshot_settings where environment_id = $1"#,
        environment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// Writes all of them. The caller has read them before.
pub(crate) async fn set(
    connection: &mut PgConnection,
    environment: EnvironmentId,
    settings: &SnapshotSettings,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "update snapshot_settings
         set auto_enabled = $2, failure_policy = $3, max_pinned = $4, retention_days = $5, timeout_seconds = $6, updated_at = $7
         where environment_id = $1",
        environment.as_uuid(),
        settings.auto_enabled,
        settings.failure_policy.as_str(),
        settings.max_pinned,
        settings.retention_days,
        settings.timeout_seconds,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}
