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
mod operations;
mod organizations;
mod pool;
mod protection;
mod quarantines;
mod rehearsal;
mod reload;
mod removals;
mod scene;
mod servers;
mod sleep;
mod snapshots;
mod templates;
mod variables;
mod watch;
mod world;
