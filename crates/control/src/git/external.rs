//! Repositories that lie elsewhere: connecting one, its credentials, fetching it, and taking note of what a fetch brought.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ocore_host::HostError;
use ocore_model::{deployment::Trigger, ids::ProjectId, names::BranchName, project::RepositoryKind};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    address::{Address, Transport},
    host_keys,
    mirror::Mirror,
    program::GitError,
    reconcile,
    remote::{Credentials, Remote, RemoteError},
    ssh_key, webhook,
};
use crate::{
    Control, Error, FieldError, Result, audit,
    authorization::{Grant, ManageDeployments, ManageProjects, System, ViewProjects},
    branches::PushOutcome,
    deployments::Starter,
    projects,
    secrets::{self, Place, Secret},
    store::repositories::{self, Connection, Repository},
};

/// What one gives to connect a repository.
#[derive(Debug, Clone)]
pub struct ConnectRepository {
    pub url: String,
    /// Becomes an environment at once; other branches do with their next push.
    pub branch: String,
    /// For https: an access token, or `user:token`.
    pub token: Option<Secret>,
}

/// Where a project's commits come from, as people see it.
#[derive(Debug, Clone)]
pub struct RepositoryInfo {
    pub kind: RepositoryKind,
    /// The built-in remote's address, or the external repository's.
    pub url: String,
    pub branch: Option<String>,
    /// To be added to the forge, with read access. Only for ssh.
    pub deploy_key: Option<String>,
    /// The host keys that were trusted at first sight or accepted by a person, in known_hosts format. They stay when the repository is disconnected.
    pub known_hosts: String,
    /// From where, beside the repository's own directory, submodules are fetched with the project's credentials.
    pub submodule_sources: Vec<String>,
    /// Where a webhook posts to. Only for an external repository.
    pub webhook_url: Option<String>,
    pub fetched_at: Option<DateTime<Utc>>,
    /// What the last fetch said, when it did not end well.
    pub error: Option<String>,
}

/// A repository that was connected just now.
#[derive(Debug, Clone)]
pub struct Connected {
    pub info: RepositoryInfo,
    /// Shown this once.
    pub webhook_secret: String,
}

/// Whether a repository can be read, asked without changing anything.
#[derive(Debug, Clone)]
pub struct Access {
    pub accessible: bool,
    /// One sentence.
    pub message: String,
    pub branches: Vec<String>,
}

/// Branches that are listed for a person.
const BRANCHES: usize = 1000;
/// Of one project.
const SOURCES: usize = 50;
const TOKEN: &str = "repository_token";
const DEPLOY_KEY: &str = "deploy_key_private";

fn place(project: ProjectId, column: &'static str) -> Place {
    Place { table: "projects", column, row: project.0 }
}

/// Where the project's commits come from.
pub async fn info(control: &Control, grant: &Grant<ViewProjects>, project: ProjectId) -> Result<RepositoryInfo> {
    let mut connection = control.pool.acquire().await?;
    Ok(describe(control, &repositories::find(&mut connection, grant, project).await?))
}

fn describe(control: &Control, repository: &Repository) -> RepositoryInfo {
    let settings = &control.settings;
    let external = repository.kind == RepositoryKind::External;
    RepositoryInfo {
        kind: repository.kind,
        url: match &repository.url {
            Some(url) if external => url.clone(),
            _ => settings.git_remote(&repository.organization_slug, &repository.project_slug),
        },
        branch: repository.branch.clone(),
        deploy_key: repository.deploy_key_public.clone(),
        known_hosts: repository.known_hosts.clone(),
        submodule_sources: repository.submodule_sources.clone(),
        webhook_url: external.then(|| format!("{}/api/webhooks/{}", settings.public_url, repository.project_id)),
        fetched_at: repository.fetched_at,
        error: repository.error.clone(),
    }
}

