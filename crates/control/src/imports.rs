//! Imports: an existing Odoo's data are uploaded, checked, and brought in by a deployment. Nothing is replaced before a check said yes, and what
//! was live before becomes a snapshot.

use chrono::{DateTime, TimeDelta, Utc};
use ocore_host::{ByteStream, ImportFacts, NewUpload};
use ocore_model::{
    deployment::{DataOrigin, Trigger},
    environment::EnvironmentStatus,
    ids::{EnvironmentId, ImportId},
    import::ImportStatus,
    names::BranchName,
};

pub use ocore_host::{UploadPart, UploadedPart};
use serde_json::json;

pub use crate::store::imports::Import;
use crate::{
    Control, Error, Result, audit,
    authorization::{Grant, ManageDeployments, Scope, ViewDeployments},
    deployments::{self, Starter},
    git, operations,
    store::{self, deployments::Deployment, environments::Environment, imports::NewImport},
};

/// How long an upload is kept when nothing happens with it.
const KEPT: TimeDelta = TimeDelta::days(1);
const FILE_NAME_LENGTH: usize = 255;
/// How many an environment shows.
const SHOWN: i64 = 50;

/// A file that a caller is going to upload.
#[derive(Debug, Clone)]
pub struct Announced {
    pub file_name: String,
    /// In bytes.
    pub size: u64,
    /// 64 hexadecimal digits.
    pub sha256: Option<String>,
}

impl Announced {
    fn check(&self) -> Result<()> {
        let name = self.file_name.trim();
        if name.is_empty() || name.chars().count() > FILE_NAME_LENGTH || name.chars().any(char::is_control) {
            return Err(Error::invalid("fileName", format!("use 1 to {FILE_NAME_LENGTH} characters, on one line")));
        }
        if self.size == 0 || i64::try_from(self.size).is_err() {
            return Err(Error::invalid("size", "give the file's size in bytes"));
        }
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.sha256.as_deref().is_some_and(|text| !is_digest(text)) {
            return Err(Error::invalid("sha256", "give 64 hexadecimal digits, or nothing"));
        }
        Ok(())
    }

    fn upload(&self, import: ImportId, part: UploadPart) -> NewUpload {
        NewUpload { import, part, size: self.size, sha256: self.sha256.as_ref().map(|text| text.to_ascii_lowercase()) }
    }
}

/// An import and how much of it has arrived.
#[derive(Debug, Clone)]
pub struct ImportState {
    pub import: Import,
    /// Empty when the upload is gone.
    pub parts: Vec<UploadedPart>,
}

fn until(control: &Control) -> DateTime<Utc> {
    control.clock.now() + KEPT
}

/// Into production as it is, which only an admin may; into any other stage made harmless.
fn must_be_allowed(scope: &Scope, environment: &Environment) -> Result<()> {
    scope.may_touch(environment.stage)
}

async fn environment(control: &Control, scope: &Scope, id: EnvironmentId) -> Result<Environment> {
    let found = store::environments::find(&mut *control.pool.acquire().await?, scope, id).await?;
    let environment = found.filter(|found| found.status != EnvironmentStatus::Deleted).ok_or(Error::NotFound { what: "environment" })?;
    if environment.status != EnvironmentStatus::Active {
        return Err(Error::conflict("environment_removing", "the environment is being deleted"));
    }
    Ok(environment)
}

/// Begins an import: room is made for the backup, which is then uploaded.
pub async fn create(
    control: &Control,
    grant: &Grant<ManageDeployments>,
    environment_id: EnvironmentId,
    backup: &Announced,
) -> Result<ImportState> {
    let environment = environment(control, grant, environment_id).await?;
    must_be_allowed(grant, &environment)?;
    backup.check()?;
    let new = NewImport {
        id: ImportId::new(),
        organization_id: grant.organization_id,
        project_id: environment.project_id,
        environment_id,
        server_id: environment.server_id,
        file_name: backup.file_name.trim().to_owned(),
        size: backup.size.cast_signed(),
        created_by: grant.user_id,
        expires_at: until(control),
    };
    // The row first, so that no upload is ever without one.
    store::imports::insert(&mut *control.pool.acquire().await?, &new).await?;
    if let Err(error) = control.host.open_upload(&backup.upload(new.id, UploadPart::Backup)).await {
        give_up(control, new.id, &error.to_string()).await?;
        return Err(no_room(error));
    }
    state(control, grant, new.id).await
}

