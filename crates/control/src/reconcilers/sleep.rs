//! What nobody uses sleeps; what somebody asks for, or the clock, wakes.

use std::time::Duration;

use ocore_model::{edge::InstanceTraffic, instance::ControlAction};
use tokio_util::sync::CancellationToken;

use super::AFTER_FAILURE;
use crate::{
    Control, Result,
    operations::{self, OperationKind},
    sleep,
    store::{self, sleep::AwakeRow},
};

/// Whom the clock has woken, and nobody asked since, is given so long to do what was due.
const AFTER_CLOCK: Duration = Duration::from_mins(5);

/// One run: who has had no request for long enough falls asleep; a sleeper that is wanted and whose wake was lost is woken, and one whose scheduled
/// action is due.
pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let awake = store::sleep::awake(&mut *control.pool.acquire().await?, control.server_id).await?;
    let status = control.host.edge_status().await?;
    let now = control.clock.now();
    let mut changes = Vec::new();
    for row in awake {
        let Some(limit) = control.settings.sleep.after(row.stage, row.after_minutes) else { continue };
        let traffic = status.instances.iter().find(|traffic| traffic.instance_id == row.id);
        let last_request = traffic.and_then(|traffic| traffic.last_request_at).unwrap_or_default();
        let by_clock = row.woken_by_clock && last_request < row.since;
        let limit = if by_clock { limit.min(AFTER_CLOCK) } else { limit };
        // An edge that was started again remembers no earlier request.
        let since = row.since.max(status.started_at).max(last_request);
        if (now - since).to_std().unwrap_or_default() < limit || !is_quiet(traffic) || is_at_work(control, &row).await {
            continue;
        }
        if fall_asleep(control, &row).await? {
            changes.push(format!("nobody used {} for {} minutes; it falls asleep", row.name, limit.as_secs() / 60));
        }
    }
    let due = store::sleep::due(&mut *control.pool.acquire().await?, control.server_id, now).await?;
    for (instance, name) in due {
        if sleep::wake_by_clock(control, instance).await? {
            changes.push(format!("a scheduled action of {name} is due; it wakes up"));
        }
    }
    for traffic in status.instances.iter().filter(|traffic| traffic.wanted) {
        if sleep::wake(control, traffic.instance_id).await? {
            changes.push(format!("{} is asked for; it wakes up", traffic.instance_id));
        }
    }
    Ok(changes)
}

/// Nothing is under way. An open websocket is no use of it: a forgotten tab has one.
fn is_quiet(traffic: Option<&InstanceTraffic>) -> bool {
    traffic.is_none_or(|traffic| traffic.requests_in_flight == 0 && traffic.held == 0)
}

/// A scheduled action runs, which a stop would end in the middle.
async fn is_at_work(control: &Control, row: &AwakeRow) -> bool {
    let Some(data_set) = row.data_set else { return false };
    match control.host.scheduled_actions(row.id, data_set).await {
        Ok(actions) => actions.is_some_and(|actions| actions.running),
        Err(error) => {
            tracing::warn!(instance = %row.id, %error, "it stays awake: nobody knows whether one of its scheduled actions runs");
            true
        }
    }
}

/// Asks for it in the order in which everything is asked of an instance; a deployment that came first goes first. False when one did.
async fn fall_asleep(control: &Control, row: &AwakeRow) -> Result<bool> {
    let mut transaction = control.pool.begin().await?;
    let hold = store::operations::lock_instance(&mut transaction, row.id).await?;
    if hold.is_none_or(|hold| hold.operation_id.is_some()) || store::operations::has_any_open(&mut transaction, row.id).await? {
        return Ok(false);
    }
    operations::enqueue(&mut transaction, row.organization_id, row.id, OperationKind::Control { action: ControlAction::Sleep }).await?;
    transaction.commit().await?;
    operations::wake(control, row.id).await;
    Ok(true)
}

/// Wakes each sleeper in the moment in which the edge says that somebody waits for it.
pub(super) async fn listen(control: Control, shutdown: CancellationToken) {
    let mut sequence = 0;
    while !shutdown.is_cancelled() {
        let next = async {
            let wanted = control.host.wanted(sequence).await?;
            for instance in wanted.instances {
                sleep::wake(&control, instance).await?;
            }
            Ok::<u64, crate::Error>(wanted.sequence)
        };
        let pause = tokio::select! {
            next = next => match next {
                Ok(next) => {
                    sequence = next;
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%error, "the edge does not say who is wanted; asked again");
                    tokio::time::sleep(AFTER_FAILURE)
                }
            },
            () = shutdown.cancelled() => return,
        };
        tokio::select! {
            () = pause => {}
            () = shutdown.cancelled() => return,
        }
    }
}
