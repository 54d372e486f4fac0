//! The routes in force: one whole snapshot, replaced at once, never by an older one.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use ocore_model::{
    edge::{InstanceTraffic, RouteTraffic, RoutesApplied},
    ids::InstanceId,
    route::{Route, RouteSnapshot, RouteState},
};
use thiserror::Error;

use crate::{
    host_name::HostName,
    line::Line,
    slots::Slot,
    snapshot_file::SnapshotFile,
    traffic::{InstanceCounters, Open, Passage, Traffic},
};

/// Why a snapshot was not taken; what was in force stays.
#[derive(Debug, Error)]
pub(crate) enum Refused {
    #[error("generation {offered} is older than generation {in_force}, which is in force")]
    Older { offered: u64, in_force: u64 },
    #[error("generation {generation} is in force with other routes; raise the generation")]
    SameGenerationOtherRoutes { generation: u64 },
}

pub(crate) struct Routes {
    table: RwLock<Table>,
    /// One change at a time, the write to disk included.
    changing: tokio::sync::Mutex<()>,
    file: SnapshotFile,
    /// The generation on disk.
    stored: AtomicU64,
    /// The file is a newer edge's.
    gave_file_away: AtomicBool,
    traffic: Arc<Traffic>,
}

struct Table {
    snapshot: Arc<RouteSnapshot>,
    by_host: HashMap<HostName, Arc<Destination>>,
}

/// Where a host name leads, with its counters.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) route: Route,
    instance: Arc<InstanceCounters>,
    upstream: Option<Arc<Open>>,
    /// The slot that it leads to; `None` where it leads to none.
    pub(crate) slot: Option<Arc<Slot>>,
}

impl Destination {
    pub(crate) fn instance(&self) -> &Arc<InstanceCounters> {
        &self.instance
    }

    /// Where requests wait while the instance rests.
    pub(crate) fn line(&self) -> &Arc<Line> {
        self.instance.line()
    }

    /// Somebody asks for an instance that sleeps.
    pub(crate) fn want(&self, traffic: &Traffic) {
        traffic.want(&self.instance);
    }
}

impl Routes {
    /// Starts with what the file has, or with nothing.
    pub(crate) fn load(file: SnapshotFile, traffic: Arc<Traffic>) -> std::io::Result<Self> {
        let stored = file.load()?.unwrap_or(RouteSnapshot { generation: 0, routes: Vec::new() });
        Ok(Self::begin(stored, file, traffic))
    }

    /// Starts with what an older edge follows.
    pub(crate) fn follow(snapshot: RouteSnapshot, file: SnapshotFile, traffic: Arc<Traffic>) -> Self {
        Self::begin(snapshot, file, traffic)
    }

    fn begin(stored: RouteSnapshot, file: SnapshotFile, traffic: Arc<Traffic>) -> Self {
        let table = Table::new(Checked::new(stored), &traffic);
        set_gates(&table.snapshot, &traffic);
        let stored = AtomicU64::new(table.snapshot.generation);
        let gave_file_away = AtomicBool::new(false);
        Self { table: RwLock::new(table), changing: tokio::sync::Mutex::default(), file, stored, gave_file_away, traffic }
    }

