//! The host on the real thing: processes, users, PostgreSQL, file systems. Needs root.

mod clusters;
mod data_sets;
mod distribution;
mod ledger;
