//! Deploy: brings a commit live, or leaves everything as it was.
//!
//! The live data set is never touched: the deployment works in a new one, a copy of the live one or a fresh one, and starts the other colour
//! on it. Up to the switch everything that it made can be thrown away; after a failure the old slot is started again on its old data. So each
//! node may be cut off at any point: the next run finds the live data as they were.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use ocore_host::{
    BuildRelease, DataSource, Fence, HostError, LogSink, OdooSettings, Progress, ReleaseId, RunModules, ServableDataSet, SlotSpec, SourceId,
};
use ocore_model::{
    deployment::{DataMode, DeploymentStatus, ModulePlan, StepName, StepStatus},
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, ProjectId},
    instance::{Color, InstanceEvent, InstanceStatus},
    names::{CommitSha, ModuleName, OdooVersion},
    project::ModuleSelection,
};
use rand::{RngExt, distr::Alphanumeric};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use steno::ActionData;

use super::{
    engine::Outcome,
    plan::{self, Situation},
    saga::{Execution, Failure, FailureKind, Graph, NodeContext, failpoint},
};
use crate::{
    Control, Error, Result, git, routes,
    secrets::{self, Place, Secret},
    steps::StepLog,
    store::{
        self,
        deploy::{End, NewLive},
    },
};

const PASSWORD_LENGTH: usize = 24;
/// How long the old slot may finish what it had begun to answer.
const DRAIN: Duration = Duration::from_secs(15);
/// How long the edge may take to answer from the new slot.
const VERIFY_TRIES: usize = 8;

/// Fixed at the first claim, for the whole run: while the operation holds the instance, nobody else changes what is live.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Parameters {
    deployment: DeploymentId,
    project: ProjectId,
    environment: EnvironmentId,
    instance: InstanceId,
    branch: String,
    commit: CommitSha,
    odoo_version: OdooVersion,
    selection: ModuleSelection,
    with_demo: bool,
    data: DataMode,
    settings: OdooSettings,
    /// The slot and the data set that it makes.
    color: Color,
    data_set: DataSetId,
    /// What was live before; `None` for the first deployment.
    live: Option<Live>,
    was: InstanceStatus,
    was_message: String,
}

/// What was live, so that it can be put back exactly.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Live {
    color: Color,
    data_set: DataSetId,
    release: ReleaseId,
    deployment: Option<DeploymentId>,
    http: Option<String>,
    websocket: Option<String>,
    previous_data_set: Option<DataSetId>,
    /// Sealed, in base64.
    admin_password: Option<String>,
    commit: Option<CommitSha>,
}

impl Live {
    fn slot(&self, settings: &OdooSettings) -> SlotSpec {
        SlotSpec {
            color: self.color,
            data_set: ServableDataSet::proven(self.data_set),
            release: self.release.clone(),
            settings: settings.clone(),
        }
    }
}

impl Parameters {
    /// The live slot has to rest while its data are copied, and runs again if this fails.
    fn live_to_rest(&self) -> Option<&Live> {
        self.live.as_ref().filter(|_| self.data == DataMode::Keep)
    }

    /// Whether the live Odoo ran when this began. A stopped one stays stopped if this fails.
    fn ran(&self) -> bool {
        !matches!(self.was, InstanceStatus::Stopped | InstanceStatus::Creating)
    }
}

