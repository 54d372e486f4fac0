//! What a push means: branch heads, pending commits, the environments that follow, the deployments that begin.

use ocore_model::{
    deployment::{DataOrigin, Trigger},
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::{DeploymentId, EnvironmentId, InstanceId, ProjectId},
    names::{BranchName, CommitSha},
    permission::{Permission, Resource},
    project::stage_for_new_branch,
};
use sqlx::PgConnection;

use crate::{
    Control, Error, Result,
    authorization::{Grant, ViewProjects},
    clones,
    deployments::{self, Starter},
    environments::{self, Removal},
    git::{self, Commit},
    instances, operations,
    store::{
        self,
        branches::PushedProject,
        environments::{Environment, Pending},
    },
};

/// How many commits [`commits_since`] lists; it counts all.
const COMMITS_LISTED: usize = 250;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOutcome {
    pub branch: BranchName,
    /// The environment that follows the branch, if any.
    pub environment_id: Option<EnvironmentId>,
    /// The deployment that was queued, if any.
    pub deployment_id: Option<DeploymentId>,
    /// One line for the person who pushed: what happens now, or why nothing does.
    pub message: String,
}

/// Takes note of moved branches in one transaction: heads, pending counts, new environments (when the project wants them), and deployments
/// by each environment's commit behavior. May be called twice with the same update: the second finds nothing new.
///
/// Two pushes to one branch may arrive here in the wrong order; so the head is read from the mirror, under the project's lock, and the
/// update only says where to look. The last call sees the last push, whatever the order.
pub async fn record(control: &Control, project: ProjectId, updates: Vec<BranchUpdate>, starter: Starter) -> Result<Vec<PushOutcome>> {
    let mut transaction = control.pool.begin().await?;
    let project = store::branches::lock_project(&mut transaction, project).await?.ok_or(Error::NotFound { what: "project" })?;
    // The first fetch of a repository brings all its branches at once; nobody pushed them.
    let import = starter.trigger != Trigger::Push && !store::branches::any(&mut transaction, project.id).await?;
    let mut note = Note { control, project: &project, starter, import, wake: Vec::new() };
    let mut outcomes = Vec::with_capacity(updates.len());
    for update in updates {
        let outcome = match git::branch_head(control, project.id, &update.branch).await? {
            Some(head) => note.moved(&mut transaction, update.branch, &head).await?,
            None => note.gone(&mut transaction, update.branch).await?,
        };
        outcomes.push(outcome);
    }
    let wake = note.wake;
    transaction.commit().await?;
    for instance in wake {
        operations::wake(control, instance).await;
    }
    Ok(outcomes)
}

/// One [`record`] in its transaction.
struct Note<'a> {
    control: &'a Control,
    project: &'a PushedProject,
    starter: Starter,
    import: bool,
    /// Instances that have something to do after the commit.
    wake: Vec<InstanceId>,
}

