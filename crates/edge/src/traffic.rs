//! Counts what passes through, by instance and by slot, so that a deployment knows when the old slot is empty and a sleeper knows what is idle.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use chrono::{DateTime, Utc};
use http::StatusCode;
use ocore_model::{
    clock::Clock,
    edge::{HeldTraffic, InstanceTraffic, RouteTraffic, UpstreamTraffic, Wanted, WebsocketTraffic},
    ids::InstanceId,
};
use tokio::sync::watch;

use crate::{
    config::HoldLimits,
    latency::Durations,
    line::{Line, Totals},
    reconnects::Reconnects,
    slots::Slots,
};

/// All counters of one edge. They start at zero with the process.
pub(crate) struct Traffic {
    clock: Arc<dyn Clock>,
    started_at: DateTime<Utc>,
    connections: AtomicU64,
    unknown_host_requests: AtomicU64,
    hold: HoldLimits,
    held: Arc<Totals>,
    instances: Mutex<HashMap<InstanceId, Arc<InstanceCounters>>>,
    /// The number of the last sleeper that was asked for.
    wanted: watch::Sender<u64>,
}

#[derive(Debug)]
pub(crate) struct InstanceCounters {
    id: InstanceId,
    open: Open,
    line: Arc<Line>,
    requests_total: AtomicU64,
    errors_total: AtomicU64,
    websockets_total: AtomicU64,
    /// By the class of their status.
    answers: [AtomicU64; 5],
    /// 5xx answers of the edge's own.
    edge_errors: AtomicU64,
    abandoned: AtomicU64,
    /// From the arrival of a request to the head of its answer.
    pub(crate) latency: Durations,
    pub(crate) held: Held,
    pub(crate) reconnects: Reconnects,
    slots: Slots,
    /// Milliseconds since 1970; 0: never.
    last_request_at: AtomicI64,
    /// Its number among the sleepers that were asked for; 0 while nobody asks, or it does not sleep.
    wanted: AtomicU64,
    upstreams: Mutex<BTreeMap<SocketAddr, Arc<Open>>>,
}

/// What became of the requests that had to wait.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) waits: Durations,
    failed: AtomicU64,
    turned_away: AtomicU64,
}

impl Held {
    /// It waited, and got an error of the edge's in the end.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// There was no place to wait.
    pub(crate) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Relaxed);
    }
}

/// What is open now.
#[derive(Debug, Default)]
pub(crate) struct Open {
    requests: AtomicU64,
    websockets: AtomicU64,
}

impl Open {
    fn is_idle(&self) -> bool {
        self.requests.load(Relaxed) == 0 && self.websockets.load(Relaxed) == 0
    }
}

impl Traffic {
    pub(crate) fn new(clock: Arc<dyn Clock>, hold: HoldLimits) -> Self {
        Self {
            started_at: clock.now(),
            clock,
            connections: AtomicU64::new(0),
            unknown_host_requests: AtomicU64::new(0),
            hold,
            held: Arc::default(),
            instances: Mutex::default(),
            wanted: watch::Sender::new(0),
        }
    }

    pub(crate) fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub(crate) fn unknown_host_requests(&self) -> u64 {
        self.unknown_host_requests.load(Relaxed)
    }

    pub(crate) fn count_unknown_host(&self) {
        self.unknown_host_requests.fetch_add(1, Relaxed);
    }

    /// Counts a client connection until the guard goes.
    pub(crate) fn connection(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.fetch_add(1, Relaxed);
        ConnectionGuard(Arc::clone(self))
    }

    pub(crate) fn instance(&self, id: InstanceId) -> Arc<InstanceCounters> {
        let counters = || {
            Arc::new(InstanceCounters {
                id,
                open: Open::default(),
                line: Arc::new(Line::new(self.hold, Arc::clone(&self.held))),
                requests_total: AtomicU64::new(0),
                errors_total: AtomicU64::new(0),
                websockets_total: AtomicU64::new(0),
                answers: Default::default(),
                edge_errors: AtomicU64::new(0),
                abandoned: AtomicU64::new(0),
                latency: Durations::default(),
                held: Held::default(),
                reconnects: Reconnects::default(),
                slots: Slots::default(),
                last_request_at: AtomicI64::new(0),
                wanted: AtomicU64::new(0),
                upstreams: Mutex::default(),
            })
        };
        Arc::clone(lock(&self.instances).entry(id).or_insert_with(counters))
    }

    /// The handshake of a websocket is no use of the instance: a forgotten tab opens its own again and again.
    pub(crate) fn count_request(&self, instance: &InstanceCounters, is_websocket: bool) {
        instance.requests_total.fetch_add(1, Relaxed);
        if !is_websocket {
            instance.last_request_at.store(self.clock.now().timestamp_millis(), Relaxed);
        }
    }

