//! Projects of the organization.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use ocore_control::{
    Settings,
    authorization::{ManageProjects, ViewProjects},
    projects::{self, NewBranchMapping, NewProject, ProjectPatch},
};
use ocore_model::{
    ids::{BranchMappingId, InstanceId, ProjectId},
    project::{ModuleSelection, RepositoryKind},
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::{IntoParams, ToSchema};

use crate::{
    AppState,
    authorized::Authorized,
    extract::{Confirmation, FromPath, FromQuery, Input},
    json,
    problem::Problem,
    wire::begun,
};

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListProjects {
    /// Archived ones too.
    #[serde(default, alias = "include_archived")]
    include_archived: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateProject {
    /// Unique in the organization.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// In the address of the built-in repository; made from the name when left out. Never changes.
    #[schema(min_length = 3, max_length = 50, pattern = "^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$")]
    slug: Option<String>,
    #[serde(default)]
    #[schema(max_length = 2000)]
    description: String,
    /// Such as `19.0`; the newest that is installed on the server when left out.
    #[schema(pattern = "^[0-9]{1,2}[.][0-9]$")]
    odoo_version: Option<String>,
    /// Which modules a fresh database gets: `own` when left out.
    #[serde(default, deserialize_with = "json::object")]
    module_selection: Option<ModuleSelection>,
    /// Loads demo data into fresh databases: no when left out.
    #[serde(default)]
    with_demo: bool,
    /// A push to a branch without an environment makes one: yes when left out.
    create_environment_on_push: Option<bool>,
    /// Deployments of its production need `manage:production`, and so does this: no when left out.
    protects_production: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateProject {
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    #[schema(max_length = 2000)]
    description: Option<String>,
    #[schema(pattern = "^[0-9]{1,2}[.][0-9]$")]
    odoo_version: Option<String>,
    #[serde(default, deserialize_with = "json::object")]
    module_selection: Option<ModuleSelection>,
    with_demo: Option<bool>,
    create_environment_on_push: Option<bool>,
    /// Deployments of its production need `manage:production`: what others push waits. Both ways with `manage:production`.
    protects_production: Option<bool>,
    /// False brings an archived project back.
    archived: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SetBranchMappings {
    #[schema(max_items = 100)]
    branch_mappings: Vec<SetBranchMapping>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SetBranchMapping {
    /// `*` matches any run of characters.
    #[schema(min_length = 1, max_length = 255)]
    branch_pattern: String,
    /// Of this project.
    #[schema(value_type = Uuid)]
    instance_id: InstanceId,
    /// The highest that matches decides.
    #[serde(default)]
    priority: i32,
}

/// A repository of Odoo modules and how its branches become environments.
#[skip_serializing_none]
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Project {
    #[schema(value_type = Uuid)]
    id: ProjectId,
    name: String,
    slug: String,
    description: String,
    odoo_version: String,
    module_selection: ModuleSelection,
    with_demo: bool,
    create_environment_on_push: bool,
    /// Deployments of its production need `manage:production`: what others push waits.
    protects_production: bool,
    repository: Repository,
    branch_mappings: Vec<BranchMapping>,
    archived: bool,
    archived_at: Option<DateTime<Utc>>,
    /// It is being removed since then: it goes when the last snapshot of its production has gone. `archived: false` brings it back until then.
    removal_requested_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// Where a project's commits come from.
#[skip_serializing_none]
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ProjectRepository)]
pub(crate) struct Repository {
    kind: RepositoryKind,
    /// Where one pushes to, of a built-in one. The password is an API key.
    git_remote: Option<String>,
    /// Of an external one.
    url: Option<String>,
    branch: Option<String>,
    /// The public ssh key that an external one is fetched with.
    deploy_key: Option<String>,
    fetched_at: Option<DateTime<Utc>>,
    /// Why the last fetch failed, if it did.
    error: Option<String>,
}

/// Leads pushes of matching branches to an instance.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BranchMapping {
    #[schema(value_type = Uuid)]
    id: BranchMappingId,
    branch_pattern: String,
    #[schema(value_type = Uuid)]
    instance_id: InstanceId,
    priority: i32,
    created_at: DateTime<Utc>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Projects {
    projects: Vec<Project>,
    total: usize,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BranchMappings {
    branch_mappings: Vec<BranchMapping>,
    total: usize,
}

impl Project {
    fn of(project: projects::Project, organization_slug: &str, settings: &Settings) -> Self {
        let repository = project.repository;
        let git_remote = match repository.kind {
            RepositoryKind::BuiltIn => Some(settings.git_remote(organization_slug, &project.slug)),
            RepositoryKind::External => None,
        };
        Self {
            id: project.id,
            name: project.name,
            slug: project.slug,
            description: project.description,
            odoo_version: project.odoo_version.to_string(),
            module_selection: project.module_selection,
            with_demo: project.with_demo,
            create_environment_on_push: project.create_environment_on_push,
            protects_production: project.protects_production,
            repository: Repository {
                kind: repository.kind,
                git_remote,
                url: repository.url,
                branch: repository.branch,
                deploy_key: repository.deploy_key,
                fetched_at: repository.fetched_at,
                error: repository.error,
            },
            branch_mappings: project.branch_mappings.into_iter().map(Into::into).collect(),
            archived: project.archived_at.is_some(),
            archived_at: project.archived_at,
            removal_requested_at: project.removal_requested_at,
            created_at: project.created_at,
            updated_at: project.updated_at,
        }
    }
}

impl From<projects::BranchMapping> for BranchMapping {
    fn from(mapping: projects::BranchMapping) -> Self {
        Self {
            id: mapping.id,
            branch_pattern: mapping.branch_pattern,
            instance_id: mapping.instance_id,
            priority: mapping.priority,
            created_at: mapping.created_at,
        }
    }
}

fn mappings(mappings: Vec<projects::BranchMapping>) -> Json<BranchMappings> {
    let total = mappings.len();
    Json(BranchMappings { branch_mappings: mappings.into_iter().map(Into::into).collect(), total })
}

/// List the projects.
#[utoipa::path(get, path = "/projects", tag = "Projects",
    params(ListProjects, ("include_archived" = Option<bool>, Query, deprecated, description = "As `includeArchived`")), responses((status = 200, description = "By name.", body = Projects)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ViewProjects>,
    FromQuery(query): FromQuery<ListProjects>,
) -> Result<Json<Projects>, Problem> {
    let projects = projects::list(&state.control, &grant, query.include_archived).await?;
    let projects: Vec<Project> =
        projects.into_iter().map(|project| Project::of(project, &grant.organization_slug, &state.control.settings)).collect();
    let total = projects.len();
    Ok(Json(Projects { projects, total }))
}

/// Make a project.
///
/// With a built-in repository to push to.
#[utoipa::path(post, path = "/projects", tag = "Projects", request_body = CreateProject, responses((status = 201, description = "The project.", body = Project)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    Input(body): Input<CreateProject>,
) -> Result<Response, Problem> {
    let new = NewProject {
        name: body.name,
        slug: body.slug,
        description: body.description,
        odoo_version: body.odoo_version,
        module_selection: body.module_selection.unwrap_or(ModuleSelection::Own),
        with_demo: body.with_demo,
        create_environment_on_push: body.create_environment_on_push.unwrap_or(true),
        protects_production: body.protects_production.unwrap_or_default(),
    };
    let project = projects::create(&state.control, &grant, new).await?;
    let project = Project::of(project, &grant.organization_slug, &state.control.settings);
    Ok(begun(StatusCode::CREATED, &format!("/projects/{}", project.id), project))
}

/// Show a project.
#[utoipa::path(get, path = "/projects/{id}", tag = "Projects", params(("id" = Uuid, Path)), responses((status = 200, description = "The project.", body = Project)))]
pub(crate) async fn show(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ViewProjects>,
    FromPath(id): FromPath<ProjectId>,
) -> Result<Json<Project>, Problem> {
    let project = projects::show(&state.control, &grant, id).await?;
    Ok(Json(Project::of(project, &grant.organization_slug, &state.control.settings)))
}

/// Change a project.
///
/// What is left out stays. It holds from the next deployment on.
#[utoipa::path(put, path = "/projects/{id}", tag = "Projects", params(("id" = Uuid, Path)), request_body = UpdateProject,
    responses((status = 200, description = "The project.", body = Project)))]
pub(crate) async fn update(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(id): FromPath<ProjectId>,
    Input(body): Input<UpdateProject>,
) -> Result<Json<Project>, Problem> {
    let patch = ProjectPatch {
        name: body.name,
        description: body.description,
        odoo_version: body.odoo_version,
        module_selection: body.module_selection,
        with_demo: body.with_demo,
        create_environment_on_push: body.create_environment_on_push,
        protects_production: body.protects_production,
        archived: body.archived,
    };
    let project = projects::update(&state.control, &grant, id, patch).await?;
    Ok(Json(Project::of(project, &grant.organization_slug, &state.control.settings)))
}

/// Archive or remove a project.
///
/// Archived, it takes no pushes and is listed only on demand; its repository and history stay. Refused while it has environments (409 `project_in_use`).
/// With its slug as `confirm` it is removed: with all its environments and their data, with a production in it by who has `manage:production`. The last
/// snapshot of its production is kept for 30 days; so long it is archived and can be brought back (`archived: false`), then its repository goes too.
#[utoipa::path(delete, path = "/projects/{id}", tag = "Projects", params(("id" = Uuid, Path), Confirmation), responses(
    (status = 200, description = "The archived project.", body = Project),
    (status = 202, description = "It is being removed.", body = Project)))]
