//! The control plane against a real PostgreSQL.

mod accounts;
mod branches;
mod environments;
mod events;
mod git;
mod scenario;
