//! The end of a deployment: what stops it, and what it means for the instance.

use chrono::{DateTime, Utc};
use ocore_model::{deployment::DeploymentStatus, ids::DeploymentId, instance::InstanceEvent};
use sqlx::PgConnection;

use crate::{
    Result,
    operations::{
        engine::Outcome,
        saga::{Execution, FailureKind},
    },
    store::{self, deploy::End},
};

/// Somebody wants it to end: cancelled or superseded.
pub(in crate::operations) async fn must_stop(connection: &mut PgConnection, deployment: DeploymentId) -> Result<bool> {
    let standing = store::deploy::standing(connection, deployment).await?;
    Ok(standing.is_some_and(|standing| standing.cancel_requested || standing.status == DeploymentStatus::Superseded))
}

/// What the end of the operation means for the deployment, its steps and the instance.
pub(in crate::operations) async fn settled(
    connection: &mut PgConnection,
    execution: &Execution,
    deployment: DeploymentId,
    outcome: &Outcome,
    now: DateTime<Utc>,
) -> Result<()> {
    let end = match outcome {
        Outcome::Succeeded => End { status: DeploymentStatus::Succeeded, message: None, excerpt: None },
        Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled => End::cancelled(),
        Outcome::Failed(failure) => End {
            status: DeploymentStatus::Failed,
            message: Some(failure.message.clone()),
            excerpt: Some(failure.excerpt.clone()).filter(|excerpt| !excerpt.is_empty()),
        },
        Outcome::Stuck(failure, undo) => End {
            status: DeploymentStatus::Failed,
            message: Some(format!(
                "{}; taking it back failed too ({undo}): the instance needs attention, and oCore tries again when it is started",
                failure.message
            )),
            excerpt: Some(failure.excerpt.clone()).filter(|excerpt| !excerpt.is_empty()),
        },
    };
    store::steps::close(connection, deployment, now).await?;
    store::deploy::end(connection, deployment, &end, now).await?;
    let Some(live) = store::deploy::live(connection, execution.instance).await? else { return Ok(()) };
    let message = end.message.as_deref().unwrap_or_default();
    let (instance, generation) = (execution.instance, execution.generation);
    match outcome {
        Outcome::Stuck(..) => {
            let message = format!("it needs attention: {message}");
            store::deploy::set_status(connection, instance, generation, live.status, &message, now).await?;
        }
        // Nothing has ever been live: there is nothing to fall back to.
        Outcome::Failed(_) if live.active_color.is_none() && end.status == DeploymentStatus::Failed => {
            // One that is being removed meanwhile stays so.
            if let Ok(status) = live.status.next(InstanceEvent::Broke) {
                store::deploy::set_status(connection, instance, generation, status, message, now).await?;
            }
        }
        // There is a good one now; why an earlier one was not is of no use any more.
        Outcome::Succeeded => {
            store::quarantines::give_up(connection, instance).await?;
        }
        Outcome::Failed(_) => {}
    }
    Ok(())
}
