//! A project with a repository, a developer who pushes, and by hand what the engine would have written: nothing runs operations here.

use std::{process::Command, sync::Arc};

use anyhow::{Context, Result, ensure};
use ocore_control::{
    authorization::{Grant, Right, Scope},
    branches::{self, BranchUpdate, PushOutcome},
    deployments::Starter,
    environments::{self, Environment},
    projects::{self, NewProject},
};
use ocore_model::{
    deployment::Trigger,
    ids::{DataSetId, DeploymentId, EnvironmentId, ProjectId},
    project::ModuleSelection,
};

use crate::{Repository, Store, store::Owned};

/// An organization `acme` with a project `shop`.
pub struct Scenario {
    pub store: Arc<Store>,
    pub owner: Owned,
    pub project: ProjectId,
    pub repository: Repository,
}

/// A deployment's row as a test looks at it.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub status: String,
    pub data_origin: String,
    pub commit: String,
}

impl Scenario {
    pub async fn new() -> Result<Self> {
        let store = Store::new().await?;
        let owner = store.organization("acme").await?;
        let project = new_project(&store, &owner.scope, "shop").await?;
        Ok(Self { store: Arc::new(store), owner, project, repository: Repository::new()? })
    }

    pub fn scope(&self) -> &Scope {
        &self.owner.scope
    }

    pub fn grant<R: Right>(&self) -> Result<Grant<R>> {
        Ok(self.owner.scope.grant()?)
    }

    /// Commits something new; the commit's id.
    pub fn commit(&self, message: &str) -> Result<String> {
        self.repository.commit(message)
    }

    /// Brings references into the mirror, as an accepted push does, and says nothing to anybody.
    pub async fn bring(&self, refspecs: &[&str]) -> Result<()> {
        // The mirror is made by whoever asks first.
        ocore_control::git::branch_head(&self.store.control, self.project, &"main".parse()?).await?;
        let mirror = self.store.control.settings.repositories.join(format!("{}.git", self.project));
        let mut command: Command = self.repository.command(&["push", "--quiet", "--force"]);
        let output = command.arg(mirror).args(refspecs).output()?;
        ensure!(output.status.success(), "git push: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Takes note of branches, as after a push.
    pub async fn record(&self, branches: &[&str], trigger: Trigger) -> Result<Vec<PushOutcome>> {
        let updates =
            branches.iter().map(|branch| Ok(BranchUpdate { branch: branch.parse()?, old: None, new: None })).collect::<Result<_>>()?;
        Ok(branches::record(&self.store.control, self.project, updates, Starter::new(trigger, &self.owner.scope)).await?)
    }

    /// `git push --force origin HEAD:<branch>`
    pub async fn push(&self, branch: &str) -> Result<PushOutcome> {
        self.bring(&[&format!("HEAD:refs/heads/{branch}")]).await?;
        self.record(&[branch], Trigger::Push).await?.pop().context("one outcome")
    }

    /// `git push origin :<branch>`
    pub async fn delete_branch(&self, branch: &str) -> Result<PushOutcome> {
        // A push that deletes the first branch is refused by a plain `receive-pack`; oCore's own remote allows it.
        let mirror = self.store.control.settings.repositories.join(format!("{}.git", self.project));
        self.repository.git(&["--git-dir", &mirror.display().to_string(), "update-ref", "-d", &format!("refs/heads/{branch}")])?;
        self.record(&[branch], Trigger::Push).await?.pop().context("one outcome")
    }

    pub async fn environment(&self, id: EnvironmentId) -> Result<Environment> {
        Ok(environments::find(&self.store.control, &self.grant()?, id).await?)
    }

    pub async fn environment_of(&self, outcome: &PushOutcome) -> Result<Environment> {
        self.environment(outcome.environment_id.context("it has an environment")?).await
    }

    /// Writes what the engine writes when a deployment has become live.
    pub async fn go_live(&self, id: DeploymentId) -> Result<()> {
        let pool = &self.store.control.pool;
        sqlx::query("update operations set status = 'succeeded' where deployment_id = $1").bind(id.as_uuid()).execute(pool).await?;
        sqlx::query("update deployments set status = 'succeeded', started_at = now(), completed_at = now() where id = $1")
            .bind(id.as_uuid())
            .execute(pool)
            .await?;
        sqlx::query(
            "update instances set status = 'running', active_color = 'blue', active_deployment_id = $1, active_data_set_id = $2
             where id = (select instance_id from deployments where id = $1)",
        )
        .bind(id.as_uuid())
        .bind(DataSetId::new().as_uuid())
        .execute(pool)
        .await?;
        sqlx::query(
            "update environments set live_commit_sha = deployments.commit_sha, pending_commit_count = 0, pending_commit_sha = null
             from deployments where deployments.id = $1 and environments.id = deployments.environment_id",
        )
        .bind(id.as_uuid())
        .execute(pool)
        .await?;
        Ok(())
    }

    /// Pushes a commit to a new branch and has it live.
    pub async fn live(&self, branch: &str) -> Result<Environment> {
        self.commit("first")?;
        let outcome = self.push(branch).await?;
        self.go_live(outcome.deployment_id.context("it is deployed")?).await?;
        self.environment_of(&outcome).await
    }

    /// `update deployments set <assignment>` of one.
    pub async fn set(&self, id: DeploymentId, assignment: &'static str) -> Result<()> {
        let statement = sqlx::AssertSqlSafe(format!("update deployments set {assignment} where id = $1"));
        sqlx::query(statement).bind(id.as_uuid()).execute(&self.store.control.pool).await?;
        Ok(())
    }

    pub async fn seen(&self, id: DeploymentId) -> Result<Seen> {
        let row: (String, String, String) =
            sqlx::query_as("select status, data_origin ->> 'kind', commit_sha from deployments where id = $1")
                .bind(id.as_uuid())
                .fetch_one(&self.store.control.pool)
                .await?;
        Ok(Seen { status: row.0, data_origin: row.1, commit: row.2 })
    }
}

/// A project that makes environments by pushes.
pub async fn new_project(store: &Store, scope: &Scope, name: &str) -> Result<ProjectId> {
    let new = NewProject {
        name: name.to_owned(),
        slug: None,
        description: String::new(),
        odoo_version: Some("19.0".to_owned()),
        module_selection: ModuleSelection::Own,
        with_demo: false,
        create_environment_on_push: true,
        protects_production: false,
    };
    Ok(projects::create(&store.control, &scope.grant()?, new).await?.id)
}
