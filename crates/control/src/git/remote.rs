//! Fetching from somebody else's repository: the address judged, the credentials out of sight, Git's words turned into a sentence.
//!
//! What comes back to a person are sentences of ours, and nothing of what the other side wrote: whoever names an address would otherwise read what
//! listens there (a banner, an error page) over our shoulder. The words themselves go to the operator's log.

use std::{io, net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ocore_model::names::BranchName;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{
    address::{Address, Reach, Transport},
    host_keys,
    mirror::Mirror,
    program::{Git, GitError},
    ssh_key::SshSession,
};
use crate::{Settings, secrets::Secret};

/// A first fetch of a large history over a slow line; Git itself gives up earlier on a line that is dead.
const FETCH_TIMEOUT: Duration = Duration::from_mins(30);
const ASK_TIMEOUT: Duration = Duration::from_mins(1);
/// The list of a remote's branches; a hundred thousand of them fit.
const LIST_LIMIT: usize = 16 * 1024 * 1024;
/// Of Git's words in the operator's log.
const LOGGED: usize = 2000;

/// What opens a repository. Empty for a public one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    /// For https: an access token, or `user:token`.
    pub(crate) token: Option<Secret>,
    /// For ssh: a private key in OpenSSH's format.
    pub(crate) key: Option<Secret>,
    /// For ssh: the host keys that were seen before.
    pub(crate) known_hosts: String,
}

/// Why a repository could not be reached; a sentence for the person who connected it.
#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    /// The address, the key or the other side is at fault: what to change is in the sentence.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Git(#[from] GitError),
}

impl From<io::Error> for RemoteError {
    fn from(error: io::Error) -> Self {
        Self::Git(GitError::Pipe(error))
    }
}

/// A repository that may be reached, with what opens it.
pub(crate) struct Remote<'a> {
    settings: &'a Settings,
    address: Address,
    reach: Reach,
    token: Option<Secret>,
    ssh: Option<Ssh>,
}

struct Ssh {
    session: SshSession,
    /// The keys of which the host must show one; none for one that is seen for the first time.
    expected: Vec<String>,
}

impl<'a> Remote<'a> {
    pub(crate) async fn open(settings: &'a Settings, address: Address, credentials: &Credentials) -> Result<Self, RemoteError> {
        let reach = address.reach(settings).await.map_err(RemoteError::Refused)?;
        let ssh = match address.transport {
            Transport::Ssh => {
                let expected = host_keys::expected(&credentials.known_hosts, &host_keys::alias(&address));
                let session = SshSession::new(settings, &address, &reach, credentials.key.as_ref(), &expected)?;
                Some(Ssh { session, expected })
            }
            _ => None,
        };
        let token =
            if address.transport == Transport::Https || address.transport == Transport::Http { credentials.token.clone() } else { None };
        Ok(Self { settings, address, reach, token, ssh })
    }

    /// The other side's branches as `(name, sha)`, without fetching anything: proves that address and credentials are right.
    pub(crate) async fn branches(&self) -> Result<Vec<(String, String)>, RemoteError> {
        let git = Git::new(self.settings, None, "ls-remote")?.args(["--heads", "--quiet", "--"]).arg(self.address.as_str());
        let output = self.call(git.timeout(ASK_TIMEOUT).output_limit(LIST_LIMIT)).await?;
        let text = String::from_utf8_lossy(&output);
        let heads = text.lines().filter_map(|line| line.split_once('\t'));
        // A name that no branch can have is none, whatever the other side says.
        let named = |name: &str| name.strip_prefix("refs/heads/")?.parse::<BranchName>().ok().map(|name| name.to_string());
        Ok(heads.filter_map(|(sha, name)| Some((named(name)?, sha.to_owned()))).collect())
    }

