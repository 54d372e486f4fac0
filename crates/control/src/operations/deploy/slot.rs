//! The nodes that bring the other colour up and make it the live one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ocore_host::{Fence, HostError, ReleaseId, RunningSlot, SlotSpec, SourceId};
use ocore_model::{
    deployment::{DataOrigin, StepName},
    ids::SnapshotId,
    instance::InstanceStatus,
    names::CommitSha,
};
use serde::{Deserialize, Serialize};

use super::{
    Live, Parameters, prove,
    quarantine::{self, Released},
    short, snapshot,
    step::{Step, UndoStep},
    template, watch,
};
use crate::{
    Control, Error, git,
    operations::saga::{Failure, FailureKind},
    routes,
    store::{self, deploy::NewLive},
};

/// With a version that none has, so that Odoo compares, and builds what is not there.
const BACKEND_BUNDLES: &[&str] = &["/web/assets/0000000/web.assets_web.min.js", "/web/assets/0000000/web.assets_web.min.css"];
/// How often the edge is asked for the new slot, at growing distances.
const VERIFY_TRIES: usize = 8;

/// Where the live slot answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Addresses {
    http: SocketAddr,
    websocket: Option<SocketAddr>,
}

/// The other colour starts on the new data and is proven by real requests. Where the new data are older ones, the old slot rests from here on:
/// what somebody wrote there from now on would be lost.
pub(super) async fn start(step: Arc<Step>) -> Result<(Addresses, String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    if let Some(live) = parameters.live_to_rest(step.beside).filter(|_| !parameters.rests_to_copy(step.beside)) {
        let mut transaction = control.pool.begin().await?;
        step.held(store::deploy::set_updating(&mut transaction, parameters.instance, step.fence().generation, true, None).await?)?;
        routes::raise(&mut transaction, parameters.instance).await?;
        transaction.commit().await?;
        step.hold_requests().await;
        control.host.pause_slot(parameters.instance, live.color, step.fence()).await?;
    }
    if let Some(live) = parameters.live.as_ref().filter(|_| step.same) {
        return goes_on(&step, live).await;
    }
    let slot = SlotSpec {
        color: parameters.color,
        data_set: quarantine::servable(&step)?,
        release: step.context.output("deploy::build")?,
        settings: parameters.settings.open(control, parameters.instance)?,
    };
    let start = async { Ok::<_, Failure>(control.host.start_slot(parameters.instance, slot, step.fence(), step.progress()).await?) };
    let keep = async {
        template::keep(&step).await;
        Ok(())
    };
    let (running, ()) = tokio::try_join!(start, keep)?;
    prove(&step).await?;
    Ok((Addresses { http: running.http, websocket: running.websocket }, format!("{} answers", parameters.color)))
}

/// Where what runs answers. Should it have ended meanwhile, the deployment fails and the reconcilers start it again.
async fn goes_on(step: &Step, live: &Live) -> Result<(Addresses, String), Failure> {
    let there = watch::observed(step.control(), &step.parameters).await;
    let running = there.and_then(|there| there.slots.into_iter().find(|slot| slot.color == live.color && slot.data_set == live.data_set));
    let running = running.ok_or_else(|| Failure::broken("the Odoo that is live has ended; deploy again when it runs"))?;
    Ok((Addresses { http: running.http, websocket: running.websocket }, format!("{} runs and goes on", live.color)))
}

/// The pages that every Odoo has, and the project's own, on the new slot while nobody is sent to it. Where nobody waits, also the scripts and styles of
/// the backend, which are built at the first request.
async fn prove(step: &Step) -> Result<(), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let mut paths = Vec::new();
    if step.has(StepName::Checkout) {
        let source: SourceId = step.context.output("deploy::checkout")?;
        paths.extend(host.find_source(&source).await?.map(|source| source.deploy.smoke_paths).unwrap_or_default());
    }
    if step.beside {
        paths.extend(BACKEND_BUNDLES.iter().map(|path| (*path).to_owned()));
    }
    if paths.is_empty() {
        return Ok(());
    }
    for page in host.probe_slot(parameters.instance, parameters.color, &paths, step.progress()).await? {
        step.say(&format!("{} answers {} in {:.2} s", page.path, page.status, page.seconds));
    }
    Ok(())
}

