//! Exports: an environment's data, written down for another Odoo. They are taken from a copy that is brought to life in an instance of its own,
//! so that the environment feels nothing of it.

use chrono::TimeDelta;
use ocore_host::ByteStream;
use ocore_model::{
    environment::{EnvironmentStatus, Stage},
    export::{ExportFormat, ExportStatus},
    ids::{EnvironmentId, ExportId},
};
use serde_json::json;

pub use crate::store::exports::Export;
use crate::{
    Control, Error, Result, audit,
    authorization::{Grant, ManageSnapshots, Scope, ViewSnapshots},
    environments,
    secrets::{self, Place},
    store::{self, exports::NewExport},
};

/// How long it can be downloaded, and how long one that waits is waited for.
pub(crate) const KEPT: TimeDelta = TimeDelta::days(1);
const SHOWN: i64 = 50;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct ExportRequest {
    pub format: ExportFormat,
    pub neutralized: bool,
    pub with_file_store: bool,
}

/// Production's data as they are go to nobody but an admin.
fn must_be_allowed(scope: &Scope, stage: Stage, neutralized: bool) -> Result<()> {
    if neutralized { Ok(()) } else { scope.may_touch(stage) }
}

/// Asks for an export; it is written as soon as the server has time for it.
pub async fn create(
    control: &Control,
    grant: &Grant<ManageSnapshots>,
    environment_id: EnvironmentId,
    request: ExportRequest,
) -> Result<Export> {
    let mut connection = control.pool.acquire().await?;
    let environment = store::environments::find(&mut connection, grant, environment_id).await?;
    let environment =
        environment.filter(|found| found.status == EnvironmentStatus::Active).ok_or(Error::NotFound { what: "environment" })?;
    must_be_allowed(grant, environment.stage, request.neutralized)?;
    let source = store::exports::source(&mut connection, environment_id).await?;
    if source.is_none_or(|source| source.data_set_id.is_none()) {
        return Err(Error::conflict("nothing_live", "the environment has no data yet; deploy it first"));
    }
    let now = control.clock.now();
    let kind = if request.neutralized { "-neutralized" } else { "" };
    let extension = match (request.format, request.with_file_store) {
        (ExportFormat::Zip, _) => "zip",
        (ExportFormat::Custom, false) => "dump",
        (ExportFormat::Custom | ExportFormat::Directory, _) => "tar",
    };
    let new = NewExport {
        id: ExportId::new(),
        organization_id: grant.organization_id,
        project_id: environment.project_id,
        environment_id,
        server_id: environment.server_id,
        format: request.format,
        neutralized: request.neutralized,
        with_file_store: request.with_file_store,
        file_name: format!("{}{kind}-{}.{extension}", environment.instance_slug, now.format("%Y%m%d-%H%M%S")),
        created_by: grant.user_id,
        expires_at: now + KEPT,
    };
    let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
    store::exports::insert(&mut transaction, &new).await?;
    let detail = json!({
        "branch": environment.branch, "stage": environment.stage, "export": new.id, "neutralized": new.neutralized,
        "withFileStore": new.with_file_store,
    });
    audit::record(&mut transaction, control, grant, "export.requested", &environments::subject(environment_id), &detail).await?;
    transaction.commit().await?;
    store::exports::find(&mut connection, grant, new.id).await?.ok_or_else(|| Error::broken("an export that was just written is not there"))
}

pub async fn show(control: &Control, grant: &Grant<ViewSnapshots>, id: ExportId) -> Result<Export> {
    find(control, grant, id).await
}

async fn find(control: &Control, scope: &Scope, id: ExportId) -> Result<Export> {
    let found = store::exports::find(&mut *control.pool.acquire().await?, scope, id).await?;
    found.ok_or(Error::NotFound { what: "export" })
}

/// The newest of an environment.
pub async fn list(control: &Control, grant: &Grant<ViewSnapshots>, environment: EnvironmentId) -> Result<Vec<Export>> {
    let mut connection = control.pool.acquire().await?;
    store::environments::find(&mut connection, grant, environment).await?.ok_or(Error::NotFound { what: "environment" })?;
    store::exports::list(&mut connection, grant, environment, SHOWN).await
}

/// Whether this caller may have an export's data.
async fn must_be_theirs(control: &Control, scope: &Scope, export: &Export) -> Result<()> {
    let environment = store::environments::find(&mut *control.pool.acquire().await?, scope, export.environment_id).await?;
    must_be_allowed(scope, environment.ok_or(Error::NotFound { what: "export" })?.stage, export.neutralized)
}

/// An export that may be downloaded by this caller.
pub async fn downloadable(control: &Control, grant: &Grant<ManageSnapshots>, id: ExportId) -> Result<Export> {
    let export = find(control, grant, id).await?;
    must_be_theirs(control, grant, &export).await?;
    match export.status {
        ExportStatus::Done => Ok(export),
        ExportStatus::Failed => Err(Error::conflict("export_failed", format!("the export failed: {}", export.message))),
        ExportStatus::Expired => Err(Error::conflict("expired", "the export is gone; ask for another")),
        ExportStatus::Waiting | ExportStatus::Running => Err(Error::conflict("not_ready", "the export is still being written")),
    }
}

/// Its bytes from there on, of one that is [`downloadable`] by this caller. Audited, each part of it.
pub async fn read(control: &Control, grant: &Grant<ManageSnapshots>, export: &Export, offset: u64) -> Result<ByteStream> {
    let detail = json!({
        "environment": export.environment_id, "neutralized": export.neutralized, "fileName": export.file_name, "from": offset,
    });
    let mut connection = control.pool.acquire().await?;
    audit::record(&mut connection, control, grant, "export.downloaded", &format!("export:{}", export.id), &detail).await?;
    drop(connection);
    Ok(control.host.read_export(export.id, offset).await?)
}

/// Of Odoo's `admin` in a neutralized export. Audited.
pub async fn admin_password(control: &Control, grant: &Grant<ManageSnapshots>, id: ExportId) -> Result<Option<String>> {
    let export = find(control, grant, id).await?;
    must_be_theirs(control, grant, &export).await?;
    let Some(sealed) = export.admin_password else { return Ok(None) };
    let secret = secrets::open(&control.settings, place(id), &sealed)?;
    let detail = json!({ "environment": export.environment_id });
    let mut connection = control.pool.acquire().await?;
    audit::record(&mut connection, control, grant, "export.credentials_read", &format!("export:{id}"), &detail).await?;
    Ok(Some(secret.expose_text()?.to_owned()))
}

pub(crate) fn place(id: ExportId) -> Place {
    Place { table: "exports", column: "admin_password", row: id.as_uuid() }
}

/// Removes it, or gives it up; whoever may have its data may. Gone already is done.
pub async fn delete(control: &Control, grant: &Grant<ManageSnapshots>, id: ExportId) -> Result<()> {
    must_be_theirs(control, grant, &find(control, grant, id).await?).await?;
    store::exports::expire(&mut *control.pool.acquire().await?, id).await
}
