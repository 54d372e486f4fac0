//! The node that takes a snapshot of the environment that is cloned, and what becomes of the data that were live before.

use std::sync::Arc;

use ocore_host::{HostError, Snapshot, TakeSnapshot};
use ocore_model::{
    deployment::{DataOrigin, StepName},
    ids::SnapshotId,
    snapshot::{FailurePolicy, SnapshotKind},
};
use sqlx::PgConnection;

use super::{
    Live, Parameters,
    step::{Step, UndoStep},
};
use crate::{
    Control, Error, Result,
    operations::saga::Failure,
    store::{self, snapshots::NewSnapshot},
};

/// How often the source's data are looked for again when a deployment there has put others in their place meanwhile.
const TRIES: usize = 5;

/// The source's live data at one moment; it serves on. An operation of its own may hold it.
pub(super) async fn take(step: Arc<Step>) -> Result<(Snapshot, String), Failure> {
    let taken = take_live(&step).await?;
    let summary = format!("{} in {:.1} s{}", size(&taken), taken.seconds, if taken.shares_blocks { "" } else { ", copied" });
    Ok((taken, summary))
}

/// Once more, for a clone whose copy is not usable any more; nothing to do for what is no clone. What was planned for the modules of the first one
/// must hold for those of the second one too.
pub(super) async fn take_again(step: &Step) -> Result<(), Failure> {
    if !step.has(StepName::Snapshot) {
        return Ok(());
    }
    let first: Snapshot = step.context.output("deploy::snapshot")?;
    let again = take_live(step).await?;
    if again.modules == first.modules {
        return Ok(());
    }
    Err(Failure::rejected(
        "the copy was broken off, and the modules of the environment that is cloned have changed since it was planned; clone it again",
    ))
}

async fn take_live(step: &Step) -> Result<Snapshot, Failure> {
    let (parameters, control) = (&step.parameters, step.control());
    let DataOrigin::Environment { environment, snapshot } = parameters.origin else {
        return Err(Failure::broken("only a clone takes a snapshot of another environment"));
    };
    let new = NewSnapshot {
        id: snapshot,
        environment,
        name: &format!("clone into {}", parameters.branch),
        kind: SnapshotKind::Clone,
        retires: false,
        made_by: Some(parameters.deployment),
        created_by: None,
        kept_until: None,
    };
    let mut transaction = control.pool.begin().await?;
    if store::snapshots::insert_of_live(&mut transaction, new, control.clock.now()).await? {
        // From now on nobody removes it, also when its environment is deleted.
        store::deploy::set_source_snapshot(&mut transaction, parameters.deployment, snapshot).await?;
    }
    transaction.commit().await?;
    let gone = || Failure::rejected("the environment to clone has no live data any more; deploy it first");
    for _ in 0..TRIES {
        let source = store::deploy::source(&mut *control.pool.acquire().await?, environment).await?.ok_or_else(gone)?;
        let data_set = source.data_set_id.ok_or_else(gone)?;
        step.say(&format!("the live data of {}, which goes on serving", source.name));
        let request = TakeSnapshot { snapshot, instance: source.instance_id, data_set, release: source.release.map(ocore_host::ReleaseId) };
        let error = match control.host.take_snapshot(request, step.progress()).await {
            Ok(taken) => {
                store::snapshots::set_ready(&mut *control.pool.acquire().await?, &taken, control.clock.now()).await?;
                return Ok(taken);
            }
            Err(error @ HostError::Cancelled) => return Err(error.into()),
            Err(error) => error,
        };
        let now = store::deploy::source(&mut *control.pool.acquire().await?, environment).await?.ok_or_else(gone)?;
        if now.data_set_id == Some(data_set) {
            return Err(error.into());
        }
        step.say("a deployment of the source has put other data in their place; taking those");
        store::snapshots::follow_live(&mut *control.pool.acquire().await?, snapshot, control.clock.now()).await?;
    }
    Err(Failure::broken("the source is deployed again and again; clone it when its deployments have ended"))
}

fn size(taken: &Snapshot) -> String {
    let mebibytes = (taken.database_bytes + taken.file_store_bytes) >> 20;
    format!("{mebibytes} MiB, {} files", taken.file_store_files)
}

pub(super) async fn undo_take(step: Arc<UndoStep>) -> Result<(), Failure> {
    Ok(remove_taken(step.control(), &step.parameters).await?)
}

/// What was taken of the source has become the copy, or is not needed any more.
pub(super) async fn remove_taken(control: &Control, parameters: &Parameters) -> Result<()> {
    let DataOrigin::Environment { snapshot, .. } = parameters.origin else { return Ok(()) };
    control.host.remove_snapshot(snapshot).await?;
    let mut transaction = control.pool.begin().await?;
    let now = control.clock.now();
    store::snapshots::set_removing(&mut transaction, snapshot, "the clone is made", now).await?;
    store::snapshots::set_removed(&mut transaction, snapshot, now).await?;
    transaction.commit().await?;
    Ok(())
}

/// Writes, in the transaction that makes the new data live and before it does, that what is live until then becomes a snapshot.
pub(super) async fn announce(connection: &mut PgConnection, control: &Control, parameters: &Parameters) -> Result<()> {
    let Some(snapshot) = parameters.keeps else { return Ok(()) };
    let (kind, name) = match parameters.origin {
        DataOrigin::Snapshot { .. } => (SnapshotKind::Safety, "before the rollback"),
        DataOrigin::Import { .. } => (SnapshotKind::Safety, "before the import"),
        _ => (SnapshotKind::Automatic, "before the deployment"),
    };
    let new = NewSnapshot {
        id: snapshot,
        environment: parameters.environment,
        name: &format!("{name} of {}", super::short(&parameters.commit)),
        kind,
        retires: true,
        made_by: Some(parameters.deployment),
        created_by: None,
        kept_until: None,
    };
    if store::snapshots::insert_of_live(connection, new, control.clock.now()).await? {
        store::snapshots::set_of_deployment(connection, parameters.deployment, snapshot).await?;
    }
    Ok(())
}