/// The sentence has the numbers; an operator can act on it, and so may the caller.
fn no_room(error: ocore_host::HostError) -> Error {
    match error {
        ocore_host::HostError::Machine { summary, .. } => Error::Unavailable { code: "no_room", message: without_paths(&summary) },
        error => error.into(),
    }
}

/// A sentence of the server for people who are none of its operators.
fn without_paths(sentence: &str) -> String {
    sentence.split(' ').filter(|word| !word.starts_with('/')).collect::<Vec<_>>().join(" ")
}

async fn give_up(control: &Control, id: ImportId, why: &str) -> Result<()> {
    let open: Vec<ImportStatus> = ImportStatus::ALL.iter().copied().filter(|status| status.is_open()).collect();
    let now = control.clock.now();
    store::imports::set_status(&mut *control.pool.acquire().await?, id, &open, ImportStatus::Expired, why, now).await?;
    Ok(())
}

/// Announces a separate archive of the file store.
pub async fn add_file_store(control: &Control, grant: &Grant<ManageDeployments>, id: ImportId, archive: &Announced) -> Result<ImportState> {
    archive.check()?;
    let mut transaction = control.pool.begin().await?;
    let import = lock(&mut transaction, control, grant, id).await?;
    must_be_open(&import)?;
    if import.file_store_size.is_some_and(|size| size.cast_unsigned() != archive.size) {
        return Err(Error::conflict("file_store_announced", "an archive of another size was announced already; begin another import"));
    }
    store::imports::add_file_store(&mut transaction, id, archive.file_name.trim(), archive.size.cast_signed()).await?;
    control.host.open_upload(&archive.upload(id, UploadPart::FileStore)).await.map_err(no_room)?;
    transaction.commit().await?;
    state(control, grant, id).await
}

/// What came of an upload.
#[derive(Debug, Clone)]
pub struct Appended {
    pub part: UploadedPart,
    /// False when the bytes were meant for another place than where the part ends; then none was taken.
    pub taken: bool,
}

/// Takes bytes of a part from `offset` on, which must be what has arrived of it.
pub async fn append(
    control: &Control,
    grant: &Grant<ManageDeployments>,
    id: ImportId,
    part: UploadPart,
    offset: Option<u64>,
    body: ByteStream,
) -> Result<Appended> {
    let import = find(control, grant, id).await?;
    must_be_allowed(grant, &environment(control, grant, import.environment_id).await?)?;
    if import.status != ImportStatus::Receiving {
        return Err(Error::conflict("upload_ended", format!("nothing more is taken: the import is {}", import.status)));
    }
    let offset = offset.ok_or_else(|| Error::invalid("Upload-Offset", "say in this header where the bytes belong"))?;
    let before = control.host.upload(id).await?.into_iter().find(|found| found.part == part);
    let before = before.ok_or(Error::NotFound { what: "upload" })?;
    if before.received != offset {
        return Ok(Appended { part: before, taken: false });
    }
    let appended = control.host.append_upload(id, part, offset, body).await.map_err(no_room)?;
    let parts = control.host.upload(id).await?;
    let expected = 1 + usize::from(import.file_store_size.is_some());
    let is_whole = parts.len() == expected && parts.iter().all(UploadedPart::is_whole);
    let to = if is_whole { ImportStatus::Received } else { ImportStatus::Receiving };
    let mut connection = control.pool.acquire().await?;
    store::imports::set_status(&mut connection, id, &[ImportStatus::Receiving], to, "", until(control)).await?;
    Ok(Appended { part: appended, taken: true })
}

async fn find(control: &Control, scope: &Scope, id: ImportId) -> Result<Import> {
    let found = store::imports::find(&mut *control.pool.acquire().await?, scope, id).await?;
    found.ok_or(Error::NotFound { what: "import" })
}

async fn state(control: &Control, scope: &Scope, id: ImportId) -> Result<ImportState> {
    let import = find(control, scope, id).await?;
    let parts = if import.status.is_open() { control.host.upload(id).await? } else { Vec::new() };
    Ok(ImportState { import, parts })
}

pub async fn show(control: &Control, grant: &Grant<ViewDeployments>, id: ImportId) -> Result<ImportState> {
    state(control, grant, id).await
}

/// The newest of an environment.
pub async fn list(control: &Control, grant: &Grant<ViewDeployments>, environment: EnvironmentId) -> Result<Vec<Import>> {
    let mut connection = control.pool.acquire().await?;
    store::environments::find(&mut connection, grant, environment).await?.ok_or(Error::NotFound { what: "environment" })?;
    store::imports::list(&mut connection, grant, environment, SHOWN).await
}

