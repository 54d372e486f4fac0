//! Deployments: how they are queued, their list, their detail, following one live.

use std::{collections::HashMap, fmt, pin::Pin, str::FromStr, time::Duration};

use futures::{Stream, stream};
use ocore_model::{
    deployment::{DataOrigin, DeploymentStatus, ModulePlan, StepName, StepStatus, Trigger},
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::{DeploymentId, EnvironmentId, InstanceId, ProjectId, UserId},
    names::{BranchName, CommitSha},
};
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

pub use crate::store::evidence::Evidence;
use crate::{
    Control, Error, Result,
    authorization::{Credential, Grant, ManageDeployments, ManageProduction, Scope, ViewDeployments},
    git::{self, Commit},
    operations::{self, OperationKind},
    projects,
    signals::{Signal, Subscription},
    store::{
        self,
        deployments::{Deployment, LogLine, NewDeployment, Page},
        environments::Environment,
    },
};

/// What gates have found of a deployment; none where none has looked.
/// The plans that these deployments have made, and what gates have found of them, each by its deployment.
pub async fn details(
    control: &Control,
    grant: &Grant<ViewDeployments>,
    deployments: &[Deployment],
) -> Result<(HashMap<DeploymentId, ModulePlan>, HashMap<DeploymentId, Vec<Evidence>>)> {
    let ids: Vec<Uuid> = deployments.iter().map(|deployment| deployment.id.as_uuid()).collect();
    let mut connection = control.pool.acquire().await?;
    let mut plans = HashMap::new();
    for (id, plan) in store::plans::of_deployments(&mut connection, grant, &ids).await? {
        plans.insert(id, serde_json::from_value(plan).map_err(|error| Error::internal("reading a plan", error))?);
    }
    let mut evidence: HashMap<DeploymentId, Vec<Evidence>> = HashMap::new();
    for (id, found) in store::evidence::of_deployments(&mut connection, grant, &ids).await? {
        evidence.entry(id).or_default().push(found);
    }
    Ok((plans, evidence))
}

pub async fn evidence(control: &Control, grant: &Grant<ViewDeployments>, deployment: DeploymentId) -> Result<Vec<Evidence>> {
    store::evidence::of_deployment(&mut *control.pool.acquire().await?, grant, deployment).await
}

/// Where the data of a deployment of this environment come from. `Live` means that of the moment when it runs: with nothing live by then, the
/// database is fresh, or a clone. So a deployment that waits behind the first one never throws away what the first one made.
pub fn data_origin(environment: &Environment) -> DataOrigin {
    match (environment.commit_behavior, environment.stage) {
        (CommitBehavior::CreateNewBuild, Stage::Development) => DataOrigin::Fresh,
        // A fresh database in production or staging would throw away data that somebody entered.
        _ => DataOrigin::Live,
    }
}

/// On whose behalf a deployment begins: every way to one says so.
#[derive(Debug, Clone, Copy)]
pub struct Starter {
    pub trigger: Trigger,
    /// `None` when nobody did whom oCore knows: whoever pushed to a repository that lies elsewhere.
    pub user: Option<UserId>,
    manages_production: bool,
}

impl Starter {
    pub fn new(trigger: Trigger, scope: &Scope) -> Self {
        Self { trigger, user: Some(scope.user_id), manages_production: scope.allows::<ManageProduction>() }
    }

    /// By a call of the API.
    pub fn asked(scope: &Scope) -> Self {
        Self::new(trigger_of(scope), scope)
    }

    pub fn nobody(trigger: Trigger) -> Self {
        Self { trigger, user: None, manages_production: false }
    }

    /// Whether a deployment of this stage of the project begins, or waits for somebody with `manage:production`: that is a setting of the project.
    pub(crate) async fn may_deploy(&self, connection: &mut PgConnection, project: ProjectId, stage: Stage) -> Result<bool> {
        Ok(stage != Stage::Production || self.manages_production || !store::projects::protects_production(connection, project).await?)
    }
}

/// Queues a deployment in the caller's transaction and supersedes older ones of the environment that have changed nothing yet. One that is
/// open for the same commit and has changed nothing is the answer instead. The caller wakes the engine after its commit.
pub async fn queue(connection: &mut PgConnection, environment: &Environment, commit: &Commit, starter: Starter) -> Result<DeploymentId> {
    let open = store::deployments::open_of_environment(connection, environment.id).await?;
    // A rollback to this commit brings other data, and is no answer.
    let answers = |data: DataOrigin| matches!(data, DataOrigin::Fresh | DataOrigin::Live | DataOrigin::Environment { .. });
    if let Some(newest) = open.first().filter(|newest| newest.commit_sha == commit.sha && answers(*newest.data_origin)) {
        return Ok(newest.id);
    }
    insert(connection, environment, commit, starter, data_origin(environment), true).await
}

