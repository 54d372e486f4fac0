//! Deployments: lists, detail, log, following one live, asking for one and stopping one.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SecondsFormat, Utc};
use ocore_control::{
    Error, Settings,
    authorization::{Grant, ManageDeployments, ViewDeployments},
    deployments::{self, Cursor, DeployRequest, Evidence, LogRange},
    plans,
    store::deployments::{Deployment, Page, Step},
};
use ocore_model::{
    deployment::{DataMode, DataOrigin, DeploymentStatus, ModulePlan, StepName, StepStatus, Trigger},
    evidence::{Finding, GateEvidence, GateValidation, Risk, SuccessVerdict},
    instance::Color,
    names::InvalidName,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    events,
    extract::{FromPath, FromQuery, Input},
};

pub(crate) const TAG: &str = "Deployments";
const PAGE: i64 = 20;
const PAGE_MOST: i64 = 100;
const LINES: i64 = 1000;
const LINES_MOST: i64 = 5000;

/// One try to bring one commit live.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Deployment)]
pub(crate) struct DeploymentBody {
    id: Uuid,
    project_id: Uuid,
    environment_id: Uuid,
    instance_id: Uuid,
    /// Where the instance answers.
    url: String,
    status: DeploymentStatus,
    trigger_type: Trigger,
    /// The name of who asked for it.
    triggered_by: Option<String>,
    branch: String,
    commit_sha: String,
    commit_author: String,
    commit_author_email: String,
    /// Null: Git knows no pictures.
    commit_author_avatar: Option<String>,
    commit_message: String,
    /// What was live when it was asked for.
    previous_commit_sha: Option<String>,
    previous_deployment_id: Option<Uuid>,
    /// What its modules find: nothing (`fresh`), or data (`keep`).
    #[schema(value_type = String)]
    data_mode: DataMode,
    /// Where its data come from.
    #[schema(value_type = Object)]
    data_origin: DataOrigin,
    /// The slot that it made live.
    active_color: Option<Color>,
    /// The release.
    image_tag: Option<String>,
    /// The snapshot that keeps the data as they were before.
    snapshot_id: Option<Uuid>,
    cancel_requested_at: Option<DateTime<Utc>>,
    /// Why it did not succeed, in one sentence.
    error_message: Option<String>,
    /// The lines of the log that show it.
    error_excerpt: Option<String>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    duration_ms: Option<i64>,
    updated_at: DateTime<Utc>,
    steps: Vec<StepBody>,
    /// What it does to the modules, and why. Null before it is known.
    plan: Option<ModulePlan>,
    /// What gates have found.
    evidence: Vec<GateEvidence>,
    findings: Vec<Finding>,
    /// Null: it is not measured yet.
    risk: Option<Risk>,
    /// Null: it is not judged yet.
    success_verdict: Option<SuccessVerdict>,
}

impl DeploymentBody {
    pub(crate) fn new(deployment: &Deployment, settings: &Settings) -> Self {
        Self {
            id: deployment.id.as_uuid(),
            project_id: deployment.project_id.as_uuid(),
            environment_id: deployment.environment_id.as_uuid(),
            instance_id: deployment.instance_id.as_uuid(),
            url: settings.instance_url(&deployment.instance_slug),
            status: deployment.status,
            trigger_type: deployment.trigger,
            triggered_by: deployment.triggered_by.clone(),
            branch: deployment.branch.clone(),
            commit_sha: deployment.commit_sha.to_string(),
            commit_author: deployment.commit_author.clone(),
            commit_author_email: deployment.commit_author_email.clone(),
            commit_author_avatar: None,
            commit_message: deployment.commit_message.clone(),
            previous_commit_sha: deployment.previous_commit_sha.as_ref().map(ToString::to_string),
            previous_deployment_id: deployment.previous_deployment_id.map(Uuid::from),
            data_mode: deployment.data_origin.mode(),
            data_origin: *deployment.data_origin,
            active_color: deployment.color,
            image_tag: deployment.release.clone(),
            snapshot_id: deployment.snapshot_id.map(Uuid::from),
            cancel_requested_at: deployment.cancel_requested_at,
            error_message: deployment.error_message.clone(),
            error_excerpt: deployment.error_excerpt.clone(),
            created_at: deployment.created_at,
            started_at: deployment.started_at,
            completed_at: deployment.completed_at,
            duration_ms: duration_ms(deployment.started_at, deployment.completed_at),
            updated_at: deployment.updated_at,
            steps: deployment.steps.iter().map(StepBody::new).collect(),
            plan: None,
            evidence: Vec::new(),
            findings: Vec::new(),
            risk: None,
            success_verdict: None,
        }
    }
}

