//! The API, whole, on a real PostgreSQL.

mod accounts;
mod answers;
mod authorization;
mod contract;
mod deployments;
mod egress;
mod environments;
mod external_repositories;
mod frame;
mod git;
mod imports;
mod instances;
mod integrators;
mod mail;
mod organizations;
mod port;
mod production;
mod projects;
mod quarantines;
mod remote;
mod snapshots;
mod support;
