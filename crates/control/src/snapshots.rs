//! Snapshots: what is kept of an environment's data, by whom it was asked for, and until when.
//!
//! The rows say what should be; taking, checking and removing on the server is done by a reconciler (`reconcilers/snapshot_work.rs`), so that a
//! call is answered at once and a crash forgets nothing. How long they are kept is decided in `reconcilers/snapshots.rs`.

use chrono::{DateTime, Utc};
use ocore_host::SnapshotEstimate;
use ocore_model::{
    environment::EnvironmentStatus,
    ids::{DataSetId, EnvironmentId, ProjectId, SnapshotId},
    snapshot::{FailurePolicy, SnapshotEvent, SnapshotKind, SnapshotStatus},
};
use serde_json::json;
use sqlx::PgConnection;

pub use crate::store::{deployments::Page, snapshot_settings::SnapshotSettings, snapshots::Snapshot};
use crate::{
    Control, Error, FieldError, Result, audit,
    authorization::{Grant, ManageSnapshots, Scope, ViewSnapshots},
    reconcilers::snapshot_work,
    store::{self, environments::Environment, snapshots::NewSnapshot},
};

const NAME_LENGTH: usize = 100;
const PINNED_MOST: i32 = 100;
const RETENTION_DAYS: std::ops::RangeInclusive<i32> = 1..=3650;
const TIMEOUT_SECONDS: std::ops::RangeInclusive<i32> = 10..=86_400;

/// Those of an environment, the newest first, and how many there are. A deleted environment still has those that were pinned.
pub async fn list_of_environment(
    control: &Control,
    grant: &Grant<ViewSnapshots>,
    environment: EnvironmentId,
    page: Page,
) -> Result<(Vec<Snapshot>, i64)> {
    let mut connection = control.pool.acquire().await?;
    let total = store::snapshots::count_of_environment(&mut connection, grant, environment).await?;
    let total = total.ok_or(Error::NotFound { what: "environment" })?;
    Ok((store::snapshots::list_of_environment(&mut connection, grant, environment, page).await?, total))
}

/// Those of all environments of a project, the deleted ones' too.
pub async fn list_of_project(
    control: &Control,
    grant: &Grant<ViewSnapshots>,
    project: ProjectId,
    page: Page,
) -> Result<(Vec<Snapshot>, i64)> {
    let mut connection = control.pool.acquire().await?;
    let total = store::snapshots::count_of_project(&mut connection, grant, project).await?;
    let total = total.ok_or(Error::NotFound { what: "project" })?;
    Ok((store::snapshots::list_of_project(&mut connection, grant, project, page).await?, total))
}

pub async fn find(control: &Control, grant: &Grant<ViewSnapshots>, id: SnapshotId) -> Result<Snapshot> {
    read(&mut *control.pool.acquire().await?, grant, id).await
}

async fn read(connection: &mut PgConnection, scope: &Scope, id: SnapshotId) -> Result<Snapshot> {
    store::snapshots::find(connection, scope, id).await?.ok_or(Error::NotFound { what: "snapshot" })
}

/// Has a snapshot taken of what is live, while it serves: it is written down as `creating` and taken soon after, also when this process dies
/// before. The environment's instance is not held: a deployment may run meanwhile.
pub async fn create(control: &Control, grant: &Grant<ManageSnapshots>, environment: EnvironmentId, name: Option<&str>) -> Result<Snapshot> {
    let name = name.map(checked_name).transpose()?;
    let mut transaction = control.pool.begin().await?;
    let environment = environment_of(&mut transaction, grant, environment).await?;
    let now = control.clock.now();
    let name = name.unwrap_or_else(|| default_name(&environment.branch, now));
    let new = NewSnapshot {
        id: SnapshotId::new(),
        environment: environment.id,
        name: &name,
        kind: SnapshotKind::Manual,
        retires: false,
        made_by: None,
        created_by: Some(grant.user_id),
        kept_until: None,
    };
    let id = new.id;
    if !store::snapshots::insert_of_live(&mut transaction, new, now).await? {
        return Err(nothing_live());
    }
    let written = read(&mut transaction, grant, id).await?;
    transaction.commit().await?;
    control.signals.wake(snapshot_work::NAME);
    Ok(written)
}

/// The name of a snapshot to which nobody gave one: branch and minute, in UTC.
pub(crate) fn default_name(branch: &str, now: DateTime<Utc>) -> String {
    let minute = now.format("%Y-%m-%d %H:%M").to_string();
    let branch: String = branch.chars().take(NAME_LENGTH - minute.len() - 1).collect();
    format!("{branch} {minute}")
}

fn nothing_live() -> Error {
    Error::conflict("nothing_live", "nothing is live in the environment yet, so there are no data; deploy a commit first")
}

/// What changes of a snapshot; `None` stays.
#[derive(Debug, Clone, Default)]
pub struct SnapshotPatch {
    pub name: Option<String>,
    pub pinned: Option<bool>,
}

