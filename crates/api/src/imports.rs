//! Imports: announce a backup, upload it in pieces that may break off, see what the check found, have it brought in.
//!
//! The upload follows the manner of tus 1.0 (`PATCH` with `Upload-Offset`, `HEAD` for where to go on), so that a client that knows one knows
//! the other.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use ocore_control::{
    authorization::{Grant, ManageDeployments, ViewDeployments},
    imports::{self, Announced, Import, ImportState, UploadPart, UploadedPart},
};
use ocore_model::{ids::ImportId, import::ImportStatus};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use tokio_util::io::StreamReader;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    extract::{FromPath, Input},
    wire::begun,
};

const TAG: &str = "Imports";
const OFFSET: &str = "upload-offset";
const LENGTH: &str = "upload-length";
const UPLOAD_TYPE: &str = "application/offset+octet-stream";

/// A file that is going to be uploaded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AnnouncedFile {
    #[schema(min_length = 1, max_length = 255)]
    file_name: String,
    /// In bytes.
    #[schema(minimum = 1)]
    size: u64,
    /// 64 hexadecimal digits; what arrives is compared with it.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    sha256: Option<String>,
}

impl From<AnnouncedFile> for Announced {
    fn from(file: AnnouncedFile) -> Self {
        Self { file_name: file.file_name, size: file.size, sha256: file.sha256 }
    }
}

/// Where a part is uploaded to, and from where on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UploadTarget {
    import_id: Uuid,
    /// The path that takes `PATCH`.
    upload_url: String,
    /// What has arrived, in bytes.
    offset: u64,
}

impl UploadTarget {
    fn new(state: &ImportState, part: UploadPart) -> Self {
        let id = state.import.id;
        Self { import_id: id.as_uuid(), upload_url: upload_url(id, part), offset: received(&state.parts, part) }
    }
}

fn upload_url(id: ImportId, part: UploadPart) -> String {
    match part {
        UploadPart::Backup => format!("/api/imports/{id}"),
        UploadPart::FileStore => format!("/api/imports/{id}/filestore"),
    }
}

fn received(parts: &[UploadedPart], part: UploadPart) -> u64 {
    parts.iter().find(|found| found.part == part).map_or(0, |found| found.received)
}

/// A part of an import.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ImportPart)]
pub(crate) struct PartBody {
    file_name: String,
    size: i64,
    /// What has arrived, in bytes; all of it when the upload is not needed any more.
    offset: u64,
    upload_url: String,
}

/// An import.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Import)]
pub(crate) struct ImportBody {
    id: Uuid,
    project_id: Uuid,
    environment_id: Uuid,
    status: ImportStatus,
    /// Why it was rejected or failed.
    message: String,
    backup: PartBody,
    file_store: Option<PartBody>,
    /// What the check found: format, versions, modules, sizes, `problems` that forbid it and `warnings` to accept. Null before it.
    #[schema(value_type = Option<Object>)]
    facts: Option<serde_json::Value>,
    /// What brings it in.
    deployment_id: Option<Uuid>,
    created_by: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    /// Until then the upload is kept.
    expires_at: DateTime<Utc>,
}

impl ImportBody {
    fn new(import: &Import, parts: &[UploadedPart]) -> Self {
        let part = |part: UploadPart, name: &str, size: i64| PartBody {
            file_name: name.to_owned(),
            size,
            offset: parts.iter().find(|found| found.part == part).map_or(size.cast_unsigned(), |found| found.received),
            upload_url: upload_url(import.id, part),
        };
        Self {
            id: import.id.as_uuid(),
            project_id: import.project_id.as_uuid(),
            environment_id: import.environment_id.as_uuid(),
            status: import.status,
            message: import.message.clone(),
            backup: part(UploadPart::Backup, &import.file_name, import.size),
            file_store: import
                .file_store_name
                .as_deref()
                .zip(import.file_store_size)
                .map(|(name, size)| part(UploadPart::FileStore, name, size)),
            facts: import.facts.clone(),
            deployment_id: import.deployment_id.map(Uuid::from),
            created_by: import.created_by.clone(),
            created_at: import.created_at,
            updated_at: import.updated_at,
            expires_at: import.expires_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImportList {
    imports: Vec<ImportBody>,
}

/// List imports
///
/// The newest 50 of an environment.
#[utoipa::path(get, path = "/environments/{id}/imports", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "The newest first", body = ImportList)))]
pub(crate) async fn list(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<ImportList>, Problem> {
    let imports = imports::list(&state.control, &grant, id.into()).await?;
    Ok(Json(ImportList { imports: imports.iter().map(|import| ImportBody::new(import, &[])).collect() }))
}

/// Begin an import
///
/// Announces a backup: a zip of Odoo's database manager, a dump of `pg_dump` (custom, or a directory as tar or tar.gz), or SQL, packed with gzip or
/// not. Room is made for it; 503 `no_room` says with numbers when there is none. Into production this needs `manage:production`, and the data
/// come in as they are; into any other stage they are made harmless on the way.
#[utoipa::path(post, path = "/environments/{id}/imports", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = AnnouncedFile, responses((status = 201, description = "Upload it there", body = UploadTarget)))]
pub(crate) async fn create(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<AnnouncedFile>,
) -> Result<Response, Problem> {
    let import = imports::create(&state.control, &grant, id.into(), &body.into()).await?;
    let location = format!("/imports/{}", import.import.id);
    Ok(begun(StatusCode::CREATED, &location, UploadTarget::new(&import, UploadPart::Backup)))
}

/// Announce a separate archive of the file store
///
/// A tar, tar.gz or zip of the directory that holds `filestore`, or of the database's directory in it. The import waits for it from then on.
#[utoipa::path(post, path = "/imports/{id}/filestore", tag = TAG, params(("id" = Uuid, Path, description = "The import")),
    request_body = AnnouncedFile, responses((status = 201, description = "Upload it there", body = UploadTarget)))]
pub(crate) async fn add_file_store(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<AnnouncedFile>,
) -> Result<Response, Problem> {
    let import = imports::add_file_store(&state.control, &grant, id.into(), &body.into()).await?;
    let location = format!("/imports/{}", import.import.id);
    Ok(begun(StatusCode::CREATED, &location, UploadTarget::new(&import, UploadPart::FileStore)))
}

/// Show an import
///
/// Its status, how much of it has arrived, and what the check found. `HEAD` answers with `Upload-Offset` and `Upload-Length` of the backup.
#[utoipa::path(get, path = "/imports/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The import")),
    responses((status = 200, description = "As it is now", body = ImportBody)))]