impl Note<'_> {
    async fn gone(&mut self, connection: &mut PgConnection, branch: BranchName) -> Result<PushOutcome> {
        let known = store::branches::set_deleted(connection, self.project.id, branch.as_str()).await?;
        // Not locked yet: an instance is locked before its environment.
        let follower = store::environments::find_by_branch(connection, self.project.id, branch.as_str()).await?;
        if let Some(clone) = follower.filter(|follower| known && follower.auto_destroy_on_merge && follower.cloned_from_id.is_some()) {
            self.destroy(connection, &clone).await?;
            let message = format!("{branch} is deleted; so is its environment {}, which was made to go with it", clone.name);
            return Ok(PushOutcome { branch, environment_id: Some(clone.id), deployment_id: None, message });
        }
        let environment = store::environments::lock_by_branch(connection, self.project.id, branch.as_str()).await?;
        let message = match &environment {
            Some(environment) if environment.status == EnvironmentStatus::Active => {
                let nothing = Pending { count: 0, sha: None, last_commit_at: None, last_commit_author: None };
                store::environments::set_pending(connection, environment.id, &nothing).await?;
                store::environments::set_message(connection, environment.id, BRANCH_DELETED).await?;
                format!("{branch} is deleted; its environment {} stays until somebody deletes it", environment.name)
            }
            Some(_) => format!("{branch} is deleted; so is its environment, soon"),
            None if known => format!("{branch} is deleted"),
            None => format!("{branch} was deleted before"),
        };
        Ok(PushOutcome { branch, environment_id: environment.map(|environment| environment.id), deployment_id: None, message })
    }

    /// A clone that goes with its branch. One that has become production stays.
    async fn destroy(&mut self, connection: &mut PgConnection, clone: &Environment) -> Result<()> {
        if clone.status == EnvironmentStatus::Active && clone.stage != Stage::Production {
            instances::remove(connection, clone.organization_id, clone.instance_id, Removal::Direct).await?;
            self.wake.push(clone.instance_id);
        }
        Ok(())
    }

    /// The clones of an environment that this push has merged into its branch go.
    async fn destroy_merged(
        &mut self,
        connection: &mut PgConnection,
        source: &Environment,
        before: Option<&CommitSha>,
        after: &CommitSha,
    ) -> Result<String> {
        let Some(before) = before else { return Ok(String::new()) };
        let mut message = String::new();
        for clone in clones::merged(connection, self.control, self.project.id, source.id, before, after).await? {
            self.destroy(connection, &clone).await?;
            message.extend(["; ", &clone.branch, " is merged, and its environment goes"]);
        }
        Ok(message)
    }

    async fn moved(&mut self, connection: &mut PgConnection, branch: BranchName, head: &Commit) -> Result<PushOutcome> {
        let known = store::branches::find(connection, self.project.id, branch.as_str()).await?;
        let nothing_new = known.as_ref().is_some_and(|known| known.head_sha == head.sha && known.deleted_at.is_none());
        if !nothing_new {
            store::branches::set_head(connection, self.project.id, branch.as_str(), head).await?;
        }
        let outcome = |environment: Option<&Environment>, deployment_id, message| PushOutcome {
            branch: branch.clone(),
            environment_id: environment.map(|environment| environment.id),
            deployment_id,
            message,
        };
        let follower = store::environments::lock_by_branch(connection, self.project.id, branch.as_str()).await?;
        let (environment, prefix) = match follower {
            Some(environment) if environment.status != EnvironmentStatus::Active => {
                let message = format!("the environment of {branch} is being deleted; push again when it is gone to get a new one");
                return Ok(outcome(Some(&environment), None, message));
            }
            Some(environment) if nothing_new => {
                let newest = store::deployments::newest(connection, environment.id).await?;
                let deployment = newest.filter(|deployment| deployment.commit_sha == head.sha).map(|deployment| deployment.id);
                return Ok(outcome(Some(&environment), deployment, format!("nothing new on {branch}")));
            }
            Some(environment) => (environment, String::new()),
            None if self.project.archived_at.is_some() => {
                let message = format!("{branch} is kept; the project is archived, so nothing is deployed");
                return Ok(outcome(None, None, message));
            }
            None => match self.new_follower(connection, &branch).await? {
                Ok(follower) => follower,
                Err(reason) => return Ok(outcome(None, None, reason)),
            },
        };
        if environment.status_message == BRANCH_DELETED {
            store::environments::set_message(connection, environment.id, "").await?;
        }
        let (deployment, message) = self.apply(connection, &environment, head).await?;
        let before = known.as_ref().map(|known| &known.head_sha);
        let merged = self.destroy_merged(connection, &environment, before, &head.sha).await?;
        Ok(outcome(Some(&environment), deployment, format!("{prefix}{message}{merged}")))
    }

    /// The environment that follows a branch from now on which had none, with what is to be said of it; or why there is none.
    async fn new_follower(
        &mut self,
        connection: &mut PgConnection,
        branch: &BranchName,
    ) -> Result<std::result::Result<(Environment, String), String>> {
        if let Some(mapped) = self.follower_by_mapping(connection, branch).await? {
            return Ok(mapped);
        }
        if let Some(reason) = self.reason_for_no_environment(branch) {
            return Ok(Err(reason));
        }
        let stage = self.stage(connection, branch).await?;
        if !self.starter.may_deploy(connection, self.project.id, stage).await? {
            return Ok(Err(self.production_is_for_others(connection, branch).await?));
        }
        let environment = environments::open(connection, self.control, self.project, branch, stage, None).await?;
        let address = self.control.settings.instance_url(&environment.instance_slug);
        Ok(Ok((environment, format!("new {stage} environment {address}; "))))
    }

    async fn production_is_for_others(&self, connection: &mut PgConnection, branch: &BranchName) -> Result<String> {
        let who = self.who_deploys_production(connection).await?;
        Ok(format!("{branch} is kept; it would become production, which {who} makes: `ocore env create {branch} --stage production`"))
    }

    /// For people who may not, who may.
    async fn who_deploys_production(&self, connection: &mut PgConnection) -> Result<String> {
        const NAMED: usize = 3;
        let manage = [Permission::manage(Resource::Production).to_string(), Permission::manage(Resource::Deployments).to_string()];
        let mut names = store::members::names_with(connection, self.project.organization_id, &manage).await?;
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        Ok(match (names.is_empty(), more) {
            (true, _) => "somebody with the permission manage:production".to_owned(),
            (false, 0) => names.join(" or "),
            (false, more) => format!("{} or {more} more", names.join(", ")),
        })
    }

    /// The environment that a branch mapping leads the branch to: it follows this branch from now on. An instance that serves no environment
    /// gets one. Or why that is for others to do.
    async fn follower_by_mapping(
        &mut self,
        connection: &mut PgConnection,
        branch: &BranchName,
    ) -> Result<Option<std::result::Result<(Environment, String), String>>> {
        let mappings = store::branches::mappings(connection, self.project.id).await?;
        let Some(mapping) = mappings.into_iter().find(|mapping| matches_pattern(&mapping.pattern, branch.as_str())) else {
            return Ok(None);
        };
        let Some(environment) = store::environments::lock_by_instance(connection, mapping.instance_id).await? else {
            let stage = self.stage(connection, branch).await?;
            if !self.starter.may_deploy(connection, self.project.id, stage).await? {
                return Ok(Some(Err(self.production_is_for_others(connection, branch).await?)));
            }
            let instance = Some(mapping.instance_id);
            let environment = environments::open(connection, self.control, self.project, branch, stage, instance).await?;
            let prefix = format!("new {} environment on {}; ", environment.stage, environment.instance_slug);
            return Ok(Some(Ok((environment, prefix))));
        };
        if environment.status != EnvironmentStatus::Active {
            return Ok(None);
        }
        if !self.starter.may_deploy(connection, self.project.id, environment.stage).await? {
            let who = self.who_deploys_production(connection).await?;
            return Ok(Some(Err(format!(
                "{branch} is kept; a mapping leads it to production, which {who} deploys: `ocore deploy --branch {branch}`"
            ))));
        }
        store::environments::set_branch(connection, environment.id, branch.as_str()).await?;
        let prefix = format!("{} follows {branch} now, instead of {}; ", environment.name, environment.branch);
        Ok(Some(Ok((Environment { branch: branch.as_str().to_owned(), ..environment }, prefix))))
    }

    fn reason_for_no_environment(&self, branch: &BranchName) -> Option<String> {
        if !self.project.create_environment_on_push {
            return Some(format!(
                "{branch} is kept; it has no environment, and this project makes none by a push: use `ocore env create {branch}`"
            ));
        }
        let main = self.project.repository_branch.as_deref();
        let is_main = main.map_or(matches!(branch.as_str(), "main" | "master"), |main| main == branch.as_str());
        (self.import && !is_main).then(|| format!("{branch} was there before; `ocore env create {branch}` makes an environment of it"))
    }

    async fn stage(&self, connection: &mut PgConnection, branch: &BranchName) -> Result<Stage> {
        let production = store::environments::production_of(connection, self.project.id).await?;
        Ok(stage_for_new_branch(branch.as_str(), production.is_some()))
    }

    /// Counts what is pending and does what the environment's commit behavior says.
    async fn apply(
        &mut self,
        connection: &mut PgConnection,
        environment: &Environment,
        head: &Commit,
    ) -> Result<(Option<DeploymentId>, String)> {
        let count = count_pending(self.control, connection, environment, head).await?;
        let is_live = environment.live_commit_sha.as_ref() == Some(&head.sha);
        let short: String = head.sha.as_str().chars().take(9).collect();
        if self.project.archived_at.is_some() {
            return Ok((None, format!("{short} is kept; the project is archived, so nothing is deployed")));
        }
        if environment.commit_behavior == CommitBehavior::DoNothing {
            let message = match count {
                _ if is_live => format!("{short} is live already"),
                0 => format!("the branch went back to {short}; `ocore env build {}` deploys it", environment.instance_slug),
                1 => format!("1 commit waits; `ocore env build {}` deploys it", environment.instance_slug),
                more => format!("{more} commits wait; `ocore env build {}` deploys them", environment.instance_slug),
            };
            return Ok((None, message));
        }
        if !self.starter.may_deploy(connection, environment.project_id, environment.stage).await? {
            let who = self.who_deploys_production(connection).await?;
            let message = match count {
                _ if is_live => format!("{short} is live already"),
                _ => format!("{short} waits: {who} deploys this production, with `ocore env build {}`", environment.instance_slug),
            };
            return Ok((None, message));
        }
        if is_live {
            // Back to what serves: what was on its way is not wanted any more. What has begun to change the instance must be followed by
            // this commit again.
            let open = store::deployments::open_of_environment(connection, environment.id).await?;
            if open.iter().all(|deployment| !deployment.changing) {
                for deployment in &open {
                    operations::cancel(connection, deployment.id).await?;
                }
                let dropped = if open.is_empty() { "" } else { ", and what was queued is dropped" };
                return Ok((None, format!("{short} is live already{dropped}")));
            }
        }
        let deployment = deployments::queue(connection, environment, head, self.starter).await?;
        self.wake.push(environment.instance_id);
        let how = match deployments::data_origin(environment) {
            DataOrigin::Fresh => "with a fresh database",
            _ if environment.live_commit_sha.is_some() => "with the data that is there",
            _ => "for the first time",
        };
        Ok((Some(deployment), format!("{short} is deployed to {} {how}", self.control.settings.instance_url(&environment.instance_slug))))
    }
}

