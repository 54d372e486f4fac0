//! Environments, by the contract.

use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use ocore_control::{
    Error, Settings,
    authorization::{ManageDeployments, ManageEnvironments, ViewDeployments, ViewEnvironments},
    deployments, environments,
    environments::EnvironmentPatch,
};
use ocore_model::{
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::ProjectId,
    instance::InstanceStatus,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    deployments::{DeploymentBody, DeploymentList, PageQuery},
    extract::{Confirmation, FromPath, FromQuery, Input},
    large::{LargeRead, LargeReads, body_of},
};

pub(crate) const TAG: &str = "Environments";

/// One branch of a project at one stage, with the instance that runs it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Environment)]
pub(crate) struct EnvironmentBody<'a> {
    id: Uuid,
    project_id: Uuid,
    project_name: &'a str,
    instance_id: Uuid,
    instance_name: &'a str,
    instance_slug: &'a str,
    instance_status: InstanceStatus,
    server_id: Uuid,
    odoo_version: &'a str,
    name: &'a str,
    description: &'a str,
    branch: &'a str,
    /// Set while the branch is gone from the repository.
    branch_deleted_at: Option<DateTime<Utc>>,
    environment_type: Stage,
    commit_behavior: CommitBehavior,
    status: EnvironmentStatus,
    /// What a person should know: of the environment, or else of its instance.
    status_message: &'a str,
    /// Where it answers.
    url: String,
    /// The generated host name.
    auto_subdomain: String,
    /// The host name that Odoo calls its own.
    primary_domain: String,
    auto_destroy_on_merge: bool,
    cloned_from_id: Option<Uuid>,
    is_neutralized: bool,
    /// Where its mail catcher takes mail, on the loopback interface of its server. Null in production, and before the first deployment.
    mailpit_port: Option<i32>,
    /// How many commits of the branch are not live.
    pending_commit_count: i32,
    /// The branch's newest commit, when it is not live.
    pending_commit_sha: Option<&'a str>,
    live_commit_sha: Option<&'a str>,
    /// Of the branch's newest commit.
    last_commit_at: Option<DateTime<Utc>>,
    last_commit_author: Option<&'a str>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl<'a> EnvironmentBody<'a> {
    pub(crate) fn new(environment: &'a environments::Environment, settings: &Settings) -> Self {
        let host = format!("{}.{}", environment.instance_slug, settings.base_domain);
        Self {
            id: environment.id.as_uuid(),
            project_id: environment.project_id.as_uuid(),
            project_name: &environment.project_name,
            instance_id: environment.instance_id.as_uuid(),
            instance_name: &environment.instance_name,
            instance_slug: &environment.instance_slug,
            instance_status: environment.instance_status,
            server_id: environment.server_id.as_uuid(),
            odoo_version: &environment.odoo_version,
            name: &environment.name,
            description: &environment.description,
            branch: &environment.branch,
            branch_deleted_at: environment.branch_deleted_at,
            environment_type: environment.stage,
            commit_behavior: environment.commit_behavior,
            status: environment.status,
            status_message: &environment.status_message,
            url: settings.instance_url(&environment.instance_slug),
            auto_subdomain: host.clone(),
            primary_domain: host,
            auto_destroy_on_merge: environment.auto_destroy_on_merge,
            cloned_from_id: environment.cloned_from_id.map(Uuid::from),
            is_neutralized: environment.is_neutralized,
            mailpit_port: environment.mail_port,
            pending_commit_count: environment.pending_commit_count,
            pending_commit_sha: environment.pending_commit_sha.as_ref().map(AsRef::as_ref),
            live_commit_sha: environment.live_commit_sha.as_ref().map(AsRef::as_ref),
            last_commit_at: environment.last_commit_at,
            last_commit_author: environment.last_commit_author.as_deref(),
            created_at: environment.created_at,
            updated_at: environment.updated_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EnvironmentList<'a> {
    environments: Vec<EnvironmentBody<'a>>,
    total: usize,
}

/// What was done, in words.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Message {
    pub(crate) message: String,
}

