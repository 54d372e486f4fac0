//! Instances: one Odoo each.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response, sse::Event},
};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use ocore_control::{
    Error, Settings,
    authorization::{ManageInstances, ViewInstances},
    instances::{self, Instance, InstancePatch, InstanceRequest, SettingsPatch},
};
use ocore_model::{
    environment::Stage,
    instance::{Color, ControlAction, InstanceStatus},
    names::InvalidName,
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    environments::Message,
    events,
    extract::{Confirmation, FromPath, FromQuery, Input},
    wire::{Sort, begun},
};

const TAG: &str = "Instances";
const LINES: usize = 100;
const LINES_MOST: usize = 10_000;

/// One Odoo: its data, its two slots, its settings.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Instance)]
pub(crate) struct InstanceBody {
    id: Uuid,
    project_id: Uuid,
    server_id: Uuid,
    /// The environment that it serves.
    environment_id: Option<Uuid>,
    environment_type: Option<Stage>,
    branch: Option<String>,
    name: String,
    slug: String,
    /// Where it answers.
    url: String,
    auto_subdomain: String,
    status: InstanceStatus,
    status_message: String,
    odoo_version: String,
    active_color: Option<Color>,
    active_deployment_id: Option<Uuid>,
    /// The release that serves.
    image_tag: Option<String>,
    workers: u16,
    max_cron_threads: u16,
    /// Bytes.
    limit_memory_soft: u64,
    /// Bytes.
    limit_memory_hard: u64,
    /// Seconds.
    limit_time_cpu: u32,
    /// Seconds.
    limit_time_real: u32,
    log_level: String,
    /// The values are `***` for who may not manage the instance (of a production, with `manage:production`): they often are secrets.
    env_vars: BTreeMap<String, String>,
    restart_count: i32,
    last_restart_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl InstanceBody {
    fn new(instance: Instance, settings: &Settings) -> Self {
        let odoo = instance.settings.0;
        Self {
            id: instance.id.as_uuid(),
            project_id: instance.project_id.as_uuid(),
            server_id: instance.server_id.as_uuid(),
            environment_id: instance.environment_id.map(Uuid::from),
            environment_type: instance.stage,
            branch: instance.branch,
            url: settings.instance_url(&instance.slug),
            auto_subdomain: format!("{}.{}", instance.slug, settings.base_domain),
            name: instance.name,
            slug: instance.slug,
            status: instance.status,
            status_message: instance.status_message,
            odoo_version: instance.odoo_version.to_string(),
            active_color: instance.active_color,
            active_deployment_id: instance.active_deployment_id.map(Uuid::from),
            image_tag: instance.active_release,
            workers: odoo.workers,
            max_cron_threads: odoo.max_cron_threads,
            limit_memory_soft: odoo.limit_memory_soft,
            limit_memory_hard: odoo.limit_memory_hard,
            limit_time_cpu: odoo.limit_time_cpu,
            limit_time_real: odoo.limit_time_real,
            log_level: odoo.log_level,
            env_vars: odoo.env_vars,
            restart_count: instance.restart_count,
            last_restart_at: instance.last_restart_at,
            created_at: instance.created_at,
            updated_at: instance.updated_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InstanceList {
    instances: Vec<InstanceBody>,
    total: usize,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InstancesQuery {
    /// Those of this server only.
    server_id: Option<Uuid>,
    /// Those of this project
    project_id: Option<Uuid>,
    /// Those that are so
    status: Option<InstanceStatus>,
    /// default `createdAt`, the oldest first
    #[serde(default)]
    #[param(value_type = Option<Sort>)]
    sort: Sort,
}

/// List instances
///
/// Every instance of the caller's organization that is wanted.
#[utoipa::path(get, path = "/instances", tag = TAG, params(InstancesQuery),
    responses((status = 200, description = "All of them", body = InstanceList)))]
pub(crate) async fn list(
    Authorized(grant): Authorized<ViewInstances>,
    State(state): State<AppState>,
    FromQuery(query): FromQuery<InstancesQuery>,
) -> Result<Json<InstanceList>, Problem> {
    let mut instances = instances::list(&state.control, &grant, query.server_id.map(Into::into)).await?;
    instances.retain(|instance| {
        query.project_id.is_none_or(|project| instance.project_id.as_uuid() == project)
            && query.status.is_none_or(|status| instance.status == status)
    });
    query.sort.apply(&mut instances, |instance| &instance.name, |instance| instance.updated_at);
    let instances: Vec<_> = instances.into_iter().map(|instance| InstanceBody::new(instance, &state.control.settings)).collect();
    Ok(Json(InstanceList { total: instances.len(), instances }))
}

/// Get instance details
#[utoipa::path(get, path = "/instances/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The instance")),
    responses((status = 200, description = "The instance", body = InstanceBody)))]
pub(crate) async fn get(
    Authorized(grant): Authorized<ViewInstances>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<InstanceBody>, Problem> {
    let instance = instances::find(&state.control, &grant, id.into()).await?;
    Ok(Json(InstanceBody::new(instance, &state.control.settings)))
}

/// A new instance.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateInstance {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    project_id: Uuid,
    /// The first label of its host name, 3 to 50 of `a-z`, `0-9`, `-`; made from the name when it is not given.
    #[schema(min_length = 3, max_length = 50, pattern = "^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$")]
    slug: Option<String>,
    /// Makes an environment of this branch on it.
    #[schema(min_length = 1, max_length = 255)]
    branch: Option<String>,
    /// Of that environment; `development` when it is not given.
    environment_type: Option<Stage>,
    /// The project's when it is not given.
    #[schema(pattern = "^[0-9]{1,2}[.][0-9]$")]
    odoo_version: Option<String>,
    /// 0: one process with threads. Production starts with 2, others with 0.
    #[schema(maximum = 64)]
    workers: Option<u16>,
    #[schema(maximum = 16)]
    max_cron_threads: Option<u16>,
    /// Bytes.
    limit_memory_soft: Option<u64>,
    /// Bytes.
    limit_memory_hard: Option<u64>,
    /// Seconds.
    #[schema(minimum = 10, maximum = 86400)]
    limit_time_cpu: Option<u32>,
    /// Seconds.
    #[schema(minimum = 10, maximum = 86400)]
    limit_time_real: Option<u32>,
    log_level: Option<String>,
    /// Added to the environment of its processes.
    env_vars: Option<BTreeMap<String, String>>,
}

/// Create an instance
///
/// With a branch it serves an environment of that branch, whose newest commit is deployed. Its processes and data come with the first
/// deployment.
#[utoipa::path(post, path = "/instances", tag = TAG, request_body = CreateInstance,
    responses((status = 202, description = "It is being made", body = InstanceBody)))]
