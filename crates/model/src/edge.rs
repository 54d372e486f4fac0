//! What an edge tells about itself: which routes it follows and what passes through it. A deployment drains by it, an idle environment sleeps by it.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;

/// An edge at one moment. Counters start at zero with the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeStatus {
    /// The generation of the routes in force; 0 when the edge has none yet.
    pub generation: u64,
    pub started_at: DateTime<Utc>,
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
