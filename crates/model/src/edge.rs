//! What an edge tells about itself: which routes it follows and what passes through it. A deployment drains by it, an idle environment sleeps by it.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{histogram::Histogram, ids::InstanceId};

/// An edge at one moment. Counters start at zero with the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeStatus {
    /// The generation of the routes in force; 0 when the edge has none yet.
    pub generation: u64,
    pub started_at: DateTime<Utc>,
    /// Of its process. One that took over from another adds what that one still carries; its totals are its own.
    #[serde(default)]
    pub pid: u32,
    /// Where it listens for the world.
    pub listen: Vec<SocketAddr>,
    /// Open client connections.
    pub connections: u64,
    /// Requests whose host name nobody has here, since the start.
    pub unknown_host_requests: u64,
    /// Every instance that has a route or still has traffic, by id.
    pub instances: Vec<InstanceTraffic>,
}

/// The traffic of one instance. `requests_in_flight` counts requests whose answer has not been passed on completely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceTraffic {
    pub instance_id: InstanceId,
    pub requests_in_flight: u64,
    /// Open websockets.
    pub websockets: u64,
    pub requests_total: u64,
    /// Answers with a 5xx status, Odoo's and the edge's own.
    pub errors_total: u64,
    pub websockets_total: u64,
    /// Requests and handshakes of websockets that wait for the instance to serve again. They are among `requests_in_flight`.
    #[serde(default)]
    pub held: u64,
    /// Those that ever had to wait.
    #[serde(default)]
    pub held_total: u64,
    /// When the last request came that was no websocket's handshake; `None` since the edge's start.
    pub last_request_at: Option<DateTime<Utc>>,
    /// It sleeps, and somebody has asked for it.
    #[serde(default)]
    pub wanted: bool,
    /// By the HTTP address that a route named, the drained ones included until their last request has ended.
    pub upstreams: Vec<UpstreamTraffic>,
}

/// What one slot of an instance still carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamTraffic {
    /// The slot's HTTP address; its websockets are counted here too.
    pub http: SocketAddr,
    pub requests_in_flight: u64,
    pub websockets: u64,
}

/// The answer to a snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutesApplied {
    /// The generation now in force.
    pub generation: u64,
    /// It is on the edge's disk too. When it is not (a full disk), the edge keeps trying.
    pub stored: bool,
    /// A sentence for each host name that leads nowhere: it is none, or another route has it.
    pub left_out: Vec<String>,
}

/// The answer to a snapshot, or to another request to the administration socket, that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeRefusal {
    pub message: String,
    /// The generation in force.
    pub generation: u64,
}

/// The sleeping instances that somebody has asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Of the last of them; to be given with the next question. Starts again with the edge's process.
    pub sequence: u64,
    /// Those that came after the sequence that was asked with.
    pub instances: Vec<InstanceId>,
}

/// What the users of one instance got, and from which slot: what a deployment is judged by, and told with. All numbers only grow while
/// `counted_since` stays; [`RouteTraffic::since`] gives what happened between two moments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTraffic {
    pub instance_id: InstanceId,
    /// When the counters were zero: the start of the edge's process.
    pub counted_since: DateTime<Utc>,
    pub taken_at: DateTime<Utc>,
    /// The generation of the routes in force.
    pub generation: u64,
    /// Requests that came, whatever became of them; handshakes of websockets are among them.
    pub requests: u64,
    /// Answers, by the class of their status: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub answers: [u64; 5],
    /// Answers with a 5xx status that the edge itself gave: Odoo could not be reached, broke off, took too long, or there was none to wait for.
    pub edge_errors: u64,
    /// Requests whose client went away before the answer began.
    pub abandoned: u64,
    /// From a request's arrival to the head of its answer, held time included, time in which the client sent its body not. Without long polls
    /// and websockets.
    pub latency: Histogram,
    pub held: HeldTraffic,
    pub websockets: WebsocketTraffic,
    /// The slots that the route led to, the oldest first, and no more than the last few. The last one is in force when it has no end.
    pub slots: Vec<SlotTraffic>,
}

