//! How a deployment was for the users.

use std::time::Duration;

use ocore_model::{
    deployment::DeploymentStatus,
    evidence::Gate,
    ids::{DeploymentId, SnapshotId},
    rehearsal::Rehearsal,
    report::{DeployReport, Moment},
};

use crate::{
    Control, Result,
    authorization::{Grant, ViewDeployments},
    deployments, operations, plans, store,
};

/// As far as it has come; a deployment of data that nobody used has no phases.
pub async fn report(control: &Control, grant: &Grant<ViewDeployments>, deployment: DeploymentId) -> Result<DeployReport> {
    let deployment = deployments::find(control, grant, deployment).await?;
    let plan = plans::of_deployment(control, grant, deployment.id).await?;
    let mut connection = control.pool.acquire().await?;
    let evidence = store::evidence::of_deployment(&mut connection, grant, deployment.id).await?;
    let rehearsal = evidence.into_iter().find(|found| found.gate == Gate::Rehearsal).and_then(|found| found.details);
    let rehearsal: Option<Rehearsal> = rehearsal.and_then(|details| serde_json::from_value(details).ok());
    let marks = store::marks::of_deployment(&mut connection, deployment.id).await?;
    let expected = rehearsal.as_ref().map(operations::expected_hold).filter(|hold| *hold > Duration::ZERO);
    let was_undone = marks.contains_key(&Moment::Undone) && deployment.status != DeploymentStatus::Succeeded;
    let kept = store::snapshots::rescued_of(&mut connection, grant, deployment.id).await?;
    Ok(DeployReport {
        plan,
        rehearsal,
        undone: was_undone.then(|| deployment.error_message.unwrap_or_else(|| "it was cancelled".to_owned())),
        kept_snapshot_id: kept.map(SnapshotId::as_uuid),
        ..DeployReport::of_traffic(&marks, expected)
    })
}