/// Lets the project take its commits from another repository. An https or file repository is asked first, and not connected when it cannot
/// be read or lacks the branch; an ssh one gets a deploy key, which somebody has to add there. The first fetch runs after the answer.
/// Connecting the same address again keeps the deploy key.
pub async fn connect(
    control: &Control,
    grant: &Grant<ManageProjects>,
    project: ProjectId,
    request: ConnectRepository,
) -> Result<Connected> {
    // First of all: a stranger's project costs no look at what they say.
    let before = changeable(control, grant, project).await?;
    let address = Address::parse(&request.url).map_err(|sentence| Error::invalid("repositoryUrl", sentence))?;
    let branch: BranchName = request.branch.parse().map_err(|error| Error::invalid("branch", format!("{error}")))?;
    if request.token.is_some() && address.transport != Transport::Https && address.transport != Transport::Http {
        return Err(Error::invalid("token", "only an https:// repository is opened by a token"));
    }
    address.reach(&control.settings).await.map_err(|sentence| Error::invalid("repositoryUrl", sentence))?;
    if before.archived {
        return Err(Error::conflict("project_archived", "the project is archived; bring it back first"));
    }
    let mut key = None;
    if address.transport == Transport::Ssh {
        key = match (&before.deploy_key_public, &before.deploy_key_private) {
            (Some(public), Some(private)) if before.url.as_deref() == Some(address.as_str()) => Some((public.clone(), private.clone())),
            _ => Some(new_deploy_key(control, project).await?),
        };
    } else {
        let credentials = Credentials { token: request.token.clone(), ..Credentials::default() };
        let branches = ask(control, &address, &credentials).await.map_err(unreachable)?;
        if !branches.iter().any(|name| name == branch.as_str()) {
            return Err(Error::invalid("branch", format!("the repository has no branch {branch}")));
        }
    }
    let secret = webhook::new_secret(control, project)?;
    let token = request.token.as_ref().map(|token| secrets::seal(&control.settings, place(project, TOKEN), token)).transpose()?;
    let mut transaction = control.pool.begin().await?;
    let (deploy_key_public, deploy_key_private) = key.unzip();
    let to = Connection {
        url: address.as_str(),
        branch: branch.as_str(),
        token,
        deploy_key_public: deploy_key_public.as_deref(),
        deploy_key_private,
        webhook_secret: secret.sealed,
    };
    repositories::connect(&mut transaction, grant, project, to).await?;
    repositories::forget_branches(&mut transaction, System, project).await?;
    repositories::add_delivery(&mut transaction, System, project, None, control.clock.now()).await?;
    let detail = json!({ "before": before.url, "after": address.as_str(), "branch": branch.as_str() });
    audit::record(&mut transaction, control, grant, "repository.connected", &format!("project:{project}"), &detail).await?;
    let after = repositories::find(&mut transaction, grant, project).await?;
    transaction.commit().await?;
    webhook::wake(control, project);
    Ok(Connected { info: describe(control, &after), webhook_secret: secret.text })
}

/// The project's repository for a change of where its commits come from; in a project that protects its production, that takes `manage:production`.
async fn changeable(control: &Control, grant: &Grant<ManageProjects>, project: ProjectId) -> Result<Repository> {
    let mut connection = control.pool.acquire().await?;
    let repository = repositories::find(&mut connection, grant, project).await?;
    projects::may_deploy_production(&mut connection, grant, project).await?;
    Ok(repository)
}

/// Back to the built-in remote. What was fetched stays; the credentials are forgotten. Disconnected already is done.
pub async fn disconnect(control: &Control, grant: &Grant<ManageProjects>, project: ProjectId) -> Result<RepositoryInfo> {
    let before = changeable(control, grant, project).await?;
    let mut transaction = control.pool.begin().await?;
    repositories::disconnect(&mut transaction, grant, project).await?;
    if let Some(url) = before.url {
        let detail = json!({ "before": url });
        audit::record(&mut transaction, control, grant, "repository.disconnected", &format!("project:{project}"), &detail).await?;
    }
    let after = repositories::find(&mut transaction, grant, project).await?;
    transaction.commit().await?;
    Ok(describe(control, &after))
}

/// Makes another deploy key; the old one stops working. Answers with the public half.
pub async fn renew_deploy_key(control: &Control, grant: &Grant<ManageProjects>, project: ProjectId) -> Result<RepositoryInfo> {
    let repository = changeable(control, grant, project).await?;
    if repository.deploy_key_public.is_none() {
        return Err(Error::conflict("no_deploy_key", "the project's repository is not reached by ssh, so it has no deploy key"));
    }
    let (public, sealed) = new_deploy_key(control, project).await?;
    let mut transaction = control.pool.begin().await?;
    repositories::set_deploy_key(&mut transaction, grant, project, &public, &sealed).await?;
    audit::record(&mut transaction, control, grant, "repository.deploy_key_renewed", &format!("project:{project}"), &json!({})).await?;
    let after = repositories::find(&mut transaction, grant, project).await?;
    transaction.commit().await?;
    Ok(describe(control, &after))
}

