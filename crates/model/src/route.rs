//! What the edge knows: which host name leads where. A snapshot is complete and has a generation; a lower generation never replaces a higher one.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;

/// Everything that one edge routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSnapshot {
    pub generation: u64,
    pub routes: Vec<Route>,
}

/// One instance as the edge sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub instance_id: InstanceId,
    /// Full host names, lower case, without a port.
    pub hosts: Vec<String>,
    /// What a person calls it, for the pages that the edge itself shows.
    pub title: String,
    pub state: RouteState,
}

/// What the edge does with a request for a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum RouteState {
    /// Passes it on.
    Serving {
        http: SocketAddr,
        /// Where `/websocket` goes; `None` when the HTTP port serves it too (Odoo without workers).
        websocket: Option<SocketAddr>,
    },
    /// The first deployment is on its way. 503 with a page that reloads itself.
    Building { message: String },
    /// A deployment works on the data. 503 with a page that reloads itself.
    Updating { message: String },
    /// It comes back in a moment: requests wait and are passed on, in their order, to the slot that serves next. Who has no place, or waits
    /// too long, gets what `Updating` gives.
    Holding {
        message: String,
        /// Nobody waits any longer than this.
        until: DateTime<Utc>,
        /// One request waits at most so long.
        #[serde(default = "default_hold_seconds")]
        seconds: u32,
    },
    /// Nobody used it for a while. A request wakes it and waits for it, at most so many seconds; a person gets a page after two. The handshake of
    /// a websocket wakes nobody: a forgotten tab tries it again and again.
    Asleep { seconds: u32 },
    /// Somebody stopped it. 503 with a page.
    Stopped,
    /// 502 with a page that says no reason. The message is empty, and what older versions stored there is shown to nobody.
    Failed { message: String },
}

/// For who does not know how long it takes.
pub const DEFAULT_HOLD_SECONDS: u32 = 30;

fn default_hold_seconds() -> u32 {
    DEFAULT_HOLD_SECONDS
}
