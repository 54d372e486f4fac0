//! How a deployment was for the users.

use axum::{Json, extract::State};
use ocore_control::{authorization::ViewDeployments, reports};
use ocore_model::report::DeployReport;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{AppState, Problem, authorized::Authorized, deployments::TAG, extract::FromPath};

/// A report with its words.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReportBody {
    #[serde(flatten)]
    report: DeployReport,
    /// The same for people, a line each.
    lines: Vec<String>,
}

/// Get a deployment's report
///
/// Its plan, its rehearsal, and what users got before, during and after the change: requests, failures, how long they took, who was held for how
/// long, websockets, and what was taken back. As far as it has come; what nobody counted is null.
#[utoipa::path(get, path = "/deployments/{id}/report", operation_id = "getDeploymentReport", tag = TAG,
    params(("id" = Uuid, Path, description = "The deployment")), responses((status = 200, description = "The report", body = ReportBody)))]
pub(crate) async fn get(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<ReportBody>, Problem> {
    let report = reports::report(&state.control, &grant, id.into()).await?;
    Ok(Json(ReportBody { lines: report.lines(), report }))
}
