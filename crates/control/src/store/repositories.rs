//! Repositories: the part of a project's row that says where its commits come from, its branches' heads, and webhooks that wait.

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{DeploymentId, OrganizationId, ProjectId},
    names::CommitSha,
    project::RepositoryKind,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Error, Result,
    authorization::{Scope, System},
};

/// Where a project's commits come from. The sealed columns are opened by `control::secrets` only where they are used.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub(crate) project_id: ProjectId,
    pub(crate) organization_id: OrganizationId,
    pub(crate) organization_slug: String,
    pub(crate) project_slug: String,
    pub(crate) archived: bool,
    pub(crate) kind: RepositoryKind,
    pub(crate) url: Option<String>,
    /// The branch that became an environment when the repository was connected.
    pub(crate) branch: Option<String>,
    pub(crate) deploy_key_public: Option<String>,
    pub(crate) deploy_key_private: Option<Vec<u8>>,
    pub(crate) token: Option<Vec<u8>>,
    pub(crate) known_hosts: String,
    pub(crate) submodule_sources: Vec<String>,
    pub(crate) webhook_secret: Option<Vec<u8>>,
    pub(crate) fetched_at: Option<DateTime<Utc>>,
    pub(crate) error: Option<String>,
    pub(crate) create_environment_on_push: bool,
}

struct Row {
    project_id: ProjectId,
    organization_id: OrganizationId,
    organization_slug: String,
    project_slug: String,
    archived: bool,
    kind: String,
    url: Option<String>,
    branch: Option<String>,
    deploy_key_public: Option<String>,
    deploy_key_private: Option<Vec<u8>>,
    token: Option<Vec<u8>>,
    known_hosts: String,
    submodule_sources: Vec<String>,
    webhook_secret: Option<Vec<u8>>,
    fetched_at: Option<DateTime<Utc>>,
    error: Option<String>,
    create_environment_on_push: bool,
}

impl TryFrom<Row> for Repository {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            kind: row.kind.parse().map_err(|error| Error::internal("projects.repository_kind", error))?,
            project_id: row.project_id,
            organization_id: row.organization_id,
            organization_slug: row.organization_slug,
            project_slug: row.project_slug,
            archived: row.archived,
            url: row.url,
            branch: row.branch,
            deploy_key_public: row.deploy_key_public,
            deploy_key_private: row.deploy_key_private,
            token: row.token,
            known_hosts: row.known_hosts,
            submodule_sources: row.submodule_sources,
            webhook_secret: row.webhook_secret,
            fetched_at: row.fetched_at,
            error: row.error,
            create_environment_on_push: row.create_environment_on_push,
        })
    }
}

/// The one column list; the condition is the caller's.
macro_rules! select {
    ($condition:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Row,
            r#"select p.id as "project_id: ProjectId", p.organization_id as "organization_id: OrganizationId", o.slug as organization_slug,
                p.slug as project_slug, p.archived_at is not null as "archived!", p.repository_kind as kind, p.repository_url as url,
                p.repository_branch as branch, p.deploy_key_public, p.deploy_key_private, p.repository_token as token,
                p.repository_known_hosts as known_hosts, p.repository_submodule_sources as submodule_sources, p.webhook_secret, p.repository_fetched_at as fetched_at,
                p.repository_error as error, p.create_environment_on_push
            from projects p join organizations o on o.id = p.organization_id where "# + $condition,
            $($argument),*
        )
    };
}

/// The repository of a project, whoever owns it.
pub(crate) async fn find_any(connection: &mut PgConnection, _: System, project: ProjectId) -> Result<Option<Repository>> {
    select!("p.id = $1", project.0).fetch_optional(connection).await?.map(Repository::try_from).transpose()
}

pub(crate) async fn find(connection: &mut PgConnection, scope: &Scope, project: ProjectId) -> Result<Repository> {
    let row = select!("p.id = $1 and p.organization_id = $2", project.0, scope.organization_id.0).fetch_optional(connection).await?;
    row.ok_or(Error::NotFound { what: "project" })?.try_into()
}

/// The repository at a project's slug.
pub(crate) async fn find_by_slug(connection: &mut PgConnection, organization: OrganizationId, slug: &str) -> Result<Option<Repository>> {
    let row = select!("p.organization_id = $1 and p.slug = $2", organization.0, slug).fetch_optional(connection).await?;
    row.map(Repository::try_from).transpose()
}

/// What a push must know of the branches that have an environment: those of production.
pub(crate) async fn followed_branches(connection: &mut PgConnection, _: System, project: ProjectId) -> Result<Vec<(String, bool)>> {
    let rows = sqlx::query!(
        r#"select branch, stage = 'production' as "production!" from environments where project_id = $1 and status = 'active'"#,
        project.0
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.branch, row.production)).collect())
}

