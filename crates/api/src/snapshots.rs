//! Snapshots: database and file store of an environment at one moment, kept.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use ocore_control::{
    Error,
    authorization::{ManageSnapshots, ViewSnapshots},
    snapshots::{self, Page, Snapshot, SnapshotPatch, SnapshotSettings},
};
use ocore_model::{
    environment::Stage,
    snapshot::{FailurePolicy, SnapshotKind, SnapshotStatus},
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    deployments::PageQuery,
    extract::{FromPath, FromQuery, Input},
    wire::{Message, begun},
};

const TAG: &str = "Snapshots";

/// Database and file store of an environment at one moment.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Snapshot)]
pub(crate) struct SnapshotBody {
    id: Uuid,
    project_id: Uuid,
    environment_id: Uuid,
    environment_name: String,
    instance_id: Uuid,
    server_id: Uuid,
    name: String,
    kind: SnapshotKind,
    status: SnapshotStatus,
    /// Why it failed, or what a person should know of it.
    message: String,
    /// It stays until somebody unpins it.
    pinned: bool,
    /// The last one of a production that was removed: it stays until then.
    kept_until: Option<DateTime<Utc>>,
    /// A deployment brings it to life; until that has ended it cannot be removed.
    in_use: bool,
    /// What was live on the data: the deployment, its commit, branch, stage and release.
    deployment_id: Option<Uuid>,
    commit_sha: Option<String>,
    branch: String,
    environment_type: Stage,
    image_tag: Option<String>,
    odoo_version: String,
    /// The data are a neutralized copy. Null, as all that follows, until it is ready.
    is_neutralized: Option<bool>,
    postgres_version: Option<String>,
    database_bytes: Option<i64>,
    file_store_bytes: Option<i64>,
    file_store_files: Option<i64>,
    /// Installed modules.
    modules_count: Option<i32>,
    /// It was taken while the database served.
    live: Option<bool>,
    /// It shares its blocks with its source: it needs space only for what changes. False where the file system cannot.
    shares_blocks: Option<bool>,
    /// How long the copy took.
    duration_ms: Option<i64>,
    /// Files of the file store whose content is not what their name says, relative to the file store.
    damaged_files: Vec<String>,
    /// The moment that the data show.
    taken_at: Option<DateTime<Utc>>,
    /// The last check of all its files; null when nobody has asked for one.
    verification: Option<VerificationBody>,
    /// The name of who asked for it; null when a deployment made it.
    created_by: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// What reading all of a snapshot found.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SnapshotVerification)]
pub(crate) struct VerificationBody {
    requested_at: DateTime<Utc>,
    /// Null while it goes on, as what follows.
    verified_at: Option<DateTime<Utc>>,
    checked_files: Option<u64>,
    damaged: Vec<DamageBody>,
    /// Why it could not be made.
    error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SnapshotDamage)]
pub(crate) struct DamageBody {
    /// Relative to the snapshot.
    path: String,
    problem: String,
}

impl SnapshotBody {
    fn new(snapshot: Snapshot) -> Self {
        let verification = VerificationBody::of(&snapshot);
        Self {
            id: snapshot.id.as_uuid(),
            project_id: snapshot.project_id.as_uuid(),
            environment_id: snapshot.environment_id.as_uuid(),
            environment_name: snapshot.environment_name,
            instance_id: snapshot.instance_id.as_uuid(),
            server_id: snapshot.server_id.as_uuid(),
            name: snapshot.name,
            kind: snapshot.kind,
            status: snapshot.status,
            message: snapshot.message,
            pinned: snapshot.pinned,
            kept_until: snapshot.kept_until,
            in_use: snapshot.in_use,
            deployment_id: snapshot.deployment_id.map(Uuid::from),
            commit_sha: snapshot.commit_sha.map(String::from),
            branch: snapshot.branch,
            environment_type: snapshot.stage,
            image_tag: snapshot.release,
            odoo_version: snapshot.odoo_version.to_string(),
            is_neutralized: snapshot.standing.map(|standing| standing == "neutralized"),
            postgres_version: snapshot.postgres_version,
            database_bytes: snapshot.database_bytes,
            file_store_bytes: snapshot.file_store_bytes,
            file_store_files: snapshot.file_store_files,
            modules_count: snapshot.modules_count,
            live: snapshot.live,
            shares_blocks: snapshot.shares_blocks,
            duration_ms: snapshot.seconds.map(|seconds| (seconds * 1000.0).round() as i64),
            damaged_files: snapshot.damaged_files,
            taken_at: snapshot.taken_at,
            verification,
            created_by: snapshot.created_by_name,
            created_at: snapshot.created_at,
            updated_at: snapshot.updated_at,
        }
    }
}