pub(crate) async fn archive(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(id): FromPath<ProjectId>,
    FromQuery(query): FromQuery<Confirmation>,
) -> Result<(StatusCode, Json<Project>), Problem> {
    let (status, project) = match query.confirm {
        Some(confirmation) => (StatusCode::ACCEPTED, projects::remove(&state.control, &grant, id, &confirmation).await?),
        None => (StatusCode::OK, projects::archive(&state.control, &grant, id).await?),
    };
    Ok((status, Json(Project::of(project, &grant.organization_slug, &state.control.settings))))
}

/// List branch mappings.
#[utoipa::path(get, path = "/projects/{id}/branch-mappings", tag = "Projects", params(("id" = Uuid, Path)),
    responses((status = 200, description = "The highest priority first.", body = BranchMappings)))]
pub(crate) async fn branch_mappings(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ViewProjects>,
    FromPath(id): FromPath<ProjectId>,
) -> Result<Json<BranchMappings>, Problem> {
    Ok(mappings(projects::branch_mappings(&state.control, &grant, id).await?))
}

/// Replace all branch mappings.
#[utoipa::path(put, path = "/projects/{id}/branch-mappings", tag = "Projects", params(("id" = Uuid, Path)), request_body = SetBranchMappings,
    responses((status = 200, description = "The mappings as they are now.", body = BranchMappings)))]
pub(crate) async fn set_branch_mappings(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(id): FromPath<ProjectId>,
    Input(body): Input<SetBranchMappings>,
) -> Result<Json<BranchMappings>, Problem> {
    let new = body
        .branch_mappings
        .into_iter()
        .map(|mapping| NewBranchMapping {
            branch_pattern: mapping.branch_pattern,
            instance_id: mapping.instance_id,
            priority: mapping.priority,
        })
        .collect();
    Ok(mappings(projects::set_branch_mappings(&state.control, &grant, id, new).await?))
}
