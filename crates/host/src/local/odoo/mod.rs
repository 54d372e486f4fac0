//! Odoo itself: its configuration, its runs and what they mean, its serving processes, its logs.

pub(super) mod command;
mod config;
mod failure;
mod guard;
mod health;
pub(super) mod listening;
mod log_record;
pub(super) mod logs;
pub(super) mod nursery;
mod pause;
mod probe;
mod project;
mod rehearse;
pub(super) mod run;
mod serve;
mod stop;
mod takeover;
mod traceback;
mod update_and_serve;
mod verdict;
mod words;