/// Renames, pins and unpins. What is pinned is kept until somebody unpins it, also when its environment is deleted; an environment has at most
/// `maxPinned` of them.
pub async fn update(control: &Control, grant: &Grant<ManageSnapshots>, id: SnapshotId, patch: SnapshotPatch) -> Result<Snapshot> {
    let name = patch.name.as_deref().map(checked_name).transpose()?;
    let mut transaction = control.pool.begin().await?;
    let snapshot = lock(&mut transaction, grant, id).await?;
    may_change(grant, &snapshot)?;
    if snapshot.status == SnapshotStatus::Removing {
        return Err(removing());
    }
    if patch.pinned == Some(true) && !snapshot.pinned {
        if snapshot.status == SnapshotStatus::Failed {
            return Err(Error::conflict("snapshot_failed", format!("there are no data behind it to keep: {}", snapshot.message)));
        }
        let settings = settings_of(&mut transaction, snapshot.environment_id).await?;
        let pinned = store::snapshots::count_pinned(&mut transaction, snapshot.environment_id).await?;
        if pinned >= i64::from(settings.max_pinned) {
            return Err(Error::conflict(
                "too_many_pinned",
                format!(
                    "{pinned} snapshots of {} are pinned, and its settings allow {} (maxPinned); unpin one, or raise the limit",
                    snapshot.environment_name, settings.max_pinned
                ),
            ));
        }
    }
    store::snapshots::change(&mut transaction, id, name.as_deref(), patch.pinned, control.clock.now()).await?;
    let changed = read(&mut transaction, grant, id).await?;
    transaction.commit().await?;
    Ok(changed)
}

/// Has a snapshot removed. A second call finds that it is on its way.
pub async fn delete(control: &Control, grant: &Grant<ManageSnapshots>, id: SnapshotId) -> Result<()> {
    let mut transaction = control.pool.begin().await?;
    let snapshot = lock(&mut transaction, grant, id).await?;
    may_change(grant, &snapshot)?;
    if snapshot.status == SnapshotStatus::Removing {
        return Ok(());
    }
    if snapshot.pinned {
        return Err(Error::conflict("snapshot_pinned", "the snapshot is pinned; unpin it first"));
    }
    must_be_free(&snapshot)?;
    snapshot.status.next(SnapshotEvent::RemovalRequested)?;
    store::snapshots::set_removing(&mut transaction, id, "somebody removed it", control.clock.now()).await?;
    let detail = json!({ "name": snapshot.name, "kind": snapshot.kind, "environment": snapshot.environment_id });
    audit::record(&mut transaction, control, grant, "snapshot.removed", &format!("snapshot:{id}"), &detail).await?;
    transaction.commit().await?;
    control.signals.wake(snapshot_work::NAME);
    Ok(())
}

/// What a deployment makes or brings to life is not removed under it.
fn must_be_free(snapshot: &Snapshot) -> Result<()> {
    let making = snapshot.status == SnapshotStatus::Creating && snapshot.made_by_deployment_id.is_some();
    if snapshot.in_use || making {
        let what = if snapshot.in_use { "uses" } else { "is making" };
        return Err(Error::conflict("snapshot_in_use", format!("a deployment {what} the snapshot; wait for its end, or cancel it")));
    }
    Ok(())
}

/// What a snapshot of the environment would hold now, without taking it.
pub async fn estimate(control: &Control, grant: &Grant<ViewSnapshots>, environment: EnvironmentId) -> Result<SnapshotEstimate> {
    let mut connection = control.pool.acquire().await?;
    let environment = environment_of(&mut connection, grant, environment).await?;
    let live: Option<DataSetId> =
        store::deploy::live(&mut connection, environment.instance_id).await?.and_then(|live| live.active_data_set_id);
    drop(connection);
    Ok(control.host.estimate_snapshot(environment.instance_id, live.ok_or_else(nothing_live)?).await?)
}

/// Has all of a snapshot read and checked. What is found is on the snapshot when it is done, which takes as long as reading its files.
pub async fn verify(control: &Control, grant: &Grant<ManageSnapshots>, id: SnapshotId) -> Result<Snapshot> {
    let mut transaction = control.pool.begin().await?;
    let snapshot = lock(&mut transaction, grant, id).await?;
    match snapshot.status {
        SnapshotStatus::Ready => {}
        SnapshotStatus::Creating => return Err(Error::conflict("snapshot_not_ready", "the snapshot is still being taken; try again then")),
        SnapshotStatus::Failed => {
            return Err(Error::conflict("snapshot_failed", format!("there are no data behind it to check: {}", snapshot.message)));
        }
        SnapshotStatus::Removing => return Err(removing()),
    }
    store::snapshots::request_verification(&mut transaction, id, control.clock.now()).await?;
    let asked = read(&mut transaction, grant, id).await?;
    transaction.commit().await?;
    control.signals.wake(snapshot_work::NAME);
    Ok(asked)
}

/// How the environment's snapshots are made and kept.
pub async fn settings(control: &Control, grant: &Grant<ViewSnapshots>, environment: EnvironmentId) -> Result<SnapshotSettings> {
    let mut connection = control.pool.acquire().await?;
    let environment = environment_of(&mut connection, grant, environment).await?;
    settings_of(&mut connection, environment.id).await
}