/// Requests that had to wait for their instance to serve again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldTraffic {
    /// Those that wait now.
    pub now: u64,
    /// Those that ever began to wait.
    pub requests: u64,
    /// Waited, and got a 5xx of the edge in the end: too long, or there was nothing to wait for any more.
    pub failed: u64,
    /// Found no place to wait, and got a 503 at once.
    pub turned_away: u64,
    /// How long they waited, of those whose waiting is over.
    pub waits: Histogram,
}

/// Websockets, and how long their clients were without one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebsocketTraffic {
    /// Open now.
    pub now: u64,
    /// Those that were ever opened.
    pub opened: u64,
    /// Ended by the edge or by their slot when the route did not lead to that slot any more.
    pub closed_by_switch: u64,
    /// From such an end to the next websocket of the same client (its address, session and program).
    pub gaps: Histogram,
}

/// One slot, in one time in which the route led to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotTraffic {
    /// The slot's HTTP address.
    pub http: SocketAddr,
    /// The generation of the routes with which it came.
    pub since_generation: u64,
    /// The generation with which it went; `None` while the route leads to it.
    pub until_generation: Option<u64>,
    /// Requests that it answered, whatever the status.
    pub answers: u64,
    /// Among them those with a 5xx status: Odoo's own.
    pub server_errors: u64,
    /// Requests that could not connect to it. One that found another slot afterwards is counted here, too.
    pub connect_failures: u64,
    /// Requests on which it broke off, before or within its answer.
    pub broken: u64,
    /// Requests that it did not answer in time.
    pub timeouts: u64,
    /// From the whole request to the head of the answer. Without long polls and websockets.
    pub latency: Histogram,
}

impl RouteTraffic {
    /// What happened after `earlier`. Where the edge's process is another one by now, all that the new one has counted.
    pub fn since(&self, earlier: &Self) -> Self {
        if self.counted_since != earlier.counted_since {
            return self.clone();
        }
        let mut answers = self.answers;
        for (count, before) in answers.iter_mut().zip(earlier.answers) {
            *count = count.saturating_sub(before);
        }
        let slot = |slot: &SlotTraffic| {
            let is_same = |before: &&SlotTraffic| before.http == slot.http && before.since_generation == slot.since_generation;
            earlier.slots.iter().find(is_same).map_or_else(|| slot.clone(), |before| slot.since(before))
        };
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            answers,
            edge_errors: self.edge_errors.saturating_sub(earlier.edge_errors),
            abandoned: self.abandoned.saturating_sub(earlier.abandoned),
            latency: self.latency.since(&earlier.latency),
            held: HeldTraffic {
                now: self.held.now,
                requests: self.held.requests.saturating_sub(earlier.held.requests),
                failed: self.held.failed.saturating_sub(earlier.held.failed),
                turned_away: self.held.turned_away.saturating_sub(earlier.held.turned_away),
                waits: self.held.waits.since(&earlier.held.waits),
            },
            websockets: WebsocketTraffic {
                now: self.websockets.now,
                opened: self.websockets.opened.saturating_sub(earlier.websockets.opened),
                closed_by_switch: self.websockets.closed_by_switch.saturating_sub(earlier.websockets.closed_by_switch),
                gaps: self.websockets.gaps.since(&earlier.websockets.gaps),
            },
            slots: self.slots.iter().map(slot).collect(),
            ..self.clone()
        }
    }

    /// The slot that the route leads to; `None` where it leads to none.
    pub fn current(&self) -> Option<&SlotTraffic> {
        self.slots.last().filter(|slot| slot.until_generation.is_none())
    }
}

impl SlotTraffic {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            answers: self.answers.saturating_sub(earlier.answers),
            server_errors: self.server_errors.saturating_sub(earlier.server_errors),
            connect_failures: self.connect_failures.saturating_sub(earlier.connect_failures),
            broken: self.broken.saturating_sub(earlier.broken),
            timeouts: self.timeouts.saturating_sub(earlier.timeouts),
            latency: self.latency.since(&earlier.latency),
            ..self.clone()
        }
    }

    /// Requests that it failed: answered with a 5xx status, or not at all.
    pub fn failures(&self) -> u64 {
        self.server_errors + self.connect_failures + self.broken + self.timeouts
    }
}