async fn new_deploy_key(control: &Control, project: ProjectId) -> Result<(String, Vec<u8>)> {
    let pair = ssh_key::generate(&control.settings, &format!("ocore-{project}")).await?;
    Ok((pair.public, secrets::seal(&control.settings, place(project, DEPLOY_KEY), &pair.private)?))
}

/// Asks whether a repository can be read: the connected one, or the one of `request`. Changes nothing.
pub async fn validate(
    control: &Control,
    grant: &Grant<ManageProjects>,
    project: ProjectId,
    request: Option<ConnectRepository>,
) -> Result<Access> {
    let repository = repositories::find(&mut *control.pool.acquire().await?, grant, project).await?;
    let (address, credentials) = match (&request, &repository.url) {
        (Some(request), _) => {
            let address = Address::parse(&request.url).map_err(|sentence| Error::invalid("repositoryUrl", sentence))?;
            let mut credentials = if repository.url.as_deref() == Some(address.as_str()) {
                self::credentials(control, &repository)?
            } else {
                Credentials::default()
            };
            credentials.token = request.token.clone().or(credentials.token);
            (address, credentials)
        }
        (None, Some(url)) => (connected_address(url)?, credentials(control, &repository)?),
        (None, None) => {
            return Err(Error::conflict("repository_built_in", "the project uses the built-in remote; there is nothing to validate"));
        }
    };
    Ok(match ask(control, &address, &credentials).await {
        Ok(mut branches) => {
            let wanted = request.as_ref().map(|request| request.branch.as_str()).or(repository.branch.as_deref());
            let missing = wanted.filter(|branch| !branches.iter().any(|name| name == branch));
            branches.truncate(BRANCHES);
            match missing {
                Some(branch) => Access { accessible: false, message: format!("the repository has no branch {branch}"), branches },
                None => Access { accessible: true, message: "the repository can be read".to_owned(), branches },
            }
        }
        Err(error @ RemoteError::Refused(_)) => Access { accessible: false, message: error.to_string(), branches: Vec::new() },
        Err(RemoteError::Git(error)) => return Err(error.into()),
    })
}

async fn ask(control: &Control, address: &Address, credentials: &Credentials) -> Result<Vec<String>, RemoteError> {
    let remote = Remote::open(&control.settings, address.clone(), credentials).await?;
    Ok(remote.branches().await?.into_iter().map(|(name, _)| name).collect())
}

fn connected_address(url: &str) -> Result<Address> {
    Address::parse(url).map_err(|sentence| Error::broken(format!("a connected repository's address does not parse: {sentence}")))
}

fn unreachable(error: RemoteError) -> Error {
    match error {
        RemoteError::Refused(sentence) => Error::conflict("repository_unreachable", sentence),
        RemoteError::Git(error) => error.into(),
    }
}

/// What opens the project's repository.
pub(super) fn credentials(control: &Control, repository: &Repository) -> Result<Credentials> {
    let open = |column, sealed: &Option<Vec<u8>>| {
        sealed.as_ref().map(|sealed| secrets::open(&control.settings, place(repository.project_id, column), sealed)).transpose()
    };
    Ok(Credentials {
        token: open(TOKEN, &repository.token)?,
        key: open(DEPLOY_KEY, &repository.deploy_key_private)?,
        known_hosts: repository.known_hosts.clone(),
    })
}

/// Fetches the project's repository now and takes note of what moved. Ends also when the caller goes away.
pub async fn fetch(control: &Control, grant: &Grant<ManageDeployments>, project: ProjectId) -> Result<Vec<PushOutcome>> {
    let repository = repositories::find(&mut *control.pool.acquire().await?, grant, project).await?;
    if repository.kind != RepositoryKind::External {
        return Err(Error::conflict("repository_built_in", "the project uses the built-in remote; push to it instead"));
    }
    let (control, starter) = (control.clone(), Starter::new(Trigger::Manual, grant));
    let work = tokio::spawn(async move { fetch_and_record(&control, &repository, starter).await });
    work.await.unwrap_or_else(|error| Err(Error::internal("a fetch", error)))
}

