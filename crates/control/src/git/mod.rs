//! Git: one bare mirror a project, the built-in smart-HTTP remote, external repositories, and the way from a commit to a source tree.
//!
//! Runs the `git` program with a fixed environment and an argument list; never a shell, never a ref that could be taken for an option.

use chrono::{DateTime, Utc};
use ocore_host::{Progress, Source};
use ocore_model::{
    ids::ProjectId,
    names::{BranchName, CommitSha},
};

use crate::{Control, Result};

/// A commit as Git says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub sha: CommitSha,
    pub author: String,
    pub author_email: String,
    /// The author's time.
    pub authored_at: DateTime<Utc>,
    pub committed_at: DateTime<Utc>,
    /// The whole message.
    pub message: String,
}

/// The commit with its submodules as a sealed source tree on the server. Runs again without effect. A submodule that cannot be had is
/// `HostError::Rejected`, with its address and Git's own words.
pub async fn export(
    _control: &Control,
    _project: ProjectId,
    _commit: &CommitSha,
    _progress: Progress,
) -> Result<Source, ocore_host::HostError> {
    unimplemented!()
}

/// The commits reachable from `to` and not from `from`, newest first, at most `limit`, and how many there are in all.
/// `from = None` counts the whole history. A `from` that the mirror does not have (rewritten history) counts as `None`.
pub async fn commits_between(
    _control: &Control,
    _project: ProjectId,
    _from: Option<&CommitSha>,
    _to: &CommitSha,
    _limit: usize,
) -> Result<(Vec<Commit>, u32)> {
    unimplemented!()
}

/// A branch's head in the mirror.
pub async fn branch_head(_control: &Control, _project: ProjectId, _branch: &BranchName) -> Result<Option<Commit>> {
    unimplemented!()
}

/// A commit by its full id.
pub async fn find_commit(_control: &Control, _project: ProjectId, _sha: &CommitSha) -> Result<Option<Commit>> {
    unimplemented!()
}
