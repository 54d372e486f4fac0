//! Odoo itself: its configuration, its runs and what they mean, its serving processes, its logs.

mod command;
mod config;
mod failure;
mod health;
mod log_record;
pub(super) mod logs;
mod run;
mod serve;
mod stop;
mod traceback;
mod verdict;