/// Fetches and takes note. The outcome of the fetch itself is in the project's row as well.
pub(super) async fn fetch_and_record(control: &Control, repository: &Repository, starter: Starter) -> Result<Vec<PushOutcome>> {
    let mirror = Mirror::of_project(&control.settings, repository.project_id).await?;
    match fetch_commits(control, repository, &mirror, &CancellationToken::new()).await {
        Ok(()) => {}
        Err(HostError::Rejected { summary, .. }) => return Err(Error::conflict("repository_unreachable", summary)),
        Err(error) => return Err(error.into()),
    }
    let outcomes = reconcile::record_heads(control, repository, &mirror, starter).await?;
    mirror.point_head(&control.settings, repository.branch.as_deref()).await?;
    Ok(outcomes)
}

/// Brings the mirror to what the connected repository has. Does not take note of branches: a deployment that only needs a commit calls it.
pub(super) async fn fetch_commits(
    control: &Control,
    repository: &Repository,
    mirror: &Mirror,
    cancel: &CancellationToken,
) -> Result<(), HostError> {
    let internal = super::submodules::internal;
    let url = repository.url.as_deref().ok_or_else(|| HostError::rejected("the project has no external repository"))?;
    let address = Address::parse(url).map_err(HostError::rejected)?;
    let credentials = credentials(control, repository).map_err(internal)?;
    let fetched = async {
        let _lock = mirror.lock_fetching().await?;
        let remote = Remote::open(&control.settings, address, &credentials).await?;
        let fetched = remote.fetch_all(mirror, cancel).await;
        // A host that was seen is known from now on, also when it did not take the key.
        learn_host_keys(control, repository.project_id, &remote).await;
        fetched
    };
    let fetched: Result<(), RemoteError> = fetched.await;
    let error = fetched.as_ref().err().map(ToString::to_string);
    let store = async {
        let mut connection = control.pool.acquire().await?;
        let project = repository.project_id;
        repositories::set_fetched(&mut connection, System, project, url, control.clock.now(), error.as_deref()).await?;
        Ok::<_, Error>(())
    };
    store.await.map_err(internal)?;
    match fetched {
        Ok(()) => Ok(()),
        Err(RemoteError::Git(GitError::Cancelled)) => Err(HostError::Cancelled),
        Err(RemoteError::Git(error)) => Err(error.into()),
        Err(RemoteError::Refused(sentence)) => Err(HostError::rejected(sentence)),
    }
}

/// Remembers the key of a host that was seen for the first time. What is known already stays. One that cannot be stored is seen for the first time
/// again, which the log says.
pub(super) async fn learn_host_keys(control: &Control, project: ProjectId, remote: &Remote<'_>) {
    let learn = async {
        let mut transaction = control.pool.begin().await?;
        let known = repositories::lock_known_hosts(&mut transaction, System, project).await?;
        let after = remote.known_hosts(&known).map_err(|error| Error::internal("reading the known ssh hosts", error))?;
        if after != known {
            repositories::set_known_hosts(&mut transaction, System, project, &after).await?;
        }
        Ok::<_, Error>(transaction.commit().await?)
    };
    if let Err(error) = learn.await {
        tracing::warn!(%project, error = &error as &dyn std::error::Error, "the key of an ssh host could not be remembered");
    }
}

