//! What an installation can set about its edge.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};

use ocore_model::network::Network;

use crate::host_name::HostName;

/// An edge's settings. Sizes are bytes. [`EdgeConfig::new`] gives the defaults that each field names.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Where the world connects. An address whose kind the machine does not have (IPv6 switched off) is left out with a warning as long as
    /// another one works.
    pub listen: Vec<SocketAddr>,
    /// The administration socket; made with mode 0600.
    pub admin_socket: PathBuf,
    /// Where the last route snapshot is kept; the one before lies beside it as `<name>.previous`.
    pub routes_file: PathBuf,
    /// Proxies in front of this edge whose forwarded headers are believed. None by default.
    pub trusted_proxies: Vec<Network>,
    /// Request line and headers together; 32 KiB. What is larger gets a 431.
    pub header_size_limit: usize,
    /// Headers of one request; 100.
    pub header_count_limit: usize,
    /// For the headers of one request, and how long a connection may idle between two; 60 s.
    pub header_timeout: Duration,
    /// The body of one request; 1 GiB, for Odoo's uploads. What is larger gets a 413.
    pub body_size_limit: u64,
    /// The same for single host names, in the place of the limit for all.
    pub body_size_limits: HashMap<String, u64>,
    /// How long a client may pause within a body; 2 min. One that pauses longer gets a 408.
    pub body_timeout: Duration,
    /// What a client sends of a body at least, in bytes a second over the time in which it was waited for, once that is half a minute; 256. A
    /// slower one gets a 408: it would hold one of Odoo's workers for hours.
    pub body_rate: u64,
    /// How long a client may take to read nothing of its answer; 2 min. Its connection is cut then.
    pub write_timeout: Duration,
    /// To reach Odoo's port; 5 s. It is on this machine.
    pub connect_timeout: Duration,
    /// From the whole request to the first byte of Odoo's answer; 30 min, above Odoo's own `limit_time_real`.
    pub response_timeout: Duration,
    /// How long requests may take to end once the edge is asked to stop; 30 s. Then they are cut.
    pub shutdown_timeout: Duration,
    /// Take the sockets of the edge that answers at `admin_socket`, which finishes what it has begun; without one, start as ever. Not by default:
    /// a second edge is refused.
    pub take_over: bool,
    /// How long requests may take to end once a newer edge has taken over; 10 min. Then they are cut.
    pub handover_timeout: Duration,
    /// Over how long the websockets of a slot that the route has left, or of an edge that gives way, are told to go; 5 s. Who is told opens another.
    pub websocket_spread: Duration,
    /// Client connections at once; more wait in the kernel's queue. 8192.
    pub connection_limit: usize,
    /// Those of one address, websockets included, trusted proxies excepted; 1024: a company's network is one address. More get a 429.
    pub connections_per_client: usize,
    /// Bounds what is held for instances that come back in a moment.
    pub hold: HoldLimits,
    /// Bounds how many sleepers are woken.
    pub wakes: WakeLimits,
}

/// How many sleeping instances requests may wake in a minute. Beyond it they get a page, and words, that say when to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeLimits {
    /// By one client address, IPv6 addresses by their /64; 10. A company's network is one address.
    pub per_client: u32,
    /// By all; 60.
    pub in_all: u32,
}

impl Default for WakeLimits {
    fn default() -> Self {
        Self { per_client: 10, in_all: 60 }
    }
}

/// How much an edge holds at once. Beyond it requests get the page and the words that they would get without a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldLimits {
    /// Requests of one instance; 512.
    pub requests: usize,
    /// Handshakes of websockets of one instance, which wait apart from the requests; 256.
    pub websockets: usize,
    /// Both together of all instances; 2048, a fourth of the connections.
    pub in_all: usize,
    /// Bodies of all held requests, in bytes; 256 MiB. They are not read, so this counts what the kernel may have received of them: what a
    /// request announces, and at most one receive buffer.
    pub body_bytes: u64,
    /// Released requests that an instance gets at once when it serves again; 4. Each answer lets one more in.
    pub release_window: usize,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self { requests: 512, websockets: 256, in_all: 2048, body_bytes: 256 * 1024 * 1024, release_window: 4 }
    }
}

impl EdgeConfig {
    /// The largest body that a request for this host may have.
    pub(crate) fn body_limit(&self, host: &HostName) -> u64 {
        self.body_size_limits.get(host.as_str()).copied().unwrap_or(self.body_size_limit)
    }

    pub fn new(listen: Vec<SocketAddr>, admin_socket: impl Into<PathBuf>, routes_file: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            admin_socket: admin_socket.into(),
            routes_file: routes_file.into(),
            trusted_proxies: Vec::new(),
            header_size_limit: 32 * 1024,
            header_count_limit: 100,
            header_timeout: Duration::from_mins(1),
            body_size_limit: 1024 * 1024 * 1024,
            body_size_limits: HashMap::new(),
            body_timeout: Duration::from_mins(2),
            body_rate: 256,
            write_timeout: Duration::from_mins(2),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_mins(30),
            shutdown_timeout: Duration::from_secs(30),
            take_over: false,
            handover_timeout: Duration::from_mins(10),
            websocket_spread: Duration::from_secs(5),
            connection_limit: 8192,
            connections_per_client: 1024,
            hold: HoldLimits::default(),
            wakes: WakeLimits::default(),
        }
    }
}
