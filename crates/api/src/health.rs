//! Whether the service is alive and whether it is ready, for supervisors and load balancers.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use ocore_control::health::{self, Check};
use serde::Serialize;
use serde_with::skip_serializing_none;

use crate::{AppState, authorized::has_metrics_token};

/// `GET /healthz`: the process answers.
pub(crate) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok", checks: Vec::new() })
}

/// `GET /readyz`: the store, the host and the edge answer; 503 when one does not. Which one, and why, is for the operator: it takes the metrics token.
pub(crate) async fn readyz(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let mut checks: Vec<CheckView> = health::checks(&state.control).await.into_iter().map(CheckView::from).collect();
    let ready = checks.iter().all(|check| check.ok);
    if !has_metrics_token(&headers, &state) {
        checks.clear();
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Health { status: if ready { "ok" } else { "unavailable" }, checks })).into_response()
}

#[derive(Serialize)]
pub(crate) struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<CheckView>,
}

#[skip_serializing_none]
#[derive(Serialize)]
struct CheckView {
    name: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl From<Check> for CheckView {
    fn from(check: Check) -> Self {
        Self { name: check.name, ok: check.problem.is_none(), message: check.problem }
    }
}