/// What of the settings changes; `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct SettingsPatch {
    pub auto_enabled: Option<bool>,
    pub failure_policy: Option<FailurePolicy>,
    pub max_pinned: Option<i32>,
    pub retention_days: Option<i32>,
    pub timeout_seconds: Option<i32>,
}

/// Changes what is given. More may be pinned already than `max_pinned` then allows; they stay.
pub async fn set_settings(
    control: &Control,
    grant: &Grant<ManageSnapshots>,
    environment: EnvironmentId,
    patch: SettingsPatch,
) -> Result<SnapshotSettings> {
    let mut fields = Vec::new();
    let mut within = |field: &str, value: Option<i32>, range: std::ops::RangeInclusive<i32>| {
        if value.is_some_and(|value| !range.contains(&value)) {
            fields.push(FieldError { field: field.to_owned(), message: format!("use {} to {}", range.start(), range.end()) });
        }
    };
    within("maxPinned", patch.max_pinned, 0..=PINNED_MOST);
    within("retentionDays", patch.retention_days, RETENTION_DAYS);
    within("timeoutSeconds", patch.timeout_seconds, TIMEOUT_SECONDS);
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    let mut transaction = control.pool.begin().await?;
    let environment = environment_of(&mut transaction, grant, environment).await?;
    grant.may_touch(environment.stage)?;
    // Locked, so that of two who change something different neither is lost.
    store::environments::lock(&mut transaction, environment.id).await?;
    let before = settings_of(&mut transaction, environment.id).await?;
    let settings = SnapshotSettings {
        auto_enabled: patch.auto_enabled.unwrap_or(before.auto_enabled),
        failure_policy: patch.failure_policy.unwrap_or(before.failure_policy),
        max_pinned: patch.max_pinned.unwrap_or(before.max_pinned),
        retention_days: patch.retention_days.unwrap_or(before.retention_days),
        timeout_seconds: patch.timeout_seconds.unwrap_or(before.timeout_seconds),
    };
    store::snapshot_settings::set(&mut transaction, environment.id, &settings, control.clock.now()).await?;
    let written = |settings: &SnapshotSettings| {
        json!({
            "autoEnabled": settings.auto_enabled, "failurePolicy": settings.failure_policy, "maxPinned": settings.max_pinned,
            "retentionDays": settings.retention_days, "timeoutSeconds": settings.timeout_seconds,
        })
    };
    let detail = json!({ "before": written(&before), "after": written(&settings) });
    audit::record(
        &mut transaction,
        control,
        grant,
        "environment.snapshot_settings_changed",
        &format!("environment:{}", environment.id),
        &detail,
    )
    .await?;
    transaction.commit().await?;
    Ok(settings)
}

async fn settings_of(connection: &mut PgConnection, environment: EnvironmentId) -> Result<SnapshotSettings> {
    let settings = store::snapshot_settings::of_environment(connection, environment).await?;
    settings.ok_or(Error::NotFound { what: "environment" })
}

/// One that is not deleted or about to be.
async fn environment_of(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId) -> Result<Environment> {
    let found = store::environments::find(connection, scope, id).await?.ok_or(Error::NotFound { what: "environment" })?;
    match found.status {
        EnvironmentStatus::Active => Ok(found),
        EnvironmentStatus::Removing => Err(Error::conflict("environment_removing", "the environment is being deleted")),
        EnvironmentStatus::Deleted => Err(Error::NotFound { what: "environment" }),
    }
}

/// One of the caller's organization, locked after its environment.
async fn lock(connection: &mut PgConnection, scope: &Scope, id: SnapshotId) -> Result<Snapshot> {
    let seen = read(connection, scope, id).await?;
    store::environments::lock(connection, seen.environment_id).await?;
    store::snapshots::lock(connection, id).await?.ok_or(Error::NotFound { what: "snapshot" })
}

/// Developers look after the snapshots of their environments; what protects production's data is for its administrators.
fn may_change(scope: &Scope, snapshot: &Snapshot) -> Result<()> {
    scope.may_touch(snapshot.stage)?;
    scope.may_touch(snapshot.environment_stage)
}

fn checked_name(name: &str) -> Result<String> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME_LENGTH || name.chars().any(char::is_control) {
        return Err(Error::invalid("name", format!("use 1 to {NAME_LENGTH} characters, on one line")));
    }
    Ok(name.to_owned())
}

fn removing() -> Error {
    Error::conflict("snapshot_removing", "the snapshot is being removed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_by_branch_and_minute_and_long_branches_are_cut() {
        let now = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        assert_eq!(default_name("main", now), "main 2026-09-21 14:13");
        let long = default_name(&"x".repeat(200), now);
        assert_eq!(long.chars().count(), NAME_LENGTH);
        assert!(checked_name(&long).is_ok() && checked_name("a\nb").is_err() && checked_name(" ").is_err());
    }
}
