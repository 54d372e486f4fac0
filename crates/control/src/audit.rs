//! The audit log: changes that somebody may have to answer for, with who made them. A use case writes its entry in the transaction that makes
//! the change, so that there is neither without the other.

use serde_json::Value;
use sqlx::PgConnection;

pub use crate::store::audit::AuditEntry;
use crate::{
    Control, Result,
    authorization::{Grant, Scope, ViewAudit},
    store::{self, deployments::Page},
};

/// Takes note of a change. `action` is `<noun>.<past participle>`, `subject` `<kind>:<id>`; `detail` never holds a secret.
pub(crate) async fn record(
    connection: &mut PgConnection,
    control: &Control,
    scope: &Scope,
    action: &str,
    subject: &str,
    detail: &Value,
) -> Result<()> {
    store::audit::insert(connection, scope, action, subject, detail, control.clock.now()).await
}

/// A page of the organization's entries, the newest first, and how many there are.
pub async fn list(control: &Control, grant: &Grant<ViewAudit>, page: Page) -> Result<(Vec<AuditEntry>, i64)> {
    let mut connection = control.pool.acquire().await?;
    let entries = store::audit::list(&mut connection, grant, page).await?;
    Ok((entries, store::audit::count(&mut connection, grant).await?))
}
