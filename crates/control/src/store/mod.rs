//! The store: PostgreSQL, one file a noun. A function takes a connection (or a transaction) and never opens its own; a tenant's rows need
//! a [`crate::authorization::Scope`] or [`crate::authorization::System`]. Queries are checked against the schema when they are compiled.

pub(crate) mod accounts;
pub(crate) mod api_keys;
pub(crate) mod deploy;
pub(crate) mod destroy;
pub(crate) mod health;
pub(crate) mod members;
pub(crate) mod operations;
pub(crate) mod organizations;
pub(crate) mod projects;
pub(crate) mod reconcilers;
pub(crate) mod repositories;
pub(crate) mod roles;
pub(crate) mod routes;
pub(crate) mod servers;
pub(crate) mod steps;
