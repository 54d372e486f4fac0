//! Where a project's commits come from: connecting a repository that lies elsewhere, and the webhook that says that it has moved.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use chrono::{DateTime, Utc};
use ocore_control::{
    authorization::{ManageDeployments, ManageProjects, ViewProjects},
    git::{self, Access, ConnectRepository, Connected, Proof, RepositoryInfo},
    secrets::Secret,
};
use ocore_model::{
    ids::{DeploymentId, EnvironmentId, ProjectId},
    project::RepositoryKind,
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState,
    authorized::Authorized,
    extract::{FromPath, Input},
    problem::Problem,
};

pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(get_repository, connect_repository, disconnect_repository))
        .routes(routes!(validate_repository))
        .routes(routes!(fetch_repository))
        .routes(routes!(renew_deploy_key))
        .routes(routes!(accept_host_key))
        .routes(routes!(set_submodule_sources))
        .routes(routes!(renew_webhook_secret))
        .routes(routes!(receive_webhook))
}

#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RepositoryView {
    kind: RepositoryKind,
    /// Where to push to, or where oCore fetches from.
    repository_url: String,
    branch: Option<String>,
    /// The public half of the key that opens an ssh repository; add it there with read access.
    deploy_key: Option<String>,
    /// The ssh host keys that were trusted at first sight or accepted by a person, in known_hosts format.
    known_hosts: String,
    /// From where, beside the repository's own directory, submodules are fetched with the project's credentials.
    submodule_sources: Vec<String>,
    /// Where a webhook posts to.
    webhook_url: Option<String>,
    fetched_at: Option<DateTime<Utc>>,
    /// What the last fetch said, when it did not end well.
    error: Option<String>,
}