pub(super) async fn parameters(control: &Control, deployment: DeploymentId) -> Result<Parameters, Failure> {
    let mut transaction = control.pool.begin().await?;
    let row = store::deploy::find(&mut transaction, deployment).await?.ok_or(Error::NotFound { what: "deployment" })?;
    match row.status {
        DeploymentStatus::Superseded => return Err(Failure::superseded()),
        DeploymentStatus::Cancelled => return Err(Failure::cancelled()),
        _ => {}
    }
    let live = store::deploy::live(&mut transaction, row.instance_id).await?.ok_or(Error::NotFound { what: "instance" })?;
    if matches!(live.status, InstanceStatus::Removing | InstanceStatus::Deleted) {
        return Err(Failure::rejected("the instance is being removed"));
    }
    let place = store::deploy::branch_place(&mut transaction, row.environment_id).await?;
    let unreadable = |what: &'static str| move |error| Failure::from(Error::internal(format!("reading {what}"), error));
    let was_live = match (live.active_color, live.active_data_set_id, live.active_release) {
        (Some(color), Some(data_set), Some(release)) => Some(Live {
            color,
            data_set,
            release: ReleaseId(release),
            deployment: live.active_deployment_id,
            http: live.active_http,
            websocket: live.active_websocket,
            previous_data_set: live.previous_data_set_id,
            admin_password: live.admin_password.map(|sealed| BASE64.encode(sealed)),
            commit: place.and_then(|place| place.live_commit_sha),
        }),
        _ => None,
    };
    let parameters = Parameters {
        deployment,
        project: row.project_id,
        environment: row.environment_id,
        instance: row.instance_id,
        branch: row.branch,
        commit: row.commit_sha,
        odoo_version: row.odoo_version,
        selection: serde_json::from_value(row.module_selection).map_err(unreadable("a project's modules"))?,
        with_demo: row.with_demo,
        // Without data there is nothing to keep.
        data: if was_live.is_some() && row.data_mode == "keep" { DataMode::Keep } else { DataMode::Fresh },
        settings: serde_json::from_value(row.settings).map_err(unreadable("an instance's settings"))?,
        color: was_live.as_ref().map_or(Color::Blue, |live| live.color.other()),
        data_set: DataSetId::new(),
        live: was_live,
        was: live.status,
        was_message: live.status_message,
    };
    let snapshot = parameters.live.as_ref().map(|live| live.data_set);
    store::deploy::set_place(&mut transaction, deployment, parameters.color, parameters.data_set, snapshot, parameters.data).await?;
    transaction.commit().await?;
    Ok(parameters)
}

/// The nodes in their order, each with what takes it back.
pub(super) fn graph() -> Graph {
    Graph::default()
        .then("deploy::checkout", step(StepName::Checkout, checkout))
        .then("deploy::plan", step(StepName::Plan, plan))
        .then("deploy::build", step(StepName::Build, build))
        .step("deploy::copy", step(StepName::Copy, copy), "deploy::undo_copy", undo(&[StepName::Copy, StepName::Update], undo_copy))
        .then("deploy::update", step(StepName::Update, update))
        .step("deploy::start", step(StepName::Start, start), "deploy::undo_start", undo(&[StepName::Start], undo_start))
        .step("deploy::switch", step(StepName::Switch, switch), "deploy::undo_switch", undo(&[StepName::Switch], undo_switch))
        .then("deploy::verify", step(StepName::Verify, verify))
}

/// The commit and its submodules as a sealed source tree.
async fn checkout(step: Arc<Step>) -> Result<(SourceId, String), Failure> {
    let parameters = &step.parameters;
    step.say(&format!("commit {} of {}", parameters.commit, parameters.branch));
    let source = git::export(step.control(), parameters.project, &parameters.commit, step.progress()).await?;
    let modules = match source.modules.len() {
        1 => "1 module".to_owned(),
        count => format!("{count} modules"),
    };
    Ok((source.id, format!("{} with {modules}", short(&parameters.commit))))
}

/// Which modules are installed and updated, on which data.
async fn plan(step: Arc<Step>) -> Result<(ModulePlan, String), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let source: SourceId = step.context.output("deploy::checkout")?;
    let source =
        host.find_source(&source).await?.ok_or_else(|| Failure::broken("the source tree has vanished from the server; deploy again"))?;
    let distribution = host.distribution(&parameters.odoo_version).await?;
    let (release, installed) = match parameters.live_to_rest() {
        None => (None, Vec::new()),
        Some(live) => {
            let release = host.find_release(&live.release).await?;
            let installed = host.installed_modules(parameters.instance, live.data_set, step.fence()).await?;
            (release, installed)
        }
    };
    let plan = plan::decide(Situation {
        data: parameters.data,
        selection: &parameters.selection,
        source: &source.modules,
        distribution: &distribution,
        live: release.as_ref(),
        installed: &installed,
    })
    .map_err(Failure::rejected)?;
    for reason in &plan.reasons {
        step.say(reason);
    }
    let json = serde_json::to_value(&plan).map_err(|error| Error::internal("writing a plan", error))?;
    store::deploy::set_plan(&mut *step.control().pool.acquire().await?, parameters.deployment, &json).await?;
    let summary = match (parameters.data, plan.install.len(), plan.update.len()) {
        (DataMode::Fresh, install, _) => format!("a fresh database with {install} to install"),
        (DataMode::Keep, 0, 0) => "nothing to install or update".to_owned(),
        (DataMode::Keep, install, update) => format!("{update} to update, {install} to install"),
    };
    Ok((plan, summary))
}

