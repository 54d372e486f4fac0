//! The API, whole, on a real PostgreSQL.

mod accounts;
mod authorization;
mod contract;
mod deployments;
mod egress;
mod environments;
mod frame;
mod git;
mod imports;
mod instances;
mod organizations;
mod projects;
mod quarantines;
mod snapshots;
mod support;
