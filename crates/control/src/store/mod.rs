//! The store: PostgreSQL, one file a noun. A function takes a connection (or a transaction) and never opens its own; a tenant's rows need
//! a [`crate::authorization::Scope`] or [`crate::authorization::System`]. Queries are checked against the schema when they are compiled.

pub(crate) mod accounts;
pub(crate) mod api_keys;
pub mod audit;
pub mod branches;
pub(crate) mod deploy;
pub mod deployments;
pub(crate) mod destroy;
pub(crate) mod egress;
pub mod environments;
pub mod events;
pub mod evidence;
pub mod exports;
pub(crate) mod health;
pub(crate) mod idempotency;
pub mod imports;
pub mod instances;
pub(crate) mod mail;
pub(crate) mod marks;
pub(crate) mod members;
pub mod neutralizations;
pub(crate) mod operations;
pub(crate) mod organizations;
pub mod pipeline;
pub(crate) mod plans;
mod pool;
pub(crate) mod projects;
pub mod quarantines;
pub(crate) mod reconcilers;
pub(crate) mod removals;
pub(crate) mod repositories;
pub(crate) mod roles;
pub mod rollbacks;
pub(crate) mod routes;
pub(crate) mod servers;
pub(crate) mod sleep;
pub mod snapshot_settings;
pub mod snapshots;
pub(crate) mod steps;

pub use pool::pool_options;
