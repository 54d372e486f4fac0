//! Destroys an instance: the route first, then, of a production, a last snapshot that stays, then everything on the server, then the rows.
//!
//! It only goes forward. When the server fails it, the instance stays `removing` with the reason, and the reconciler asks again.

use chrono::{DateTime, Utc};
use ocore_model::{
    environment::Stage,
    ids::{InstanceId, SnapshotId},
    instance::InstanceStatus,
    snapshot::{SnapshotKind, SnapshotStatus},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{
    engine::Outcome,
    saga::{Execution, Failure, Graph, NodeContext},
};
use crate::{
    Control, Error, Result, environments,
    reconcilers::snapshot_work,
    routes, snapshots,
    store::{
        self,
        snapshots::{NewSnapshot, Snapshot},
    },
};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Parameters {}

pub(super) async fn parameters(control: &Control, instance: InstanceId) -> Result<Parameters, Failure> {
    store::deploy::live(&mut *control.pool.acquire().await?, instance).await?.ok_or(Error::NotFound { what: "instance" })?;
    Ok(Parameters {})
}

pub(super) fn graph() -> Graph {
    Graph::default().then("destroy::unroute", unroute).then("destroy::keep", keep).then("destroy::remove", remove)
}

/// From now on the instance's name leads nowhere.
async fn unroute(context: NodeContext) -> Result<(), Failure> {
    let (control, execution) = (context.control(), context.execution());
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    let held =
        store::deploy::set_status(&mut transaction, execution.instance, execution.generation, InstanceStatus::Removing, "", now).await?;
    if !held {
        return Err(Failure::fenced());
    }
    routes::raise(&mut transaction, execution.instance).await?;
    transaction.commit().await?;
    if let Err(error) = routes::apply(control).await {
        tracing::warn!(%error, "the edge has not taken the routes; the routes reconciler tries again");
    }
    Ok(())
}

/// A production's last snapshot, of what was live. Without it nothing is removed: the reconciler asks again, and then another one is tried. A run that
/// was cut off goes on with the one that it began.
async fn keep(context: NodeContext) -> Result<(), Failure> {
    let (control, execution) = (context.control(), context.execution());
    let Some(snapshot) = last_snapshot(control, execution.instance).await? else { return Ok(()) };
    let id = snapshot.id;
    if snapshot.status == SnapshotStatus::Creating {
        snapshot_work::take(control, snapshot, &execution.halt).await?;
    }
    let kept = store::snapshots::read(&mut *control.pool.acquire().await?, id).await?;
    match kept.map(|kept| (kept.status, kept.message)) {
        Some((SnapshotStatus::Ready, _)) => Ok(()),
        Some((SnapshotStatus::Failed, why)) => Err(Failure::broken(format!("its last snapshot could not be taken: {why}"))),
        // Only a process that stops leaves it so; another goes on.
        Some((SnapshotStatus::Creating, _)) => Err(Failure::fenced()),
        Some((SnapshotStatus::Removing, _)) | None => Err(Failure::broken("its last snapshot was removed while it was being taken")),
    }
}

/// The snapshot that stays, asked for now if it was not before. `None` of what is no production, or never was live.
async fn last_snapshot(control: &Control, instance: InstanceId) -> Result<Option<Snapshot>, Failure> {
    let mut transaction = control.pool.begin().await?;
    if let Some(asked) = store::snapshots::last_of(&mut transaction, instance).await? {
        return Ok(Some(asked));
    }
    let environment = store::environments::lock_by_instance(&mut transaction, instance).await?;
    let Some(environment) = environment.filter(|environment| environment.stage == Stage::Production) else { return Ok(None) };
    let now = control.clock.now();
    let new = NewSnapshot {
        id: SnapshotId::new(),
        environment: environment.id,
        name: &snapshots::default_name(&format!("last of {}", environment.branch), now),
        kind: SnapshotKind::Safety,
        retires: false,
        made_by: None,
        created_by: None,
        kept_until: Some(now + environments::KEPT),
    };
    let id = new.id;
    if !store::snapshots::insert_of_live(&mut transaction, new, now).await? {
        return Ok(None);
    }
    let asked = store::snapshots::read(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(asked)
}

/// Processes, data, users, ports.
async fn remove(context: NodeContext) -> Result<(), Failure> {
    let execution = context.execution();
    context.control().host.destroy_instance(execution.instance, execution.fence()).await?;
    Ok(())
}

pub(super) async fn settled(connection: &mut PgConnection, execution: &Execution, outcome: &Outcome, now: DateTime<Utc>) -> Result<()> {
    match outcome {
        Outcome::Succeeded => store::destroy::forget(connection, execution.instance, now).await,
        Outcome::Failed(failure) | Outcome::Stuck(failure, _) => {
            let message = format!("it could not be removed: {}", failure.message);
            store::deploy::set_status(connection, execution.instance, execution.generation, InstanceStatus::Removing, &message, now)
                .await?;
            store::destroy::set_environment_message(connection, execution.instance, &message, now).await
        }
    }
}
