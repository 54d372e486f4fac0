//! The audit log: changes that somebody may have to answer for, with who made them. A use case writes its entry in the transaction that makes
//! the change, so that there is neither without the other.

use ocore_model::{
    ids::{OrganizationId, UserId},
    permission::PermissionSet,
};
use serde_json::Value;
use sqlx::PgConnection;

pub use crate::store::audit::{AuditEntry, AuditFilter};
use crate::{
    Control, Result,
    authorization::{Credential, Grant, Scope, ViewAudit},
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

/// Takes note of what a person did as themselves, in an organization that they belong to: logged in, joined.
pub(crate) async fn record_of_person(
    connection: &mut PgConnection,
    control: &Control,
    organization: OrganizationId,
    user: UserId,
    action: &str,
    detail: &Value,
) -> Result<()> {
    let scope = Scope {
        organization_id: organization,
        organization_slug: String::new(),
        user_id: user,
        credential: Credential::Session,
        permissions: PermissionSet::default(),
    };
    record(connection, control, &scope, action, &format!("user:{user}"), detail).await
}

/// A page of those of the organization's entries that are wanted, and how many of them there are.
pub async fn list(control: &Control, grant: &Grant<ViewAudit>, filter: &AuditFilter, page: Page) -> Result<(Vec<AuditEntry>, i64)> {
    let mut connection = control.pool.acquire().await?;
    let entries = store::audit::list(&mut connection, grant, filter, page).await?;
    Ok((entries, store::audit::count(&mut connection, grant, filter).await?))
}