pub(crate) async fn create(
    Authorized(grant): Authorized<ManageInstances>,
    State(state): State<AppState>,
    Input(body): Input<CreateInstance>,
) -> Result<Response, Problem> {
    let request = InstanceRequest {
        project: body.project_id.into(),
        name: body.name,
        slug: body.slug.map(|slug| slug.parse()).transpose().map_err(invalid("slug"))?,
        branch: body.branch.map(|branch| branch.parse()).transpose().map_err(invalid("branch"))?,
        stage: body.environment_type,
        odoo_version: body.odoo_version.map(|version| version.parse()).transpose().map_err(invalid("odooVersion"))?,
        settings: SettingsPatch {
            workers: body.workers,
            max_cron_threads: body.max_cron_threads,
            limit_memory_soft: body.limit_memory_soft,
            limit_memory_hard: body.limit_memory_hard,
            limit_time_cpu: body.limit_time_cpu,
            limit_time_real: body.limit_time_real,
            log_level: body.log_level,
            env_vars: body.env_vars,
        },
    };
    let instance = instances::create(&state.control, &grant, request).await?;
    Ok(begun(StatusCode::ACCEPTED, &format!("/instances/{}", instance.id), InstanceBody::new(instance, &state.control.settings)))
}

fn invalid(field: &'static str) -> impl Fn(InvalidName) -> Error {
    move |error| Error::invalid(field, error.to_string())
}

/// What of an instance is changed; what is not given stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateInstance {
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    #[schema(maximum = 64)]
    workers: Option<u16>,
    #[schema(maximum = 16)]
    max_cron_threads: Option<u16>,
    /// Bytes.
    limit_memory_soft: Option<u64>,
    /// Bytes.
    limit_memory_hard: Option<u64>,
    /// Seconds.
    #[schema(minimum = 10, maximum = 86400)]
    limit_time_cpu: Option<u32>,
    /// Seconds.
    #[schema(minimum = 10, maximum = 86400)]
    limit_time_real: Option<u32>,
    log_level: Option<String>,
    /// Replaces all of them.
    env_vars: Option<BTreeMap<String, String>>,
}

/// Update an instance
///
/// Its Odoo takes new settings with its next start. A production's with `manage:production` only.
#[utoipa::path(put, path = "/instances/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The instance")),
    request_body = UpdateInstance, responses((status = 200, description = "As it is now", body = InstanceBody)))]
