//! Clones: a new environment on a new branch, with a harmless copy of another environment's live data.
//!
//! What is written here is the wish: environment, instance and deployment in one transaction. The copy itself is the deployment, with
//! [`DataOrigin::Environment`]; the source serves on and may be deployed, stopped or deleted at any time.

use ocore_model::{
    deployment::{DataOrigin, Trigger},
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::{EnvironmentId, ProjectId, SnapshotId},
    names::{BranchName, CommitSha},
};
use sqlx::PgConnection;

use crate::{
    Control, Error, Result,
    authorization::{Grant, ManageEnvironments},
    deployments::{self, Starter},
    environments,
    git::{self, Commit},
    operations,
    store::{
        self,
        branches::PushedProject,
        environments::{Environment, Pending},
    },
};

/// Derived names that are tried.
const NAMES_TRIED: u32 = 100;

/// What to make of the source.
#[derive(Debug, Clone)]
pub struct CloneRequest {
    /// Without one, a free name like the source's. In a built-in repository it is made when it is not there.
    pub branch: Option<BranchName>,
    /// Staging or development.
    pub stage: Stage,
    /// The clone goes when its branch is merged into the source's, or deleted.
    pub auto_destroy: bool,
}

/// Makes the environment and queues its first deployment.
pub async fn clone(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    source: EnvironmentId,
    request: CloneRequest,
) -> Result<Environment> {
    if request.stage == Stage::Production {
        return Err(Error::invalid(
            "targetType",
            "a clone is made harmless and can never be production; use staging or development, or roll a snapshot back into production",
        ));
    }
    let mut transaction = control.pool.begin().await?;
    let found = environments::read(&mut transaction, grant, source).await?;
    let project = store::branches::lock_project(&mut transaction, found.project_id).await?.ok_or(Error::NotFound { what: "project" })?;
    // As it is now that the project is locked.
    let source = environments::read(&mut transaction, grant, source).await?;
    if project.archived_at.is_some() {
        return Err(Error::conflict("project_archived", "the project is archived; restore it first"));
    }
    if source.status != EnvironmentStatus::Active {
        return Err(Error::conflict("environment_removing", "the environment is being deleted"));
    }
    let (Some(_), Some(live)) = (source.active_deployment_id, source.live_commit_sha.clone()) else {
        return Err(Error::conflict(
            "nothing_live",
            format!("{} has no live data yet; deploy it first, with `ocore env build {}`", source.name, source.instance_slug),
        ));
    };
    let branch = match request.branch {
        Some(branch) => branch,
        None => free_name(&mut transaction, control, &source).await?,
    };
    if let Some(existing) = store::environments::lock_by_branch(&mut transaction, project.id, branch.as_str()).await? {
        return Err(Error::conflict("branch_taken", format!("{branch} has an environment already: {}", existing.instance_slug)));
    }
    let head = head(&mut transaction, control, &project, &branch, &live).await?;
    let environment = environments::open(&mut transaction, control, &project, &branch, request.stage, None).await?;
    // Data that somebody cloned on purpose are not thrown away by the first push.
    let behavior = CommitBehavior::UpdatePreviousBuild;
    store::environments::set_clone(&mut transaction, environment.id, source.id, request.auto_destroy, behavior).await?;
    store::branches::set_head(&mut transaction, project.id, branch.as_str(), &head).await?;
    let count = git::commits_between(control, project.id, None, &head.sha, 1).await?.1;
    let pending = Pending {
        count: i32::try_from(count).unwrap_or(i32::MAX),
        sha: Some(&head.sha),
        last_commit_at: Some(head.committed_at),
        last_commit_author: Some(&head.author),
    };
    store::environments::set_pending(&mut transaction, environment.id, &pending).await?;
    let origin = DataOrigin::Environment { environment: source.id, snapshot: SnapshotId::new() };
    deployments::insert(&mut transaction, &environment, &head, Starter::new(Trigger::Clone, grant), origin, true).await?;
    transaction.commit().await?;
    operations::wake(control, environment.instance_id).await;
    environments::read(&mut *control.pool.acquire().await?, grant, environment.id).await
}

/// The commit that the clone comes live on: the branch's own, or the source's live one, on which a built-in repository gets the branch.
async fn head(
    connection: &mut PgConnection,
    control: &Control,
    project: &PushedProject,
    branch: &BranchName,
    live: &CommitSha,
) -> Result<Commit> {
    if let Some(head) = git::branch_head(control, project.id, branch).await? {
        return Ok(head);
    }
    if !store::branches::is_built_in(connection, project.id).await? {
        return Err(Error::conflict(
            "branch_missing",
            format!("the connected repository has no branch {branch}; push it there and fetch, or name one that it has"),
        ));
    }
    let commit = git::find_commit(control, project.id, live).await?.ok_or_else(|| {
        Error::conflict("commit_missing", "the repository no longer has the commit that is live in the source; deploy the source again")
    })?;
    // Outside the transaction. A branch without an environment, when the rest fails, is what the next call finds and takes.
    if !git::create_branch(control, project.id, branch, live).await? {
        return Err(Error::conflict(
            "branch_clashes",
            format!("the repository cannot have a branch {branch} beside those that it has; choose another name"),
        ));
    }
    Ok(commit)
}

/// `<branch>-clone`, `<branch>-clone-2` …: the first that neither a branch nor an environment has.
async fn free_name(connection: &mut PgConnection, control: &Control, source: &Environment) -> Result<BranchName> {
    for number in 1..=NAMES_TRIED {
        let name = if number == 1 { format!("{}-clone", source.branch) } else { format!("{}-clone-{number}", source.branch) };
        let Ok(name) = name.parse::<BranchName>() else { break };
        let taken = store::environments::lock_by_branch(connection, source.project_id, name.as_str()).await?.is_some();
        if !taken && git::branch_head(control, source.project_id, &name).await?.is_none() {
            return Ok(name);
        }
    }
    Err(Error::invalid("targetBranch", "no free name like the source's was found; choose one"))
}

/// The clones of an environment that go now, since a push has merged their branches into its own: what of them was not in the branch before is in
/// it now. A squashed merge leaves no such trace; its branch is deleted by whoever merged it.
pub(crate) async fn merged(
    connection: &mut PgConnection,
    control: &Control,
    project: ProjectId,
    source: EnvironmentId,
    before: &CommitSha,
    after: &CommitSha,
) -> Result<Vec<Environment>> {
    let mut merged = Vec::new();
    for clone in store::environments::clones_to_destroy(connection, source).await? {
        let Ok(branch) = clone.branch.parse::<BranchName>() else { continue };
        let Some(head) = git::branch_head(control, project, &branch).await? else { continue };
        if git::is_ancestor(control, project, &head.sha, after).await? && !git::is_ancestor(control, project, &head.sha, before).await? {
            merged.push(clone);
        }
    }
    Ok(merged)
}