async fn lock(connection: &mut sqlx::PgConnection, control: &Control, scope: &Scope, id: ImportId) -> Result<Import> {
    // The environment before what belongs to it.
    let import = store::imports::find(connection, scope, id).await?.ok_or(Error::NotFound { what: "import" })?;
    must_be_allowed(scope, &environment(control, scope, import.environment_id).await?)?;
    store::environments::lock(connection, import.environment_id).await?;
    store::imports::lock(connection, scope, id).await?.ok_or(Error::NotFound { what: "import" })
}

fn must_be_open(import: &Import) -> Result<()> {
    match import.status {
        ImportStatus::Importing => Err(Error::conflict("importing", "a deployment brings it in already")),
        ImportStatus::Done => Err(Error::conflict("imported", "it was imported already")),
        ImportStatus::Expired => Err(Error::conflict("expired", "its upload is gone; begin another import")),
        _ => Ok(()),
    }
}

/// Has a deployment bring it in, with the newest commit of the environment's branch. Only when the check found no problem; what it warned of
/// must be accepted.
pub async fn start(control: &Control, grant: &Grant<ManageDeployments>, id: ImportId, accept_warnings: bool) -> Result<Deployment> {
    let mut transaction = control.pool.begin().await?;
    let import = lock(&mut transaction, control, grant, id).await?;
    must_be_open(&import)?;
    let facts: Option<ImportFacts> = import.facts.clone().and_then(|facts| serde_json::from_value(facts).ok());
    let Some(facts) = facts.filter(|_| matches!(import.status, ImportStatus::Checked | ImportStatus::Failed)) else {
        return Err(match import.status {
            ImportStatus::Rejected => Error::conflict("rejected", format!("it cannot be imported: {}", import.message)),
            ImportStatus::Receiving => Error::conflict("not_received", "it has not arrived whole yet; go on with the upload"),
            _ => Error::conflict("not_checked", "it is still being checked; wait until its status is `checked`"),
        });
    };
    if !facts.warnings.is_empty() && !accept_warnings {
        let message = format!("{}; send acceptWarnings to go on", facts.warnings.join("; "));
        return Err(Error::conflict("warnings_not_accepted", message));
    }
    let environment = store::environments::lock(&mut transaction, import.environment_id).await?;
    let environment = environment.ok_or(Error::NotFound { what: "environment" })?;
    let branch: BranchName =
        environment.branch.parse().map_err(|error| Error::internal("the branch of an environment in the store", error))?;
    let head = git::branch_head(control, environment.project_id, &branch).await?.ok_or_else(|| {
        Error::conflict(
            "branch_missing",
            format!("the repository has no branch {branch}; push the modules that the data need, then import"),
        )
    })?;
    let origin = DataOrigin::Import { import: id };
    let deployment = deployments::insert(&mut transaction, &environment, &head, Starter::new(Trigger::Import, grant), origin, true).await?;
    store::imports::set_deployment(&mut transaction, id, deployment).await?;
    let written = store::deployments::find(&mut transaction, grant, deployment).await?;
    let detail = json!({ "import": id, "fileName": import.file_name, "deployment": deployment });
    audit::record(&mut transaction, control, grant, "environment.imported", &format!("environment:{}", environment.id), &detail).await?;
    transaction.commit().await?;
    operations::wake(control, environment.instance_id).await;
    written.ok_or_else(|| Error::broken("a deployment that was just written is not there"))
}

/// Whether the caller may bring bytes to this import.
pub async fn must_take(control: &Control, grant: &Grant<ManageDeployments>, id: ImportId) -> Result<()> {
    let import = find(control, grant, id).await?;
    let of = store::environments::find(&mut *control.pool.acquire().await?, grant, import.environment_id).await?;
    must_be_allowed(grant, &of.ok_or(Error::NotFound { what: "import" })?)
}

/// Gives it up; the upload goes. Gone already is done.
pub async fn delete(control: &Control, grant: &Grant<ManageDeployments>, id: ImportId) -> Result<()> {
    must_take(control, grant, id).await?;
    let import = find(control, grant, id).await?;
    match import.status {
        ImportStatus::Importing => Err(Error::conflict("importing", "a deployment brings it in; cancel that first")),
        ImportStatus::Done | ImportStatus::Expired => Ok(()),
        _ => {
            give_up(control, id, "given up").await?;
            Ok(control.host.remove_upload(id).await?)
        }
    }
}