impl VerificationBody {
    fn of(snapshot: &Snapshot) -> Option<Self> {
        let requested_at = snapshot.verify_requested_at?;
        // An older answer than the last question is none.
        let verified_at = snapshot.verified_at.filter(|verified_at| *verified_at >= requested_at);
        let found = snapshot.verification.as_ref().filter(|_| verified_at.is_some());
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        Some(Self {
            requested_at,
            verified_at,
            checked_files: found.and_then(|found| found["checkedFiles"].as_u64()),
            damaged: found
                .and_then(|found| found["damaged"].as_array())
                .into_iter()
                .flatten()
                .filter_map(|damage| Some(DamageBody { path: text(&damage["path"])?, problem: text(&damage["problem"])? }))
                .collect(),
            error: found.and_then(|found| text(&found["error"])),
        })
    }
}

/// A page of snapshots, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SnapshotList {
    snapshots: Vec<SnapshotBody>,
    limit: i64,
    offset: i64,
    total: i64,
}

impl SnapshotList {
    fn new(snapshots: Vec<Snapshot>, total: i64, page: Page) -> Json<Self> {
        Json(Self { snapshots: snapshots.into_iter().map(SnapshotBody::new).collect(), limit: page.limit, offset: page.offset, total })
    }
}

/// List environment snapshots
///
/// The newest first. A deleted environment still has those that were pinned.
#[utoipa::path(get, path = "/environments/{id}/snapshots", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment"), PageQuery),
    responses((status = 200, description = "A page of them", body = SnapshotList)))]
pub(crate) async fn list(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<PageQuery>,
) -> Result<Json<SnapshotList>, Problem> {
    let page = query.page()?;
    let (snapshots, total) = snapshots::list_of_environment(&state.control, &grant, id.into(), page).await?;
    Ok(SnapshotList::new(snapshots, total, page))
}

/// List project snapshots
///
/// Those of all its environments, also of deleted ones, the newest first.
#[utoipa::path(get, path = "/projects/{projectId}/snapshots", tag = TAG,
    params(("projectId" = Uuid, Path, description = "The project"), PageQuery),
    responses((status = 200, description = "A page of them", body = SnapshotList)))]
pub(crate) async fn list_of_project(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<PageQuery>,
) -> Result<Json<SnapshotList>, Problem> {
    let page = query.page()?;
    let (snapshots, total) = snapshots::list_of_project(&state.control, &grant, id.into(), page).await?;
    Ok(SnapshotList::new(snapshots, total, page))
}

/// Get a snapshot
#[utoipa::path(get, path = "/snapshots/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The snapshot")),
    responses((status = 200, description = "The snapshot", body = SnapshotBody)))]
pub(crate) async fn get(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<SnapshotBody>, Problem> {
    Ok(Json(SnapshotBody::new(snapshots::find(&state.control, &grant, id.into()).await?)))
}

/// A new snapshot.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSnapshot {
    /// Branch and minute when it is not given.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
}

/// Take a snapshot
///
/// Of what is live, while it serves and whatever else goes on: on a file system with reflinks it takes about two seconds at any size. It stays
/// until somebody removes it. Follow it by `GET /events` (`snapshot.status`) or ask for it again. 409 `nothing_live` before the first deployment.
#[utoipa::path(post, path = "/environments/{id}/snapshots", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = CreateSnapshot, responses((status = 202, description = "It is being taken", body = SnapshotBody)))]
pub(crate) async fn create(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    body: Option<Input<CreateSnapshot>>,
) -> Result<Response, Problem> {
    let body = body.map(|Input(body)| body).unwrap_or_default();
    let snapshot = snapshots::create(&state.control, &grant, id.into(), body.name.as_deref()).await?;
    Ok(accepted(snapshot))
}

/// 202, with where to ask for it again.
fn accepted(snapshot: Snapshot) -> Response {
    begun(StatusCode::ACCEPTED, &format!("/snapshots/{}", snapshot.id), SnapshotBody::new(snapshot))
}

/// What of a snapshot is changed; what is not given stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateSnapshot {
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    pinned: Option<bool>,
}

/// Rename, pin or unpin a snapshot
///
/// A pinned one is kept until somebody unpins it, also when its environment is deleted. 409 `too_many_pinned` at the environment's `maxPinned`. In
/// production this needs `manage:production`.
#[utoipa::path(patch, path = "/snapshots/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The snapshot")),
    request_body = UpdateSnapshot, responses((status = 200, description = "As it is now", body = SnapshotBody)))]
pub(crate) async fn update(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<UpdateSnapshot>,
) -> Result<Json<SnapshotBody>, Problem> {
    let patch = SnapshotPatch { name: body.name, pinned: body.pinned };
    Ok(Json(SnapshotBody::new(snapshots::update(&state.control, &grant, id.into(), patch).await?)))
}

/// Delete a snapshot
///
/// Its data go, asynchronously. 409 `snapshot_pinned` or `snapshot_in_use`. In production this needs `manage:production`. A second call is fine
/// until it is gone.
#[utoipa::path(delete, path = "/snapshots/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The snapshot")),
    responses((status = 202, description = "It is on its way", body = Message)))]