/// The immutable release. Nothing of the instance has been touched yet.
async fn build(step: Arc<Step>) -> Result<(ReleaseId, String), Failure> {
    let parameters = &step.parameters;
    let request = BuildRelease {
        source: step.context.output("deploy::checkout")?,
        odoo_version: parameters.odoo_version.clone(),
        isolation_key: parameters.project.to_string(),
    };
    let release = step.control().host.build_release(request, step.progress()).await?;
    store::deploy::set_release(&mut *step.control().pool.acquire().await?, parameters.deployment, &release.id.0).await?;
    let summary = format!("release {}", release.id.0.get(..12).unwrap_or(&release.id.0));
    Ok((release.id, summary))
}

/// A data set of its own: a copy of the live one, which rests from here on, or a fresh one beside it.
async fn copy(step: Arc<Step>) -> Result<((), String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    // From this transaction on a later push waits instead of taking this one's place. The instance is locked first, as everywhere.
    let mut transaction = control.pool.begin().await?;
    let rests = parameters.live_to_rest().is_some();
    step.held(store::deploy::set_updating(&mut transaction, parameters.instance, step.fence().generation, rests).await?)?;
    if !store::deploy::begin_changing(&mut transaction, parameters.deployment).await? {
        let standing = store::deploy::standing(&mut transaction, parameters.deployment).await?;
        let superseded = standing.is_some_and(|standing| standing.status == DeploymentStatus::Superseded);
        return Err(if superseded { Failure::superseded() } else { Failure::cancelled() });
    }
    if rests {
        routes::raise(&mut transaction, parameters.instance).await?;
    }
    transaction.commit().await?;
    let source = match parameters.live_to_rest() {
        Some(live) => {
            // A page instead of errors while the old Odoo rests. Without it the deployment is as good.
            step.apply_routes_or_say().await;
            DataSource::CopyOf(live.data_set)
        }
        None => DataSource::Fresh,
    };
    control.host.create_instance(parameters.instance, step.fence()).await?;
    control.host.create_data_set(parameters.instance, parameters.data_set, source, step.fence(), step.progress()).await?;
    let summary = match source {
        DataSource::CopyOf(_) => "the live data, copied aside",
        DataSource::Fresh => "an empty database",
        DataSource::Snapshot { .. } => "a snapshot",
        DataSource::Import { .. } => "an imported backup",
    };
    Ok(((), summary.to_owned()))
}

