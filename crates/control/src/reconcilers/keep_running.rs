//! What should run, runs: an Odoo or a cluster that died is started again, after a restart of the machine everything is. One that does not
//! stay up is tried at growing distances, and called failed when it has died too often; trying goes on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use ocore_host::{Fence, InstanceObservation, Progress, ReleaseId, RunningSlot, ServableDataSet, SlotSpec};
use ocore_model::{
    ids::{InstanceId, OperationId},
    instance::{InstanceEvent, InstanceStatus},
};
use tokio_util::sync::CancellationToken;

use super::Quiet;
use crate::{
    Control, Result, routes,
    store::{self, reconcilers::IntendedRow},
    variables::SealedSettings,
};

/// Starts at the same time.
const PARALLEL: usize = 3;
const FIRST_DELAY: Duration = Duration::from_secs(2);
const LAST_DELAY: Duration = Duration::from_mins(5);
/// After so many starts in a row the instance is called failed.
const FAILED_AFTER: i32 = 5;
/// An Odoo that has been up for this long counts as healthy again.
const STABLE: Duration = Duration::from_mins(1);

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let mut observed: BTreeMap<InstanceId, InstanceObservation> =
        control.host.observe().await?.into_iter().map(|observation| (observation.instance, observation)).collect();
    let mut intended = store::reconcilers::intended(&mut *control.pool.acquire().await?, control.server_id).await?;
    intended.retain(should_run);
    let tended = intended.into_iter().map(|row| {
        let observation = observed.remove(&row.id);
        tend(control, row, observation)
    });
    let tended: Vec<_> = tended.collect();
    let changes: Vec<Result<Option<String>>> = stream::iter(tended).buffer_unordered(PARALLEL).collect().await;
    changes.into_iter().filter_map(Result::transpose).collect()
}

async fn tend(control: &Control, row: IntendedRow, observation: Option<InstanceObservation>) -> Result<Option<String>> {
    let now = control.clock.now();
    match observation.as_ref().and_then(|observation| alive(observation, &row)) {
        Some(slot) => confirm(control, &row, slot, now).await,
        None if is_due(&row, now) => revive(control, &row, now).await,
        None if row.failed_starts >= FAILED_AFTER && row.status != InstanceStatus::Failed => report(control, &row, now).await,
        None => Ok(None),
    }
}

/// It starts well and dies again, time after time: called failed while it waits for its next start.
async fn report(control: &Control, row: &IntendedRow, now: DateTime<Utc>) -> Result<Option<String>> {
    let message = format!("Odoo does not stay up: it has died after each of its last {} starts; its log says why", row.failed_starts);
    let mut transaction = control.pool.begin().await?;
    let status = row.status.next(InstanceEvent::Broke)?;
    if !store::deploy::set_status(&mut transaction, row.id, row.generation, status, &message, now).await? {
        return Ok(None);
    }
    routes::raise(&mut transaction, row.id).await?;
    transaction.commit().await?;
    apply(control).await;
    Ok(Some(format!("{}: {message}", row.name)))
}

/// Ought to run, and no operation is about to change that.
fn should_run(row: &IntendedRow) -> bool {
    matches!(row.status, InstanceStatus::Running | InstanceStatus::Failed) && row.active_color.is_some() && row.operation_id.is_none()
}

/// The live slot, if it is there with its cluster.
fn alive<'a>(observation: &'a InstanceObservation, row: &IntendedRow) -> Option<&'a RunningSlot> {
    let data_set = row.active_data_set_id?;
    if !observation.clusters.contains(&data_set) {
        return None;
    }
    observation.slots.iter().find(|slot| {
        Some(slot.color) == row.active_color && slot.data_set == data_set && Some(slot.release.0.as_str()) == row.active_release.as_deref()
    })
}

fn delay(failed_starts: i32) -> Duration {
    match failed_starts {
        ..=0 => Duration::ZERO,
        starts => FIRST_DELAY.saturating_mul(1 << (starts - 1).min(16)).min(LAST_DELAY),
    }
}

fn is_due(row: &IntendedRow, now: DateTime<Utc>) -> bool {
    row.last_restart_at.is_none_or(|last| (now - last).to_std().unwrap_or_default() >= delay(row.failed_starts))
}

