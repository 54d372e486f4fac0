//! Odoo itself: its configuration, its runs and what they mean, its serving processes, its logs.

pub(crate) mod failure;
pub(crate) mod log_record;
pub(crate) mod traceback;
pub(crate) mod verdict;