/// List all environments
///
/// Every environment of every project of the caller's organization, the oldest first.
#[utoipa::path(get, path = "/environments", tag = TAG, responses((status = 200, description = "All of them", body = EnvironmentList)))]
pub(crate) async fn list(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    Extension(reads): Extension<LargeReads>,
) -> Result<Response, Problem> {
    reads
        .answer(LargeRead::Environments { organization: grant.organization_id }, async || {
            let environments = environments::list(&state.control, &grant).await?;
            body_of(&EnvironmentList {
                total: environments.len(),
                environments: environments.iter().map(|environment| EnvironmentBody::new(environment, &state.control.settings)).collect(),
            })
        })
        .await
}

/// List project environments
///
/// A bare array, the oldest first.
#[utoipa::path(get, path = "/projects/{projectId}/environments", tag = TAG,
    params(("projectId" = Uuid, Path, description = "The project")),
    responses((status = 200, description = "All of them", body = [EnvironmentBody<'static>])))]
pub(crate) async fn list_of_project(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    Extension(reads): Extension<LargeReads>,
    FromPath(project): FromPath<Uuid>,
) -> Result<Response, Problem> {
    let project = ProjectId(project);
    reads
        .answer(LargeRead::ProjectEnvironments { organization: grant.organization_id, project }, async || {
            let environments = environments::list_of_project(&state.control, &grant, project).await?;
            let bodies: Vec<_> =
                environments.iter().map(|environment| EnvironmentBody::new(environment, &state.control.settings)).collect();
            body_of(&bodies)
        })
        .await
}

/// Get environment details
#[utoipa::path(get, path = "/environments/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "The environment", body = EnvironmentBody<'static>)))]
pub(crate) async fn get(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Response, Problem> {
    let environment = environments::find(&state.control, &grant, id.into()).await?;
    answer(StatusCode::OK, &environment, &state)
}

pub(crate) fn answer(status: StatusCode, environment: &environments::Environment, state: &AppState) -> Result<Response, Problem> {
    let mut response = crate::large::json_response(body_of(&EnvironmentBody::new(environment, &state.control.settings))?);
    *response.status_mut() = status;
    Ok(response)
}

/// A new environment. `branch` must be given.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateEnvironment {
    #[schema(value_type = Option<String>)]
    branch: Option<String>,
    /// `development` when it is not given.
    environment_type: Option<Stage>,
    /// A free instance of the project; a new one is made when it is not given.
    instance_id: Option<Uuid>,
}

/// Create an environment
///
/// Links a free instance of the project, or makes a new one. When the repository has the branch already, its newest commit is deployed. A
/// project has one production at most.
#[utoipa::path(post, path = "/projects/{projectId}/environments", tag = TAG,
    params(("projectId" = Uuid, Path, description = "The project")), request_body = CreateEnvironment,
    responses((status = 201, description = "It is made; its first deployment is queued", body = EnvironmentBody<'static>)))]
pub(crate) async fn create(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(project): FromPath<Uuid>,
    Input(body): Input<CreateEnvironment>,
) -> Result<Response, Problem> {
    let branch = body.branch.ok_or_else(|| Error::invalid("branch", "give the branch that it follows"))?;
    let branch = branch.parse().map_err(|error: ocore_model::names::InvalidName| Error::invalid("branch", error.to_string()))?;
    let stage = body.environment_type.unwrap_or(Stage::Development);
    let instance = body.instance_id.map(Into::into);
    let environment = environments::create(&state.control, &grant, project.into(), &branch, stage, instance).await?;
    answer(StatusCode::CREATED, &environment, &state)
}

/// What of an environment is changed; what is not given stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateEnvironment {
    name: Option<String>,
    description: Option<String>,
}

/// Update an environment
///
/// Name and description only; the type cannot be changed here.
#[utoipa::path(put, path = "/environments/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = UpdateEnvironment, responses((status = 200, description = "As it is now", body = EnvironmentBody<'static>)))]
pub(crate) async fn update(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<UpdateEnvironment>,
) -> Result<Response, Problem> {
    let patch = EnvironmentPatch { name: body.name, description: body.description };
    let environment = environments::update(&state.control, &grant, id.into(), patch).await?;
    answer(StatusCode::OK, &environment, &state)
}

/// Delete an environment
///
/// Its Odoo, database and files go, asynchronously. A production environment cannot be deleted directly (409 `production_protected`): it goes with its
/// instance's slug as `confirm`, by who has `manage:production`, and its last snapshot is kept for 30 days. A second call is fine.
#[utoipa::path(delete, path = "/environments/{id}", tag = TAG, params(("id" = Uuid, Path, description = "The environment"), Confirmation),
    responses((status = 202, description = "It is on its way", body = Message)))]
pub(crate) async fn delete(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<Confirmation>,
) -> Result<(StatusCode, Json<Message>), Problem> {
    let message = match environments::delete(&state.control, &grant, id.into(), query.confirm.as_deref()).await? {
        EnvironmentStatus::Deleted => "the environment is deleted",
        EnvironmentStatus::Active | EnvironmentStatus::Removing => "the environment is being deleted, with its database and files",
    };
    Ok((StatusCode::ACCEPTED, Json(Message { message: message.to_owned() })))
}

/// What a push does from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateCommitBehavior {
    behavior: CommitBehavior,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UpdatedCommitBehavior {
    commit_behavior: CommitBehavior,
    message: &'static str,
}

/// Update commit behavior
///
/// `do_nothing` counts new commits and waits for a build; `update_previous_build` updates the running instance with its data;
/// `create_new_build` makes a fresh database from the new commit while the old one serves on. In production and staging no push ever throws
/// data away: there `create_new_build` keeps the data as `update_previous_build` does.
#[utoipa::path(put, path = "/environments/{id}/commit-behavior", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment")), request_body = UpdateCommitBehavior,
    responses((status = 200, description = "As it is now", body = UpdatedCommitBehavior)))]
