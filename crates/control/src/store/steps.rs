//! The steps of a deployment and the lines of their logs.

use chrono::{DateTime, Utc};
use ocore_model::{
    deployment::{StepName, StepStatus},
    ids::{DeploymentId, StepId},
};
use sqlx::PgConnection;

use crate::Result;

/// Writes the steps that a deployment has, so that the list can be drawn before it runs. Called again, it makes the list what it should be;
/// what has begun stays.
pub(crate) async fn create(connection: &mut PgConnection, deployment: DeploymentId, steps: &[StepName]) -> Result<()> {
    let names: Vec<String> = steps.iter().map(|name| name.as_str().to_owned()).collect();
    sqlx::query!(
        "delete from deployment_steps where deployment_id = $1 and status = 'pending' and name <> all ($2)",
        deployment.as_uuid(),
        &names
    )
    .execute(&mut *connection)
    .await?;
    for name in steps {
        let place = StepName::ALL.iter().position(|step| step == name).unwrap_or_default();
        sqlx::query!(
            "insert into deployment_steps (id, deployment_id, name, sort_order, status) values ($1, $2, $3, $4, 'pending')
             on conflict (deployment_id, name) do nothing",
            StepId::new().as_uuid(),
            deployment.as_uuid(),
            name.as_str(),
            place as i32,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// A step that begins, or begins again after a crash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub id: StepId,
    /// It had begun before: what it does may be half done.
    pub again: bool,
}

/// Marks a step as running. Its start is that of its first try.
pub(crate) async fn begin(connection: &mut PgConnection, deployment: DeploymentId, name: StepName, now: DateTime<Utc>) -> Result<Begun> {
    let begun = sqlx::query!(
        r#"update deployment_steps as step
           set status = 'running', summary = '', version = step.version + 1, started_at = coalesce(step.started_at, $3), completed_at = null
           from deployment_steps as before
           where step.deployment_id = $1 and step.name = $2 and before.id = step.id
           returning step.id as "id: StepId", before.started_at is not null as "again!""#,
        deployment.as_uuid(),
        name.as_str(),
        now,
    )
    .fetch_one(connection)
    .await?;
    Ok(Begun { id: begun.id, again: begun.again })
}

/// Ends a step.
pub(crate) async fn end(connection: &mut PgConnection, step: StepId, status: StepStatus, summary: &str, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update deployment_steps set status = $2, summary = $3, version = version + 1, completed_at = $4 where id = $1",
        step.as_uuid(),
        status.as_str(),
        summary,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks a step that had succeeded as taken back; any other stays as it is.
pub(crate) async fn mark_undone(connection: &mut PgConnection, deployment: DeploymentId, name: StepName) -> Result<()> {
    sqlx::query!(
        "update deployment_steps set status = 'undone', version = version + 1 where deployment_id = $1 and name = $2 and status = 'succeeded'",
        deployment.as_uuid(),
        name.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The deployment has ended: what never ran is skipped, what was cut off has failed.
pub(crate) async fn close(connection: &mut PgConnection, deployment: DeploymentId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update deployment_steps
         set status = case status when 'pending' then 'skipped' else 'failed' end, version = version + 1,
             completed_at = case status when 'running' then $2::timestamptz end
         where deployment_id = $1 and status in ('pending', 'running')",
        deployment.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds lines to a step's log, in their order.
pub(crate) async fn append_lines(connection: &mut PgConnection, deployment: DeploymentId, step: StepId, lines: &[String]) -> Result<()> {
    sqlx::query!(
        "insert into step_log_lines (deployment_id, step_id, text) select $1, $2, unnest($3::text[])",
        deployment.as_uuid(),
        step.as_uuid(),
        lines,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets the lines of deployments that ended before `before`. Steps and their summaries stay. Returns how many lines went.
pub(crate) async fn prune_lines(connection: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let deleted =
        sqlx::query!("delete from step_log_lines where deployment_id in (select id from deployments where completed_at < $1)", before,)
            .execute(connection)
            .await?;
    Ok(deleted.rows_affected())
}
