//! Errors as RFC 9457 problem details. The only place that gives an error its status.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use ocore_control::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
pub struct Problem(pub Error);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code) = match &self.0 {
            Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            Error::Unauthenticated { code, .. } => (StatusCode::UNAUTHORIZED, *code),
            Error::Forbidden { code, .. } => (StatusCode::FORBIDDEN, *code),
            Error::Conflict { code, .. } => (StatusCode::CONFLICT, *code),
            Error::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_input"),
            Error::Unavailable { code, .. } => (StatusCode::SERVICE_UNAVAILABLE, *code),
            Error::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_attempts"),
            Error::Internal { context, source } => {
                tracing::error!(%context, source = source.as_ref().map(|source| format!("{source:?}")), "internal error");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        let errors = match &self.0 {
            Error::Invalid { fields } => {
                fields.iter().map(|field| ProblemField { field: field.field.clone(), message: field.message.clone() }).collect()
            }
            _ => Vec::new(),
        };
        let body = ProblemBody {
            kind: format!("urn:ocore:problem:{code}"),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: self.0.to_string(),
            code: code.to_owned(),
            request_id: crate::authorized::current_request_id(),
            errors,
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Error::TooMany { retry_after_seconds } = &self.0 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_seconds));
        }
        response
    }
}