pub(crate) async fn show(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Response, Problem> {
    let found = imports::show(&state.control, &grant, id.into()).await?;
    let body = ImportBody::new(&found.import, &found.parts);
    let (offset, length) = (body.backup.offset, body.backup.size.cast_unsigned());
    let mut response = Json(body).into_response();
    set_offset(&mut response, offset, length);
    Ok(response)
}

/// Upload bytes of the backup
///
/// The body is appended at `Upload-Offset`, which must be what has arrived; otherwise 409 `upload_offset`, with the right one in the answer's
/// `Upload-Offset`. What arrived before a connection broke off stays. A second upload of the same part ends the first one.
#[utoipa::path(patch, path = "/imports/{id}", tag = TAG,
    params(("id" = Uuid, Path, description = "The import"), ("Upload-Offset" = u64, Header, description = "Where the bytes belong")),
    request_body(content = Vec<u8>, content_type = "application/offset+octet-stream"),
    responses((status = 204, description = "They are on the disk; `Upload-Offset` says where to go on")))]
pub(crate) async fn upload(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    append(&state, &grant, id, UploadPart::Backup, &headers, body).await
}

/// Upload bytes of the file store's archive
///
/// As for the backup.
#[utoipa::path(patch, path = "/imports/{id}/filestore", tag = TAG,
    params(("id" = Uuid, Path, description = "The import"), ("Upload-Offset" = u64, Header, description = "Where the bytes belong")),
    request_body(content = Vec<u8>, content_type = "application/offset+octet-stream"),
    responses((status = 204, description = "They are on the disk; `Upload-Offset` says where to go on")))]
pub(crate) async fn upload_file_store(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    append(&state, &grant, id, UploadPart::FileStore, &headers, body).await
}

async fn append(
    state: &AppState,
    grant: &Grant<ManageDeployments>,
    id: Uuid,
    part: UploadPart,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != UPLOAD_TYPE) {
        imports::must_take(&state.control, grant, id.into()).await?;
        return Err(Problem::http(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "upload_type_required",
            format!("send the bytes with content-type: {UPLOAD_TYPE}"),
        ));
    }
    let offset = headers.get(OFFSET).and_then(|value| value.to_str().ok()?.parse().ok());
    let stream = StreamReader::new(Box::pin(body.into_data_stream().map_err(std::io::Error::other)));
    let appended = imports::append(&state.control, grant, id.into(), part, offset, Box::new(stream)).await?;
    let UploadedPart { received, size, .. } = appended.part;
    let mut response = if appended.taken {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let detail = format!("{received} bytes have arrived; go on from there");
        Problem::http(StatusCode::CONFLICT, "upload_offset", detail).into_response()
    };
    set_offset(&mut response, received, size);
    Ok(response)
}

fn set_offset(response: &mut Response, offset: u64, length: u64) {
    response.headers_mut().insert(OFFSET, HeaderValue::from(offset));
    response.headers_mut().insert(LENGTH, HeaderValue::from(length));
}

/// How to begin bringing it in.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StartImport {
    /// What the check warned of has been read and is accepted.
    #[serde(default)]
    accept_warnings: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StartedImport {
    deployment_id: Uuid,
}

/// Bring an import in
///
/// Queues a deployment of the branch's newest commit on the imported data; what was live before becomes a snapshot. Only when the check found no
/// problem; 409 `warnings_not_accepted` repeats what it warned of.
#[utoipa::path(post, path = "/imports/{id}/start", tag = TAG, params(("id" = Uuid, Path, description = "The import")),
    request_body = Option<StartImport>, responses((status = 202, description = "Follow the deployment", body = StartedImport)))]
pub(crate) async fn start(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    body: Option<Input<StartImport>>,
) -> Result<Response, Problem> {
    let body = body.map(|Input(body)| body).unwrap_or_default();
    let deployment = imports::start(&state.control, &grant, id.into(), body.accept_warnings).await?;
    let location = format!("/deployments/{}", deployment.id);
    Ok(begun(StatusCode::ACCEPTED, &location, StartedImport { deployment_id: deployment.id.as_uuid() }))
}

/// Give an import up
///
/// Its upload goes. A second call is fine.
#[utoipa::path(delete, path = "/imports/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The import")),
    responses((status = 204, description = "It is gone")))]
pub(crate) async fn delete(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<StatusCode, Problem> {
    imports::delete(&state.control, &grant, id.into()).await?;
    Ok(StatusCode::NO_CONTENT)
}
