//! Snapshots that are to be taken, checked or removed on this server are.
//!
//! A run goes on as long as there is work, and takes up what comes in meanwhile. Only the process that has the server's host runs it, one run at
//! a time, so that nothing is taken twice at once; and every job finds what an earlier try of it, cut off by a crash, has done.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use ocore_host::{HostError, Progress, ReleaseId, TakeSnapshot};
use ocore_model::{
    ids::SnapshotId,
    snapshot::{SnapshotKind, SnapshotStatus},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Quiet;
use crate::{
    Control, Error, Result,
    operations::failpoint,
    store::{self, snapshots::Snapshot},
};

pub(crate) const NAME: &str = "snapshot_work";

/// Jobs side by side: each reads or copies files.
const PARALLEL: usize = 2;
/// How soon a run sees what another process wrote meanwhile.
const LOOK: Duration = Duration::from_secs(2);
/// How long a take may need to stop when its time is over.
const STOPPING: Duration = Duration::from_secs(20);
/// How often a take follows a source that deployments replace under it.
const SOURCES: usize = 5;

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let woken = control.signals.waker(NAME);
    let (mut changes, mut failed) = (Vec::new(), None);
    let mut running = FuturesUnordered::new();
    let mut in_hand: BTreeMap<SnapshotId, CancellationToken> = BTreeMap::new();
    // Each job once a run: what fails without an end of its own waits for the next.
    let mut tried = BTreeSet::new();
    loop {
        for wanted in store::snapshots::wanted(&mut *control.pool.acquire().await?, control.server_id).await? {
            if let Some(cancel) = in_hand.get(&wanted.id) {
                if wanted.status == SnapshotStatus::Removing {
                    cancel.cancel();
                }
            } else if running.len() < PARALLEL && tried.insert((wanted.id, wanted.status)) {
                let cancel = CancellationToken::new();
                in_hand.insert(wanted.id, cancel.clone());
                running.push(async move { (wanted.id, job(control, wanted.id, wanted.status, cancel).await) });
            }
        }
        if running.is_empty() {
            return failed.map_or(Ok(changes), Err);
        }
        tokio::select! {
            Some((id, done)) = running.next() => {
                in_hand.remove(&id);
                match done {
                    Ok(change) => changes.extend(change),
                    // The others go on.
                    Err(error) => {
                        tracing::warn!(snapshot = %id, %error, "a snapshot could not be worked on; it is tried again");
                        failed.get_or_insert(error);
                    }
                }
            }
            () = woken.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Does what a snapshot in that status needs; says what came of it.
async fn job(control: &Control, id: SnapshotId, status: SnapshotStatus, cancel: CancellationToken) -> Result<Option<String>> {
    let Some(snapshot) = store::snapshots::read(&mut *control.pool.acquire().await?, id).await? else { return Ok(None) };
    if snapshot.status != status {
        return Ok(None);
    }
    match status {
        SnapshotStatus::Creating => take(control, snapshot, &cancel).await.map(Some),
        SnapshotStatus::Removing => remove(control, &snapshot).await.map(Some),
        SnapshotStatus::Ready => verify(control, &snapshot, cancel).await,
        SnapshotStatus::Failed => Ok(None),
    }
}

/// Has a snapshot taken; what came of it is in its row.
pub(crate) async fn take(control: &Control, mut snapshot: Snapshot, cancel: &CancellationToken) -> Result<String> {
    let id = snapshot.id;
    // Whole already, from a run that died before it could say so: then it shows what was live then, as the row does.
    if let Some(taken) = control.host.snapshots().await?.into_iter().find(|taken| taken.id == id) {
        store::snapshots::set_ready(&mut *control.pool.acquire().await?, &taken, control.clock.now()).await?;
        return Ok(format!("found the snapshot {} whole on the server", snapshot.name));
    }
    failpoint(|| "snapshots::before_take".to_owned()).await;
    for _ in 0..SOURCES {
        match copy(control, &snapshot, cancel).await {
            Ok(taken) => {
                failpoint(|| "snapshots::after_take".to_owned()).await;
                store::snapshots::set_ready(&mut *control.pool.acquire().await?, &taken, control.clock.now()).await?;
                return Ok(format!("took the snapshot {} of {} in {:.1} s", snapshot.name, snapshot.environment_name, taken.seconds));
            }
            // A removal; the row says so already.
            Err(Failure::Host(HostError::Cancelled)) if cancel.is_cancelled() => {
                return Ok(format!("stopped taking the snapshot {}", snapshot.name));
            }
            Err(failure) => {
                let moved = matches!(failure, Failure::Host(_)) && follow(control, &mut snapshot).await?;
                if !moved {
                    return fail(control, &snapshot, &failure.to_string()).await;
                }
            }
        }
    }
    fail(control, &snapshot, "deployments replaced its data again and again while it was being taken; try again when they are through")
        .await
}

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Host(HostError),
    #[error(
        "it was not whole after {0} s, the limit in the environment's snapshot settings (timeoutSeconds); raise it, or find out what keeps the disk busy"
    )]
    TooLong(i32),
}