/// Takes the key that an ssh host shows now in the place of the one that it was known by, when its fingerprint is the one that a person gives. The
/// host is that of the connected repository, or of `url`: a submodule's. Audited.
pub async fn accept_host_key(
    control: &Control,
    grant: &Grant<ManageProjects>,
    project: ProjectId,
    fingerprint: &str,
    url: Option<&str>,
) -> Result<RepositoryInfo> {
    let repository = repositories::find(&mut *control.pool.acquire().await?, grant, project).await?;
    let fingerprint = fingerprint.trim();
    let is_one = fingerprint
        .strip_prefix("SHA256:")
        .is_some_and(|digest| digest.len() == 43 && digest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')));
    if !is_one {
        return Err(Error::invalid("fingerprint", "give the key's fingerprint as the forge publishes it: SHA256: and 43 characters"));
    }
    let address = match (url, &repository.url) {
        (Some(url), _) => Address::parse(url).map_err(|sentence| Error::invalid("repositoryUrl", sentence))?,
        (None, Some(url)) => connected_address(url)?,
        (None, None) => return Err(Error::conflict("repository_built_in", "the project uses the built-in remote, which has no ssh key")),
    };
    if address.transport != Transport::Ssh {
        return Err(Error::conflict("no_host_key", format!("{address} is not reached by ssh, so there is no key to accept")));
    }
    let reach = address.reach(&control.settings).await.map_err(|sentence| Error::invalid("repositoryUrl", sentence))?;
    let shown = Remote::shown_host_key(&control.settings, &address, &reach).await?;
    let host = &address.host;
    let shown =
        shown.ok_or_else(|| Error::conflict("repository_unreachable", format!("{host} shows no ssh key; try again when it does")))?;
    let shows = host_keys::fingerprint(&shown).unwrap_or_default();
    if shows != fingerprint {
        return Err(Error::conflict(
            "host_key_differs",
            format!("{host} shows the key {shows}, and not {fingerprint}; nothing was changed: compare {shows} with what {host} publishes"),
        ));
    }
    let mut transaction = control.pool.begin().await?;
    let known = repositories::lock_known_hosts(&mut transaction, System, project).await?;
    let alias = host_keys::alias(&address);
    let before = host_keys::fingerprints(&host_keys::expected(&known, &alias));
    repositories::set_known_hosts(&mut transaction, System, project, &host_keys::accept(&known, &alias, &shown)).await?;
    let detail = serde_json::json!({ "host": alias, "before": before, "accepted": shows });
    audit::record(&mut transaction, control, grant, "repository.host_key_accepted", &format!("project:{project}"), &detail).await?;
    let after = repositories::find(&mut transaction, grant, project).await?;
    transaction.commit().await?;
    Ok(describe(control, &after))
}

/// A directory of the project's own host whose repositories the project's credentials open beside its own: `https://github.com/acme-shared`.
pub(super) struct Source {
    home: Address,
    directory: String,
}

impl Source {
    /// The error is a sentence.
    pub(super) fn parse(home: &Address, text: &str) -> Result<Self, String> {
        let address = Address::parse(text)?;
        let directory = address.plain_path().filter(|path| !path.is_empty()).map(|path| format!("{path}/"));
        let directory = directory.ok_or_else(|| "name a directory of repositories, without dots or encoded characters in it".to_owned())?;
        // Whether it is on the project's own host, reached in the same way, is asked as of a repository in it.
        if address.transport != home.transport || address.host != home.host || address.port != home.port {
            return Err(format!("the project's credentials are for {} over {} alone", home.host, home.transport.protocol()));
        }
        Ok(Self { home: home.clone(), directory })
    }

    pub(super) fn holds(&self, address: &Address) -> bool {
        address.is_below(&self.home, &self.directory)
    }
}

/// Sets from where, beside its own directory, submodules are fetched with the project's credentials: directories of the same host. Audited.
pub async fn set_submodule_sources(
    control: &Control,
    grant: &Grant<ManageProjects>,
    project: ProjectId,
    sources: Vec<String>,
) -> Result<RepositoryInfo> {
    let repository = repositories::find(&mut *control.pool.acquire().await?, grant, project).await?;
    let Some(url) = &repository.url else {
        return Err(Error::conflict("repository_built_in", "the project uses the built-in remote, so it has no credentials for others"));
    };
    let home = connected_address(url)?;
    let sources: Vec<String> = sources.iter().map(|source| source.trim().trim_end_matches('/').to_owned()).collect();
    let wrong = |(index, source): (usize, &String)| {
        Some(FieldError { field: format!("sources[{index}]"), message: Source::parse(&home, source).err()? })
    };
    let mut fields: Vec<FieldError> = sources.iter().enumerate().filter_map(wrong).collect();
    if sources.len() > SOURCES {
        fields.push(FieldError { field: "sources".to_owned(), message: format!("give at most {SOURCES}") });
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    let mut transaction = control.pool.begin().await?;
    repositories::set_submodule_sources(&mut transaction, grant, project, url, &sources).await?;
    let detail = serde_json::json!({ "sources": sources });
    audit::record(&mut transaction, control, grant, "repository.submodule_sources_changed", &format!("project:{project}"), &detail).await?;
    let after = repositories::find(&mut transaction, grant, project).await?;
    transaction.commit().await?;
    Ok(describe(control, &after))
}

/// Old enough to give up on: a webhook whose repository could not be fetched for so long.
pub(super) const GIVE_UP: Duration = Duration::from_mins(15);