/// An environment's message while its branch is gone.
const BRANCH_DELETED: &str = "its branch was deleted; the environment stays until somebody deletes it";

/// Writes what of a branch's head is not live, and returns how many commits that is.
async fn count_pending(control: &Control, connection: &mut PgConnection, environment: &Environment, head: &Commit) -> Result<u32> {
    let live = environment.live_commit_sha.as_ref();
    let is_live = live == Some(&head.sha);
    let count = if is_live { 0 } else { git::commits_between(control, environment.project_id, live, &head.sha, 1).await?.1 };
    let pending = Pending {
        count: i32::try_from(count).unwrap_or(i32::MAX),
        sha: (!is_live).then_some(&head.sha),
        last_commit_at: Some(head.committed_at),
        last_commit_author: Some(&head.author),
    };
    store::environments::set_pending(connection, environment.id, &pending).await?;
    Ok(count)
}

/// The commits of a branch that `since` does not have, newest first and at most 250, and how many there are in all.
pub async fn commits_since(
    control: &Control,
    grant: &Grant<ViewProjects>,
    project: ProjectId,
    since: &CommitSha,
    branch: &BranchName,
) -> Result<(Vec<Commit>, u32)> {
    {
        let mut connection = control.pool.acquire().await?;
        store::branches::find_project(&mut connection, grant, project).await?.ok_or(Error::NotFound { what: "project" })?;
    }
    let head = git::branch_head(control, project, branch).await?.ok_or(Error::NotFound { what: "branch" })?;
    git::find_commit(control, project, since).await?.ok_or(Error::NotFound { what: "commit" })?;
    git::commits_between(control, project, Some(since), &head.sha, COMMITS_LISTED).await
}

/// Whether a branch matches a mapping's pattern, where `*` stands for any run of characters, also none, also with slashes.
fn matches_pattern(pattern: &str, branch: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == branch };
    let Some(mut remaining) = branch.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match remaining.find(part) {
            Some(place) => remaining = &remaining[place + part.len()..],
            None => return false,
        }
    }
    remaining.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_any_run_of_characters() {
        for (pattern, branch) in [
            ("main", "main"),
            ("*", "anything/at/all"),
            ("release/*", "release/19.0"),
            ("release/*", "release/"),
            ("*-fix", "a-fix"),
            ("feature/*/ui", "feature/a/b/ui"),
            ("a*b*c", "abc"),
            ("a*b*c", "a-b-b-c"),
            ("a**c", "a-c"),
        ] {
            assert!(matches_pattern(pattern, branch), "{pattern} {branch}");
        }
        for (pattern, branch) in
            [("main", "main2"), ("release/*", "release"), ("*-fix", "fix"), ("a*a", "a"), ("a*b*c", "acb"), ("ab*bc", "abc"), ("", "x")]
        {
            assert!(!matches_pattern(pattern, branch), "{pattern} {branch}");
        }
    }
}