    /// Makes the mirror's branches and tags those of the other side: new, moved (also rewritten) and gone ones.
    pub(crate) async fn fetch_all(&self, mirror: &Mirror, cancel: &CancellationToken) -> Result<(), RemoteError> {
        let git = fetch(mirror, self.settings)?.args(["--prune", "--"]).arg(self.address.as_str());
        let git = git.args(["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]);
        self.call(git.cancelled_by(cancel)).await.map(drop)
    }

    /// Brings one commit without its history, which is what a submodule needs; not every server gives a commit by its id alone.
    pub(crate) async fn fetch_commit(&self, mirror: &Mirror, commit: &str, cancel: &CancellationToken) -> Result<(), RemoteError> {
        let git = fetch(mirror, self.settings)?.args(["--depth=1", "--"]).arg(self.address.as_str());
        let git = git.arg(format!("{commit}:refs/ocore/commits/{commit}"));
        self.call(git.cancelled_by(cancel)).await.map(drop)
    }

    /// The known host keys after the calls: with those of the host, when it was seen for the first time.
    pub(crate) fn known_hosts(&self, before: &str) -> Result<String, RemoteError> {
        let Some(ssh) = &self.ssh else { return Ok(before.to_owned()) };
        Ok(host_keys::learn(before, &host_keys::alias(&self.address), &ssh.session.known_hosts()?))
    }

    /// The key that an ssh host shows now, whatever it is known by, as a line of known_hosts. It is shown neither key nor password.
    /// `None` when nothing there shows one.
    pub(crate) async fn shown_host_key(settings: &Settings, address: &Address, reach: &Reach) -> Result<Option<String>, GitError> {
        let session = SshSession::new(settings, address, reach, None, &[])?;
        let git = Git::new(settings, None, "ls-remote")?.args(["--heads", "--quiet", "--"]).arg(address.as_str());
        // How it ends says nothing: without a key nobody gets in. The host has shown its own before that.
        let _ = session.apply(git.protocols(&["ssh"]).timeout(ASK_TIMEOUT).output_limit(LIST_LIMIT)).run().await;
        let alias = host_keys::alias(address);
        let seen = session.known_hosts()?;
        Ok(seen
            .lines()
            .find(|line| line.split(' ').next() == Some(alias.as_str()) && host_keys::fingerprint(line).is_some())
            .map(str::to_owned))
    }

    async fn call(&self, git: Git) -> Result<Vec<u8>, RemoteError> {
        let mut git = git.protocols(&[self.address.transport.protocol()]);
        if let Some(ssh) = &self.ssh {
            git = ssh.session.apply(git);
        } else if let Reach::Pinned(addresses) = &self.reach
            && self.address.host.parse::<IpAddr>().is_err()
        {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            git = git.config("http.curloptResolve", format!("{}:{}:{}", self.address.host, self.address.port, addresses.join(",")));
        }
        if let Some(token) = &self.token {
            git = git.config(format!("http.{}.extraHeader", self.address), authorization(token));
        }
        match git.run().await {
            Ok(output) => Ok(output),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn explain(&self, error: GitError) -> RemoteError {
        let address = &self.address;
        let words = match &error {
            GitError::TimedOut { .. } => return RemoteError::Refused(format!("{address} does not answer in time")),
            GitError::TooMuch { .. } => return RemoteError::Refused(format!("{address} has more branches than oCore reads")),
            GitError::Failed { words, .. } => words,
            _ => return error.into(),
        };
        let logged: String = words.chars().take(LOGGED).collect();
        tracing::info!(%address, words = ?logged, "a repository elsewhere could not be read");
        if let Some(sentence) = self.changed_host_key(words).await {
            return RemoteError::Refused(sentence);
        }
        RemoteError::Refused(sentence(address, words))
    }

    /// What to say when the host shows another key than the one that it is known by. Whether it does is looked at, and not taken from words that
    /// the other side may have written.
    async fn changed_host_key(&self, words: &str) -> Option<String> {
        let expected = &self.ssh.as_ref()?.expected;
        if expected.is_empty() || !words.contains("Host key verification failed") {
            return None;
        }
        let shown = Self::shown_host_key(self.settings, &self.address, &self.reach).await.ok()??;
        let shown = host_keys::fingerprint(&shown)?;
        let known = host_keys::fingerprints(expected);
        let host = &self.address.host;
        (!known.contains(&shown)).then(|| {
            format!(
                "the ssh key of {host} is {shown}, and it is known by {known}: either {host} has a new key, or somebody stands in between; compare {shown} with what \
                 {host} publishes, and if it is right, an owner accepts it with `ocore project accept-host-key {shown}`"
            )
        })
    }
}

/// Our own words for what Git or ssh said. Theirs are looked at for what is known, and never repeated.
fn sentence(address: &Address, words: &str) -> String {
    let said = |texts: &[&str]| texts.iter().any(|text| words.contains(text));
    let host = &address.host;
    if said(&["Permission denied (publickey"]) {
        format!("{host} does not accept the deploy key; add it there, with read access, to {address}")
    } else if said(&["could not read Username", "could not read Password", "Authentication failed", "error: 401", "error: 403"]) {
        format!("{address} is not public, or the access token does not open it; give a token that may read it")
    } else if said(&["error: 301", "error: 302", "error: 307", "error: 308"]) {
        format!("{address} has moved; give its new address")
    } else if said(&["SSL certificate", "server certificate", "SSL: ", "TLS"]) {
        format!("the certificate of {host} is not one that this server trusts; give an address whose certificate is valid")
    } else if said(&["died of signal 25", "File size limit exceeded", "File too large"]) {
        format!("{address} is larger than a fetch may be; an operator can allow more (setting git.fetch_limit_bytes)")
    } else if said(&["fsck error", "fsck-objects"]) {
        format!("{address} holds an object that Git refuses as damaged or dangerous; `git fsck` in a clone of it names the object")
    } else if said(&["not found", "does not exist", "error: 404", "does not appear to be a git repository"]) {
        format!("there is no repository at {address}, or it cannot be seen from here")
    } else {
        format!(
            "{address} cannot be read: nothing answers there as a Git repository does; look at the address, and try again when it is right"
        )
    }
}

fn fetch(mirror: &Mirror, settings: &Settings) -> Result<Git, GitError> {
    let git = mirror.git(settings, "fetch")?.file_limit(settings.fetch_limit);
    let git = git.args(["--quiet", "--force", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules"]);
    Ok(git.timeout(FETCH_TIMEOUT))
}

/// Forges take a token as the password of any user; those that do not are served by writing `user:token`.
fn authorization(token: &Secret) -> String {
    let token = String::from_utf8_lossy(token.expose());
    let pair = if token.contains(':') { token.into_owned() } else { format!("x-access-token:{token}") };
    format!("Authorization: Basic {}", STANDARD.encode(pair))
}
