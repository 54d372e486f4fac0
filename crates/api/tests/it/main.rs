//! The API, whole, on a real PostgreSQL.

mod accounts;
mod authorization;
mod contract;
mod frame;
mod organizations;
mod projects;
mod support;