pub(crate) async fn update_commit_behavior(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<UpdateCommitBehavior>,
) -> Result<Json<UpdatedCommitBehavior>, Problem> {
    let environment = environments::set_commit_behavior(&state.control, &grant, id.into(), body.behavior).await?;
    let message = match (environment.commit_behavior, environment.stage) {
        (CommitBehavior::DoNothing, _) => "pushes are counted and wait until somebody builds them",
        (CommitBehavior::UpdatePreviousBuild, _) => "a push updates the running instance and keeps its data",
        (CommitBehavior::CreateNewBuild, Stage::Development) => "a push makes a fresh database from its commit",
        (CommitBehavior::CreateNewBuild, _) => "a push makes a new build; the data is kept, since this is not a development environment",
    };
    Ok(Json(UpdatedCommitBehavior { commit_behavior: environment.commit_behavior, message }))
}

/// List environment deployments
///
/// The newest first.
#[utoipa::path(get, path = "/environments/{id}/deployments", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment"), PageQuery),
    responses((status = 200, description = "A page of them", body = DeploymentList)))]
pub(crate) async fn list_deployments(
    Authorized(grant): Authorized<ViewDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<PageQuery>,
) -> Result<Json<DeploymentList>, Problem> {
    let page = query.page()?;
    let (deployments, total) = deployments::list_of_environment(&state.control, &grant, id.into(), page).await?;
    Ok(Json(DeploymentList::new(&state, &grant, &deployments, total, page).await?))
}

/// Trigger a manual build
///
/// Builds the newest commit of the environment's branch, whatever its commit behavior. 409 `nothing_pending` when that commit is live and
/// the last deployment did not fail. A build of the same commit that is on its way is the answer.
#[utoipa::path(post, path = "/environments/{id}/trigger-build", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 202, description = "It is queued", body = DeploymentBody)))]
pub(crate) async fn trigger_build(
    Authorized(grant): Authorized<ManageDeployments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<(StatusCode, Json<DeploymentBody>), Problem> {
    let deployment = environments::trigger_build(&state.control, &grant, id.into()).await?;
    Ok((StatusCode::ACCEPTED, Json(DeploymentBody::new(&deployment, &state.control.settings))))
}