    /// They do not change until the guard goes.
    pub(crate) async fn freeze(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// A newer edge keeps them from now on; they are followed here, and not stored any more.
    pub(crate) fn give_file_away(&self) {
        self.gave_file_away.store(true, Ordering::Relaxed);
    }

    /// Looks a host up and counts the request in. Both happen under one lock: once [`Self::apply`] has returned, every request that goes to
    /// a slot of the routes before is counted there, so that a count of zero means that the slot is empty for good.
    pub(crate) fn enter(&self, host: &HostName) -> Option<(Arc<Destination>, Passage)> {
        let table = self.read();
        let destination = table.by_host.get(host)?;
        let passage = Passage::enter(&destination.instance, destination.upstream.as_ref());
        Some((Arc::clone(destination), passage))
    }

    pub(crate) fn snapshot(&self) -> Arc<RouteSnapshot> {
        Arc::clone(&self.read().snapshot)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.read().snapshot.generation
    }

    /// Every address that a route leads to.
    pub(crate) fn addresses(&self) -> HashSet<SocketAddr> {
        addresses(&self.read().snapshot)
    }

    /// Puts a snapshot into force, then stores it. The same one again is done.
    ///
    /// A disk that is full must not keep a dead slot in force: the routes change all the same, the answer says `stored: false`, and
    /// [`Self::store_if_needed`] tries again.
    pub(crate) async fn apply(&self, snapshot: RouteSnapshot) -> Result<RoutesApplied, Refused> {
        let _changing = self.changing.lock().await;
        let mut offered = Checked::new(snapshot);
        let left_out = std::mem::take(&mut offered.left_out);
        let in_force = self.snapshot();
        let generation = offered.snapshot.generation;
        if generation < in_force.generation {
            return Err(Refused::Older { offered: generation, in_force: in_force.generation });
        }
        if generation == in_force.generation {
            if offered.snapshot != *in_force {
                return Err(Refused::SameGenerationOtherRoutes { generation });
            }
        } else {
            let routes = offered.snapshot.routes.len();
            let offered = Table::new(offered, &self.traffic);
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            *table = offered;
            // Under the same lock: who looks a held route up finds its gate closed, who is let go finds the new route.
            set_gates(&table.snapshot, &self.traffic);
            leave_slots(&table.snapshot, &self.traffic);
            drop(table);
            tracing::info!(generation, routes, "routes in force");
        }
        Ok(RoutesApplied { generation, stored: self.store().await, left_out })
    }

    /// Tries again to store routes that could not be stored.
    pub(crate) async fn store_if_needed(&self) {
        if self.stored.load(Ordering::Relaxed) != self.generation() {
            let _changing = self.changing.lock().await;
            self.store().await;
        }
    }

    /// To be called with `changing` held.
    async fn store(&self) -> bool {
        let snapshot = self.snapshot();
        let generation = snapshot.generation;
        if self.stored.load(Ordering::Relaxed) == generation || self.gave_file_away.load(Ordering::Relaxed) {
            return true;
        }
        let file = self.file.clone();
        let outcome = tokio::task::spawn_blocking(move || file.store(&snapshot)).await.map_err(std::io::Error::other);
        match outcome.flatten() {
            Ok(()) => {
                self.stored.store(generation, Ordering::Relaxed);
                true
            }
            Err(error) => {
                tracing::error!(generation, %error, "cannot store the routes; they are in force, but a restart of the edge would lose them");
                false
            }
        }
    }

    /// The traffic of every instance that has a route or still something open.
    pub(crate) fn traffic(&self) -> Vec<InstanceTraffic> {
        self.forget_gone();
        self.traffic.snapshot()
    }

    /// What the users of an instance got; `None` when it has neither a route nor anything open.
    pub(crate) fn traffic_of(&self, instance: InstanceId) -> Option<RouteTraffic> {
        self.forget_gone();
        self.traffic.of(instance, self.generation())
    }

    /// The same of every instance.
    pub(crate) fn traffic_of_all(&self) -> Vec<RouteTraffic> {
        self.forget_gone();
        self.traffic.of_all(self.generation())
    }

    fn forget_gone(&self) {
        // While nobody changes the routes, whoever enters enters by these, so nothing that is forgotten can come into use.
        if let Ok(_changing) = self.changing.try_lock() {
            let snapshot = self.snapshot();
            let live = addresses(&snapshot);
            let routed: HashSet<_> = snapshot.routes.iter().map(|route| route.instance_id).collect();
            self.traffic.forget_all_but(|id| routed.contains(&id), |address| live.contains(&address));
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot in its one order, with its hosts read.
struct Checked {
    /// Routes and their hosts sorted, so that order makes no difference.
    snapshot: RouteSnapshot,
    /// By route.
    names: Vec<Vec<HostName>>,
    /// A sentence for each host that leads nowhere. One tenant's bad name must not keep the others' routes from changing, so it is not a
    /// reason to refuse all.
    left_out: Vec<String>,
}

impl Checked {
    /// A name that two routes have stays with the older instance: ids sort by age.
    fn new(mut snapshot: RouteSnapshot) -> Self {
        for route in &mut snapshot.routes {
            route.hosts.sort();
            route.hosts.dedup();
        }
        snapshot.routes.sort_by(|one, other| (one.instance_id, &one.hosts).cmp(&(other.instance_id, &other.hosts)));
        let mut seen = HashSet::new();
        let mut left_out = Vec::new();
        let mut names = Vec::with_capacity(snapshot.routes.len());
        for route in &snapshot.routes {
            let mut of_route = Vec::with_capacity(route.hosts.len());
            for host in &route.hosts {
                match HostName::parse(host) {
                    Ok(name) if seen.insert(name.clone()) => of_route.push(name),
                    Ok(_) => left_out.push(format!("{host:?} already leads to another route than that of {}", route.instance_id)),
                    Err(_) => left_out.push(format!("{host:?} of {} is not a host name", route.instance_id)),
                }
            }
            names.push(of_route);
        }
        for sentence in &left_out {
            tracing::error!("{sentence}; it is left out");
        }
        Self { snapshot, names, left_out }
    }
}

impl Table {
    fn new(checked: Checked, traffic: &Traffic) -> Self {
        let Checked { snapshot, names, .. } = checked;
        let mut by_host = HashMap::new();
        for (route, names) in snapshot.routes.iter().zip(names) {
            let instance = traffic.instance(route.instance_id);
            let (upstream, slot) = match route.state {
                RouteState::Serving { http, .. } => (Some(instance.upstream(http)), Some(instance.slots().at(http, snapshot.generation))),
                _ => (None, None),
            };
            let destination = Arc::new(Destination { route: route.clone(), instance, upstream, slot });
            by_host.extend(names.into_iter().map(|name| (name, Arc::clone(&destination))));
        }
        Self { snapshot: Arc::new(snapshot), by_host }
    }
}

/// Holds the requests of the instances that ask for it, and lets all others go. An instance with several routes is held as a whole.
fn set_gates(snapshot: &RouteSnapshot, traffic: &Traffic) {
    let with = |wanted: fn(&RouteState) -> bool| -> HashSet<InstanceId> {
        snapshot.routes.iter().filter(|route| wanted(&route.state)).map(|route| route.instance_id).collect()
    };
    let asleep = with(|state| matches!(state, RouteState::Asleep { .. }));
    let held = with(|state| matches!(state, RouteState::Holding { .. } | RouteState::Asleep { .. }));
    let serving = with(|state| matches!(state, RouteState::Serving { .. }));
    for instance in traffic.all() {
        if !asleep.contains(&instance.id()) {
            instance.forget_want();
        }
        if held.contains(&instance.id()) {
            instance.line().close();
        } else if serving.contains(&instance.id()) {
            instance.line().open();
        } else {
            instance.line().dismiss();
        }
    }
}

/// Ends the time of every slot that no route leads to any more. One under a route that holds rests: it may serve again, and what is left is known only
/// then. Until that its websockets stay.
fn leave_slots(snapshot: &RouteSnapshot, traffic: &Traffic) {
    let holding: HashSet<InstanceId> =
        snapshot.routes.iter().filter(|route| matches!(route.state, RouteState::Holding { .. })).map(|route| route.instance_id).collect();
    let serving: HashSet<(InstanceId, SocketAddr)> = snapshot
        .routes
        .iter()
        .filter_map(|route| match route.state {
            RouteState::Serving { http, .. } => Some((route.instance_id, http)),
            _ => None,
        })
        .collect();
    for instance in traffic.all().into_iter().filter(|instance| !holding.contains(&instance.id())) {
        instance.slots().leave_all_but(|http| serving.contains(&(instance.id(), http)), snapshot.generation);
    }
}

fn addresses(snapshot: &RouteSnapshot) -> HashSet<SocketAddr> {
    let of_route = |route: &Route| match route.state {
        RouteState::Serving { http, websocket } => [Some(http), websocket],
        _ => [None, None],
    };
    snapshot.routes.iter().flat_map(of_route).flatten().collect()
}