pub(super) async fn undo_start(step: Arc<UndoStep>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    if step.same {
        return Ok(());
    }
    match step.control().host.stop_slot(parameters.instance, parameters.color, step.fence()).await {
        Ok(()) | Err(HostError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The new slot, data and release become the live ones, and the edge points there.
pub(super) async fn switch(step: Arc<Step>) -> Result<((), String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let addresses: Addresses = step.context.output("deploy::start")?;
    let release: ReleaseId = step.context.output("deploy::build")?;
    let password = unsealable(password(&step)?.as_ref())?;
    let goes_on = parameters.live.as_ref().filter(|_| step.same);
    let release = goes_on.map_or(release, |live| live.release.clone());
    let live = NewLive {
        color: Some(goes_on.map_or(parameters.color, |live| live.color)),
        data_set: Some(parameters.data_set(step.beside)),
        release: Some(&release.0),
        deployment: Some(parameters.deployment),
        http: Some(addresses.http.to_string()),
        websocket: addresses.websocket.map(|address| address.to_string()),
        previous_data_set: None,
        admin_password: password.as_deref(),
        status: InstanceStatus::Running,
        status_message: "",
        updating: false,
        is_neutralized: parameters.becomes_neutralized(),
    };
    let direction = Direction::Forward { keeps: parameters.keeps(step.beside).is_some() };
    step.held(set_live(control, step.fence(), parameters, &live, Some(&parameters.commit), direction).await?)?;
    routes::apply(control).await?;
    Ok(((), format!("{} is live", short(&parameters.commit))))
}

pub(super) async fn undo_switch(step: Arc<UndoStep>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let password = unsealable(parameters.live.as_ref().and_then(|live| live.admin_password.as_ref()))?;
    let old = parameters.live.as_ref();
    let rested = parameters.live_to_rest(step.beside);
    let goes_on = match rested {
        Some(old) => go_on(&step, old).await,
        None => None,
    };
    let live = NewLive {
        color: old.map(|live| live.color),
        data_set: old.map(|live| live.data_set),
        release: old.map(|live| live.release.0.as_str()),
        deployment: old.and_then(|live| live.deployment),
        http: goes_on.as_ref().map(|slot| slot.http.to_string()).or_else(|| old.and_then(|live| live.http.clone())),
        websocket: match &goes_on {
            Some(slot) => slot.websocket.map(|address| address.to_string()),
            None => old.and_then(|live| live.websocket.clone()),
        },
        previous_data_set: old.and_then(|live| live.previous_data_set),
        admin_password: password.as_deref(),
        status: parameters.was,
        status_message: &parameters.was_message,
        // Requests wait for an old slot that `undo_copy` has to start.
        updating: rested.is_some() && goes_on.is_none(),
        is_neutralized: old.is_some_and(|live| live.is_neutralized),
    };
    let commit = old.and_then(|live| live.commit.as_ref());
    let direction = Direction::Back { kept: parameters.keeps(step.beside) };
    step.held(set_live(control, step.fence(), parameters, &live, commit, direction).await?)?;
    routes::apply(control).await?;
    if step.same {
        return Ok(());
    }
    // What the new slot has begun to answer it may end.
    let new: Addresses = step.context.output("deploy::start")?;
    prove::drain(control, parameters.instance, new.http).await;
    Ok(())
}

/// The old slot, answering, where it is still there. Then nobody needs to wait for it.
async fn go_on(step: &UndoStep, old: &Live) -> Option<RunningSlot> {
    let (parameters, host) = (&step.parameters, &step.control().host);
    let there = watch::observed(step.control(), parameters).await?;
    if !parameters.ran() || !there.slots.iter().any(|slot| slot.color == old.color && slot.data_set == old.data_set) {
        return None;
    }
    let started = async {
        let settings = parameters.settings.open(step.control(), parameters.instance)?;
        Ok::<_, Failure>(host.start_slot(parameters.instance, old.slot(settings), step.fence(), step.progress()).await?)
    };
    match started.await {
        Ok(running) => Some(running),
        Err(error) => {
            tracing::warn!(deployment = %parameters.deployment, error = %error.message, "what was live does not go on; it is started again");
            None
        }
    }
}

/// It answers through the edge as a browser would reach it, and does so no worse than what was live before.
pub(super) async fn verify(step: Arc<Step>) -> Result<((), String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let host_name = format!("{}.{}", parameters.slug, control.settings.base_domain);
    let ask = || async {
        let generation = store::routes::generation(&mut *control.pool.acquire().await?, control.server_id).await?;
        let status = control.host.edge_status().await?;
        if i64::try_from(status.generation).unwrap_or(i64::MAX) < generation {
            routes::apply(control).await?;
        }
        let edge = status.listen.first().copied().map(prove::reachable).ok_or_else(|| Failure::broken("the edge listens nowhere"))?;
        prove::answer(edge, &host_name).await
    };
    let answered = ask
        .retry(ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_factor(2.0).with_max_times(VERIFY_TRIES))
        .when(|failure| failure.kind == FailureKind::Broken)
        .notify(|failure, _| step.say(&failure.message))
        .await?;
    step.say(&format!("{host_name} answers {answered} through the edge"));
    if !step.same {
        watch::watch(&step).await?;
    }
    Ok(((), format!("{host_name} answers")))
}

/// The old slot, drained; its data, kept as a snapshot or removed, unless they stay the live ones; and what was taken of a source. Nothing here takes the deployment back: what
/// cannot be done now, the reconcilers do later.
pub(super) async fn let_go(step: Arc<Step>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    let (control, fence) = (step.control(), step.fence());
    if let Some(old) = parameters.live.as_ref().filter(|_| !step.same) {
        if let Some(http) = old.http.as_deref().and_then(|address| address.parse().ok()) {
            prove::drain_with_websockets(control, parameters.instance, http).await;
        }
        let letting_go = async {
            control.host.stop_slot(parameters.instance, old.color, fence).await?;
            if !step.beside {
                snapshot::retire(&step, old).await?;
            }
            // Of versions that kept the data before as they were.
            if let Some(older) = old.previous_data_set {
                control.host.remove_data_set(parameters.instance, older, fence).await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = letting_go.await {
            if let Some(snapshot) = parameters.keeps {
                // The log has it too, should the store not take it.
                let _ = snapshot::note(control, snapshot, &error.in_words()).await;
            }
            tracing::warn!(%error, deployment = %parameters.deployment, "what was live before could not be let go completely; the reconcilers do it");
        }
    }
    if let Err(error) = snapshot::remove_taken(control, parameters).await {
        tracing::warn!(%error, deployment = %parameters.deployment, "the snapshot that a clone was made from could not be removed; the reconcilers do it");
    }
    Ok(())
}

/// The password of the new data's `admin`, as far as oCore knows it: sealed, in base64.
fn password(step: &Step) -> Result<Option<String>, Failure> {
    let parameters = &step.parameters;
    let before = || parameters.live.as_ref().and_then(|live| live.admin_password.clone());
    if step.has(StepName::Neutralize) {
        return Ok(Some(step.context.output::<Released>("deploy::neutralize")?.admin_password));
    }
    match parameters.origin {
        DataOrigin::Fresh | DataOrigin::Live => Ok(step.context.output::<Option<String>>("deploy::update")?.or_else(before)),
        DataOrigin::Snapshot { of, .. } if of == parameters.instance => {
            Ok(parameters.restored.as_ref().and_then(|restored| restored.admin_password.clone()))
        }
        // Production has taken over data whose password only their owner knows.
        DataOrigin::Snapshot { .. } | DataOrigin::Import { .. } | DataOrigin::Environment { .. } => Ok(None),
    }
}

/// Whether a deployment goes live or is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward {
        /// What was live becomes a snapshot.
        keeps: bool,
    },
    Back {
        /// What was announced to become a snapshot stays live.
        kept: Option<SnapshotId>,
    },
}

/// Writes what is live, the commit that the environment then has and the route, in one transaction. False when a newer claim holds the
/// instance.
async fn set_live(
    control: &Control,
    fence: Fence,
    parameters: &Parameters,
    live: &NewLive<'_>,
    commit: Option<&CommitSha>,
    direction: Direction,
) -> Result<bool, Failure> {
    loop {
        let head =
            store::deploy::branch_place(&mut *control.pool.acquire().await?, parameters.environment).await?.and_then(|place| place.head);
        // Git is asked outside the transaction; a push in between is seen inside it.
        let pending = match &head {
            Some(head) if Some(head) != commit => git::commits_between(control, parameters.project, commit, head, 1).await?.1,
            _ => 0,
        };
        let now = control.clock.now();
        let mut transaction = control.pool.begin().await?;
        // The instance is locked first, as everywhere.
        if !store::deploy::holds(&mut transaction, parameters.instance, fence.generation).await? {
            return Ok(false);
        }
        match direction {
            Direction::Forward { keeps: true } => snapshot::announce(&mut transaction, control, parameters).await?,
            Direction::Back { kept } => {
                if let Some(kept) = kept {
                    store::snapshots::withdraw(&mut transaction, kept).await?;
                }
                snapshot::announce_rescue(&mut transaction, control, parameters).await?;
            }
            Direction::Forward { keeps: false } => {}
        }
        if !store::deploy::set_live(&mut transaction, parameters.instance, fence.generation, live.clone(), now).await? {
            return Ok(false);
        }
        let place = store::deploy::branch_place(&mut transaction, parameters.environment).await?;
        if place.is_some_and(|place| place.head != head) {
            continue;
        }
        // Also when the branch went back to an older commit, which has none that is not live.
        let pending_commit = head.as_ref().filter(|head| Some(*head) != commit);
        let count = i32::try_from(pending).unwrap_or(i32::MAX);
        store::deploy::set_branch_place(&mut transaction, parameters.environment, commit, count, pending_commit, now).await?;
        store::deploy::set_neutralized(&mut transaction, parameters.environment, live.is_neutralized).await?;
        routes::raise(&mut transaction, parameters.instance).await?;
        transaction.commit().await?;
        return Ok(true);
    }
}

pub(super) fn unsealable(sealed: Option<&String>) -> Result<Option<Vec<u8>>, Failure> {
    let decode = |text: &String| BASE64.decode(text).map_err(|error| Error::internal("reading a sealed password", error).into());
    sealed.map(decode).transpose()
}