    /// Somebody waits for a sleeper. The first one to do so counts.
    pub(crate) fn want(&self, instance: &InstanceCounters) {
        self.wanted.send_if_modified(|last| {
            let is_first = instance.wanted.load(Relaxed) == 0;
            if is_first {
                *last += 1;
                instance.wanted.store(*last, Relaxed);
            }
            is_first
        });
    }

    /// The sleepers that were asked for after that number, as soon as there are any.
    pub(crate) async fn wanted_after(&self, sequence: u64) -> Wanted {
        let mut changes = self.wanted.subscribe();
        // The numbers end with the process: a greater one is of an edge that was here before.
        let after = if sequence > *changes.borrow() { 0 } else { sequence };
        loop {
            let last = *changes.borrow_and_update();
            let instances: Vec<InstanceId> =
                self.all().iter().filter(|instance| instance.wanted.load(Relaxed) > after).map(|instance| instance.id).collect();
            if !instances.is_empty() || changes.changed().await.is_err() {
                return Wanted { sequence: last, instances };
            }
        }
    }

    /// The sleepers that somebody waits for.
    pub(crate) fn wanted(&self) -> Vec<InstanceId> {
        self.all().iter().filter(|instance| instance.wanted.load(Relaxed) > 0).map(|instance| instance.id).collect()
    }

    /// An older edge was asked for these.
    pub(crate) fn want_again(&self, instances: &[InstanceId]) {
        for id in instances {
            let known = lock(&self.instances).get(id).cloned();
            if let Some(instance) = known {
                self.want(&instance);
            }
        }
    }

    /// Requests and handshakes that are held, of all instances.
    pub(crate) fn held(&self) -> u64 {
        self.held.held()
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Everything that is counted, whether it has a route or not.
    pub(crate) fn all(&self) -> Vec<Arc<InstanceCounters>> {
        lock(&self.instances).values().cloned().collect()
    }

    /// Forgets what has no route and nothing open. Only to be called while no request can enter by other routes than the ones meant.
    pub(crate) fn forget_all_but(&self, routed: impl Fn(InstanceId) -> bool, live: impl Fn(SocketAddr) -> bool) {
        let mut instances = lock(&self.instances);
        instances.retain(|id, counters| routed(*id) || !counters.open.is_idle());
        for counters in instances.values() {
            lock(&counters.upstreams).retain(|address, open| live(*address) || !open.is_idle());
        }
    }

    /// What the users of an instance got; `None` when it has neither a route nor traffic.
    pub(crate) fn of(&self, id: InstanceId, generation: u64) -> Option<RouteTraffic> {
        let counters = lock(&self.instances).get(&id).cloned()?;
        Some(counters.route_traffic(self.started_at, self.clock.now(), generation))
    }

    /// The same of every instance.
    pub(crate) fn of_all(&self, generation: u64) -> Vec<RouteTraffic> {
        let now = self.clock.now();
        let mut all = self.all();
        all.sort_by_key(|counters| counters.id);
        all.iter().map(|counters| counters.route_traffic(self.started_at, now, generation)).collect()
    }

    /// Open requests and websockets of all instances.
    pub(crate) fn open(&self) -> (u64, u64) {
        lock(&self.instances).values().fold((0, 0), |(requests, websockets), counters| {
            (requests + counters.open.requests.load(Relaxed), websockets + counters.open.websockets.load(Relaxed))
        })
    }

    pub(crate) fn snapshot(&self) -> Vec<InstanceTraffic> {
        let mut instances: Vec<InstanceTraffic> = lock(&self.instances).values().map(|counters| counters.snapshot()).collect();
        instances.sort_by_key(|instance| instance.instance_id);
        instances
    }
}

impl InstanceCounters {
    /// Somebody has asked for it since it fell asleep.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Relaxed) > 0
    }

    /// It does not sleep any more.
    pub(crate) fn forget_want(&self) {
        self.wanted.store(0, Relaxed);
    }

    pub(crate) fn id(&self) -> InstanceId {
        self.id
    }