impl From<RepositoryInfo> for RepositoryView {
    fn from(info: RepositoryInfo) -> Self {
        Self {
            kind: info.kind,
            repository_url: info.url,
            branch: info.branch,
            deploy_key: info.deploy_key,
            known_hosts: info.known_hosts,
            submodule_sources: info.submodule_sources,
            webhook_url: info.webhook_url,
            fetched_at: info.fetched_at,
            error: info.error,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ConnectedView {
    #[serde(flatten)]
    repository: RepositoryView,
    /// Shown this once.
    webhook_secret: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RepositoryConnect {
    /// `https://`, `ssh://`, `user@host:path`, or `file://` where the installation allows it. Without user or password.
    repository_url: String,
    #[serde(default = "main_branch")]
    #[schema(default = "main")]
    branch: String,
    /// An access token for an https repository, or `user:token`.
    #[serde(default)]
    token: Option<String>,
    /// Kept for clients that send it: the address says all that is needed.
    #[serde(default)]
    provider: Option<Provider>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Provider {
    Github,
    Gitlab,
    Bitbucket,
    Gitea,
    Other,
}

fn main_branch() -> String {
    "main".to_owned()
}

impl From<RepositoryConnect> for ConnectRepository {
    fn from(body: RepositoryConnect) -> Self {
        let token = body.token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        // Bitbucket takes a token for one user name only.
        let token = match (token, body.provider) {
            (Some(token), Some(Provider::Bitbucket)) if !token.contains(':') => Some(format!("x-token-auth:{token}")),
            (token, _) => token,
        };
        Self { url: body.repository_url, branch: body.branch, token: token.map(Secret::new) }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct AccessView {
    accessible: bool,
    message: String,
    branches: Vec<String>,
}

impl From<Access> for AccessView {
    fn from(access: Access) -> Self {
        Self { accessible: access.accessible, message: access.message, branches: access.branches }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct FetchedView {
    branches: Vec<BranchOutcomeView>,
}

/// What came of a branch that moved.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BranchOutcomeView {
    branch: String,
    #[schema(value_type = Option<Uuid>)]
    environment_id: Option<EnvironmentId>,
    #[schema(value_type = Option<Uuid>)]
    deployment_id: Option<DeploymentId>,
    message: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct WebhookSecretView {
    /// Shown this once.
    webhook_secret: String,
}

/// Where the project's commits come from.
#[utoipa::path(get, path = "/projects/{projectId}/repository", tag = "Repositories", params(("projectId" = Uuid, Path)),
    responses((status = 200, description = "Where they come from", body = RepositoryView)))]
async fn get_repository(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ViewProjects>,
    FromPath(project): FromPath<ProjectId>,
) -> Result<Json<RepositoryView>, Problem> {
    Ok(Json(git::info(&state.control, &grant, project).await?.into()))
}

/// Lets the project take its commits from another repository. The first fetch runs after the answer.
#[utoipa::path(post, path = "/projects/{projectId}/repository", tag = "Repositories", params(("projectId" = Uuid, Path)),
    request_body = RepositoryConnect, responses((status = 200, description = "It is connected; the first fetch begins", body = ConnectedView)))]
async fn connect_repository(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(project): FromPath<ProjectId>,
    Input(body): Input<RepositoryConnect>,
) -> Result<Json<ConnectedView>, Problem> {
    let Connected { info, webhook_secret } = git::connect(&state.control, &grant, project, body.into()).await?;
    Ok(Json(ConnectedView { repository: info.into(), webhook_secret }))
}

/// Back to the built-in remote.
#[utoipa::path(delete, path = "/projects/{projectId}/repository", tag = "Repositories", params(("projectId" = Uuid, Path)),
    responses((status = 200, description = "The built-in remote", body = RepositoryView)))]
async fn disconnect_repository(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(project): FromPath<ProjectId>,
) -> Result<Json<RepositoryView>, Problem> {
    Ok(Json(git::disconnect(&state.control, &grant, project).await?.into()))
}

/// Asks whether the connected repository, or the one in the body, can be read. Changes nothing.
#[utoipa::path(post, path = "/projects/{projectId}/repository/validate", tag = "Repositories", params(("projectId" = Uuid, Path)),
    request_body = Option<RepositoryConnect>, responses((status = 200, description = "Whether it can be read", body = AccessView)))]
async fn validate_repository(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(project): FromPath<ProjectId>,
    body: Option<Input<RepositoryConnect>>,
) -> Result<Json<AccessView>, Problem> {
    let request = body.map(|Input(body)| body.into());
    Ok(Json(git::validate(&state.control, &grant, project, request).await?.into()))
}

/// Fetches the connected repository now; the branches that moved count as pushed.
#[utoipa::path(post, path = "/projects/{projectId}/repository/fetch", tag = "Repositories", params(("projectId" = Uuid, Path)),
    responses((status = 200, description = "What moved", body = FetchedView)))]
async fn fetch_repository(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageDeployments>,
    FromPath(project): FromPath<ProjectId>,
) -> Result<Json<FetchedView>, Problem> {
    let outcomes = git::fetch(&state.control, &grant, project).await?;
    let branches = outcomes
        .into_iter()
        .map(|outcome| BranchOutcomeView {
            branch: outcome.branch.to_string(),
            environment_id: outcome.environment_id,
            deployment_id: outcome.deployment_id,
            message: outcome.message,
        })
        .collect();
    Ok(Json(FetchedView { branches }))
}

/// Makes another deploy key; the old one stops working.
#[utoipa::path(post, path = "/projects/{projectId}/repository/deploy-key", tag = "Repositories", params(("projectId" = Uuid, Path)),
    responses((status = 200, description = "With the new key", body = RepositoryView)))]