/// Writes a deployment with data from somewhere, and its operation; supersedes older ones of the environment that have changed nothing yet.
/// `Forbidden` where the project keeps its production's deployments to others: every way to a deployment ends here.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    environment: &Environment,
    commit: &Commit,
    starter: Starter,
    data_origin: DataOrigin,
    keeps_previous: bool,
) -> Result<DeploymentId> {
    if !starter.may_deploy(connection, environment.project_id, environment.stage).await? {
        return Err(production_is_kept());
    }
    let new = NewDeployment {
        id: DeploymentId::new(),
        organization_id: environment.organization_id,
        project_id: environment.project_id,
        environment_id: environment.id,
        instance_id: environment.instance_id,
        trigger: starter.trigger,
        triggered_by: starter.user,
        branch: environment.branch.clone(),
        commit_sha: commit.sha.clone(),
        commit_author: commit.author.clone(),
        commit_author_email: commit.author_email.clone(),
        commit_message: commit.message.clone(),
        previous_commit_sha: environment.live_commit_sha.clone(),
        previous_deployment_id: environment.active_deployment_id,
        data_origin,
        keeps_previous,
    };
    store::deployments::insert(connection, &new).await?;
    operations::supersede(connection, environment.id, new.id).await?;
    let kind = OperationKind::Deploy { deployment_id: new.id };
    operations::enqueue(connection, environment.organization_id, environment.instance_id, kind).await?;
    Ok(new.id)
}

/// Why somebody without `manage:production` starts nothing in the production of a project that protects it.
pub(crate) fn production_is_kept() -> Error {
    Error::forbidden(
        "production_kept",
        "in this project, what begins a deployment of production needs the permission manage:production; ask an owner or admin to deploy it",
    )
}

/// How a call through the API is written down.
pub fn trigger_of(scope: &Scope) -> Trigger {
    match scope.credential {
        Credential::Session => Trigger::Manual,
        Credential::ApiKey(_) => Trigger::Api,
    }
}

/// The environment's deployments, the newest first, and how many there are.
pub async fn list_of_environment(
    control: &Control,
    grant: &Grant<ViewDeployments>,
    environment: EnvironmentId,
    page: Page,
) -> Result<(Vec<Deployment>, i64)> {
    let mut connection = control.pool.acquire().await?;
    let total = store::deployments::count_of_environment(&mut connection, grant, environment).await?;
    let total = total.ok_or(Error::NotFound { what: "environment" })?;
    Ok((store::deployments::list_of_environment(&mut connection, grant, environment, page).await?, total))
}

/// The project's deployments, the newest first, and how many there are.
pub async fn list_of_project(
    control: &Control,
    grant: &Grant<ViewDeployments>,
    project: ProjectId,
    page: Page,
) -> Result<(Vec<Deployment>, i64)> {
    let mut connection = control.pool.acquire().await?;
    let total = store::deployments::count_of_project(&mut connection, grant, project).await?;
    let total = total.ok_or(Error::NotFound { what: "project" })?;
    Ok((store::deployments::list_of_project(&mut connection, grant, project, page).await?, total))
}

pub async fn find(control: &Control, grant: &Grant<ViewDeployments>, id: DeploymentId) -> Result<Deployment> {
    read(control, grant, id).await
}

async fn read(control: &Control, scope: &Scope, id: DeploymentId) -> Result<Deployment> {
    let mut connection = control.pool.acquire().await?;
    store::deployments::find(&mut connection, scope, id).await?.ok_or(Error::NotFound { what: "deployment" })
}

/// What of a deployment's log to read.
#[derive(Debug, Clone, Copy)]
pub struct LogRange {
    pub step: Option<StepName>,
    /// The lines after this one.
    pub after: i64,
    pub limit: i64,
}

/// Lines of a deployment's log, the oldest first.
pub async fn log(control: &Control, grant: &Grant<ViewDeployments>, id: DeploymentId, range: LogRange) -> Result<Vec<LogLine>> {
    let deployment = read(control, grant, id).await?;
    let mut connection = control.pool.acquire().await?;
    store::deployments::lines(&mut connection, grant, deployment.id, range.step, range.after, range.limit).await
}

/// What to deploy, and where. At least one of the first three.
#[derive(Debug, Clone, Default)]
pub struct DeployRequest {
    pub branch: Option<BranchName>,
    pub commit: Option<CommitSha>,
    pub tag: Option<String>,
    pub instance: Option<InstanceId>,
}

