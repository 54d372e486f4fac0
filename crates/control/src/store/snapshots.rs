//! Snapshots in the store.
//!
//! Locks: the environment before its snapshots, a snapshot after everything else. Whoever is going to use a snapshot locks its row with
//! [`lock_usable`]; whoever removes it locks it with [`lock`] and asks then who needs it.

use chrono::{DateTime, Utc};
use ocore_host::Standing;
use ocore_model::{
    deployment::DeploymentStatus,
    environment::{EnvironmentStatus, Stage},
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, OrganizationId, ProjectId, ServerId, SnapshotId, UserId},
    names::{CommitSha, OdooVersion},
    snapshot::{SnapshotKind, SnapshotStatus},
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::deployments::Page;
use crate::{Result, authorization::Scope};

/// A snapshot that has not been removed.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub organization_id: OrganizationId,
    pub project_id: ProjectId,
    pub environment_id: EnvironmentId,
    pub environment_name: String,
    pub environment_status: EnvironmentStatus,
    /// The environment's stage now.
    pub environment_stage: Stage,
    pub instance_id: InstanceId,
    pub server_id: ServerId,
    pub name: String,
    pub kind: SnapshotKind,
    pub status: SnapshotStatus,
    pub message: String,
    pub pinned: bool,
    /// The last one of an environment that was removed: it stays until then.
    pub kept_until: Option<DateTime<Utc>>,
    pub data_set_id: DataSetId,
    pub retires: bool,
    /// What was live on the data: the deployment, its commit, branch, stage and release.
    pub deployment_id: Option<DeploymentId>,
    pub commit_sha: Option<CommitSha>,
    pub branch: String,
    pub stage: Stage,
    pub release: Option<String>,
    pub odoo_version: OdooVersion,
    /// Of Odoo's `admin` in these data, sealed for the instance's row.
    pub admin_password: Option<Vec<u8>>,
    pub made_by_deployment_id: Option<DeploymentId>,
    /// Where that deployment is; `None` when a person asked for the snapshot.
    pub maker_status: Option<DeploymentStatus>,
    /// `own`, `raw` or `neutralized`; this and what follows is known when it is ready.
    pub standing: Option<String>,
    pub postgres_version: Option<String>,
    pub database_bytes: Option<i64>,
    pub file_store_bytes: Option<i64>,
    pub file_store_files: Option<i64>,
    pub modules_count: Option<i32>,
    pub live: Option<bool>,
    pub shares_blocks: Option<bool>,
    pub seconds: Option<f64>,
    pub damaged_files: Vec<String>,
    pub taken_at: Option<DateTime<Utc>>,
    pub verify_requested_at: Option<DateTime<Utc>>,
    pub verified_at: Option<DateTime<Utc>>,
    pub verification: Option<Value>,
    /// Who asked for it.
    pub created_by: Option<UserId>,
    pub created_by_name: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// A deployment that is open brings it to life.
    pub in_use: bool,
}

/// The one select behind every [`Snapshot`].
macro_rules! select_snapshots {
    ($filter:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            Snapshot,
            r#"select snapshots.id as "id: SnapshotId", snapshots.organization_id as "organization_id: OrganizationId",
                      snapshots.project_id as "project_id: ProjectId", snapshots.environment_id as "environment_id: EnvironmentId",
                      environments.name as environment_name, environments.status as "environment_status: EnvironmentStatus",
                      environments.stage as "environment_stage: Stage", snapshots.instance_id as "instance_id: InstanceId",
                      snapshots.server_id as "server_id: ServerId", snapshots.name, snapshots.kind as "kind: SnapshotKind",
                      snapshots.status as "status: SnapshotStatus", snapshots.message, snapshots.pinned, snapshots.kept_until,
                      snapshots.data_set_id as "data_set_id: DataSetId", snapshots.retires,
                      snapshots.deployment_id as "deployment_id: DeploymentId", snapshots.commit_sha as "commit_sha: CommitSha",
                      snapshots.branch, snapshots.stage as "stage: Stage", snapshots.release,
                      snapshots.odoo_version as "odoo_version: OdooVersion", snapshots.admin_password,
                      snapshots.made_by_deployment_id as "made_by_deployment_id: DeploymentId",
                      makers.status as "maker_status?: DeploymentStatus", snapshots.standing,
                      snapshots.postgres_version, snapshots.database_bytes, snapshots.file_store_bytes, snapshots.file_store_files,
                      snapshots.modules_count, snapshots.live, snapshots.shares_blocks, snapshots.seconds, snapshots.damaged_files,
                      snapshots.taken_at, snapshots.verify_requested_at, snapshots.verified_at, snapshots.verification,
                      snapshots.created_by as "created_by: UserId", users.name as "created_by_name?", snapshots.created_at,
                      snapshots.updated_at,
                      exists (select 1 from deployments where deployments.source_snapshot_id = snapshots.id
                              and deployments.status in ('queued', 'running')) as "in_use!"
               from snapshots
                   join environments on environments.id = snapshots.environment_id
                   left join users on users.id = snapshots.created_by
                   left join deployments as makers on makers.id = snapshots.made_by_deployment_id
               where snapshots.removed_at is null and "# + $filter
            $(, $argument)*
        )
    };
}

