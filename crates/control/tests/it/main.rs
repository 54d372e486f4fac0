//! The control plane against a real PostgreSQL.

mod accounts;
mod branches;
mod copies;
mod deploy;
mod egress;
mod environments;
mod events;
mod exports;
mod git;
mod git_border;
mod operations;
mod organizations;
mod pool;
mod quarantines;
mod rehearsal;
mod reload;
mod scene;
mod servers;
mod sleep;
mod snapshots;
mod templates;
mod watch;
mod world;
