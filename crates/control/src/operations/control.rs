//! Start, stop, restart, sleep: what a person asks of an instance's live slot, and time of one that nobody uses.
//!
//! There is nothing to take back: a start that fails leaves the instance failed, with the reason, and the reconciler tries on.

use std::net::SocketAddr;

use chrono::{DateTime, TimeDelta, Utc};
use ocore_host::{Progress, ReleaseId, ServableDataSet, SlotSpec};
use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::{Color, ControlAction, InstanceEvent, InstanceStatus},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{
    deploy::drain,
    engine::Outcome,
    saga::{Execution, Failure, Graph, NodeContext},
};
use crate::{Control, Error, Result, routes, store, variables::SealedSettings};

/// What is overdue could not run while the environment was awake; it is not woken for that at once, and again and again.
const AFTER_OVERDUE: TimeDelta = TimeDelta::minutes(5);

/// The live slot, as it was when the operation was claimed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Parameters {
    action: ControlAction,
    color: Color,
    data_set: DataSetId,
    release: ReleaseId,
    settings: SealedSettings,
    /// Where it answered then.
    http: Option<SocketAddr>,
}

pub(super) async fn parameters(control: &Control, instance: InstanceId, action: ControlAction) -> Result<Parameters, Failure> {
    let live = store::deploy::live(&mut *control.pool.acquire().await?, instance).await?.ok_or(Error::NotFound { what: "instance" })?;
    let (Some(color), Some(data_set), Some(release)) = (live.active_color, live.active_data_set_id, live.active_release) else {
        return Err(Failure::rejected("nothing has been deployed to the instance yet; push a commit first"));
    };
    let settings = SealedSettings::new(&control.settings, instance, live.settings, live.env_vars)?;
    let http = live.active_http.as_deref().and_then(|address| address.parse().ok());
    Ok(Parameters { action, color, data_set, release: ReleaseId(release), settings, http })
}

pub(super) fn graph() -> Graph {
    Graph::default().then("control::rest", rest).then("control::run", run)
}

/// Stops the slot, for a stop and for sleep also its cluster.
async fn rest(context: NodeContext) -> Result<(), Failure> {
    let parameters: Parameters = context.parameters()?;
    let (control, execution) = (context.control(), context.execution());
    let status = match parameters.action {
        ControlAction::Start => return Ok(()),
        ControlAction::Restart => InstanceStatus::Restarting,
        ControlAction::Stop => InstanceStatus::Stopped,
        ControlAction::Sleep => InstanceStatus::Asleep,
    };
    // First the route: nobody is sent to an Odoo that is about to go.
    set_status(context.execution(), status, "").await?;
    if parameters.action == ControlAction::Sleep {
        note_memory(execution).await?;
        note_next_action(execution, parameters.data_set).await?;
        // Who came before the route changed gets an answer; who comes now waits at the edge, and wakes it.
        if let Some(http) = parameters.http {
            drain(control, execution.instance, http).await;
        }
    }
    control.host.stop_slot(execution.instance, parameters.color, execution.fence()).await?;
    if matches!(parameters.action, ControlAction::Stop | ControlAction::Sleep) {
        control.host.stop_cluster(execution.instance, parameters.data_set, execution.fence()).await?;
    }
    Ok(())
}

/// What sleep frees. A second run of the node finds less, or nothing, and leaves what the first one wrote.
async fn note_memory(execution: &Execution) -> Result<(), Failure> {
    let control = &execution.control;
    let bytes = control.host.memory(execution.instance).await?;
    store::sleep::set_freed(&mut *control.pool.acquire().await?, execution.instance, i64::try_from(bytes).unwrap_or(i64::MAX)).await?;
    Ok(())
}

/// When the clock may wake it. A second run of the node finds no cluster and leaves what the first one wrote.
async fn note_next_action(execution: &Execution, data_set: DataSetId) -> Result<(), Failure> {
    let control = &execution.control;
    match control.host.scheduled_actions(execution.instance, data_set).await {
        Ok(Some(actions)) => {
            let now = control.clock.now();
            let at = actions.next.map(|next| if next > now { next } else { now + AFTER_OVERDUE });
            store::sleep::set_wake_at(&mut *control.pool.acquire().await?, execution.instance, at).await?;
        }
        Ok(None) => {}
        Err(error) => {
            let instance = execution.instance;
            tracing::warn!(%instance, %error, "nobody knows when its next scheduled action is due; the clock does not wake it");
        }
    }
    Ok(())
}

/// Starts the slot, unless it is to stay stopped.
async fn run(context: NodeContext) -> Result<(), Failure> {
    let parameters: Parameters = context.parameters()?;
    let (control, execution) = (context.control(), context.execution());
    if matches!(parameters.action, ControlAction::Stop | ControlAction::Sleep) {
        return Ok(());
    }
    let slot = SlotSpec {
        color: parameters.color,
        data_set: ServableDataSet::proven(parameters.data_set),
        release: parameters.release.clone(),
        settings: parameters.settings.open(control, execution.instance)?,
    };
    let progress = Progress { log: std::sync::Arc::new(crate::reconcilers::Quiet), cancel: execution.halt.clone() };
    let running = control.host.start_slot(execution.instance, slot, execution.fence(), progress).await?;
    let websocket = running.websocket.map(|address| address.to_string());
    let held = store::deploy::set_addresses(
        &mut *control.pool.acquire().await?,
        execution.instance,
        execution.generation,
        &running.http.to_string(),
        websocket.as_deref(),
    )
    .await?;
    if !held {
        return Err(Failure::fenced());
    }
    set_status(execution, InstanceStatus::Running, "").await
}

async fn set_status(execution: &Execution, status: InstanceStatus, message: &str) -> Result<(), Failure> {
    let control = &execution.control;
    let mut transaction = control.pool.begin().await?;
    let now = control.clock.now();
    if !store::deploy::set_status(&mut transaction, execution.instance, execution.generation, status, message, now).await? {
        return Err(Failure::fenced());
    }
    routes::raise(&mut transaction, execution.instance).await?;
    transaction.commit().await?;
    if let Err(error) = routes::apply(control).await {
        tracing::warn!(%error, "the edge has not taken the routes; the routes reconciler tries again");
    }
    Ok(())
}

pub(super) async fn settled(
    connection: &mut PgConnection,
    execution: &Execution,
    action: ControlAction,
    outcome: &Outcome,
    now: DateTime<Utc>,
) -> Result<()> {
    let (Outcome::Failed(failure) | Outcome::Stuck(failure, _)) = outcome else { return Ok(()) };
    let Some(live) = store::deploy::live(connection, execution.instance).await? else { return Ok(()) };
    if matches!(action, ControlAction::Stop | ControlAction::Sleep) || live.active_color.is_none() {
        return Ok(());
    }
    // One that is being removed meanwhile stays so.
    let Ok(status) = live.status.next(InstanceEvent::Broke) else { return Ok(()) };
    let message = format!("Odoo could not be started: {}", failure.message);
    store::deploy::set_status(connection, execution.instance, execution.generation, status, &message, now).await?;
    Ok(())
}