/// It runs: the rows say so too.
async fn confirm(control: &Control, row: &IntendedRow, slot: &RunningSlot, now: DateTime<Utc>) -> Result<Option<String>> {
    let mut transaction = control.pool.begin().await?;
    if row.failed_starts > 0 && (now - slot.started_at).to_std().unwrap_or_default() >= STABLE {
        store::reconcilers::note_stable(&mut transaction, row.id).await?;
    }
    let websocket = slot.websocket.map(|address| address.to_string());
    let moved = row.active_http.as_deref() != Some(&slot.http.to_string()) || row.active_websocket != websocket;
    if !moved && row.status == InstanceStatus::Running {
        transaction.commit().await?;
        return Ok(None);
    }
    let http = slot.http.to_string();
    let ours = store::deploy::set_addresses(&mut transaction, row.id, row.generation, &http, websocket.as_deref()).await?;
    let status = row.status.next(InstanceEvent::Started)?;
    if !ours || !store::deploy::set_status(&mut transaction, row.id, row.generation, status, "", now).await? {
        return Ok(None);
    }
    routes::raise(&mut transaction, row.id).await?;
    transaction.commit().await?;
    apply(control).await;
    Ok(Some(format!("{} runs", row.name)))
}

/// It does not run: started again, at a generation of its own.
async fn revive(control: &Control, row: &IntendedRow, now: DateTime<Utc>) -> Result<Option<String>> {
    let (Some(color), Some(data_set), Some(release)) = (row.active_color, row.active_data_set_id, row.active_release.clone()) else {
        return Ok(None);
    };
    let settings = SealedSettings::new(&control.settings, row.id, row.settings.clone(), row.env_vars.clone())?.open(control, row.id)?;
    let mut transaction = control.pool.begin().await?;
    let Some(generation) = store::reconcilers::take_if_free(&mut transaction, row.id, row.generation).await? else {
        return Ok(None);
    };
    store::reconcilers::note_start(&mut transaction, row.id, now).await?;
    transaction.commit().await?;

    tracing::warn!(instance = %row.id, name = row.name, attempt = row.failed_starts + 1, "an instance does not run as it should; it is started");
    let slot = SlotSpec { color, data_set: ServableDataSet::proven(data_set), release: ReleaseId(release), settings };
    let fence = Fence { operation: OperationId::new(), generation };
    let progress = Progress { log: Arc::new(Quiet), cancel: CancellationToken::new() };
    let started = control.host.start_slot(row.id, slot, fence, progress).await;

    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    let change = match started {
        Ok(running) => {
            let websocket = running.websocket.map(|address| address.to_string());
            let http = running.http.to_string();
            if !store::deploy::set_addresses(&mut transaction, row.id, generation, &http, websocket.as_deref()).await? {
                return Ok(None);
            }
            let status = row.status.next(InstanceEvent::Started)?;
            store::deploy::set_status(&mut transaction, row.id, generation, status, "", now).await?;
            store::reconcilers::note_restarted(&mut transaction, row.id).await?;
            format!("{} did not run and was started again", row.name)
        }
        // An operation has taken it meanwhile.
        Err(ocore_host::HostError::Fenced { .. }) => return Ok(None),
        Err(error) if row.failed_starts + 1 >= FAILED_AFTER => {
            let message = format!("Odoo does not stay up ({} starts in a row): {error}", row.failed_starts + 1);
            let status = row.status.next(InstanceEvent::Broke)?;
            if !store::deploy::set_status(&mut transaction, row.id, generation, status, &message, now).await? {
                return Ok(None);
            }
            format!("{}: {message}", row.name)
        }
        Err(error) => format!("{} could not be started and is tried again: {error}", row.name),
    };
    routes::raise(&mut transaction, row.id).await?;
    transaction.commit().await?;
    apply(control).await;
    Ok(Some(change))
}

async fn apply(control: &Control) {
    if let Err(error) = routes::apply(control).await {
        tracing::warn!(%error, "the edge has not taken the routes; the routes reconciler tries again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_that_fail_move_apart_up_to_five_minutes() {
        let delays: Vec<u64> = (0..=10).map(|starts| delay(starts).as_secs()).collect();
        assert_eq!(delays, [0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(delay(i32::MAX), LAST_DELAY);
    }
}