/// One of the organization.
pub async fn find(connection: &mut PgConnection, scope: &Scope, id: SnapshotId) -> Result<Option<Snapshot>> {
    Ok(select_snapshots!("snapshots.id = $2 and snapshots.organization_id = $1", scope.organization_id.as_uuid(), id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// One of any organization, for what runs as the installation itself.
pub(crate) async fn read(connection: &mut PgConnection, id: SnapshotId) -> Result<Option<Snapshot>> {
    Ok(select_snapshots!("snapshots.id = $1", id.as_uuid()).fetch_optional(connection).await?)
}

/// Those that an instance's data sets are still to become, the oldest first.
pub(crate) async fn owed_by(connection: &mut PgConnection, instance: InstanceId) -> Result<Vec<Snapshot>> {
    Ok(select_snapshots!(
        "snapshots.instance_id = $1 and snapshots.retires and snapshots.status = 'creating' order by snapshots.created_at",
        instance.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// One of any organization, locked against everybody who wants to use it until the end of the transaction.
pub(crate) async fn lock(connection: &mut PgConnection, id: SnapshotId) -> Result<Option<Snapshot>> {
    // A statement of its own: what it waits for is then seen by the next one.
    sqlx::query!("select id from snapshots where id = $1 for update", id.as_uuid()).fetch_optional(&mut *connection).await?;
    read(connection, id).await
}

/// One of the organization that is ready, locked against removal until the end of the transaction; `None` when it is not ready any more. In that
/// transaction write `source_snapshot_id` of the deployment that needs it: from then on it stays until the deployment has ended.
pub(crate) async fn lock_usable(connection: &mut PgConnection, scope: &Scope, id: SnapshotId) -> Result<Option<Snapshot>> {
    let usable = sqlx::query_scalar!(
        "select id from snapshots where id = $2 and organization_id = $1 and status = 'ready' and removed_at is null for share",
        scope.organization_id.as_uuid(),
        id.as_uuid(),
    )
    .fetch_optional(&mut *connection)
    .await?;
    if usable.is_none() { Ok(None) } else { read(connection, id).await }
}

/// Those of an environment, the newest first.
pub async fn list_of_environment(
    connection: &mut PgConnection,
    scope: &Scope,
    environment: EnvironmentId,
    page: Page,
) -> Result<Vec<Snapshot>> {
    Ok(select_snapshots!(
        "snapshots.environment_id = $2 and snapshots.organization_id = $1
         order by snapshots.created_at desc, snapshots.id desc limit $3 offset $4",
        scope.organization_id.as_uuid(),
        environment.as_uuid(),
        page.limit,
        page.offset
    )
    .fetch_all(connection)
    .await?)
}

/// How many there are; `None` when the organization has no such environment. A deleted one is there: its pinned snapshots are.
pub async fn count_of_environment(connection: &mut PgConnection, scope: &Scope, environment: EnvironmentId) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar!(
        r#"select (select count(*) from snapshots where environment_id = environments.id and removed_at is null) as "count!"
           from environments where id = $2 and organization_id = $1"#,
        scope.organization_id.as_uuid(),
        environment.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Those of a project's environments, the deleted ones' too, the newest first.
pub async fn list_of_project(connection: &mut PgConnection, scope: &Scope, project: ProjectId, page: Page) -> Result<Vec<Snapshot>> {
    Ok(select_snapshots!(
        "snapshots.project_id = $2 and snapshots.organization_id = $1
         order by snapshots.created_at desc, snapshots.id desc limit $3 offset $4",
        scope.organization_id.as_uuid(),
        project.as_uuid(),
        page.limit,
        page.offset
    )
    .fetch_all(connection)
    .await?)
}

pub async fn count_of_project(connection: &mut PgConnection, scope: &Scope, project: ProjectId) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar!(
        r#"select (select count(*) from snapshots where project_id = projects.id and removed_at is null) as "count!"
           from projects where id = $2 and organization_id = $1"#,
        scope.organization_id.as_uuid(),
        project.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Those of the organization.
pub async fn list(connection: &mut PgConnection, scope: &Scope) -> Result<Vec<Snapshot>> {
    Ok(select_snapshots!(
        "snapshots.organization_id = $1 order by snapshots.created_at desc, snapshots.id desc",
        scope.organization_id.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// Those that should lie in a server's pool, the oldest first.
pub(crate) async fn list_of_server(connection: &mut PgConnection, server: ServerId) -> Result<Vec<Snapshot>> {
    Ok(select_snapshots!("snapshots.server_id = $1 order by snapshots.created_at, snapshots.id", server.as_uuid())
        .fetch_all(connection)
        .await?)
}

/// A snapshot for which something is to be done on the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub id: SnapshotId,
    pub status: SnapshotStatus,
}

/// On a server: those that a person asked for and that are still to be taken (an operation takes the last one of what it removes), those that are to be removed, and the ready ones that somebody
/// wants checked. The oldest first.
pub(crate) async fn wanted(connection: &mut PgConnection, server: ServerId) -> Result<Vec<Wanted>> {
    Ok(sqlx::query_as!(
        Wanted,
        r#"select id as "id: SnapshotId", status as "status: SnapshotStatus" from snapshots
           where server_id = $1 and removed_at is null
               and (status = 'removing'
                    or (status = 'creating' and made_by_deployment_id is null and kept_until is null)
                    or (status = 'ready' and verify_requested_at is not null and (verified_at is null or verified_at < verify_requested_at)))
           order by created_at, id"#,
        server.as_uuid(),
    )
    .fetch_all(connection)
    .await?)
}

/// Which of these snapshots have been removed.
pub(crate) async fn removed_among(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<SnapshotId>> {
    Ok(sqlx::query_scalar!(r#"select id as "id: SnapshotId" from snapshots where id = any($1) and removed_at is not null"#, ids)
        .fetch_all(connection)
        .await?)
}

/// What [`insert_of_live`] writes; the rest is what is live now.
#[derive(Debug, Clone)]
pub(crate) struct NewSnapshot<'a> {
    pub id: SnapshotId,
    pub environment: EnvironmentId,
    pub name: &'a str,
    pub kind: SnapshotKind,
    /// The live data set itself becomes the snapshot once something else is live, instead of being copied.
    pub retires: bool,
    /// The deployment that makes it and answers for it; `None` has the reconciler take it.
    pub made_by: Option<DeploymentId>,
    pub created_by: Option<UserId>,
    /// It outlives its environment until then.
    pub kept_until: Option<DateTime<Utc>>,
}

/// Writes a snapshot that is being taken, of the data that are live in the environment as this transaction sees them: so a deployment writes it
/// *before* it writes what is live from then on. False when nothing is live, and when there is one of that id already.
pub(crate) async fn insert_of_live(connection: &mut PgConnection, new: NewSnapshot<'_>, now: DateTime<Utc>) -> Result<bool> {
    let inserted = sqlx::query!(
        "insert into snapshots (id, organization_id, project_id, environment_id, instance_id, server_id, name, kind, status, data_set_id,
                                retires, deployment_id, commit_sha, branch, stage, release, odoo_version, admin_password,
                                made_by_deployment_id, created_by, created_at, updated_at, kept_until)
         select $1, environments.organization_id, environments.project_id, environments.id, instances.id, instances.server_id, $3, $4,
                'creating', instances.active_data_set_id, $5, instances.active_deployment_id, environments.live_commit_sha,
                environments.branch, environments.stage, instances.active_release, instances.odoo_version, instances.admin_password,
                $6, $7, $8, $8, $9
         from environments join instances on instances.id = environments.instance_id
         where environments.id = $2 and instances.active_data_set_id is not null
         on conflict (id) do nothing",
        new.id.as_uuid(),
        new.environment.as_uuid(),
        new.name,
        new.kind.as_str(),
        new.retires,
        new.made_by.map(DeploymentId::as_uuid),
        new.created_by.map(UserId::as_uuid),
        now,
        new.kept_until,
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// What users wrote to a deployment's data before it was taken back.
pub(crate) async fn rescued_of(connection: &mut PgConnection, scope: &Scope, deployment: DeploymentId) -> Result<Option<SnapshotId>> {
    Ok(sqlx::query_scalar!(
        r#"select id as "id: SnapshotId" from snapshots
           where made_by_deployment_id = $2 and deployment_id = $2 and kind = 'safety' and organization_id = $1 and removed_at is null"#,
        scope.organization_id.as_uuid(),
        deployment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// Has a snapshot that is still to be taken show what is live now, since what was live when it was written is not any more. False when nothing
/// is live, or when it is not to be taken any more.
pub(crate) async fn follow_live(connection: &mut PgConnection, id: SnapshotId, now: DateTime<Utc>) -> Result<bool> {
    let updated = sqlx::query!(
        "update snapshots
         set data_set_id = instances.active_data_set_id, deployment_id = instances.active_deployment_id,
             commit_sha = environments.live_commit_sha, branch = environments.branch, stage = environments.stage,
             release = instances.active_release, odoo_version = instances.odoo_version, admin_password = instances.admin_password,
             updated_at = $2
         from environments, instances
         where snapshots.id = $1 and snapshots.status = 'creating' and environments.id = snapshots.environment_id
             and instances.id = snapshots.instance_id and instances.active_data_set_id is not null",
        id.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// The server has it whole. False when it is being removed, or is not there: then the server's is to be removed too.
pub(crate) async fn set_ready(connection: &mut PgConnection, taken: &ocore_host::Snapshot, now: DateTime<Utc>) -> Result<bool> {
    let message = match taken.damaged_files.len() {
        0 => String::new(),
        1 => "one file of the file store is not what its name says; Odoo had not finished it, or it was damaged before".to_owned(),
        count => format!("{count} files of the file store are not what their names say; they were damaged before"),
    };
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let updated = sqlx::query!(
        "update snapshots
         set status = 'ready', message = $2, standing = $3, postgres_version = $4, database_bytes = $5, file_store_bytes = $6,
             file_store_files = $7, modules_count = $8, live = $9, shares_blocks = $10, seconds = $11, damaged_files = $12, taken_at = $13,
             data_set_id = $14, release = coalesce($15, release), updated_at = $16
         where id = $1 and status in ('creating', 'failed') and removed_at is null",
        taken.id.as_uuid(),
        message,
        standing_word(taken.standing),
        taken.postgres_version,
        bytes(taken.database_bytes),
        bytes(taken.file_store_bytes),
        bytes(taken.file_store_files),
        i32::try_from(taken.modules.iter().filter(|module| module.state == "installed").count()).unwrap_or(i32::MAX),
        taken.live,
        taken.shares_blocks,
        taken.seconds,
        &taken.damaged_files,
        taken.taken_at,
        taken.data_set.as_uuid(),
        taken.release.as_ref().map(|release| release.0.as_str()),
        now,
    )
    .execute(&mut *connection)
    .await?;
    if updated.rows_affected() == 1 {
        return Ok(true);
    }
    // Once more is done.
    Ok(read(connection, taken.id).await?.is_some_and(|snapshot| snapshot.status == SnapshotStatus::Ready))
}

fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Own => "own",
        Standing::Raw => "raw",
        Standing::Neutralized => "neutralized",
    }
}

/// There are no data behind it, for the reason in the message. One that is being removed stays so.
pub(crate) async fn set_failed(connection: &mut PgConnection, id: SnapshotId, message: &str, now: DateTime<Utc>) -> Result<bool> {
    let updated = sqlx::query!(
        "update snapshots set status = 'failed', message = $2, updated_at = $3
         where id = $1 and status in ('creating', 'ready') and removed_at is null",
        id.as_uuid(),
        message,
        now,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// Takes back what [`insert_of_live`] wrote, when its deployment is taken back and the data set lives on. One that is taken already stays.
pub(crate) async fn withdraw(connection: &mut PgConnection, id: SnapshotId) -> Result<()> {
    sqlx::query!("update deployments set snapshot_id = null where snapshot_id = $1", id.as_uuid()).execute(&mut *connection).await?;
    sqlx::query!("delete from snapshots where id = $1 and status = 'creating'", id.as_uuid()).execute(connection).await?;
    Ok(())
}

/// The snapshot that keeps the data as they were before the deployment.
pub(crate) async fn set_of_deployment(connection: &mut PgConnection, deployment: DeploymentId, snapshot: SnapshotId) -> Result<()> {
    sqlx::query!("update deployments set snapshot_id = $2 where id = $1", deployment.as_uuid(), snapshot.as_uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// The last snapshot of an instance that is being removed, when one is being taken or was.
pub(crate) async fn last_of(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<Snapshot>> {
    Ok(select_snapshots!(
        "snapshots.instance_id = $1 and snapshots.kept_until is not null and snapshots.status in ('creating', 'ready')
         order by snapshots.created_at desc, snapshots.id desc limit 1",
        instance.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Nothing of a project that is removed is kept because somebody pinned it.
pub(crate) async fn unpin_of_project(connection: &mut PgConnection, project: ProjectId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update snapshots set pinned = false, updated_at = $2 where project_id = $1 and pinned", project.as_uuid(), now)
        .execute(connection)
        .await?;
    Ok(())
}

/// How many of an environment's are pinned. Lock the environment first, or it may be another number when you use it.
pub(crate) async fn count_pinned(connection: &mut PgConnection, environment: EnvironmentId) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        r#"select count(*) as "count!" from snapshots
           where environment_id = $1 and pinned and removed_at is null and status <> 'removing'"#,
        environment.as_uuid(),
    )
    .fetch_one(connection)
    .await?)
}

/// Changes what is given. The caller has locked it and knows that it may.
pub(crate) async fn change(
    connection: &mut PgConnection,
    id: SnapshotId,
    name: Option<&str>,
    pinned: Option<bool>,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "update snapshots set name = coalesce($2, name), pinned = coalesce($3, pinned), updated_at = $4 where id = $1",
        id.as_uuid(),
        name,
        pinned,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Says more of one that does not change otherwise.
pub(crate) async fn set_message(connection: &mut PgConnection, id: SnapshotId, message: &str, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update snapshots set message = $2, updated_at = $3 where id = $1 and message <> $2 and removed_at is null",
        id.as_uuid(),
        message,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The data are still the instance's, for that reason.
pub(crate) async fn set_owed(connection: &mut PgConnection, id: SnapshotId, why: &str, now: DateTime<Utc>) -> Result<()> {
    let message = format!("its data are still where they were, and keeping them is tried again: {why}");
    set_message(connection, id, &message, now).await
}

/// It goes, for the reason in the message. The caller has locked it and knows that nobody needs it.
pub(crate) async fn set_removing(connection: &mut PgConnection, id: SnapshotId, message: &str, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update snapshots set status = 'removing', message = $2, updated_at = $3 where id = $1", id.as_uuid(), message, now,)
        .execute(connection)
        .await?;
    Ok(())
}

/// The server has it no more. Its password goes with it.
pub(crate) async fn set_removed(connection: &mut PgConnection, id: SnapshotId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "update snapshots set removed_at = $2, admin_password = null, updated_at = $2 where id = $1 and status = 'removing'",
        id.as_uuid(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn request_verification(connection: &mut PgConnection, id: SnapshotId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update snapshots set verify_requested_at = $2, updated_at = $2 where id = $1", id.as_uuid(), now)
        .execute(connection)
        .await?;
    Ok(())
}

/// What a check found, or why it could not be made.
pub(crate) async fn set_verified(connection: &mut PgConnection, id: SnapshotId, found: &Value, now: DateTime<Utc>) -> Result<()> {
    sqlx::query!("update snapshots set verified_at = $2, verification = $3, updated_at = $2 where id = $1", id.as_uuid(), now, found)
        .execute(connection)
        .await?;
    Ok(())
}
