//! The data plane of one server: storage pool, PostgreSQL clusters, Odoo distributions, releases, data sets, slots, logs.
//!
//! Owns real processes and files, and what it needs to find them again after a crash. Knows no tenants, no users and no HTTP API.
//! Everything above reaches it through [`Host`], whose arguments are serializable, whose effects are fenced by a [`Fence`], and whose
//! calls may all run twice.

pub mod api;
mod edge_client;
mod error;
pub mod local;
mod mail_client;
#[cfg(feature = "testing")]
pub mod testing;

pub use api::*;
pub use edge_client::EdgeClient;
pub use error::{HostError, Result};
pub use local::{LocalHost, LocalHostConfig, PrivateCluster};
pub use mail_client::MailClient;
