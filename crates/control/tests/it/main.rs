//! The control plane against a real PostgreSQL.

mod accounts;
mod git;