pub(crate) async fn delete(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<(StatusCode, Json<Message>), Problem> {
    snapshots::delete(&state.control, &grant, id.into()).await?;
    Ok((StatusCode::ACCEPTED, Message::json("the snapshot is being removed")))
}

/// Verify a snapshot
///
/// Reads all of it: files of the file store against their names, database pages against their checksums. What is found is in `verification` when it
/// is done, which takes as long as reading the files.
#[utoipa::path(post, path = "/snapshots/{id}/verify", tag = TAG, params(("id" = Uuid, Path, description = "The snapshot")),
    responses((status = 202, description = "It is being checked", body = SnapshotBody)))]
pub(crate) async fn verify(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Response, Problem> {
    Ok(accepted(snapshots::verify(&state.control, &grant, id.into()).await?))
}

/// What a snapshot would hold.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SnapshotEstimate)]
pub(crate) struct EstimateBody {
    database_bytes: u64,
    file_store_bytes: u64,
    file_store_files: u64,
    /// What the pool would have to give now; with reflinks only the new directory entries.
    needed_bytes: u64,
    available_bytes: u64,
}

/// Estimate the size of a snapshot
///
/// What a snapshot of the environment would hold now, without taking it.
#[utoipa::path(get, path = "/environments/{id}/snapshots/estimate", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "The sizes", body = EstimateBody)))]
pub(crate) async fn estimate(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<EstimateBody>, Problem> {
    let estimate = snapshots::estimate(&state.control, &grant, id.into()).await?;
    Ok(Json(EstimateBody {
        database_bytes: estimate.database_bytes,
        file_store_bytes: estimate.file_store_bytes,
        file_store_files: estimate.file_store_files,
        needed_bytes: estimate.needed_bytes,
        available_bytes: estimate.available_bytes,
    }))
}

/// How an environment's snapshots are made and kept.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SnapshotSettings)]
pub(crate) struct SettingsBody {
    /// Deployments keep the data as they were before them.
    auto_enabled: bool,
    /// What the next deployment does when the data before an earlier one still cannot be kept: `fail` before it changes anything, or `continue`.
    failure_policy: FailurePolicy,
    max_pinned: i32,
    /// How long automatic ones stay. The newest one stays however old it is.
    retention_days: i32,
    /// How long taking one may last.
    timeout_seconds: i32,
}

impl SettingsBody {
    fn json(settings: SnapshotSettings) -> Json<Self> {
        Json(Self {
            auto_enabled: settings.auto_enabled,
            failure_policy: settings.failure_policy,
            max_pinned: settings.max_pinned,
            retention_days: settings.retention_days,
            timeout_seconds: settings.timeout_seconds,
        })
    }
}

/// Get snapshot settings
///
/// Made with defaults when they are first read; production keeps automatic snapshots for two weeks, the others for one.
#[utoipa::path(get, path = "/environments/{id}/snapshot-settings", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "As they are", body = SettingsBody)))]
pub(crate) async fn settings(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<SettingsBody>, Problem> {
    Ok(SettingsBody::json(snapshots::settings(&state.control, &grant, id.into()).await?))
}

/// What of the settings is changed; what is not given stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateSnapshotSettings {
    auto_enabled: Option<bool>,
    #[schema(value_type = Option<FailurePolicy>)]
    failure_policy: Option<String>,
    /// 0 to 100
    #[schema(minimum = 0, maximum = 100)]
    max_pinned: Option<i32>,
    /// 1 to 3650
    #[schema(minimum = 1, maximum = 3650)]
    retention_days: Option<i32>,
    /// 10 to 86400
    #[schema(minimum = 10, maximum = 86400)]
    timeout_seconds: Option<i32>,
}

/// Update snapshot settings
///
/// For production this needs `manage:production`.
#[utoipa::path(put, path = "/environments/{id}/snapshot-settings", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment")), request_body = UpdateSnapshotSettings,
    responses((status = 200, description = "As they are now", body = SettingsBody)))]
pub(crate) async fn set_settings(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<UpdateSnapshotSettings>,
) -> Result<Json<SettingsBody>, Problem> {
    let failure_policy = body.failure_policy.map(|word| word.parse()).transpose();
    let failure_policy =
        failure_policy.map_err(|error: ocore_model::state::UnknownWord| Error::invalid("failurePolicy", error.to_string()))?;
    let patch = snapshots::SettingsPatch {
        auto_enabled: body.auto_enabled,
        failure_policy,
        max_pinned: body.max_pinned,
        retention_days: body.retention_days,
        timeout_seconds: body.timeout_seconds,
    };
    Ok(SettingsBody::json(snapshots::set_settings(&state.control, &grant, id.into(), patch).await?))
}
