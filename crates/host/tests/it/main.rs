//! The host on the real thing: processes, users, PostgreSQL, file systems. Needs root.

#![allow(clippy::disallowed_methods, reason = "nobody works in a test's trees while it looks at them")]

mod builds;
mod clusters;
mod data_sets;
mod distribution;
mod egress;
mod failures;
mod first_recovery;
mod hostile_data;
mod hostile_odoo;
mod imports;
mod ledger;
mod nursery;
mod odoo;
mod pause;
mod project;
mod quarantine;
mod rehearsal;
mod releases;
mod set_aside;
mod slots;
mod snapshot_consistency;
mod snapshot_damage;
mod snapshot_space;
mod snapshots;
mod survivors;
mod takeover;
mod templates;
mod update_and_serve;
mod warm_copies;
