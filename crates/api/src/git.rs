//! The built-in Git remote over HTTP: `/git/<organization>/<project>.git/…`, outside `/api` since it is Git's protocol and not ours.
//!
//! The password is an API key or an access token; the user name does not count. Errors are plain text, which is what a Git client shows to
//! its user (and it shows the body of an error only when it is that).

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::TryStreamExt as _;
use ocore_control::{
    Error, accounts,
    git::{self, Served, Service},
};
use serde::Deserialize;
use tokio_util::io::StreamReader;
use tower_http::decompression::RequestDecompressionLayer;

use crate::{AppState, problem::Problem};

/// The three paths that a smart client asks for. Clients compress long requests.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/{organization}/{project}/info/refs", get(advertise))
        .route("/{organization}/{project}/git-upload-pack", post(upload_pack))
        .route("/{organization}/{project}/git-receive-pack", post(receive_pack))
        .layer(RequestDecompressionLayer::new())
}

#[derive(Debug, Deserialize)]
struct Asked {
    service: Option<String>,
}

async fn advertise(
    State(state): State<AppState>,
    Path((organization, project)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let service: Service = match asked.service {
        Some(service) => service.parse()?,
        None => return Err(Error::forbidden("smart_http_required", "this client speaks an old protocol; use git 1.6.6 or newer").into()),
    };
    let served = open(&state, &headers, service, &organization, &project).await?;
    let refs = git::advertise(&state.control, &served, protocol(&headers)).await?;
    Ok(answer(format!("application/x-{}-advertisement", service.as_str()), Body::from(refs)))
}

async fn upload_pack(
    State(state): State<AppState>,
    Path((organization, project)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let served = open(&state, &headers, Service::UploadPack, &organization, &project).await?;
    expect_request(&headers, Service::UploadPack)?;
    let pack = git::upload_pack(&state.control, &served, protocol(&headers), reader(body))?;
    Ok(answer("application/x-git-upload-pack-result".to_owned(), Body::from_stream(pack)))
}

async fn receive_pack(
    State(state): State<AppState>,
    Path((organization, project)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let served = open(&state, &headers, Service::ReceivePack, &organization, &project).await?;
    expect_request(&headers, Service::ReceivePack)?;
    let report = git::receive_pack(&state.control, &served, protocol(&headers), reader(body)).await?;
    Ok(answer("application/x-git-receive-pack-result".to_owned(), Body::from_stream(report)))
}

async fn open(state: &AppState, headers: &HeaderMap, service: Service, organization: &str, project: &str) -> Result<Served, Refusal> {
    let token = password(headers).ok_or_else(|| {
        Error::unauthenticated(
            "authentication_required",
            "log in with any user name and, as the password, an API key (ocore api-key create)",
        )
    })?;
    // Somebody else's organization and one that does not exist are one answer.
    let scope = accounts::authenticate(&state.control, &token, Some(organization)).await.map_err(|error| match error {
        Error::NotFound { .. } => Error::NotFound { what: "repository" },
        error => error,
    })?;
    Ok(git::open(&state.control, &scope, service, organization, project).await?)
}

/// What stands as the password in `Authorization: Basic`, or after `Bearer`.
fn password(headers: &HeaderMap) -> Option<String> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (_, password) = pair.split_once(':')?;
    Some(password.to_owned()).filter(|password| !password.is_empty())
}

fn protocol(headers: &HeaderMap) -> Option<&str> {
    headers.get("git-protocol")?.to_str().ok()
}

/// Only a Git client sends this type; a page in a browser cannot without asking first.
fn expect_request(headers: &HeaderMap, service: Service) -> Result<(), Refusal> {
    let expected = format!("application/x-{}-request", service.as_str());
    if headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes() == expected.as_bytes()) {
        return Ok(());
    }
    Err(Refusal { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, message: format!("send the request as {expected}") })
}

fn reader(body: Body) -> impl tokio::io::AsyncRead + Send + Unpin + 'static {
    StreamReader::new(Box::pin(body.into_data_stream().map_err(std::io::Error::other)))
}

fn answer(content_type: String, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_str(&content_type).unwrap_or(HeaderValue::from_static("application/octet-stream")));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
    // A proxy in between shall pass the progress on as it comes.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// An error as a Git client shows it.
struct Refusal {
    status: StatusCode,
    message: String,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        // The status, and the log of what is our fault, are those of every other error.
        Self { status: Problem::from(error).into_response().status(), message }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, format!("{}\n", self.message)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"oCore\", charset=\"UTF-8\""));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_what_counts() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            password(&headers)
        };
        assert_eq!(with(&format!("Basic {}", STANDARD.encode("me:ocore_x:y"))).as_deref(), Some("ocore_x:y"));
        assert_eq!(with("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(with(&format!("Basic {}", STANDARD.encode("me:"))), None);
        assert_eq!(with("Basic ???"), None);
        assert_eq!(with("Digest x"), None);
    }
}
