//! The control plane against a real PostgreSQL.

mod accounts;
mod api_keys;
mod branches;
mod copies;
mod deploy;
mod egress;
mod environments;
mod events;
mod exports;
mod first_account;
mod git;
mod git_border;
mod limits;
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