pub(crate) async fn update(
    Authorized(grant): Authorized<ManageInstances>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<UpdateInstance>,
) -> Result<Json<InstanceBody>, Problem> {
    let patch = InstancePatch {
        name: body.name,
        settings: SettingsPatch {
            workers: body.workers,
            max_cron_threads: body.max_cron_threads,
            limit_memory_soft: body.limit_memory_soft,
            limit_memory_hard: body.limit_memory_hard,
            limit_time_cpu: body.limit_time_cpu,
            limit_time_real: body.limit_time_real,
            log_level: body.log_level,
            env_vars: body.env_vars,
        },
    };
    let instance = instances::update(&state.control, &grant, id.into(), patch).await?;
    Ok(Json(InstanceBody::new(instance, &state.control.settings)))
}

/// Delete an instance
///
/// With all its data, and its environment with it; one that serves a production as its environment does, with `confirm`. A second call is fine.
#[utoipa::path(delete, path = "/instances/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The instance"), Confirmation),
    responses((status = 202, description = "It is on its way", body = Message)))]
pub(crate) async fn delete(
    Authorized(grant): Authorized<ManageInstances>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<Confirmation>,
) -> Result<(StatusCode, Json<Message>), Problem> {
    let message = match instances::delete(&state.control, &grant, id.into(), query.confirm.as_deref()).await? {
        InstanceStatus::Deleted => "the instance is deleted",
        _ => "the instance is being deleted, with its database and files",
    };
    Ok((StatusCode::ACCEPTED, Json(Message { message: message.to_owned() })))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlInstance {
    action: ControlAction,
}

/// Start, stop or restart an instance
///
/// Stopping keeps data and settings. A production's with `manage:production` only. 409 `nothing_deployed` before the first deployment.
#[utoipa::path(post, path = "/instances/{id}/control", tag = TAG, params(("id" = Uuid, Path, description = "The instance")),
    request_body = ControlInstance, responses((status = 202, description = "It is queued", body = InstanceBody)))]
pub(crate) async fn control(
    Authorized(grant): Authorized<ManageInstances>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<ControlInstance>,
) -> Result<(StatusCode, Json<InstanceBody>), Problem> {
    let instance = instances::control(&state.control, &grant, id.into(), body.action).await?;
    Ok((StatusCode::ACCEPTED, Json(InstanceBody::new(instance, &state.control.settings))))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InstanceLogQuery {
    /// How many of the last lines; default 100, max 10000
    #[param(minimum = 0, maximum = 10000)]
    lines: Option<usize>,
    /// Goes on with new lines as they come.
    #[serde(default)]
    follow: bool,
}

/// Get instance logs
///
/// The log of its Odoo: text, or server-sent events of one line each when the client accepts `text/event-stream`. Passwords and tokens in the addresses of
/// requests are `***`. Of the production of a project that protects it, with `manage:production` only.
#[utoipa::path(get, path = "/instances/{id}/logs", tag = TAG,
    params(("id" = Uuid, Path, description = "The instance"), InstanceLogQuery),
    responses((status = 200, description = "The lines", content(
        (String = "text/plain"),
        (String = "text/event-stream"),
    ))))]
pub(crate) async fn logs(
    Authorized(grant): Authorized<ManageInstances>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<InstanceLogQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let lines = query.lines.unwrap_or(LINES);
    if lines > LINES_MOST {
        return Err(Error::invalid("lines", format!("use at most {LINES_MOST}")).into());
    }
    let lines = ReceiverStream::new(instances::log(&state.control, &grant, id.into(), lines, query.follow).await?);
    let wants_events =
        headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|accept| accept.contains("text/event-stream"));
    if wants_events {
        // A carriage return would end the event's line.
        return Ok(events::stream(lines.map(|line| Event::default().event("line").data(line.replace('\r', "")))));
    }
    let text = lines.map(|mut line| {
        line.push('\n');
        Ok::<_, std::convert::Infallible>(line)
    });
    let mut response = axum::body::Body::from_stream(text).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

/// How to log in to an instance's Odoo.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InstanceCredentials)]
pub(crate) struct CredentialsBody {
    login: String,
    password: String,
}

/// Get instance credentials
///
/// The administrator that the fresh database got. Who changed the password in Odoo knows the new one themselves. A production's with
/// `manage:production` only; each look is audited.
#[utoipa::path(get, path = "/instances/{id}/credentials", tag = TAG, params(("id" = Uuid, Path, description = "The instance")),
    responses((status = 200, description = "The login", body = CredentialsBody)))]
pub(crate) async fn credentials(
    Authorized(grant): Authorized<ManageInstances>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Response, Problem> {
    let credentials = instances::credentials(&state.control, &grant, id.into()).await?;
    let body = CredentialsBody { login: credentials.login, password: credentials.password.expose_text()?.to_owned() };
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response())
}