/// Deploys a branch's head, a commit or a tag to the environment of the instance, or else of the branch, or else to the production.
pub async fn deploy(control: &Control, grant: &Grant<ManageDeployments>, project: ProjectId, request: DeployRequest) -> Result<Deployment> {
    let mut transaction = control.pool.begin().await?;
    let (environment, commit) = target(control, &mut transaction, grant, project, &request).await?;
    let id = queue(&mut transaction, &environment, &commit, Starter::asked(grant)).await?;
    transaction.commit().await?;
    operations::wake(control, environment.instance_id).await;
    read(control, grant, id).await
}

/// What a request means: the environment, locked until the end of the transaction, and the commit.
pub(crate) async fn target(
    control: &Control,
    connection: &mut PgConnection,
    scope: &Scope,
    project: ProjectId,
    request: &DeployRequest,
) -> Result<(Environment, Commit)> {
    if request.branch.is_none() && request.commit.is_none() && request.tag.is_none() {
        return Err(Error::invalid("branch", "give a branch, a commitSha or a tag"));
    }
    let project = store::branches::lock_project(connection, project)
        .await?
        .filter(|project| project.organization_id == scope.organization_id)
        .ok_or(Error::NotFound { what: "project" })?;
    if project.archived_at.is_some() {
        return Err(Error::conflict("project_archived", "the project is archived; restore it first"));
    }
    let environment = match (&request.instance, &request.branch) {
        (Some(instance), _) => store::environments::lock_by_instance(connection, *instance)
            .await?
            .filter(|environment| environment.project_id == project.id)
            .ok_or(Error::NotFound { what: "instance with an environment in this project" })?,
        (None, Some(branch)) => store::environments::lock_by_branch(connection, project.id, branch.as_str()).await?.ok_or_else(|| {
            Error::conflict("no_environment", format!("{branch} has no environment; make one with `ocore env create {branch}`"))
        })?,
        (None, None) => match store::environments::production_of(connection, project.id).await? {
            Some(production) => store::environments::lock(connection, production).await?,
            None => None,
        }
        .ok_or_else(|| Error::invalid("instanceId", "the project has no production; say which instance gets the commit"))?,
    };
    if environment.status != EnvironmentStatus::Active {
        return Err(Error::conflict("environment_removing", "the environment is being deleted"));
    }
    let commit = match (&request.commit, &request.tag, &request.branch) {
        (Some(sha), _, _) => git::find_commit(control, project.id, sha)
            .await?
            .ok_or_else(|| Error::invalid("commitSha", "the repository has no such commit; push or fetch it first"))?,
        (None, Some(tag), _) => {
            let commit = git::tag_commit(control, project.id, tag).await?;
            commit.ok_or_else(|| Error::invalid("tag", "the repository has no such tag; push or fetch it first"))?
        }
        (None, None, branch) => match branch {
            Some(branch) => git::branch_head(control, project.id, branch).await?,
            None => None,
        }
        .ok_or_else(|| Error::invalid("branch", "the repository has no such branch; push or fetch it first"))?,
    };
    Ok((environment, commit))
}

/// Asks a deployment to end without effect. What has not begun ends at once; what runs is taken back as soon as it can be. Asking twice is fine.
/// Of a production's, who may begin it may also end it.
pub async fn cancel(control: &Control, grant: &Grant<ManageDeployments>, id: DeploymentId) -> Result<Deployment> {
    let deployment = read(control, grant, id).await?;
    let mut transaction = control.pool.begin().await?;
    let stage = store::environments::find(&mut transaction, grant, deployment.environment_id).await?.map(|environment| environment.stage);
    if stage == Some(Stage::Production) {
        match deployment.trigger {
            Trigger::Rollback | Trigger::Import => grant.may_touch(Stage::Production)?,
            _ => projects::may_deploy_production(&mut transaction, grant, deployment.project_id).await?,
        }
    }
    if deployment.status.is_end() {
        return Err(Error::conflict("already_ended", format!("the deployment has ended: it {}", past(deployment.status))));
    }
    operations::cancel(&mut transaction, id).await?;
    transaction.commit().await?;
    operations::wake(control, deployment.instance_id).await;
    read(control, grant, id).await
}

fn past(status: DeploymentStatus) -> &'static str {
    match status {
        DeploymentStatus::Queued => "is queued",
        DeploymentStatus::Running => "runs",
        DeploymentStatus::Succeeded => "succeeded",
        DeploymentStatus::Failed => "failed",
        DeploymentStatus::Cancelled => "was cancelled",
        DeploymentStatus::Superseded => "was superseded by a newer one",
    }
}

/// One thing that a follower of a deployment sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The deployment's own state changed.
    Status { status: DeploymentStatus, message: Option<String>, excerpt: Option<String> },
    /// A step's state changed.
    Step { name: StepName, status: StepStatus, summary: String, duration_ms: Option<i64> },
    /// A line of a step's log.
    Line { step: StepName, text: String },
}

