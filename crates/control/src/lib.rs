//! The control plane, by noun: accounts, organizations, projects, environments, instances, deployments; the operations that change the
//! world and the reconcilers that keep it; the store behind them.
//!
//! Owns tenancy, rights, transactions and events. Knows no HTTP (that is `ocore-api`) and touches no process or file of an Odoo itself
//! (that is `ocore-host`, through [`ocore_host::Host`]).
//!
//! Every use case is a free function of its noun's module. It takes [`Control`] and a [`authorization::Grant`], the proof that its caller
//! has the right it needs, or a [`authorization::System`] when no person asked.

pub mod accounts;
pub mod api_keys;
pub mod audit;
pub mod authorization;
pub mod branches;
pub mod clones;
mod context;
pub mod deployments;
pub mod egress;
pub mod environments;
mod error;
pub mod events;
pub mod exports;
pub mod git;
pub mod health;
pub mod idempotency;
pub mod imports;
pub mod instances;
pub mod mail;
pub mod members;
mod networks;
pub mod neutralizations;
pub mod operations;
pub mod organizations;
pub mod pipeline;
pub mod plans;
pub mod projects;
pub mod quarantines;
pub mod reconcilers;
pub mod reports;
pub mod roles;
pub mod rollbacks;
pub mod routes;
pub mod secrets;
pub mod servers;
pub mod signals;
pub mod sleep;
pub mod snapshots;
pub mod space;
pub mod steps;
pub mod store;
pub mod variables;

pub use context::{Control, MailRelay, Settings, TenantLimits};
pub use error::{Error, FieldError, Result};
pub use sleep::SleepSettings;

/// Brings the store's schema up to date. May run twice, and on several machines at once (sqlx takes an advisory lock).
pub async fn migrate(pool: &sqlx::PgPool) -> Result<()> {
    sqlx::migrate!("./migrations").run(pool).await?;
    Ok(())
}