/// The branches as the store knows them, without the deleted ones.
pub(crate) async fn recorded_heads(connection: &mut PgConnection, _: System, project: ProjectId) -> Result<Vec<(String, String)>> {
    let rows = sqlx::query!("select name, head_sha from branches where project_id = $1 and deleted_at is null", project.0);
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.name, row.head_sha)).collect())
}

/// Forgets all heads: the repository is another one now.
pub(crate) async fn forget_branches(connection: &mut PgConnection, _: System, project: ProjectId) -> Result<()> {
    sqlx::query!("delete from branches where project_id = $1", project.0).execute(connection).await?;
    Ok(())
}

/// Commits that something in the store may still ask for: live, pending or with an open deployment.
pub(crate) async fn needed_commits(connection: &mut PgConnection, _: System, project: ProjectId) -> Result<Vec<CommitSha>> {
    let found = sqlx::query_scalar!(
        r#"select live_commit_sha as "sha!" from environments where project_id = $1 and status <> 'deleted' and live_commit_sha is not null
           union select pending_commit_sha from environments where project_id = $1 and status <> 'deleted' and pending_commit_sha is not null
           union select commit_sha from deployments where project_id = $1 and status in ('queued', 'running')"#,
        project.0
    );
    Ok(found.fetch_all(connection).await?.iter().filter_map(|sha| sha.parse().ok()).collect())
}

/// Every project that is not archived, with where its commits come from.
pub(crate) async fn all_projects(connection: &mut PgConnection, _: System) -> Result<Vec<ProjectId>> {
    Ok(sqlx::query_scalar!(r#"select id as "id: ProjectId" from projects where archived_at is null order by id"#)
        .fetch_all(connection)
        .await?)
}

/// What [`connect`] writes.
#[derive(Debug)]
pub(crate) struct Connection<'a> {
    pub(crate) url: &'a str,
    pub(crate) branch: &'a str,
    pub(crate) token: Option<Vec<u8>>,
    pub(crate) deploy_key_public: Option<&'a str>,
    pub(crate) deploy_key_private: Option<Vec<u8>>,
    pub(crate) webhook_secret: Vec<u8>,
}

/// Lets an external repository be where the project's commits come from. Keys of ssh hosts stay known; what another repository's credentials were
/// for does not.
pub(crate) async fn connect(connection: &mut PgConnection, scope: &Scope, project: ProjectId, to: Connection<'_>) -> Result<()> {
    let done = sqlx::query!(
        "update projects set repository_kind = 'external', repository_url = $3, repository_branch = $4, repository_token = $5,
            deploy_key_public = $6, deploy_key_private = $7, webhook_secret = $8, repository_fetched_at = null, repository_error = null,
            repository_submodule_sources = case when repository_url = $3 then repository_submodule_sources else '{}' end, updated_at = now()
         where id = $1 and organization_id = $2",
        project.0,
        scope.organization_id.0,
        to.url,
        to.branch,
        to.token,
        to.deploy_key_public,
        to.deploy_key_private,
        to.webhook_secret,
    );
    if done.execute(connection).await?.rows_affected() == 0 { Err(Error::NotFound { what: "project" }) } else { Ok(()) }
}

/// Back to the built-in remote; credentials are forgotten. Keys of ssh hosts stay known.
pub(crate) async fn disconnect(connection: &mut PgConnection, scope: &Scope, project: ProjectId) -> Result<()> {
    let done = sqlx::query!(
        "update projects set repository_kind = 'built_in', repository_url = null, repository_branch = null, repository_token = null,
            deploy_key_public = null, deploy_key_private = null, webhook_secret = null, repository_submodule_sources = '{}',
            repository_fetched_at = null, repository_error = null, updated_at = now()
         where id = $1 and organization_id = $2",
        project.0,
        scope.organization_id.0,
    );
    if done.execute(connection).await?.rows_affected() == 0 { Err(Error::NotFound { what: "project" }) } else { Ok(()) }
}

pub(crate) async fn set_webhook_secret(connection: &mut PgConnection, scope: &Scope, project: ProjectId, sealed: &[u8]) -> Result<()> {
    let done = sqlx::query!(
        "update projects set webhook_secret = $3, updated_at = now() where id = $1 and organization_id = $2",
        project.0,
        scope.organization_id.0,
        sealed
    );
    if done.execute(connection).await?.rows_affected() == 0 { Err(Error::NotFound { what: "project" }) } else { Ok(()) }
}

