//! What a push means: branch heads, pending commits, the environments that follow, the deployments that begin.

use ocore_model::{
    deployment::Trigger,
    ids::{DeploymentId, EnvironmentId, ProjectId, UserId},
    names::{BranchName, CommitSha},
};

use crate::{Control, Result, git::Commit};

/// One branch that moved, appeared or went.
#[derive(Debug, Clone)]
pub struct BranchUpdate {
    pub branch: BranchName,
    /// `None` when the branch is new.
    pub old: Option<CommitSha>,
    /// `None` when the branch was deleted.
    pub new: Option<Commit>,
}

/// What came of one branch update.
#[derive(Debug, Clone)]
pub struct PushOutcome {
    pub branch: BranchName,
    /// The environment that follows the branch, if any.
    pub environment_id: Option<EnvironmentId>,
    /// The deployment that was queued, if any.
    pub deployment_id: Option<DeploymentId>,
    /// One line for the person who pushed: what happens now, or why nothing does.
    pub message: String,
}

/// Takes note of moved branches in one transaction: heads, pending counts, new development environments (when the project wants them), and
/// deployments by each environment's commit behavior. May be called twice with the same update: the second finds nothing new.
pub async fn record(
    _control: &Control,
    _project: ProjectId,
    _updates: Vec<BranchUpdate>,
    _trigger: Trigger,
    _user: Option<UserId>,
) -> Result<Vec<PushOutcome>> {
    unimplemented!()
}