async fn undo_copy(step: Arc<UndoStep>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    let (control, fence) = (step.control(), step.fence());
    match control.host.remove_data_set(parameters.instance, parameters.data_set, fence).await {
        // Not there: the first deployment failed before the instance was.
        Ok(()) | Err(HostError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(live) = parameters.live_to_rest() else { return Ok(()) };
    if parameters.ran() {
        let running = control.host.start_slot(parameters.instance, live.slot(&parameters.settings), fence, step.progress()).await?;
        let websocket = running.websocket.map(|address| address.to_string());
        let mut connection = control.pool.acquire().await?;
        step.held(
            store::deploy::set_addresses(
                &mut connection,
                parameters.instance,
                fence.generation,
                &running.http.to_string(),
                websocket.as_deref(),
            )
            .await?,
        )?;
    }
    let mut transaction = control.pool.begin().await?;
    step.held(store::deploy::set_updating(&mut transaction, parameters.instance, fence.generation, false).await?)?;
    routes::raise(&mut transaction, parameters.instance).await?;
    transaction.commit().await?;
    routes::apply(control).await?;
    Ok(())
}

/// Odoo installs and updates modules in the new data set. Gives the sealed password of a fresh database's `admin`.
async fn update(step: Arc<Step>) -> Result<(Option<String>, String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let plan: ModulePlan = step.context.output("deploy::plan")?;
    if plan.install.is_empty() && plan.update.is_empty() {
        step.say("nothing that Odoo loads into its database has changed");
        return Ok((None, "nothing to do".to_owned()));
    }
    if step.again {
        // Odoo commits module by module: what an interrupted run left is neither the old state nor the new one.
        step.say("this step was interrupted; it begins again with a new copy");
        control.host.remove_data_set(parameters.instance, parameters.data_set, step.fence()).await?;
        let source = parameters.live_to_rest().map_or(DataSource::Fresh, |live| DataSource::CopyOf(live.data_set));
        control.host.create_data_set(parameters.instance, parameters.data_set, source, step.fence(), step.progress()).await?;
    }
    let password = match plan.data {
        DataMode::Fresh => Some(new_password()),
        DataMode::Keep => None,
    };
    let request = RunModules {
        data_set: parameters.data_set,
        release: step.context.output("deploy::build")?,
        install: names(&plan.install)?,
        update: names(&plan.update)?,
        with_demo: parameters.with_demo && plan.data == DataMode::Fresh,
        admin_password: password.clone(),
        settings: parameters.settings.clone(),
    };
    control.host.run_modules(parameters.instance, request, step.fence(), step.progress()).await?;
    let sealed = match password {
        Some(password) => {
            Some(BASE64.encode(secrets::seal(&control.settings, password_place(parameters.instance), &Secret::new(password))?))
        }
        None => None,
    };
    let mut parts = Vec::new();
    if !plan.install.is_empty() {
        parts.push(format!("{} installed", plan.install.len()));
    }
    if !plan.update.is_empty() {
        parts.push(format!("{} updated", plan.update.len()));
    }
    Ok((sealed, parts.join(", ")))
}

/// Where the live slot answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Addresses {
    http: SocketAddr,
    websocket: Option<SocketAddr>,
}

/// The other colour starts on the new data and is proven by real requests.
async fn start(step: Arc<Step>) -> Result<(Addresses, String), Failure> {
    let parameters = &step.parameters;
    let slot = SlotSpec {
        color: parameters.color,
        data_set: ServableDataSet::proven(parameters.data_set),
        release: step.context.output("deploy::build")?,
        settings: parameters.settings.clone(),
    };
    let running = step.control().host.start_slot(parameters.instance, slot, step.fence(), step.progress()).await?;
    Ok((Addresses { http: running.http, websocket: running.websocket }, format!("{} answers", parameters.color)))
}

async fn undo_start(step: Arc<UndoStep>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    match step.control().host.stop_slot(parameters.instance, parameters.color, step.fence()).await {
        Ok(()) | Err(HostError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The new slot, data and release become the live ones, and the edge points there.
async fn switch(step: Arc<Step>) -> Result<((), String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let addresses: Addresses = step.context.output("deploy::start")?;
    let release: ReleaseId = step.context.output("deploy::build")?;
    let new_password: Option<String> = step.context.output("deploy::update")?;
    let password = unsealable(new_password.as_ref().or(parameters.live.as_ref().and_then(|live| live.admin_password.as_ref())))?;
    let live = NewLive {
        color: Some(parameters.color),
        data_set: Some(parameters.data_set),
        release: Some(&release.0),
        deployment: Some(parameters.deployment),
        http: Some(addresses.http.to_string()),
        websocket: addresses.websocket.map(|address| address.to_string()),
        previous_data_set: parameters.live.as_ref().map(|live| live.data_set),
        admin_password: password.as_deref(),
        status: InstanceStatus::Running,
        status_message: "",
        updating: false,
    };
    step.held(set_live(control, step.fence(), parameters, &live, Some(&parameters.commit)).await?)?;
    routes::apply(control).await?;
    Ok(((), format!("{} is live", short(&parameters.commit))))
}

async fn undo_switch(step: Arc<UndoStep>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let password = unsealable(parameters.live.as_ref().and_then(|live| live.admin_password.as_ref()))?;
    let old = parameters.live.as_ref();
    let live = NewLive {
        color: old.map(|live| live.color),
        data_set: old.map(|live| live.data_set),
        release: old.map(|live| live.release.0.as_str()),
        deployment: old.and_then(|live| live.deployment),
        http: old.and_then(|live| live.http.clone()),
        websocket: old.and_then(|live| live.websocket.clone()),
        previous_data_set: old.and_then(|live| live.previous_data_set),
        admin_password: password.as_deref(),
        status: parameters.was,
        status_message: &parameters.was_message,
        // Where the old slot rests, `undo_copy` starts it.
        updating: parameters.live_to_rest().is_some(),
    };
    step.held(set_live(control, step.fence(), parameters, &live, old.and_then(|live| live.commit.as_ref())).await?)?;
    routes::apply(control).await?;
    Ok(())
}

/// It answers through the edge as a browser would reach it; then the old slot is let go.
async fn verify(step: Arc<Step>) -> Result<((), String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let slug = store::deploy::slug(&mut *control.pool.acquire().await?, parameters.instance).await?;
    let host_name = format!("{slug}.{}", control.settings.base_domain);
    let ask = || async {
        let generation = store::routes::generation(&mut *control.pool.acquire().await?, control.server_id).await?;
        let status = control.host.edge_status().await?;
        if i64::try_from(status.generation).unwrap_or(i64::MAX) < generation {
            routes::apply(control).await?;
        }
        let edge = status.listen.first().copied().map(reachable).ok_or_else(|| Failure::broken("the edge listens nowhere"))?;
        answer(edge, &host_name).await
    };
    let answered = ask
        .retry(ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_factor(2.0).with_max_times(VERIFY_TRIES))
        .when(|failure| failure.kind == FailureKind::Broken)
        .notify(|failure, _| step.say(&failure.message))
        .await?;
    step.say(&format!("{host_name} answers {answered} through the edge"));
    if let Some(live) = &parameters.live {
        let_go(&step, live).await;
    }
    Ok(((), format!("{host_name} answers")))
}

/// The old slot, drained; and the data set that is now two deployments old. What cannot be removed now, the reconciler removes later.
async fn let_go(step: &Step, old: &Live) {
    let parameters = &step.parameters;
    let (control, fence) = (step.control(), step.fence());
    if let Some(http) = old.http.as_deref().and_then(|address| address.parse().ok()) {
        drain(control, parameters.instance, http).await;
    }
    let letting_go = async {
        control.host.stop_slot(parameters.instance, old.color, fence).await?;
        control.host.stop_cluster(parameters.instance, old.data_set, fence).await?;
        if let Some(older) = old.previous_data_set {
            control.host.remove_data_set(parameters.instance, older, fence).await?;
        }
        Ok::<(), HostError>(())
    };
    if let Err(error) = letting_go.await {
        step.say(&format!("what was live before could not be let go completely: {error}"));
    }
}

/// Waits until the edge has passed on what the old slot had begun to answer, for a bounded time.
async fn drain(control: &Control, instance: InstanceId, http: SocketAddr) {
    let busy = || async {
        let status = control.host.edge_status().await.map_err(|_| false)?;
        let in_flight = status
            .instances
            .iter()
            .filter(|traffic| traffic.instance_id == instance)
            .flat_map(|traffic| &traffic.upstreams)
            .filter(|upstream| upstream.http == http)
            .map(|upstream| upstream.requests_in_flight)
            .sum::<u64>();
        if in_flight == 0 { Ok(()) } else { Err(true) }
    };
    let patience = ExponentialBuilder::default().with_min_delay(Duration::from_millis(20)).with_factor(1.5).without_max_times();
    let drained = busy.retry(patience.with_max_delay(Duration::from_millis(500))).when(|busy| *busy);
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::info!(%instance, "the old slot still answers requests after its time; it is stopped");
    }
}

/// The status of a page that every Odoo has, asked for as a browser would.
async fn answer(edge: SocketAddr, host_name: &str) -> Result<u16, Failure> {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(30))
        .no_proxy()
        .build()
        .map_err(|error| Error::internal("making an HTTP client", error))?;
    let response = client
        .get(format!("http://{edge}/web/login"))
        .header("Host", host_name)
        .send()
        .await
        .map_err(|error| Failure::broken(format!("the edge does not answer at {edge}: {error}")))?;
    match response.status().as_u16() {
        status @ (200 | 303) => Ok(status),
        status => Err(Failure::broken(format!("{host_name} answers {status} through the edge instead of Odoo's login page"))),
    }
}

/// An address that listens everywhere is reached here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// Writes what is live, the commit that the environment then has and the route, in one transaction. False when a newer claim holds the
/// instance.
async fn set_live(
    control: &Control,
    fence: Fence,
    parameters: &Parameters,
    live: &NewLive<'_>,
    commit: Option<&CommitSha>,
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
        routes::raise(&mut transaction, parameters.instance).await?;
        transaction.commit().await?;
        return Ok(true);
    }
}

fn password_place(instance: InstanceId) -> Place {
    Place { table: "instances", column: "admin_password", row: instance.as_uuid() }
}

fn new_password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect()
}

