//! Fetching from somebody else's repository: the address judged, the credentials out of sight, Git's words turned into a sentence.

use std::{io, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{
    address::{Address, Reach, Transport},
    mirror::Mirror,
    program::{Git, GitError},
    ssh_key::SshSession,
};
use crate::{Settings, secrets::Secret};

/// A first fetch of a large history over a slow line; Git itself gives up earlier on a line that is dead.
const FETCH_TIMEOUT: Duration = Duration::from_mins(30);
const ASK_TIMEOUT: Duration = Duration::from_mins(1);

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
    #[error("{sentence}")]
    Refused { sentence: String, words: String },
    #[error(transparent)]
    Git(#[from] GitError),
}

impl RemoteError {
    fn refused(sentence: impl Into<String>) -> Self {
        Self::Refused { sentence: sentence.into(), words: String::new() }
    }

    /// What Git itself said; empty when it was never asked.
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Refused { words, .. } => words,
            Self::Git(error) => error.words(),
        }
    }
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
    ssh: Option<SshSession>,
}

impl<'a> Remote<'a> {
    pub(crate) async fn open(settings: &'a Settings, address: Address, credentials: &Credentials) -> Result<Self, RemoteError> {
        let reach = address.reach(settings).await.map_err(RemoteError::refused)?;
        let ssh = match address.transport {
            Transport::Ssh => Some(SshSession::new(settings, &address, &reach, credentials.key.as_ref(), &credentials.known_hosts)?),
            _ => None,
        };
        let token =
            if address.transport == Transport::Https || address.transport == Transport::Http { credentials.token.clone() } else { None };
        Ok(Self { settings, address, reach, token, ssh })
    }

    /// The other side's branches as `(name, sha)`, without fetching anything: proves that address and credentials are right.
    pub(crate) async fn branches(&self) -> Result<Vec<(String, String)>, RemoteError> {
        let git = Git::new(self.settings, None, "ls-remote")?.args(["--heads", "--quiet", "--"]).arg(self.address.as_str());
        let output = self.call(git.timeout(ASK_TIMEOUT)).await?;
        let text = String::from_utf8_lossy(&output);
        let heads = text.lines().filter_map(|line| line.split_once('\t'));
        Ok(heads.filter_map(|(sha, name)| Some((name.strip_prefix("refs/heads/")?.to_owned(), sha.to_owned()))).collect())
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

    /// The host keys that are known after the calls; `None` when ssh is not what reaches this repository.
    pub(crate) fn known_hosts(&self) -> Result<Option<String>, RemoteError> {
        Ok(self.ssh.as_ref().map(SshSession::known_hosts).transpose()?)
    }

    async fn call(&self, git: Git) -> Result<Vec<u8>, RemoteError> {
        let mut git = git.protocols(&[self.address.transport.protocol()]);
        if let Some(ssh) = &self.ssh {
            git = ssh.apply(git);
        } else if let Reach::Pinned(addresses) = &self.reach {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            git = git.config("http.curloptResolve", format!("{}:{}:{}", self.address.host, self.address.port, addresses.join(",")));
        }
        if let Some(token) = &self.token {
            git = git.config(format!("http.{}.extraHeader", self.address), authorization(token));
        }
        git.run().await.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: GitError) -> RemoteError {
        if matches!(error, GitError::TimedOut { .. }) {
            return RemoteError::refused(format!("{} does not answer in time", self.address));
        }
        let GitError::Failed { words, .. } = &error else { return error.into() };
        let said = |texts: &[&str]| texts.iter().any(|text| words.contains(text));
        let host = &self.address.host;
        let sentence = if said(&["Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED"]) {
            format!(
                "the ssh key of {host} is another than the one seen first; if that is right, disconnect the repository and connect it again"
            )
        } else if said(&["Permission denied (publickey"]) {
            format!("{host} does not accept the deploy key; add it there, with read access, to {}", self.address)
        } else if said(&["could not read Username", "could not read Password", "Authentication failed", "error: 401", "error: 403"]) {
            format!("{} is not public, or the access token does not open it; give a token that may read it", self.address)
        } else if said(&["error: 301", "error: 302", "error: 307", "error: 308"]) {
            format!("{} has moved; give its new address", self.address)
        } else if said(&["not found", "does not exist", "error: 404", "does not appear to be a git repository"]) {
            format!("there is no repository at {}, or it cannot be seen from here", self.address)
        } else {
            format!("{} cannot be fetched: {}", self.address, error.to_string().split_once(": ").map_or("", |(_, words)| words))
        };
        RemoteError::Refused { sentence, words: error.words().to_owned() }
    }
}

fn fetch(mirror: &Mirror, settings: &Settings) -> Result<Git, GitError> {
    let git = mirror.git(settings, "fetch")?;
    let git = git.args(["--quiet", "--force", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules"]);
    Ok(git.timeout(FETCH_TIMEOUT))
}

/// Forges take a token as the password of any user; those that do not are served by writing `user:token`.
fn authorization(token: &Secret) -> String {
    let token = String::from_utf8_lossy(token.expose());
    let pair = if token.contains(':') { token.into_owned() } else { format!("x-access-token:{token}") };
    format!("Authorization: Basic {}", STANDARD.encode(pair))
}
