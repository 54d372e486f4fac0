//! A host whose machine is a table in memory, for tests of the engine: it keeps the promises of [`Host`] (fences, calls that run twice, data
//! sets that are whole or absent) and breaks where a test wants it to. What real machines do is tested in `ocore-host` and end to end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod host;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use ocore_host::{
    Egress, Fence, HostError, InstalledModule, NewDataSet, OdooSettings, Quarantined, RawDataSet, Release, ReleaseId, Result,
    ScheduledActions, ServableDataSet, Snapshot, Source, SourceId, Standing, TakeSnapshot, Template, TemplateContent,
};
use ocore_model::{
    edge::{InstanceTraffic, RouteTraffic},
    ids::{DataSetId, InstanceId, SnapshotId, TemplateId},
    instance::Color,
    names::ModuleName,
    rehearsal::Rehearsal,
    route::{RouteSnapshot, RouteState},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
};

const DATABASE_BYTES: u64 = 40 << 20;
const FILE_STORE_BYTES: u64 = 2 << 20;

/// Of every mailbox; nothing listens there.
const MAIL_PORT: u16 = 2525;

/// What a call does when a test has said so.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// Fails every time with `Rejected` and this sentence.
    Reject(&'static str),
    /// Fails every time with `Machine` and this sentence.
    Break(&'static str),
    /// Waits until it is let on or cancelled. Its effect comes after the wait.
    Hold,
    /// As `Hold`, with its effect before the wait.
    HoldAfter,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct InstanceWorld {
    pub generation: i64,
    /// Data sets and what was done in them: `installed a`, `updated b`.
    pub data_sets: BTreeMap<DataSetId, Vec<String>>,
    pub clusters: BTreeSet<DataSetId>,
    pub slots: BTreeMap<Color, (DataSetId, ReleaseId)>,
    /// Those of them that stand still.
    pub paused: BTreeSet<Color>,
    pub egress: Option<Egress>,
    /// Its mail is caught.
    pub mailbox: bool,
    /// Of the data sets that are not the instance's own.
    pub standings: BTreeMap<DataSetId, Standing>,
    /// What could not be made harmless.
    pub quarantined: BTreeMap<DataSetId, Quarantined>,
}

impl InstanceWorld {
    pub(crate) fn standing(&self, data_set: DataSetId) -> Standing {
        self.standings.get(&data_set).copied().unwrap_or(Standing::Own)
    }

    /// Everything of a data set goes.
    fn forget(&mut self, data_set: DataSetId) {
        self.slots.retain(|_, (used, _)| *used != data_set);
        self.paused.retain(|color| self.slots.contains_key(color));
        self.clusters.remove(&data_set);
        self.data_sets.remove(&data_set);
        self.standings.remove(&data_set);
    }

    fn make(&mut self, data_set: DataSetId, content: Vec<String>, standing: Standing) -> NewDataSet {
        self.data_sets.entry(data_set).or_insert(content);
        if standing != Standing::Own {
            self.standings.entry(data_set).or_insert(standing);
        }
        match self.standing(data_set) {
            Standing::Raw => NewDataSet::Raw(RawDataSet::quarantined(data_set)),
            Standing::Own | Standing::Neutralized => NewDataSet::Servable(ServableDataSet::proven(data_set)),
        }
    }

    fn modules(&self, data_set: DataSetId) -> Vec<InstalledModule> {
        let done = self.data_sets.get(&data_set).into_iter().flatten();
        let names: BTreeSet<&str> = done.filter_map(|done| done.strip_prefix("installed ")).collect();
        names.into_iter().map(|name| InstalledModule::new(name, "installed")).collect()
    }
}

#[derive(Default)]
struct State {
    /// What slots were started with.
    started: BTreeMap<InstanceId, Vec<OdooSettings>>,
    instances: BTreeMap<InstanceId, InstanceWorld>,
    /// Manifests, each with what was done in its data.
    snapshots: BTreeMap<SnapshotId, (Snapshot, Vec<String>)>,
    /// Each with what was done in it.
    templates: BTreeMap<TemplateId, (Template, Vec<String>)>,
    damaged: BTreeSet<TemplateId>,
    sources: BTreeMap<SourceId, Source>,
    releases: BTreeMap<ReleaseId, Release>,
    routes: Option<RouteSnapshot>,
    trouble: BTreeMap<&'static str, Trouble>,
    calls: Vec<String>,
    holding: BTreeSet<&'static str>,
    traffic: Vec<InstanceTraffic>,
    /// Of every database.
    scheduled_actions: ScheduledActions,
    edge_started: Option<DateTime<Utc>>,
    /// What every rehearsal sees.
    rehearsal: Rehearsal,
    /// What the edge tells of a route, one call after the other; the last stays.
    route_traffic: VecDeque<RouteTraffic>,
    logged_errors: u64,
}

/// The machine, its edge and its calls.
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    changed: Notify,
    edge: SocketAddr,
}

impl World {
    pub(crate) async fn new() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let weak = Arc::downgrade(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(state) = weak.upgrade() else { return };
                tokio::spawn(serve(stream, state));
            }
        });
        Arc::new(Self { state, changed: Notify::new(), edge })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn instance(&self, instance: InstanceId) -> InstanceWorld {
        self.state().instances.get(&instance).cloned().unwrap_or_default()
    }

    /// What the instance's slots were started with, the oldest first.
    pub(crate) fn started(&self, instance: InstanceId) -> Vec<OdooSettings> {
        self.state().started.get(&instance).cloned().unwrap_or_default()
    }

    pub(crate) fn knows(&self, instance: InstanceId) -> bool {
        self.state().instances.contains_key(&instance)
    }

    /// What the edge counts from now on.
    pub(crate) fn set_scheduled_actions(&self, actions: ScheduledActions) {
        self.state().scheduled_actions = actions;
    }

    pub(crate) fn set_traffic(&self, traffic: Vec<InstanceTraffic>) {
        self.state().traffic = traffic;
    }

    /// What the edge tells of every route, one call after the other; the last stays.
    pub(crate) fn script_traffic(&self, traffic: impl IntoIterator<Item = RouteTraffic>) {
        self.state().route_traffic = traffic.into_iter().collect();
    }

    /// What Odoo has logged, whoever asks since when.
    pub(crate) fn set_logged_errors(&self, errors: u64) {
        self.state().logged_errors = errors;
    }

    /// What every rehearsal sees from now on.
    pub(crate) fn set_rehearsal(&self, rehearsal: Rehearsal) {
        self.state().rehearsal = rehearsal;
    }

    pub(crate) fn set_edge_started(&self, at: DateTime<Utc>) {
        self.state().edge_started = Some(at);
    }

    pub(crate) fn routes(&self) -> Option<RouteSnapshot> {
        self.state().routes.clone()
    }

    pub(crate) fn route(&self, instance: InstanceId) -> Option<RouteState> {
        self.routes()?.routes.into_iter().find(|route| route.instance_id == instance).map(|route| route.state)
    }

    /// Loses the routes, as an edge that was set up anew.
    pub(crate) fn forget_routes(&self) {
        self.state().routes = None;
    }

    /// Kills a slot's Odoo behind everybody's back.
    pub(crate) fn kill_slot(&self, instance: InstanceId, color: Color) {
        let mut state = self.state();
        let world = state.instances.entry(instance).or_default();
        world.slots.remove(&color);
        world.paused.remove(&color);
    }

    /// Everything stops, as when the machine restarts.
    pub(crate) fn restart_machine(&self) {
        for instance in self.state().instances.values_mut() {
            instance.slots.clear();
            instance.paused.clear();
            instance.clusters.clear();
        }
    }

    /// Puts a data set there that nobody made.
    pub(crate) fn litter(&self, instance: InstanceId) -> DataSetId {
        let data_set = DataSetId::new();
        self.state().instances.entry(instance).or_default().data_sets.insert(data_set, Vec::new());
        data_set
    }

    /// A snapshot's manifest, and what was done in its data.
    pub(crate) fn snapshot(&self, snapshot: SnapshotId) -> Option<(Snapshot, Vec<String>)> {
        self.state().snapshots.get(&snapshot).cloned()
    }

    /// Every snapshot that is there.
    pub(crate) fn snapshots_taken(&self) -> Vec<SnapshotId> {
        self.state().snapshots.keys().copied().collect()
    }

    /// Loses a snapshot behind everybody's back.
    pub(crate) fn lose_snapshot(&self, snapshot: SnapshotId) {
        self.state().snapshots.remove(&snapshot);
    }

    pub(crate) fn templates_kept(&self) -> Vec<Template> {
        self.state().templates.values().map(|(template, _)| template.clone()).collect()
    }

    /// Damages a template; whoever takes it finds out.
    pub(crate) fn damage_template(&self, template: TemplateId) {
        self.state().damaged.insert(template);
    }

    fn store_template(&self, content: TemplateContent, standard: Vec<ModuleName>, done: Vec<String>) -> Template {
        let mut state = self.state();
        if let Some((found, _)) = state.templates.values().find(|(template, _)| template.content == content) {
            return found.clone();
        }
        let installed = done.iter().filter_map(|done| done.strip_prefix("installed ").map(str::to_owned)).collect();
        let now = Utc::now();
        let (id, postgres, odoo_version) = (TemplateId::new(), "in memory".to_owned(), "19.0".parse().expect("a version"));
        let template = Template {
            id,
            content,
            odoo_version,
            postgres,
            shape: 1,
            standard,
            installed,
            created_at: now,
            used_at: now,
            bytes: 1,
            entries: 1,
        };
        state.templates.insert(id, (template.clone(), done));
        template
    }

    pub(crate) fn trouble(&self, call: &'static str, trouble: Trouble) {
        self.state().trouble.insert(call, trouble);
    }

    /// Ends the trouble; what is held goes on.
    pub(crate) fn relieve(&self, call: &'static str) {
        self.state().trouble.remove(call);
        self.changed.notify_waiters();
    }

    /// Returns when a call is held.
    pub(crate) async fn held(&self, call: &'static str) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.state().holding.contains(call) {
                return;
            }
            changed.await;
        }
    }

    /// How often a call was made.
    pub(crate) fn calls(&self, call: &str) -> usize {
        self.state().calls.iter().filter(|made| *made == call).count()
    }

    /// Takes note of a call; fails or waits as a test has said.
    async fn enter(&self, call: &'static str, after: bool, cancel: Option<&tokio_util::sync::CancellationToken>) -> Result<()> {
        if !after {
            self.state().calls.push(call.to_owned());
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let trouble = self.state().trouble.get(call).cloned();
            match trouble {
                Some(Trouble::Reject(summary)) if !after => return Err(HostError::rejected(summary)),
                Some(Trouble::Break(summary)) if !after => return Err(HostError::machine(summary)),
                Some(Trouble::Hold) if !after => {}
                Some(Trouble::HoldAfter) if after => {}
                _ => {
                    self.state().holding.remove(call);
                    return Ok(());
                }
            }
            if self.state().holding.insert(call) {
                self.changed.notify_waiters();
            }
            match cancel {
                Some(cancel) => tokio::select! {
                    () = changed => {}
                    () = cancel.cancelled() => {
                        self.state().holding.remove(call);
                        return Err(HostError::Cancelled);
                    }
                },
                None => changed.await,
            }
        }
    }

    /// Refuses what an older claim calls.
    fn fenced<T>(&self, instance: InstanceId, fence: Fence, effect: impl FnOnce(&mut InstanceWorld) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let Some(world) = state.instances.get_mut(&instance) else {
            return Err(HostError::NotFound { what: "instance", id: instance.to_string() });
        };
        if fence.generation < world.generation {
            return Err(HostError::Fenced { held: fence.generation, newest: world.generation });
        }
        world.generation = fence.generation;
        effect(world)
    }

    /// Puts a data set's content aside, once.
    fn keep(&self, request: &TakeSnapshot, live: bool) -> Result<Snapshot> {
        let mut state = self.state();
        if let Some((taken, _)) = state.snapshots.get(&request.snapshot) {
            return Ok(taken.clone());
        }
        let absent = || HostError::NotFound { what: "data set", id: request.data_set.to_string() };
        let world = state.instances.get(&request.instance).ok_or_else(absent)?;
        let content = world.data_sets.get(&request.data_set).cloned().ok_or_else(absent)?;
        let manifest = Snapshot {
            id: request.snapshot,
            instance: request.instance,
            data_set: request.data_set,
            release: request.release.clone(),
            taken_at: Utc::now(),
            live: live && world.clusters.contains(&request.data_set),
            standing: world.standing(request.data_set),
            postgres_version: "15".to_owned(),
            modules: world.modules(request.data_set),
            database_bytes: DATABASE_BYTES,
            file_store_bytes: FILE_STORE_BYTES,
            file_store_files: 3,
            shares_blocks: true,
            seconds: 0.01,
            damaged_files: Vec::new(),
        };
        state.snapshots.insert(request.snapshot, (manifest.clone(), content));
        Ok(manifest)
    }

    fn address(color: Color) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], if color == Color::Blue { 1 } else { 2 }))
    }
}

/// An edge that answers for slots that are routed, without asking them.
async fn serve(mut stream: tokio::net::TcpStream, state: Arc<Mutex<State>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    }
    let request = String::from_utf8_lossy(&request).to_lowercase();
    let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default().trim().to_owned();
    let serving = {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let route = state.routes.iter().flat_map(|snapshot| &snapshot.routes).find(|route| route.hosts.contains(&host)).cloned();
        route.is_some_and(|route| match route.state {
            RouteState::Serving { http, .. } => state
                .instances
                .get(&route.instance_id)
                .is_some_and(|world| world.slots.keys().any(|color| World::address(*color) == http && !world.paused.contains(color))),
            _ => false,
        })
    };
    let answer = if serving { "HTTP/1.1 200 OK" } else { "HTTP/1.1 503 Service Unavailable" };
    let _ = stream.write_all(format!("{answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes()).await;
}