async fn copy(control: &Control, snapshot: &Snapshot, cancel: &CancellationToken) -> Result<ocore_host::Snapshot, Failure> {
    let settings = async { store::snapshot_settings::of_environment(&mut *control.pool.acquire().await?, snapshot.environment_id).await };
    let seconds = settings.await.ok().flatten().map_or(600, |settings| settings.timeout_seconds);
    let request = TakeSnapshot {
        snapshot: snapshot.id,
        instance: snapshot.instance_id,
        data_set: snapshot.data_set_id,
        release: snapshot.release.clone().map(ReleaseId),
    };
    let attempt = cancel.child_token();
    let progress = Progress { log: Arc::new(Quiet), cancel: attempt.clone() };
    let taking = control.host.take_snapshot(request, progress);
    tokio::pin!(taking);
    tokio::select! {
        taken = &mut taking => taken.map_err(Failure::Host),
        () = tokio::time::sleep(Duration::from_secs(seconds.unsigned_abs().into())) => {
            attempt.cancel();
            match tokio::time::timeout(STOPPING, taking).await {
                // It was whole in the last moment.
                Ok(Ok(taken)) => Ok(taken),
                Ok(Err(_)) | Err(_) => Err(Failure::TooLong(seconds)),
            }
        }
    }
}

/// Whether something else is live than what the snapshot was to show; then it is to show that.
async fn follow(control: &Control, snapshot: &mut Snapshot) -> Result<bool> {
    let mut connection = control.pool.acquire().await?;
    if !store::snapshots::follow_live(&mut connection, snapshot.id, control.clock.now()).await? {
        return Ok(false);
    }
    let Some(now) = store::snapshots::read(&mut connection, snapshot.id).await? else { return Ok(false) };
    let moved = now.data_set_id != snapshot.data_set_id;
    *snapshot = now;
    Ok(moved)
}

async fn fail(control: &Control, snapshot: &Snapshot, why: &str) -> Result<String> {
    store::snapshots::set_failed(&mut *control.pool.acquire().await?, snapshot.id, why, control.clock.now()).await?;
    Ok(format!("could not take the snapshot {} of {}: {why}", snapshot.name, snapshot.environment_name))
}

async fn remove(control: &Control, snapshot: &Snapshot) -> Result<String> {
    let mut connection = control.pool.acquire().await?;
    if let Err(error) = control.host.remove_snapshot(snapshot.id).await {
        let message = format!("it could not be removed yet: {error}");
        store::snapshots::set_message(&mut connection, snapshot.id, &message, control.clock.now()).await?;
        return Ok(format!("could not remove the snapshot {}: {error}", snapshot.name));
    }
    store::snapshots::set_removed(&mut connection, snapshot.id, control.clock.now()).await?;
    Ok(match snapshot.kind {
        SnapshotKind::Manual => format!("removed the snapshot {} of {}", snapshot.name, snapshot.environment_name),
        kind => format!("removed the {kind} snapshot {} of {}: {}", snapshot.name, snapshot.environment_name, snapshot.message),
    })
}

async fn verify(control: &Control, snapshot: &Snapshot, cancel: CancellationToken) -> Result<Option<String>> {
    let mut message = None;
    let found = match control.host.verify_snapshot(snapshot.id, Progress { log: Arc::new(Quiet), cancel }).await {
        Ok(verification) => {
            message = verification.damaged.first().map(|first| match verification.damaged.len() {
                1 => format!("a check found {} damaged: {}", first.path, first.problem),
                count => format!("a check found {count} damaged files; the first is {}: {}", first.path, first.problem),
            });
            serde_json::to_value(&verification).map_err(|error| Error::internal("writing what a check found", error))?
        }
        Err(HostError::Cancelled) => return Ok(None),
        Err(error) => json!({ "error": error.to_string() }),
    };
    let mut connection = control.pool.acquire().await?;
    if let Some(message) = message {
        store::snapshots::set_message(&mut connection, snapshot.id, &message, control.clock.now()).await?;
    }
    store::snapshots::set_verified(&mut connection, snapshot.id, &found, control.clock.now()).await?;
    Ok(Some(format!("checked the snapshot {} of {}", snapshot.name, snapshot.environment_name)))
}