pub(crate) async fn set_deploy_key(
    connection: &mut PgConnection,
    scope: &Scope,
    project: ProjectId,
    public: &str,
    sealed: &[u8],
) -> Result<()> {
    let done = sqlx::query!(
        "update projects set deploy_key_public = $3, deploy_key_private = $4, updated_at = now() where id = $1 and organization_id = $2",
        project.0,
        scope.organization_id.0,
        public,
        sealed
    );
    if done.execute(connection).await?.rows_affected() == 0 { Err(Error::NotFound { what: "project" }) } else { Ok(()) }
}

/// How a fetch ended: `None` is well. The address must still be the one that was fetched.
pub(crate) async fn set_fetched(
    connection: &mut PgConnection,
    _: System,
    project: ProjectId,
    url: &str,
    at: DateTime<Utc>,
    error: Option<&str>,
) -> Result<()> {
    sqlx::query!(
        "update projects set repository_fetched_at = case when $4::text is null then $3 else repository_fetched_at end, repository_error = $4
         where id = $1 and repository_url = $2",
        project.0,
        url,
        at,
        error
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The known keys of ssh hosts; nobody else changes them before the transaction ends.
pub(crate) async fn lock_known_hosts(connection: &mut PgConnection, _: System, project: ProjectId) -> Result<String> {
    let known = sqlx::query_scalar!("select repository_known_hosts from projects where id = $1 for update", project.0);
    known.fetch_optional(connection).await?.ok_or(Error::NotFound { what: "project" })
}

pub(crate) async fn set_known_hosts(connection: &mut PgConnection, _: System, project: ProjectId, known: &str) -> Result<()> {
    sqlx::query!("update projects set repository_known_hosts = $2 where id = $1", project.0, known).execute(connection).await?;
    Ok(())
}

/// The connected repository must still be the one at this address.
pub(crate) async fn set_submodule_sources(
    connection: &mut PgConnection,
    scope: &Scope,
    project: ProjectId,
    url: &str,
    sources: &[String],
) -> Result<()> {
    let done = sqlx::query!(
        "update projects set repository_submodule_sources = $4, updated_at = now() where id = $1 and organization_id = $2 and repository_url = $3",
        project.0,
        scope.organization_id.0,
        url,
        sources
    );
    if done.execute(connection).await?.rows_affected() == 0 { Err(Error::NotFound { what: "project" }) } else { Ok(()) }
}

/// A webhook that waits for its fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery {
    pub(crate) id: Uuid,
    pub(crate) project_id: ProjectId,
    pub(crate) received_at: DateTime<Utc>,
}

/// Stores a verified webhook; `None` when the sender's delivery id was seen before.
pub(crate) async fn add_delivery(
    connection: &mut PgConnection,
    _: System,
    project: ProjectId,
    delivery_id: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Option<Uuid>> {
    let id = Uuid::now_v7();
    let added = sqlx::query_scalar!(
        "insert into webhook_deliveries (id, project_id, delivery_id, received_at) values ($1, $2, $3, $4)
         on conflict (project_id, delivery_id) do nothing returning id",
        id,
        project.0,
        delivery_id,
        now
    );
    Ok(added.fetch_optional(connection).await?)
}

/// Webhooks whose fetch has not ended, oldest first.
pub(crate) async fn open_deliveries(connection: &mut PgConnection, _: System) -> Result<Vec<Delivery>> {
    let rows = sqlx::query_as!(
        Delivery,
        r#"select id, project_id as "project_id: ProjectId", received_at from webhook_deliveries where processed_at is null order by received_at limit 1000"#
    );
    Ok(rows.fetch_all(connection).await?)
}

pub(crate) async fn close_delivery(
    connection: &mut PgConnection,
    _: System,
    id: Uuid,
    now: DateTime<Utc>,
    error: Option<&str>,
) -> Result<()> {
    sqlx::query!("update webhook_deliveries set processed_at = $2, error = $3 where id = $1", id, now, error).execute(connection).await?;
    Ok(())
}

/// Forgets webhooks that were done before `before`.
pub(crate) async fn prune_deliveries(connection: &mut PgConnection, _: System, before: DateTime<Utc>) -> Result<()> {
    sqlx::query!("delete from webhook_deliveries where processed_at < $1", before).execute(connection).await?;
    Ok(())
}

/// The slug of the instance that a deployment is for.
pub(crate) async fn instance_slug(connection: &mut PgConnection, _: System, deployment: DeploymentId) -> Result<Option<String>> {
    let found =
        sqlx::query_scalar!("select i.slug from deployments d join instances i on i.id = d.instance_id where d.id = $1", deployment.0);
    Ok(found.fetch_optional(connection).await?)
}
