//! Errors as RFC 9457 problem details. The only place that gives an error its status.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use ocore_control::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::request_id::current_request_id;

/// For what is away for a moment.
const RETRY_SECONDS: u64 = 5;

/// `application/problem+json`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// A URN of the code: `urn:ocore:problem:not_found`.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What happened and what to do, for a person.
    pub detail: String,
    /// Stable, for programs.
    pub code: String,
    /// Finds the request in the server's log. The same as the header `x-request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Which fields of the input are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<ProblemField>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProblemField {
    pub field: String,
    pub message: String,
}

/// An error on its way out of a handler.
#[derive(Debug)]
pub enum Problem {
    /// What a use case said.
    Control(Error),
    /// What is wrong with the request as HTTP, before any use case.
    Http { status: StatusCode, code: &'static str, detail: String },
}

impl Problem {
    pub(crate) fn http(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self::Http { status, code, detail: detail.into() }
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Http { status, code, .. } => (*status, code),
            Self::Control(error) => match error {
                Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
                Error::Unauthenticated { code, .. } => (StatusCode::UNAUTHORIZED, code),
                Error::Forbidden { code, .. } => (StatusCode::FORBIDDEN, code),
                Error::Ambiguous { code, .. } => (StatusCode::BAD_REQUEST, code),
                Error::Conflict { code, .. } => (StatusCode::CONFLICT, code),
                Error::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_input"),
                Error::Unavailable { code, .. } => (StatusCode::SERVICE_UNAVAILABLE, code),
                Error::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_attempts"),
                Error::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            },
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Control(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let mut errors = Vec::new();
        let mut retry_after = None;
        let detail = match self {
            Self::Http { detail, .. } => detail,
            Self::Control(error) => {
                let detail = error.to_string();
                match error {
                    Error::Invalid { fields } => {
                        errors = fields.into_iter().map(|field| ProblemField { field: field.field, message: field.message }).collect();
                    }
                    Error::TooMany { retry_after_seconds } => retry_after = Some(retry_after_seconds),
                    // Room does not come by waiting.
                    Error::Unavailable { code, .. } if code != "no_room" => retry_after = Some(RETRY_SECONDS),
                    Error::Internal { context, source } => {
                        let source = source.map(|source| chain(source.as_ref()));
                        tracing::error!(%context, source, "internal error");
                    }
                    _ => {}
                }
                detail
            }
        };
        let body = ProblemBody {
            kind: format!("urn:ocore:problem:{code}"),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail,
            code: code.to_owned(),
            request_id: current_request_id(),
            errors,
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// An error and what caused it, in one line for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The answer when a handler panicked: the process lives, the caller learns nothing of its inside.
pub(crate) fn from_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned());
    Problem::Control(Error::broken(format!("a handler panicked: {message}"))).into_response()
}

/// The answer to a path that the service does not have.
pub(crate) async fn no_such_path() -> Problem {
    Problem::http(StatusCode::NOT_FOUND, "no_such_path", "the API has nothing at this path; GET /api/docs shows what there is")
}

/// The answer to a method that the path does not have.
pub(crate) async fn no_such_method() -> Problem {
    Problem::http(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method; GET /api/docs shows what it takes",
    )
}
