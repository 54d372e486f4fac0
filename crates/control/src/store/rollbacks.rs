//! The log of rollbacks: deployments that brought a snapshot back.

use chrono::{DateTime, Utc};
use ocore_model::{
    deployment::DeploymentStatus,
    ids::{DeploymentId, EnvironmentId, SnapshotId},
    names::CommitSha,
};
use sqlx::PgConnection;

use crate::{Result, authorization::Scope};

/// One rollback, on its way or ended.
#[derive(Debug, Clone)]
pub struct RollbackLog {
    pub deployment_id: DeploymentId,
    pub environment_id: EnvironmentId,
    /// What was gone back to. Its data may have been removed since.
    pub snapshot_id: Option<SnapshotId>,
    pub snapshot_name: Option<String>,
    /// What keeps the data that were live until then.
    pub safety_snapshot_id: Option<SnapshotId>,
    pub commit_sha: CommitSha,
    pub status: DeploymentStatus,
    pub error_message: Option<String>,
    /// Name of the person who asked for it.
    pub triggered_by: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
}

/// At most the newest hundred.
pub(crate) async fn of_environment(connection: &mut PgConnection, scope: &Scope, environment: EnvironmentId) -> Result<Vec<RollbackLog>> {
    Ok(sqlx::query_as!(
        RollbackLog,
        r#"select deployments.id as "deployment_id: DeploymentId", deployments.environment_id as "environment_id: EnvironmentId",
                  deployments.source_snapshot_id as "snapshot_id: SnapshotId", snapshots.name as "snapshot_name?",
                  deployments.snapshot_id as "safety_snapshot_id: SnapshotId", deployments.commit_sha as "commit_sha: CommitSha",
                  deployments.status as "status: DeploymentStatus", deployments.error_message, users.name as "triggered_by?",
                  deployments.created_at, deployments.started_at, deployments.completed_at
           from deployments
               left join snapshots on snapshots.id = deployments.source_snapshot_id
               left join users on users.id = deployments.triggered_by
           where deployments.environment_id = $2 and deployments.organization_id = $1 and deployments.trigger_type = 'rollback'
           order by deployments.created_at desc, deployments.id desc limit 100"#,
        scope.organization_id.as_uuid(),
        environment.as_uuid(),
    )
    .fetch_all(connection)
    .await?)
}
