//! Copies that could not be made harmless: why, a look at them, and their end.
//!
//! Such a copy holds another environment's data as they are. So what it says of itself is for everybody who sees the environment, and what is in it
//! for those who may have the source's data as they are: who may export them un-neutralized.

use chrono::TimeDelta;
use ocore_host::Inspect;
pub use ocore_host::Inspected;
use ocore_model::{environment::Stage, ids::EnvironmentId, quarantine::QuarantineStatus};
use serde_json::json;

pub use crate::store::quarantines::Quarantine;
use crate::{
    Control, Error, Result, audit,
    authorization::{Grant, ManageEnvironments, ManageSnapshots, Scope, ViewEnvironments},
    environments,
    reconcilers::quarantines::NAME,
    store,
};

/// It holds the original's secrets.
pub(crate) const KEPT: TimeDelta = TimeDelta::days(7);

const MAX_SQL: usize = 20_000;
/// Of a question, in the audit log.
const AUDITED_SQL: usize = 2000;
const MAX_ROWS: u32 = 500;
const MAX_BYTES: u64 = 1 << 20;
const MAX_CHARACTERS: u32 = 4000;
const SECONDS: u32 = 10;

/// `NotFound` when the environment has none.
pub async fn show(control: &Control, grant: &Grant<ViewEnvironments>, environment: EnvironmentId) -> Result<Quarantine> {
    find(control, grant, environment).await
}

async fn find(control: &Control, scope: &Scope, environment: EnvironmentId) -> Result<Quarantine> {
    let mut connection = control.pool.acquire().await?;
    let environment = environments::read(&mut connection, scope, environment).await?;
    let found = store::quarantines::find(&mut connection, scope, environment.id).await?;
    found.filter(|found| found.status != QuarantineStatus::Removing).ok_or(Error::NotFound { what: "copy in quarantine" })
}

/// Production's data as they are go to nobody but an admin.
fn must_be_allowed(scope: &Scope, quarantine: &Quarantine) -> Result<()> {
    if quarantine.of_production || quarantine.source_stage == Some(Stage::Production) {
        scope.may_touch(Stage::Production)?;
    }
    Ok(())
}

/// Asks the copy's database; nothing in it changes. Who asks what is audited before it is asked.
pub async fn inspect(control: &Control, grant: &Grant<ManageSnapshots>, environment: EnvironmentId, sql: String) -> Result<Inspected> {
    let quarantine = find(control, grant, environment).await?;
    must_be_allowed(grant, &quarantine)?;
    if sql.trim().is_empty() || sql.len() > MAX_SQL || sql.contains('\0') {
        return Err(Error::invalid("sql", format!("give one statement of at most {MAX_SQL} bytes that gives rows")));
    }
    if quarantine.status != QuarantineStatus::Kept {
        return Err(Error::conflict("not_ready", "the copy is still being set aside; ask again in a moment"));
    }
    let asked: String = sql.chars().take(AUDITED_SQL).collect();
    let detail = json!({ "deployment": quarantine.deployment_id, "sql": asked });
    let mut connection = control.pool.acquire().await?;
    audit::record(&mut connection, control, grant, "quarantine.inspected", &subject(environment), &detail).await?;
    drop(connection);
    let question = Inspect { sql, max_rows: MAX_ROWS, max_bytes: MAX_BYTES, max_characters: MAX_CHARACTERS, seconds: SECONDS };
    let host = control.host.clone();
    // Whoever asks may go away; what was started for the answer is stopped all the same.
    let asking = tokio::spawn(async move { host.inspect_quarantined(quarantine.instance_id, quarantine.data_set_id, question).await });
    Ok(asking.await.map_err(|error| Error::internal("a question to a copy in quarantine", error))??)
}

/// Removes the copy with its data. Gone already is done.
pub async fn destroy(control: &Control, grant: &Grant<ManageEnvironments>, environment: EnvironmentId) -> Result<()> {
    let mut transaction = control.pool.begin().await?;
    let environment = environments::read(&mut transaction, grant, environment).await?;
    let Some(found) = store::quarantines::find(&mut transaction, grant, environment.id).await? else { return Ok(()) };
    if store::quarantines::give_up(&mut transaction, found.instance_id).await? {
        let detail = json!({ "branch": environment.branch, "deployment": found.deployment_id, "reason": found.message });
        audit::record(&mut transaction, control, grant, "quarantine.destroyed", &subject(environment.id), &detail).await?;
    }
    transaction.commit().await?;
    // Which removes it, and again should that fail.
    control.signals.wake(NAME);
    Ok(())
}

fn subject(environment: EnvironmentId) -> String {
    format!("environment:{environment}")
}