/// In the contract's shape.
fn gate_evidence(deployment: &Deployment, found: Evidence) -> GateEvidence {
    let duration_ms = duration_ms(Some(found.started_at), Some(found.completed_at));
    let time = |time: DateTime<Utc>| Some(time.to_rfc3339_opts(SecondsFormat::Millis, true));
    GateEvidence {
        gate_key: found.gate.to_string(),
        name: found.gate.name().to_owned(),
        status: found.status.to_string(),
        outcome: Some(found.status.to_string()),
        required: found.required,
        summary: Some(found.summary),
        started_at: time(found.started_at),
        completed_at: time(found.completed_at),
        duration_ms,
        artifact_refs: vec![format!("/api/deployments/{}/report", deployment.id)],
        log_refs: vec![format!("/api/deployments/{}/logs?step=rehearse", deployment.id)],
        validation: Some(GateValidation {
            mode: Some("copy".to_owned()),
            profile: None,
            exit_code: None,
            duration_ms,
            log_excerpt: found.excerpt,
            failure_card: None,
            artifact_refs: Vec::new(),
        }),
        waiver: None,
    }
}

pub(crate) fn duration_ms(started_at: Option<DateTime<Utc>>, completed_at: Option<DateTime<Utc>>) -> Option<i64> {
    Some((completed_at? - started_at?).num_milliseconds())
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DeploymentStep)]
pub(crate) struct StepBody {
    id: Uuid,
    name: StepName,
    status: StepStatus,
    /// What came of it, in one sentence. Its lines are in the deployment's log.
    output: String,
    sort_order: i32,
    /// Raised with each change.
    version: i32,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    duration_ms: Option<i64>,
}

impl StepBody {
    fn new(step: &Step) -> Self {
        Self {
            id: step.id.as_uuid(),
            name: step.name,
            status: step.status,
            output: step.summary.clone(),
            sort_order: step.sort_order,
            version: step.version,
            started_at: step.started_at,
            completed_at: step.completed_at,
            duration_ms: duration_ms(step.started_at, step.completed_at),
        }
    }
}

/// A page of deployments, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeploymentList {
    deployments: Vec<DeploymentBody>,
    limit: i64,
    offset: i64,
    total: i64,
}

impl DeploymentList {
    pub(crate) async fn new(
        state: &AppState,
        grant: &Grant<ViewDeployments>,
        deployments: &[Deployment],
        total: i64,
        page: Page,
    ) -> Result<Self, Problem> {
        let (mut plans, mut evidence) = deployments::details(&state.control, grant, deployments).await?;
        let body = |deployment: &Deployment| {
            let found = evidence.remove(&deployment.id).unwrap_or_default();
            DeploymentBody {
                plan: plans.remove(&deployment.id),
                evidence: found.into_iter().map(|found| gate_evidence(deployment, found)).collect(),
                ..DeploymentBody::new(deployment, &state.control.settings)
            }
        };
        Ok(Self { deployments: deployments.iter().map(body).collect(), limit: page.limit, offset: page.offset, total })
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// default 20, max 100
    limit: Option<i64>,
    offset: Option<i64>,
}

impl PageQuery {
    pub(crate) fn page(&self) -> Result<Page, Problem> {
        let page = Page { limit: self.limit.unwrap_or(PAGE), offset: self.offset.unwrap_or(0) };
        if !(1..=PAGE_MOST).contains(&page.limit) {
            return Err(Error::invalid("limit", format!("use 1 to {PAGE_MOST}")).into());
        }
        if page.offset < 0 {
            return Err(Error::invalid("offset", "use 0 or more").into());
        }
        Ok(page)
    }
}

/// List project deployments
///
/// The newest first.
#[utoipa::path(get, path = "/projects/{projectId}/deployments", tag = TAG,
    params(("projectId" = Uuid, Path, description = "The project"), PageQuery),
    responses((status = 200, description = "A page of them", body = DeploymentList)))]
pub(crate) async fn list_of_project(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(project): FromPath<Uuid>,
    FromQuery(query): FromQuery<PageQuery>,
) -> Result<Json<DeploymentList>, Problem> {
    let page = query.page()?;
    let (deployments, total) = deployments::list_of_project(&state.control, &grant, project.into(), page).await?;
    Ok(Json(DeploymentList::new(&state, &grant, &deployments, total, page).await?))
}

/// Get deployment details
#[utoipa::path(get, path = "/deployments/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The deployment")),
    responses((status = 200, description = "The deployment with its steps", body = DeploymentBody)))]
pub(crate) async fn get(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<DeploymentBody>, Problem> {
    let deployment = deployments::find(&state.control, &grant, id.into()).await?;
    let plan = plans::of_deployment(&state.control, &grant, deployment.id).await?;
    let evidence = deployments::evidence(&state.control, &grant, deployment.id).await?;
    let evidence = evidence.into_iter().map(|found| gate_evidence(&deployment, found)).collect();
    Ok(Json(DeploymentBody { plan, evidence, ..DeploymentBody::new(&deployment, &state.control.settings) }))
}

/// What to deploy, and where. At least one of `branch`, `commitSha`, `tag`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Deploy {
    /// Its newest commit, unless a commit or a tag is given; and the environment that follows it.
    branch: Option<String>,
    /// A full commit id.
    commit_sha: Option<String>,
    tag: Option<String>,
    /// The instance, when it is not that of the branch. With neither, the project's production.
    instance_id: Option<Uuid>,
}

