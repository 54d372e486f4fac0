//! The edge: the reverse proxy of one server, a process of its own.
//!
//! Owns the public listener, the routes in force (a whole snapshot with a generation, kept on disk), the connections to Odoo, and the pages
//! that people see when there is no Odoo to answer. It outlives the control plane: it asks nobody while it serves, and starts from its stored
//! snapshot when nobody is there. It knows no tenants, no store, and nothing of what Odoo says inside a request.

mod access;
mod admin;
mod body;
mod client;
mod closed;
mod config;
mod cookies;
mod crowd;
mod error;
mod frames;
mod handover;
mod headers;
mod heads;
mod hold;
mod host_name;
mod latency;
mod line;
mod metrics;
mod pages;
mod pool;
mod predecessor;
mod proxy;
mod reconnects;
mod refusal;
mod routes;
mod server;
mod slots;
mod snapshot_file;
mod traffic;
mod upgrade;
mod wakes;
mod workers;

pub use config::{EdgeConfig, HoldLimits, WakeLimits};
pub use error::EdgeError;
pub use server::{Edge, run, runtime};