/// Progress with its place in the stream; a follower that comes back says the last one it saw and misses nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressEvent {
    pub cursor: Cursor,
    pub progress: Progress,
}

/// A position in a deployment's stream of events and lines; grows. Zero is before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub i64);

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for Cursor {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Entries that are read at once.
const BATCH: i64 = 500;
/// The slow poll behind the signals.
const POLL: Duration = Duration::from_secs(5);

/// Everything of a deployment after `cursor`, then what comes, until it has ended. Lives on NOTIFY with a slow poll behind it. The caller
/// has made sure that the deployment may be seen. An error ends the stream; following again from the last cursor loses and repeats nothing.
pub fn follow(control: &Control, deployment: DeploymentId, after: Cursor) -> Pin<Box<dyn Stream<Item = Result<ProgressEvent>> + Send>> {
    let follower = Follower {
        subscription: control.signals.subscribe(&control.pool),
        control: control.clone(),
        deployment,
        cursor: after,
        read: Vec::new().into_iter(),
        ended: false,
        more: true,
    };
    Box::pin(stream::try_unfold(follower, |mut follower| async move { Ok(follower.next().await?.map(|event| (event, follower))) }))
}

/// Whether the deployment has ended and its stream has nothing after a cursor.
pub async fn has_ended_by(control: &Control, deployment: DeploymentId, cursor: Cursor) -> Result<bool> {
    let found = store::deployments::stream_after(&mut *control.pool.acquire().await?, deployment, cursor.0, 1).await?;
    Ok(found.is_none_or(|(status, entries)| status.is_end() && entries.is_empty()))
}

struct Follower {
    control: Control,
    subscription: Subscription,
    deployment: DeploymentId,
    cursor: Cursor,
    /// What has been read and not handed out.
    read: std::vec::IntoIter<ProgressEvent>,
    /// The deployment had ended when that was read.
    ended: bool,
    /// There may be more to read without waiting.
    more: bool,
}

impl Follower {
    async fn next(&mut self) -> Result<Option<ProgressEvent>> {
        loop {
            if let Some(event) = self.read.next() {
                self.cursor = event.cursor;
                return Ok(Some(event));
            }
            if self.ended && !self.more {
                return Ok(None);
            }
            if !self.more {
                // Running out of time is the slow poll.
                let _ = tokio::time::timeout(POLL, self.signalled()).await;
            }
            self.fill().await?;
        }
    }

    async fn signalled(&mut self) {
        loop {
            match self.subscription.next().await {
                Signal::Resync => return,
                Signal::Changed { deployment, .. } if deployment == Some(self.deployment) => return,
                Signal::Changed { .. } => {}
            }
        }
    }

    /// Reads the next batch. The status is of the same moment as the entries: when it is an end and the batch is not full, nothing follows.
    async fn fill(&mut self) -> Result<()> {
        let mut connection = self.control.pool.acquire().await?;
        let found = store::deployments::stream_after(&mut connection, self.deployment, self.cursor.0, BATCH).await?;
        let (status, entries) = found.ok_or(Error::NotFound { what: "deployment" })?;
        self.ended = status.is_end();
        self.more = entries.len() as i64 == BATCH;
        let events: Vec<ProgressEvent> = entries.into_iter().map(progress_event).collect::<Result<_>>()?;
        self.read = events.into_iter();
        Ok(())
    }
}

fn progress_event(entry: store::deployments::StreamEntry) -> Result<ProgressEvent> {
    #[derive(Deserialize)]
    struct State {
        status: DeploymentStatus,
        message: Option<String>,
        excerpt: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Step {
        name: StepName,
        status: StepStatus,
        summary: String,
        duration_ms: Option<i64>,
    }
    #[derive(Deserialize)]
    struct Line {
        step: StepName,
        text: String,
    }
    let payload = entry.payload.0;
    let progress = match entry.kind.as_str() {
        "deployment.status" => {
            serde_json::from_value(payload).map(|State { status, message, excerpt }| Progress::Status { status, message, excerpt })
        }
        "deployment.step" => serde_json::from_value(payload).map(|Step { name, status, summary, duration_ms }| Progress::Step {
            name,
            status,
            summary,
            duration_ms,
        }),
        "line" => serde_json::from_value(payload).map(|Line { step, text }| Progress::Line { step, text }),
        other => return Err(Error::broken(format!("an event of a deployment has the kind {other}"))),
    };
    let progress = progress.map_err(|error| Error::internal("an event of a deployment in the store", error))?;
    Ok(ProgressEvent { cursor: Cursor(entry.position), progress })
}