impl Deploy {
    pub(crate) fn request(self) -> Result<DeployRequest, Problem> {
        Ok(DeployRequest {
            branch: self.branch.map(|branch| branch.parse()).transpose().map_err(invalid("branch"))?,
            commit: self.commit_sha.map(|commit| commit.parse()).transpose().map_err(invalid("commitSha"))?,
            tag: self.tag,
            instance: self.instance_id.map(Into::into),
        })
    }
}

/// Deploy
///
/// Deploys a branch's newest commit, a commit or a tag. A deployment of the same commit that is on its way is the answer; others of the
/// environment that have changed nothing yet are superseded.
#[utoipa::path(post, path = "/projects/{projectId}/deploy", tag = TAG, params(("projectId" = Uuid, Path, description = "The project")),
    request_body = Deploy, responses((status = 202, description = "It is queued", body = DeploymentBody)))]
pub(crate) async fn deploy(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(project): FromPath<Uuid>,
    Input(body): Input<Deploy>,
) -> Result<(StatusCode, Json<DeploymentBody>), Problem> {
    let deployment = deployments::deploy(&state.control, &grant, project.into(), body.request()?).await?;
    Ok((StatusCode::ACCEPTED, Json(DeploymentBody::new(&deployment, &state.control.settings))))
}

fn invalid(field: &'static str) -> impl Fn(InvalidName) -> Error {
    move |error| Error::invalid(field, error.to_string())
}

/// Cancel a deployment
///
/// What has not begun ends at once; what runs takes back what it has done as soon as it can. What served before serves on. Asking twice is
/// fine; 409 `already_ended` when it is over.
#[utoipa::path(post, path = "/deployments/{id}/cancel", tag = TAG, params(("id" = Uuid, Path, description = "The deployment")),
    responses((status = 202, description = "It was asked to stop", body = DeploymentBody)))]
pub(crate) async fn cancel(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<(StatusCode, Json<DeploymentBody>), Problem> {
    let deployment = deployments::cancel(&state.control, &grant, id.into()).await?;
    Ok((StatusCode::ACCEPTED, Json(DeploymentBody::new(&deployment, &state.control.settings))))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DeploymentLine)]
pub(crate) struct LineBody {
    /// Grows; the next page is after the last one.
    id: i64,
    step: StepName,
    logged_at: DateTime<Utc>,
    text: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeploymentLines {
    /// The oldest first. Empty at the end, or as far as it has come.
    lines: Vec<LineBody>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LinesQuery {
    /// Of this step only.
    step: Option<StepName>,
    /// The lines after the one with this id.
    after: Option<i64>,
    /// default 1000, max 5000
    limit: Option<i64>,
}

/// Get deployment logs
///
/// The stored lines of its steps. To follow them live, see the events.
#[utoipa::path(get, path = "/deployments/{id}/logs", tag = TAG,
    params(("id" = Uuid, Path, description = "The deployment"), LinesQuery),
    responses((status = 200, description = "A page of lines", body = DeploymentLines)))]
pub(crate) async fn logs(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<LinesQuery>,
) -> Result<Json<DeploymentLines>, Problem> {
    let limit = query.limit.unwrap_or(LINES);
    if !(1..=LINES_MOST).contains(&limit) {
        return Err(Error::invalid("limit", format!("use 1 to {LINES_MOST}")).into());
    }
    let range = LogRange { step: query.step, after: query.after.unwrap_or(0), limit };
    let lines = deployments::log(&state.control, &grant, id.into(), range).await?;
    let lines =
        lines.into_iter().map(|line| LineBody { id: line.id, step: line.step, logged_at: line.logged_at, text: line.text }).collect();
    Ok(Json(DeploymentLines { lines }))
}

/// Follow a deployment
///
/// Server-sent events: `status` (`{status, message, excerpt}`), `step` (`{name, status, summary, durationMs}`) and `line`
/// (`{step, text}`), from the beginning or after `Last-Event-ID`, none lost and none twice. The stream ends with the deployment. 204 when it
/// has ended and nothing comes after that id, so that a browser stops coming back.
#[utoipa::path(get, path = "/deployments/{id}/events", tag = TAG,
    params(("id" = Uuid, Path, description = "The deployment"),
           ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that was seen")),
    responses((status = 200, description = "What happens", content_type = "text/event-stream", body = String),
              (status = 204, description = "There is nothing more")))]
pub(crate) async fn follow(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after: Option<Cursor> = events::last_event_id(&headers)?;
    let deployment = deployments::find(&state.control, &grant, id.into()).await?;
    if let Some(after) = after
        && deployments::has_ended_by(&state.control, deployment.id, after).await?
    {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(events::of_deployment(deployments::follow(&state.control, deployment.id, after.unwrap_or_default())))
}
