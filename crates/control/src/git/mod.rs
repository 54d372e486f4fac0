//! Git: one bare mirror a project, the built-in smart-HTTP remote, external repositories, and the way from a commit to a source tree.
//!
//! Runs the `git` program with a fixed environment and an argument list; never a shell, never a ref that could be taken for an option.

mod address;
mod commits;
mod export;
mod external;
mod host_keys;
mod mirror;
mod pkt_line;
mod program;
mod receive;
mod reconcile;
mod remote;
mod serve;
mod ssh_key;
mod submodules;
mod terminal;
mod webhook;

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::ProjectId,
    names::{BranchName, CommitSha},
};

pub use export::export;
pub use external::{
    Access, ConnectRepository, Connected, RepositoryInfo, accept_host_key, connect, disconnect, fetch, info, renew_deploy_key,
    set_submodule_sources, validate,
};
pub use receive::receive_pack;
pub use reconcile::{maintain, reconcile};
pub use serve::{ByteStream, Served, Service, advertise, open, upload_pack};
pub use webhook::{Proof, process_deliveries, receive_webhook, renew_webhook_secret};

use crate::{Control, Error, Result};
use mirror::Mirror;

/// A commit as Git says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub sha: CommitSha,
    pub author: String,
    pub author_email: String,
    /// The author's time.
    pub authored_at: DateTime<Utc>,
    pub committed_at: DateTime<Utc>,
    /// The whole message, without the line ends after it.
    pub message: String,
}

/// The commits reachable from `to` and not from `from`, newest first, at most `limit`, and how many there are in all.
/// `from = None` counts the whole history. A `from` that the mirror does not have (rewritten history) counts as `None`.
/// `NotFound` when the mirror does not have `to`.
pub async fn commits_between(
    control: &Control,
    project: ProjectId,
    from: Option<&CommitSha>,
    to: &CommitSha,
    limit: usize,
) -> Result<(Vec<Commit>, u32)> {
    let settings = &control.settings;
    let mirror = Mirror::of_project(settings, project).await?;
    let commits = commits::between(&mirror, settings, from, to, limit).await?;
    if commits.is_empty() && limit > 0 && find_commit(control, project, to).await?.is_none() {
        return Err(Error::NotFound { what: "commit" });
    }
    // Fewer than asked for: these are all.
    let count = if commits.len() < limit { commits.len() as u32 } else { commits::count(&mirror, settings, from, to).await? };
    Ok((commits, count))
}

/// A branch's head in the mirror.
pub async fn branch_head(control: &Control, project: ProjectId, branch: &BranchName) -> Result<Option<Commit>> {
    let mirror = Mirror::of_project(&control.settings, project).await?;
    Ok(commits::named(&mirror, &control.settings, &[commits::branch_ref(branch)]).await?.pop())
}

/// A commit by its full id.
pub async fn find_commit(control: &Control, project: ProjectId, sha: &CommitSha) -> Result<Option<Commit>> {
    let mirror = Mirror::of_project(&control.settings, project).await?;
    Ok(commits::named(&mirror, &control.settings, &[sha.to_string()]).await?.pop())
}

/// Whether the first commit is the second or lies in its history. A commit that the mirror does not have lies in none.
pub async fn is_ancestor(control: &Control, project: ProjectId, ancestor: &CommitSha, descendant: &CommitSha) -> Result<bool> {
    let mirror = Mirror::of_project(&control.settings, project).await?;
    let git = mirror.git(&control.settings, "merge-base")?.args(["--is-ancestor", ancestor.as_str(), descendant.as_str()]);
    Ok(git.succeeds().await?)
}

/// Makes a branch at a commit. False when its name clashes with a branch that is there (`a` beside `a/b`), or when it is there at another
/// commit; there at this one is done.
pub async fn create_branch(control: &Control, project: ProjectId, branch: &BranchName, commit: &CommitSha) -> Result<bool> {
    let mirror = Mirror::of_project(&control.settings, project).await?;
    let input = format!("create {} {commit}\n", commits::branch_ref(branch));
    if mirror.git(&control.settings, "update-ref")?.arg("--stdin").input(input).succeeds().await? {
        return Ok(true);
    }
    Ok(branch_head(control, project, branch).await?.is_some_and(|head| head.sha == *commit))
}

/// The commit that a tag names, also through an annotated tag. A name that no tag can have names none.
pub async fn tag_commit(control: &Control, project: ProjectId, tag: &str) -> Result<Option<Commit>> {
    // Tags and branches are named by the same rules.
    let Ok(tag) = tag.parse::<BranchName>() else { return Ok(None) };
    let mirror = Mirror::of_project(&control.settings, project).await?;
    Ok(commits::named(&mirror, &control.settings, &[format!("refs/tags/{tag}")]).await?.pop())
}

/// Removes what a project has on this machine. Absent is done.
pub fn forget(control: &Control, project: ProjectId) -> Result<()> {
    mirror::remove(&control.settings, project).map_err(|error| Error::internal(format!("removing the mirror of {project}"), error))
}