fn unsealable(sealed: Option<&String>) -> Result<Option<Vec<u8>>, Failure> {
    let decode = |text: &String| BASE64.decode(text).map_err(|error| Error::internal("reading a sealed password", error).into());
    sealed.map(decode).transpose()
}

fn names(names: &[String]) -> Result<Vec<ModuleName>, Failure> {
    names.iter().map(|name| name.parse().map_err(|error: ocore_model::names::InvalidName| Failure::rejected(error.to_string()))).collect()
}

fn short(commit: &CommitSha) -> &str {
    commit.as_str().get(..10).unwrap_or(commit.as_str())
}

/// One run of one step: what its function needs, and the step's row and log around it.
struct Step {
    context: NodeContext,
    parameters: Parameters,
    log: Arc<StepLog>,
    /// It has begun before, in a process that died or lost the operation.
    again: bool,
}

impl Step {
    fn control(&self) -> &Control {
        self.context.control()
    }

    fn fence(&self) -> Fence {
        self.context.execution().fence()
    }

    fn progress(&self) -> Progress {
        Progress { log: self.log.clone(), cancel: self.context.execution().cancel.clone() }
    }

    fn say(&self, text: &str) {
        self.log.line(text);
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence")]
    fn held(&self, held: bool) -> Result<(), Failure> {
        if held { Ok(()) } else { Err(Failure::fenced()) }
    }

    async fn apply_routes_or_say(&self) {
        if let Err(error) = routes::apply(self.control()).await {
            self.say(&format!("the edge shows no page for the update: {error}"));
        }
    }
}

/// Makes a step's function a node's action: its row says that it runs, how it ended and when; its log is complete before it ends.
fn step<Do, Doing, T>(
    name: StepName,
    action: Do,
) -> impl Fn(NodeContext) -> BoxFuture<'static, Result<T, Failure>> + Clone + Send + Sync + 'static
where
    Do: Fn(Arc<Step>) -> Doing + Clone + Send + Sync + 'static,
    Doing: Future<Output = Result<(T, String), Failure>> + Send + 'static,
    T: ActionData,
{
    move |context| {
        let action = action.clone();
        Box::pin(async move {
            let parameters: Parameters = context.parameters()?;
            let deployment = parameters.deployment;
            let control = context.control().clone();
            let cancel = context.execution().cancel.clone();
            // What is live is not cancelled any more.
            if cancel.is_cancelled() && name != StepName::Verify {
                return Err(Failure::cancelled());
            }
            let begun = persistently(|| async {
                store::steps::begin(&mut *control.pool.acquire().await?, deployment, name, control.clock.now()).await
            })
            .await?;
            let log = Arc::new(StepLog::start(control.pool.clone(), deployment, begun.id));
            let halt = context.execution().halt.clone();
            let result = action(Arc::new(Step { context, parameters, log: log.clone(), again: begun.again })).await;
            failpoint(|| format!("deploy::{name}")).await;
            log.flush().await;
            let (status, summary, result) = match result {
                Err(failure) if failure.kind == FailureKind::Fenced => return Err(failure),
                _ if halt.is_cancelled() => return Err(Failure::fenced()),
                Ok((output, summary)) => (StepStatus::Succeeded, summary, Ok(output)),
                Err(failure) => (StepStatus::Failed, failure.message.clone(), Err(failure)),
            };
            persistently(|| async {
                store::steps::end(&mut *control.pool.acquire().await?, begun.id, status, &summary, control.clock.now()).await
            })
            .await?;
            result
        })
    }
}

/// One run of an undo. It is not cancelled; it stops only with the process.
struct UndoStep {
    context: Arc<NodeContext>,
    parameters: Parameters,
}

impl UndoStep {
    fn control(&self) -> &Control {
        self.context.control()
    }

