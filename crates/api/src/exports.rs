//! Exports: ask for one, see how far it is, download it.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use ocore_control::{
    Error,
    authorization::{ManageSnapshots, ViewSnapshots},
    exports::{self, Export, ExportRequest},
};
use ocore_model::export::{ExportFormat, ExportStatus};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    extract::{FromPath, Input},
    wire::begun,
};

const TAG: &str = "Exports";
const CHUNK: usize = 256 * 1024;

/// What is exported, and as what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateExport {
    /// `zip` as Odoo's database manager writes it, `custom` or `directory` as `pg_dump` does (with a file store, in a tar).
    #[serde(default = "zip")]
    format: ExportFormat,
    /// Made harmless, as a copy of production for development would be.
    #[serde(default)]
    neutralized: bool,
    #[serde(default = "yes")]
    with_filestore: bool,
}

fn zip() -> ExportFormat {
    ExportFormat::Zip
}

fn yes() -> bool {
    true
}

/// An export.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Export)]
pub(crate) struct ExportBody {
    id: Uuid,
    project_id: Uuid,
    environment_id: Uuid,
    status: ExportStatus,
    /// Why it failed.
    message: String,
    format: ExportFormat,
    neutralized: bool,
    with_filestore: bool,
    file_name: String,
    /// Its size and digest when it is done.
    bytes: Option<i64>,
    sha256: Option<String>,
    /// The path that gives its bytes.
    download_url: String,
    created_by: Option<String>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    /// Until then it can be downloaded.
    expires_at: DateTime<Utc>,
}

impl ExportBody {
    fn new(export: &Export) -> Self {
        Self {
            id: export.id.as_uuid(),
            project_id: export.project_id.as_uuid(),
            environment_id: export.environment_id.as_uuid(),
            status: export.status,
            message: export.message.clone(),
            format: export.format,
            neutralized: export.neutralized,
            with_filestore: export.with_file_store,
            file_name: export.file_name.clone(),
            bytes: export.bytes,
            sha256: export.sha256.clone(),
            download_url: format!("/api/exports/{}/download", export.id),
            created_by: export.created_by.clone(),
            created_at: export.created_at,
            started_at: export.started_at,
            completed_at: export.completed_at,
            expires_at: export.expires_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExportList {
    exports: Vec<ExportBody>,
}

/// List exports
///
/// The newest 50 of an environment.
#[utoipa::path(get, path = "/environments/{id}/exports", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "The newest first", body = ExportList)))]
pub(crate) async fn list(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<ExportList>, Problem> {
    let exports = exports::list(&state.control, &grant, id.into()).await?;
    Ok(Json(ExportList { exports: exports.iter().map(ExportBody::new).collect() }))
}

/// Ask for an export
///
/// It is written from a copy, so that the environment goes on serving as before. Production's data that are not neutralized need
/// `manage:production`. It can be downloaded for a day.
#[utoipa::path(post, path = "/environments/{id}/exports", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = CreateExport, responses((status = 202, description = "It is going to be written", body = ExportBody)))]
pub(crate) async fn create(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<CreateExport>,
) -> Result<Response, Problem> {
    let request = ExportRequest { format: body.format, neutralized: body.neutralized, with_file_store: body.with_filestore };
    let export = exports::create(&state.control, &grant, id.into(), request).await?;
    Ok(begun(StatusCode::ACCEPTED, &format!("/exports/{}", export.id), ExportBody::new(&export)))
}

/// Show an export
#[utoipa::path(get, path = "/exports/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The export")),
    responses((status = 200, description = "As it is now", body = ExportBody)))]
pub(crate) async fn show(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<ExportBody>, Problem> {
    Ok(Json(ExportBody::new(&exports::show(&state.control, &grant, id.into()).await?)))
}

/// How to log in to what is restored from an export.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExportCredentials {
    /// Of Odoo's `admin`; null when the export was not neutralized and has its own.
    password: Option<String>,
}

/// Show the password of a neutralized export
#[utoipa::path(get, path = "/exports/{id}/credentials", tag = TAG, params(("id" = Uuid, Path, description = "The export")),
    responses((status = 200, description = "Of Odoo's `admin`", body = ExportCredentials)))]
