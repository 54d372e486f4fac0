//! Reads whose answers grow with the organization: made once for all who ask at the same moment, written to bytes once.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use ocore_model::ids::{OrganizationId, ProjectId};
use serde::Serialize;

use crate::{Problem, coalesce::Coalescer, environments::EnvironmentsQuery};

/// What is read. Every right that it needs is checked before, for each caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum LargeRead {
    Environments { organization: OrganizationId, query: EnvironmentsQuery },
    ProjectEnvironments { organization: OrganizationId, project: ProjectId, query: EnvironmentsQuery },
    Space { organization: OrganizationId },
    Pipeline { organization: OrganizationId, project: ProjectId, recent_deployments: i64 },
}

/// The process's large reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct LargeReads(Arc<Coalescer<LargeRead>>);

impl LargeReads {
    pub(crate) async fn answer(&self, what: LargeRead, read: impl AsyncFnOnce() -> Result<Bytes, Problem>) -> Result<Response, Problem> {
        Ok(json_response(self.0.read(what, read).await?))
    }
}

/// The JSON text of a body.
pub(crate) fn body_of(body: &impl Serialize) -> Result<Bytes, Problem> {
    let bytes = serde_json::to_vec(body).map_err(|error| ocore_control::Error::internal("writing an answer as JSON", error))?;
    Ok(bytes.into())
}

pub(crate) fn json_response(bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
