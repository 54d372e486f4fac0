//! What was checked and found when copies were made harmless.

use chrono::{DateTime, Utc};
use ocore_host::NeutralizationReport;
use ocore_model::ids::{DeploymentId, EnvironmentId};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use crate::{Result, authorization::Scope};

/// The report of one copy.
#[derive(Debug, Clone)]
pub struct Neutralization {
    pub deployment_id: DeploymentId,
    pub environment_id: EnvironmentId,
    /// Whose data they are; `None` when they came from elsewhere, or when that environment's row is gone.
    pub source_environment_id: Option<EnvironmentId>,
    pub report: Json<NeutralizationReport>,
    pub created_at: DateTime<Utc>,
}

/// Writes the report of a deployment's copy. Once more replaces it.
pub(crate) async fn write(
    connection: &mut PgConnection,
    deployment: DeploymentId,
    environment: EnvironmentId,
    source: Option<EnvironmentId>,
    report: &Value,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "insert into neutralizations (deployment_id, environment_id, source_environment_id, report, created_at) values ($1, $2, $3, $4, $5)
         on conflict (deployment_id) do update set report = excluded.report, created_at = excluded.created_at",
        deployment.as_uuid(),
        environment.as_uuid(),
        source.map(EnvironmentId::as_uuid),
        report,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The one of the copy that is live in the environment, or that live data descend from: the newest of a deployment that went live.
pub(crate) async fn of_live(connection: &mut PgConnection, scope: &Scope, environment: EnvironmentId) -> Result<Option<Neutralization>> {
    Ok(sqlx::query_as!(
        Neutralization,
        r#"select deployment_id as "deployment_id: DeploymentId", neutralizations.environment_id as "environment_id: EnvironmentId",
                  source_environment_id as "source_environment_id: EnvironmentId", report as "report: Json<NeutralizationReport>",
                  neutralizations.created_at
           from neutralizations join deployments on deployments.id = neutralizations.deployment_id
           where neutralizations.environment_id = $2 and deployments.organization_id = $1 and deployments.status = 'succeeded'
           order by neutralizations.created_at desc limit 1"#,
        scope.organization_id.as_uuid(),
        environment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// The copy before one: of the same environment, or else of the same source.
pub(crate) async fn before(connection: &mut PgConnection, scope: &Scope, one: &Neutralization) -> Result<Option<Neutralization>> {
    Ok(sqlx::query_as!(
        Neutralization,
        r#"select deployment_id as "deployment_id: DeploymentId", neutralizations.environment_id as "environment_id: EnvironmentId",
                  source_environment_id as "source_environment_id: EnvironmentId", report as "report: Json<NeutralizationReport>",
                  neutralizations.created_at
           from neutralizations join deployments on deployments.id = neutralizations.deployment_id
           where deployments.organization_id = $1 and deployments.status = 'succeeded' and neutralizations.deployment_id <> $2
               and neutralizations.created_at < $3
               and (neutralizations.environment_id = $4 or source_environment_id = $5)
           order by neutralizations.environment_id = $4 desc, neutralizations.created_at desc limit 1"#,
        scope.organization_id.as_uuid(),
        one.deployment_id.as_uuid(),
        one.created_at,
        one.environment_id.as_uuid(),
        one.source_environment_id.map(EnvironmentId::as_uuid),
    )
    .fetch_optional(connection)
    .await?)
}