/// Writes, in the transaction that makes what was before live again, that the data set which has been live until then becomes a snapshot: users may
/// have written there. Nothing when it has not been live.
pub(super) async fn announce_rescue(connection: &mut PgConnection, control: &Control, parameters: &Parameters) -> Result<()> {
    let live = store::deploy::live(connection, parameters.instance).await?;
    let was_live = live.is_some_and(|live| live.active_data_set_id == Some(parameters.data_set));
    if !was_live || parameters.live.is_none() {
        return Ok(());
    }
    let new = NewSnapshot {
        id: parameters.rescued,
        environment: parameters.environment,
        name: &format!("written after the switch to {}, which was taken back", super::short(&parameters.commit)),
        kind: SnapshotKind::Safety,
        retires: true,
        made_by: Some(parameters.deployment),
        created_by: None,
        kept_until: None,
    };
    store::snapshots::insert_of_live(connection, new, control.clock.now()).await?;
    Ok(())
}

/// Turns the data set of a deployment that is taken back into the snapshot that was announced. False when none was.
pub(super) async fn rescue(step: &UndoStep) -> Result<bool> {
    let (parameters, control) = (&step.parameters, step.control());
    let Some(row) = store::snapshots::read(&mut *control.pool.acquire().await?, parameters.rescued).await? else { return Ok(false) };
    let release = row.release.clone().map(ocore_host::ReleaseId);
    let request = TakeSnapshot { snapshot: row.id, instance: parameters.instance, data_set: parameters.data_set, release };
    match control.host.retire_data_set(request, step.fence(), step.progress()).await {
        Ok(taken) => ready(control, &taken, row.id).await?,
        Err(error @ (HostError::Cancelled | HostError::Fenced { .. })) => return Err(error.into()),
        // It stays where it is, and is kept later.
        Err(error) => note(control, row.id, &error.to_string()).await?,
    }
    Ok(true)
}

/// Turns what was live into its snapshot, or removes it when none is wanted.
pub(super) async fn retire(step: &Step, old: &Live) -> Result<()> {
    let (parameters, control, fence) = (&step.parameters, step.control(), step.fence());
    let Some(snapshot) = parameters.keeps else {
        return Ok(control.host.remove_data_set(parameters.instance, old.data_set, fence).await?);
    };
    let request = TakeSnapshot { snapshot, instance: parameters.instance, data_set: old.data_set, release: Some(old.release.clone()) };
    let taken = control.host.retire_data_set(request, fence, step.progress_of_live()).await?;
    ready(control, &taken, snapshot).await
}

/// Before anything changes: the data before earlier deployments, which those could not keep, become their snapshots now. When they still cannot,
/// the environment's `failurePolicy` says whether a deployment may put more data in the way. What is not kept stays where it is in any case, and
/// a rollback or an import is not stopped: it may be what brings help.
pub(super) async fn keep_earlier(step: &Step) -> Result<(), Failure> {
    let (parameters, control) = (&step.parameters, step.control());
    let Some(live) = &parameters.live else { return Ok(()) };
    let owed = store::snapshots::owed_by(&mut *control.pool.acquire().await?, parameters.instance).await?;
    for row in owed.into_iter().filter(|row| row.data_set_id != live.data_set) {
        let release = row.release.clone().map(ocore_host::ReleaseId);
        let request = TakeSnapshot { snapshot: row.id, instance: row.instance_id, data_set: row.data_set_id, release };
        let error = match control.host.retire_data_set(request, step.fence(), step.progress()).await {
            Ok(taken) => {
                step.say(&format!("kept the data of the snapshot {}, which an earlier deployment could not keep", row.name));
                ready(control, &taken, row.id).await?;
                continue;
            }
            Err(error @ (HostError::Cancelled | HostError::Fenced { .. })) => return Err(error.into()),
            // Gone; the reconciler says so in its row.
            Err(HostError::NotFound { .. }) => continue,
            Err(error) => error,
        };
        note(control, row.id, &error.to_string()).await?;
        let settings = store::snapshot_settings::of_environment(&mut *control.pool.acquire().await?, parameters.environment).await?;
        let policy = settings.map_or(FailurePolicy::Fail, |settings| settings.failure_policy);
        let sentence = format!("the data before an earlier deployment cannot be kept as the snapshot {}: {error}", row.name);
        if policy == FailurePolicy::Fail && matches!(parameters.origin, DataOrigin::Live | DataOrigin::Fresh) {
            return Err(Failure::rejected(format!(
                "{sentence}; see to that and deploy again, or let deployments go on without it (failurePolicy \"continue\" in the snapshot settings)"
            )));
        }
        step.say(&format!("{sentence}; they stay where they are, and this goes on"));
    }
    Ok(())
}

/// Writes to a snapshot why its data could not be kept yet.
pub(super) async fn note(control: &Control, snapshot: SnapshotId, why: &str) -> Result<()> {
    store::snapshots::set_owed(&mut *control.pool.acquire().await?, snapshot, why, control.clock.now()).await
}

async fn ready(control: &Control, taken: &Snapshot, snapshot: SnapshotId) -> Result<()> {
    if store::snapshots::set_ready(&mut *control.pool.acquire().await?, taken, control.clock.now()).await? {
        return Ok(());
    }
    Err(Error::broken(format!("the snapshot {snapshot} that a deployment has made is not wanted any more")))
}