async fn renew_deploy_key(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(project): FromPath<ProjectId>,
) -> Result<Json<RepositoryView>, Problem> {
    Ok(Json(git::renew_deploy_key(&state.control, &grant, project).await?.into()))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostKeyAccept {
    /// As `ssh-keygen -l` and the forges write it: `SHA256:` and 43 characters.
    #[schema(pattern = "^SHA256:[A-Za-z0-9+/]{43}$")]
    fingerprint: String,
    /// The address of a submodule, when it is its host whose key has changed, and not that of the connected repository.
    #[serde(default)]
    repository_url: Option<String>,
}

/// Takes the key that an ssh host shows now in the place of the one that it was known by, when it has this fingerprint. Audited.
#[utoipa::path(post, path = "/projects/{projectId}/repository/host-key", tag = "Repositories", params(("projectId" = Uuid, Path)),
    request_body = HostKeyAccept, responses((status = 200, description = "With the key that is known now", body = RepositoryView)))]
async fn accept_host_key(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(project): FromPath<ProjectId>,
    Input(body): Input<HostKeyAccept>,
) -> Result<Json<RepositoryView>, Problem> {
    let url = body.repository_url.as_deref();
    Ok(Json(git::accept_host_key(&state.control, &grant, project, &body.fingerprint, url).await?.into()))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SubmoduleSources {
    /// Directories on the connected repository's own host: `https://github.com/acme-shared`.
    sources: Vec<String>,
}

/// Sets from where, beside the repository's own directory, submodules are fetched with the project's token or deploy key. Whoever may push then reads
/// what the credentials open there. Audited.
#[utoipa::path(put, path = "/projects/{projectId}/repository/submodule-sources", tag = "Repositories", params(("projectId" = Uuid, Path)),
    request_body = SubmoduleSources, responses((status = 200, description = "As it is now", body = RepositoryView)))]
async fn set_submodule_sources(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(project): FromPath<ProjectId>,
    Input(body): Input<SubmoduleSources>,
) -> Result<Json<RepositoryView>, Problem> {
    Ok(Json(git::set_submodule_sources(&state.control, &grant, project, body.sources).await?.into()))
}

/// Makes another webhook secret; the old one stops working.
#[utoipa::path(post, path = "/projects/{projectId}/repository/webhook-secret", tag = "Repositories", params(("projectId" = Uuid, Path)),
    responses((status = 200, description = "The new secret", body = WebhookSecretView)))]
async fn renew_webhook_secret(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageProjects>,
    FromPath(project): FromPath<ProjectId>,
) -> Result<Json<WebhookSecretView>, Problem> {
    Ok(Json(WebhookSecretView { webhook_secret: git::renew_webhook_secret(&state.control, &grant, project).await? }))
}

/// Says that the connected repository has moved. Proven by the secret in `X-Ocore-Token` (or `X-Gitlab-Token`), or by the body's HMAC-SHA-256
/// in `X-Ocore-Signature` (or `X-Hub-Signature-256`). Answered when it is stored; the fetch comes after. The body itself does not count.
#[utoipa::path(post, path = "/webhooks/{projectId}", tag = "Repositories", security(()),
    params(
        ("projectId" = Uuid, Path),
        ("X-Ocore-Token" = Option<String>, Header, description = "the webhook's secret"),
        ("X-Ocore-Signature" = Option<String>, Header, description = "`sha256=` and the body's HMAC under the secret, hexadecimal"),
        ("X-Ocore-Delivery" = Option<String>, Header, description = "the sender's id of this delivery; the same one again changes nothing"),
    ),
    request_body(content = String, description = "anything", content_type = "application/octet-stream"),
    responses((status = 202, description = "stored")))]
async fn receive_webhook(
    State(state): State<AppState>,
    FromPath(project): FromPath<ProjectId>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let header = |names: &[&str]| names.iter().find_map(|name| headers.get(*name)?.to_str().ok()).map(str::to_owned);
    let proof = Proof {
        token: header(&["x-ocore-token", "x-gitlab-token"]),
        signature: header(&["x-ocore-signature", "x-hub-signature-256", "x-gitea-signature"]),
    };
    let delivery = header(&["x-ocore-delivery", "x-github-delivery", "x-gitlab-event-uuid", "x-gitea-delivery"]);
    git::receive_webhook(&state.control, project, &proof, &body, delivery.as_deref()).await?;
    Ok(StatusCode::ACCEPTED)
}