    fn fence(&self) -> Fence {
        self.context.execution().fence()
    }

    fn progress(&self) -> Progress {
        Progress { log: Arc::new(crate::reconcilers::Quiet), cancel: self.context.execution().halt.clone() }
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence")]
    fn held(&self, held: bool) -> Result<(), Failure> {
        if held { Ok(()) } else { Err(Failure::fenced()) }
    }
}

/// Makes a function a node's undo, and marks the steps that it takes back.
fn undo<Undo, Undoing>(
    steps: &'static [StepName],
    action: Undo,
) -> impl Fn(Arc<NodeContext>) -> BoxFuture<'static, Result<(), Failure>> + Clone + Send + Sync + 'static
where
    Undo: Fn(Arc<UndoStep>) -> Undoing + Clone + Send + Sync + 'static,
    Undoing: Future<Output = Result<(), Failure>> + Send + 'static,
{
    move |context| {
        let action = action.clone();
        Box::pin(async move {
            let parameters: Parameters = context.parameters()?;
            let deployment = parameters.deployment;
            let control = context.control().clone();
            action(Arc::new(UndoStep { context, parameters })).await?;
            for name in steps {
                store::steps::mark_undone(&mut *control.pool.acquire().await?, deployment, *name).await?;
            }
            Ok(())
        })
    }
}

/// Waits out a store that is away for a while.
async fn persistently<Call, Calling, T>(call: Call) -> Result<T>
where
    Call: FnMut() -> Calling,
    Calling: Future<Output = Result<T>>,
{
    call.retry(
        ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_max_delay(Duration::from_secs(5)).with_max_times(30),
    )
    .when(|error| matches!(error, Error::Unavailable { .. }))
    .await
}

/// Somebody wants it to end: cancelled or superseded.
pub(super) async fn must_stop(connection: &mut PgConnection, deployment: DeploymentId) -> Result<bool> {
    let standing = store::deploy::standing(connection, deployment).await?;
    Ok(standing.is_some_and(|standing| standing.cancel_requested || standing.status == DeploymentStatus::Superseded))
}

/// What the end of the operation means for the deployment, its steps and the instance.
pub(super) async fn settled(
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
        Outcome::Failed(_) | Outcome::Succeeded => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_listens_everywhere_is_reached_here() {
        assert_eq!(reachable("0.0.0.0:8080".parse().unwrap()).to_string(), "127.0.0.1:8080");
        assert_eq!(reachable("[::]:8080".parse().unwrap()).to_string(), "[::1]:8080");
        assert_eq!(reachable("10.0.0.1:80".parse().unwrap()).to_string(), "10.0.0.1:80");
    }

    #[test]
    fn the_graph_is_the_one_that_stored_operations_have() {
        // A change here needs a new SCHEMA_VERSION.
        let (_, dag) = graph().build("deploy", &serde_json::json!({})).unwrap();
        let names: Vec<String> = dag.get_nodes().map(|node| node.name().as_ref().to_owned()).collect();
        assert_eq!(
            names,
            [
                "deploy::checkout",
                "deploy::plan",
                "deploy::build",
                "deploy::undo_copy",
                "deploy::copy",
                "deploy::update",
                "deploy::undo_start",
                "deploy::start",
                "deploy::undo_switch",
                "deploy::switch",
                "deploy::verify",
            ]
        );
    }
}