    pub(crate) fn upstream(&self, http: SocketAddr) -> Arc<Open> {
        Arc::clone(lock(&self.upstreams).entry(http).or_default())
    }

    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(crate) fn count_answer(&self, status: StatusCode) {
        if let Some(count) = self.answers.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            count.fetch_add(1, Relaxed);
        }
        if status.is_server_error() {
            self.errors_total.fetch_add(1, Relaxed);
        }
    }

    /// Among the answers; a 5xx that is not Odoo's.
    pub(crate) fn count_edge_error(&self) {
        self.edge_errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_abandoned(&self) {
        self.abandoned.fetch_add(1, Relaxed);
    }

    fn route_traffic(&self, counted_since: DateTime<Utc>, taken_at: DateTime<Utc>, generation: u64) -> RouteTraffic {
        RouteTraffic {
            instance_id: self.id,
            counted_since,
            taken_at,
            generation,
            requests: self.requests_total.load(Relaxed),
            answers: std::array::from_fn(|class| self.answers.get(class).map_or(0, |count| count.load(Relaxed))),
            edge_errors: self.edge_errors.load(Relaxed),
            abandoned: self.abandoned.load(Relaxed),
            latency: self.latency.histogram(),
            held: HeldTraffic {
                now: self.line.held(),
                requests: self.line.held_total(),
                failed: self.held.failed.load(Relaxed),
                turned_away: self.held.turned_away.load(Relaxed),
                waits: self.held.waits.histogram(),
            },
            websockets: WebsocketTraffic {
                now: self.open.websockets.load(Relaxed),
                opened: self.websockets_total.load(Relaxed),
                closed_by_switch: self.reconnects.closed_by_switch(),
                gaps: self.reconnects.gaps(),
            },
            slots: self.slots.traffic(),
        }
    }

    fn snapshot(&self) -> InstanceTraffic {
        InstanceTraffic {
            instance_id: self.id,
            requests_in_flight: self.open.requests.load(Relaxed),
            websockets: self.open.websockets.load(Relaxed),
            requests_total: self.requests_total.load(Relaxed),
            errors_total: self.errors_total.load(Relaxed),
            websockets_total: self.websockets_total.load(Relaxed),
            held: self.line.held(),
            held_total: self.line.held_total(),
            last_request_at: match self.last_request_at.load(Relaxed) {
                0 => None,
                milliseconds => DateTime::from_timestamp_millis(milliseconds),
            },
            wanted: self.wanted.load(Relaxed) > 0,
            upstreams: lock(&self.upstreams)
                .iter()
                .map(|(http, open)| UpstreamTraffic {
                    http: *http,
                    requests_in_flight: open.requests.load(Relaxed),
                    websockets: open.websockets.load(Relaxed),
                })
                .collect(),
        }
    }
}

/// One request or websocket on its way; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Passage {
    instance: Arc<InstanceCounters>,
    upstream: Option<Arc<Open>>,
    is_websocket: bool,
}

impl Passage {
    pub(crate) fn enter(instance: &Arc<InstanceCounters>, upstream: Option<&Arc<Open>>) -> Self {
        let passage = Self { instance: Arc::clone(instance), upstream: upstream.cloned(), is_websocket: false };
        for open in passage.counted() {
            open.requests.fetch_add(1, Relaxed);
        }
        passage
    }

    pub(crate) fn instance(&self) -> &Arc<InstanceCounters> {
        &self.instance
    }

    /// It waits, and goes to no slot until it enters again.
    pub(crate) fn leave_upstream(&mut self) {
        if let Some(upstream) = self.upstream.take() {
            let count = if self.is_websocket { &upstream.websockets } else { &upstream.requests };
            count.fetch_sub(1, Relaxed);
        }
    }

    /// The request has become a websocket.
    pub(crate) fn become_websocket(&mut self) {
        if self.is_websocket {
            return;
        }
        for open in self.counted() {
            open.websockets.fetch_add(1, Relaxed);
            open.requests.fetch_sub(1, Relaxed);
        }
        self.instance.websockets_total.fetch_add(1, Relaxed);
        self.is_websocket = true;
    }

    fn counted(&self) -> impl Iterator<Item = &Open> {
        std::iter::once(&self.instance.open).chain(self.upstream.as_deref())
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        for open in self.counted() {
            let count = if self.is_websocket { &open.websockets } else { &open.requests };
            count.fetch_sub(1, Relaxed);
        }
    }
}

pub(crate) struct ConnectionGuard(Arc<Traffic>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// Counters are whole at every moment, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use ocore_model::clock::SystemClock;

    use super::*;

    #[test]
    fn a_passage_is_counted_where_it_is_until_it_ends() {
        let traffic = Traffic::new(Arc::new(SystemClock), HoldLimits::default());
        let id = InstanceId::new();
        let instance = traffic.instance(id);
        let (blue, green): (SocketAddr, SocketAddr) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let request = Passage::enter(&instance, Some(&instance.upstream(blue)));
        let mut websocket = Passage::enter(&instance, Some(&instance.upstream(blue)));
        websocket.become_websocket();
        websocket.become_websocket();
        let other = Passage::enter(&instance, Some(&instance.upstream(green)));

        let seen = &traffic.snapshot()[0];
        assert_eq!((seen.requests_in_flight, seen.websockets, seen.websockets_total), (2, 1, 1));
        assert_eq!((seen.upstreams[0].requests_in_flight, seen.upstreams[0].websockets), (1, 1));

        drop(request);
        traffic.forget_all_but(|_| false, |address| address == green);
        assert_eq!(traffic.snapshot()[0].upstreams.len(), 2, "the websocket is still on blue");
        drop(websocket);
        traffic.forget_all_but(|_| false, |address| address == green);
        assert_eq!(traffic.snapshot()[0].upstreams, [UpstreamTraffic { http: green, requests_in_flight: 1, websockets: 0 }]);
        drop(other);
        traffic.forget_all_but(|_| false, |_| false);
        assert!(traffic.snapshot().is_empty());
    }
}
