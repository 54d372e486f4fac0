//! The words that every floor of oCore shares: ids, names, states and their transitions, permissions, routes, deployment steps.
//!
//! Pure: no I/O, no async, no clock of its own. What needs the world takes a [`clock::Clock`] from its caller.

pub mod clock;
pub mod deployment;
pub mod edge;
pub mod egress;
pub mod environment;
pub mod evidence;
pub mod export;
pub mod histogram;
pub mod ids;
pub mod import;
pub mod instance;
pub mod mail;
pub mod module_version;
pub mod names;
pub mod network;
pub mod odoo_options;
pub mod operation;
pub mod permission;
pub mod plan;
pub mod project;
pub mod quarantine;
pub mod rehearsal;
pub mod report;
pub mod route;
pub mod snapshot;
pub mod state;
