//! What gates have found.

use chrono::{DateTime, Utc};
use ocore_model::{
    evidence::{Gate, GateStatus},
    ids::{DeploymentId, EnvironmentId},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, authorization::Scope};

/// What one gate has found of one deployment.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub gate: Gate,
    pub status: GateStatus,
    /// A failure stops the deployment.
    pub required: bool,
    /// One sentence.
    pub summary: String,
    /// The lines of the log that show it.
    pub excerpt: Option<String>,
    /// What exactly was seen, in the shape of the gate.
    pub details: Option<Value>,
    pub started_at: DateTime<Utc>,
    pub completed_at: DateTime<Utc>,
}

/// Once more replaces it.
pub(crate) async fn write(connection: &mut PgConnection, deployment: DeploymentId, new: &Evidence) -> Result<()> {
    sqlx::query!(
        "insert into evidence (deployment_id, gate, status, required, summary, excerpt, details, started_at, completed_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         on conflict (deployment_id, gate) do update
         set status = excluded.status, required = excluded.required, summary = excluded.summary, excerpt = excluded.excerpt,
             details = excluded.details, started_at = excluded.started_at, completed_at = excluded.completed_at",
        deployment.as_uuid(),
        new.gate.as_str(),
        new.status.as_str(),
        new.required,
        new.summary,
        new.excerpt,
        new.details,
        new.started_at,
        new.completed_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// All of a deployment, in the order in which it was found.
pub(crate) async fn of_deployment(connection: &mut PgConnection, scope: &Scope, deployment: DeploymentId) -> Result<Vec<Evidence>> {
    Ok(sqlx::query_as!(
        Evidence,
        r#"select gate as "gate: Gate", evidence.status as "status: GateStatus", required, summary, excerpt, details, evidence.started_at,
                  evidence.completed_at
           from evidence join deployments on deployments.id = evidence.deployment_id
           where deployments.id = $2 and deployments.organization_id = $1 order by evidence.started_at, gate"#,
        scope.organization_id.as_uuid(),
        deployment.as_uuid(),
    )
    .fetch_all(connection)
    .await?)
}

/// All of these deployments, in the order in which it was found.
pub(crate) async fn of_deployments(
    connection: &mut PgConnection,
    scope: &Scope,
    deployments: &[Uuid],
) -> Result<Vec<(DeploymentId, Evidence)>> {
    let found = sqlx::query!(
        r#"select deployment_id as "deployment_id: DeploymentId", gate as "gate: Gate", evidence.status as "status: GateStatus", required, summary,
                  excerpt, details, evidence.started_at, evidence.completed_at
           from evidence join deployments on deployments.id = evidence.deployment_id
           where deployments.id = any($2) and deployments.organization_id = $1 order by evidence.started_at, gate"#,
        scope.organization_id.as_uuid(),
        deployments,
    );
    let evidence = found.fetch_all(connection).await?.into_iter().map(|row| {
        let found = Evidence {
            gate: row.gate,
            status: row.status,
            required: row.required,
            summary: row.summary,
            excerpt: row.excerpt,
            details: row.details,
            started_at: row.started_at,
            completed_at: row.completed_at,
        };
        (row.deployment_id, found)
    });
    Ok(evidence.collect())
}

/// What a gate saw of the environment's last deployment that went well and passed it.
pub(crate) async fn last_passed(connection: &mut PgConnection, environment: EnvironmentId, gate: Gate) -> Result<Option<Value>> {
    let found = sqlx::query_scalar!(
        "select details from evidence join deployments on deployments.id = evidence.deployment_id
         where deployments.environment_id = $1 and deployments.status = 'succeeded' and gate = $2 and evidence.status = 'passed'
         order by evidence.completed_at desc limit 1",
        environment.as_uuid(),
        gate.as_str(),
    );
    Ok(found.fetch_optional(connection).await?.flatten())
}