pub(crate) async fn credentials(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<ExportCredentials>, Problem> {
    Ok(Json(ExportCredentials { password: exports::admin_password(&state.control, &grant, id.into()).await? }))
}

/// Download an export
///
/// One `Range` of bytes is answered with 206, so that a download that broke off goes on. 409 `not_ready` until it is written.
#[utoipa::path(get, path = "/exports/{id}/download", tag = TAG, params(("id" = Uuid, Path, description = "The export")),
    responses((status = 200, description = "The file", content_type = "application/octet-stream"),
              (status = 206, description = "A part of it", content_type = "application/octet-stream")))]
pub(crate) async fn download(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let export = exports::downloadable(&state.control, &grant, id.into()).await?;
    let size = export.bytes.unwrap_or_default().cast_unsigned();
    let tag = format!("\"{}\"", export.sha256.as_deref().unwrap_or_default());
    // Only a part of the very same file is a part.
    let is_same = headers.get(header::IF_RANGE).is_none_or(|wanted| wanted.as_bytes() == tag.as_bytes());
    let wanted = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).filter(|_| is_same);
    let (first, last) = match wanted.map(|wanted| range(wanted, size)) {
        None | Some(Wanted::All) => (0, size),
        Some(Wanted::Part(first, last)) => (first, last),
        Some(Wanted::Beyond) => {
            let mut response =
                Problem::http(StatusCode::RANGE_NOT_SATISFIABLE, "range", format!("the file has {size} bytes")).into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes */{size}"))?);
            return Ok(response);
        }
    };
    let bytes = exports::read(&state.control, &grant, &export, first).await?.take(last - first);
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(bytes, CHUNK)));
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(last - first));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(header::ETAG, value(&tag)?);
    // Its name is made of a slug, digits and dashes.
    answer.insert(header::CONTENT_DISPOSITION, value(&format!("attachment; filename=\"{}\"", export.file_name))?);
    if (first, last) != (0, size) {
        answer.insert(header::CONTENT_RANGE, value(&format!("bytes {first}-{}/{size}", last - 1))?);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

fn value(text: &str) -> Result<HeaderValue, Problem> {
    Ok(HeaderValue::from_str(text).map_err(|error| Error::internal("a header of a download", error))?)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From the first to before the last.
    Part(u64, u64),
    Beyond,
}

/// RFC 9110, 14.1.2. What is no single range of bytes is answered with everything, as the RFC allows.
fn range(header: &str, size: u64) -> Wanted {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else { return Wanted::All };
    let (first, end) = match (first.trim().parse::<u64>(), last.trim()) {
        (Ok(first), "") => (first, size),
        (Ok(first), last) => match last.parse::<u64>() {
            Ok(last) if last >= first => (first, last.saturating_add(1).min(size)),
            _ => return Wanted::All,
        },
        (Err(_), last) if first.trim().is_empty() => match last.parse::<u64>() {
            Ok(0) => return Wanted::Beyond,
            Ok(count) => (size.saturating_sub(count), size),
            Err(_) => return Wanted::All,
        },
        _ => return Wanted::All,
    };
    if first >= size { Wanted::Beyond } else { Wanted::Part(first, end) }
}

/// Remove an export
///
/// A second call is fine.
#[utoipa::path(delete, path = "/exports/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The export")),
    responses((status = 204, description = "It is gone, or goes as soon as it is not written any more")))]
pub(crate) async fn delete(
    Authorized(grant): Authorized<ManageSnapshots>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<StatusCode, Problem> {
    exports::delete(&state.control, &grant, id.into()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_understood() {
        assert_eq!(range("bytes=0-9", 100), Wanted::Part(0, 10));
        assert_eq!(range("bytes=90-", 100), Wanted::Part(90, 100));
        assert_eq!(range("bytes=90-200", 100), Wanted::Part(90, 100));
        assert_eq!(range("bytes=-10", 100), Wanted::Part(90, 100));
        assert_eq!(range("bytes=-200", 100), Wanted::Part(0, 100));
        assert_eq!(range("bytes=100-", 100), Wanted::Beyond);
        for all in ["bytes=9-0", "bytes=0-1,5-6", "items=0-1", "bytes=a-b", ""] {
            assert_eq!(range(all, 100), Wanted::All, "{all}");
        }
    }
}
