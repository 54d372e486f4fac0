//! Environments: one branch of a project at one stage, with the instance that runs it.

use chrono::TimeDelta;
use ocore_model::{
    environment::{CommitBehavior, EnvironmentEvent, EnvironmentStatus, Stage},
    ids::{EnvironmentId, InstanceId, ProjectId},
    names::BranchName,
};
use serde_json::json;
use sqlx::PgConnection;

pub use crate::store::environments::Environment;
use crate::{
    Control, Error, FieldError, Result, audit,
    authorization::{Grant, ManageDeployments, ManageEnvironments, Scope, ViewEnvironments},
    deployments::{self, Starter},
    git, instances, operations, projects,
    store::{
        self,
        branches::PushedProject,
        deployments::Deployment,
        environments::{NewEnvironment, Pending},
    },
};

const NAME_LENGTH: usize = 100;
const DESCRIPTION_LENGTH: usize = 2000;

/// Every environment of the organization, the oldest first.
pub async fn list(control: &Control, grant: &Grant<ViewEnvironments>) -> Result<Vec<Environment>> {
    store::environments::list(&mut *control.pool.acquire().await?, grant).await
}

/// Those of one project.
pub async fn list_of_project(control: &Control, grant: &Grant<ViewEnvironments>, project: ProjectId) -> Result<Vec<Environment>> {
    let mut connection = control.pool.acquire().await?;
    let environments = store::environments::list_of_project(&mut connection, grant, project).await?;
    if environments.is_empty() {
        store::branches::find_project(&mut connection, grant, project).await?.ok_or(Error::NotFound { what: "project" })?;
    }
    Ok(environments)
}

/// One that is not deleted.
pub async fn find(control: &Control, grant: &Grant<ViewEnvironments>, id: EnvironmentId) -> Result<Environment> {
    read(&mut *control.pool.acquire().await?, grant, id).await
}

pub(crate) async fn read(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId) -> Result<Environment> {
    let found = store::environments::find(connection, scope, id).await?;
    found.filter(|environment| environment.status != EnvironmentStatus::Deleted).ok_or(Error::NotFound { what: "environment" })
}

/// What can be changed of an environment.
#[derive(Debug, Clone, Default)]
pub struct EnvironmentPatch {
    pub name: Option<String>,
    pub description: Option<String>,
}

pub async fn update(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    id: EnvironmentId,
    patch: EnvironmentPatch,
) -> Result<Environment> {
    let name = patch.name.as_deref().map(str::trim);
    let description = patch.description.as_deref().map(str::trim);
    let mut fields = Vec::new();
    if name.is_some_and(|name| name.is_empty() || name.chars().count() > NAME_LENGTH || name.chars().any(char::is_control)) {
        fields.push(FieldError { field: "name".to_owned(), message: format!("use 1 to {NAME_LENGTH} characters, on one line") });
    }
    if description.is_some_and(|description| description.chars().count() > DESCRIPTION_LENGTH || description.contains('\0')) {
        fields.push(FieldError { field: "description".to_owned(), message: format!("use at most {DESCRIPTION_LENGTH} characters") });
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    let mut connection = control.pool.acquire().await?;
    if !store::environments::rename(&mut connection, grant, id, name, description).await? {
        return Err(Error::NotFound { what: "environment" });
    }
    read(&mut connection, grant, id).await
}

/// What pushes do from now on. Commits that wait keep waiting until the next push or build. Production's is audited.
pub async fn set_commit_behavior(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    id: EnvironmentId,
    behavior: CommitBehavior,
) -> Result<Environment> {
    let mut transaction = control.pool.begin().await?;
    let environment = read(&mut transaction, grant, id).await?;
    grant.may_touch(environment.stage)?;
    if !store::environments::set_commit_behavior(&mut transaction, grant, id, behavior).await? {
        return Err(removing());
    }
    if environment.stage == Stage::Production {
        let detail = json!({ "branch": environment.branch, "before": environment.commit_behavior, "after": behavior });
        audit::record(&mut transaction, control, grant, "environment.commit_behavior_changed", &subject(id), &detail).await?;
    }
    transaction.commit().await?;
    Ok(Environment { commit_behavior: behavior, ..environment })
}

/// Makes an environment of a branch, on a free instance of the project or on a new one. When the branch is there already, its head is
/// deployed for the first time.
pub async fn create(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    project: ProjectId,
    branch: &BranchName,
    stage: Stage,
    instance: Option<InstanceId>,
) -> Result<Environment> {
    let mut transaction = control.pool.begin().await?;
    let project = store::branches::lock_project(&mut transaction, project)
        .await?
        .filter(|project| project.organization_id == grant.organization_id)
        .ok_or(Error::NotFound { what: "project" })?;
    let environment = create_in(&mut transaction, control, grant, &project, branch, stage, instance).await?;
    transaction.commit().await?;
    operations::wake(control, environment.instance_id).await;
    read(&mut *control.pool.acquire().await?, grant, environment.id).await
}

/// [`create`] in the caller's transaction, with the project locked; the caller wakes the engine.
pub(crate) async fn create_in(
    connection: &mut PgConnection,
    control: &Control,
    scope: &Scope,
    project: &PushedProject,
    branch: &BranchName,
    stage: Stage,
    instance: Option<InstanceId>,
) -> Result<Environment> {
    if project.archived_at.is_some() {
        return Err(Error::conflict("project_archived", "the project is archived; restore it first"));
    }
    if let Some(existing) = store::environments::lock_by_branch(connection, project.id, branch.as_str()).await? {
        return Err(Error::conflict("branch_taken", format!("{branch} has an environment already: {}", existing.instance_slug)));
    }
    if stage == Stage::Production {
        projects::may_deploy_production(connection, scope, project.id).await?;
    }
    let environment = open(connection, control, project, branch, stage, instance).await?;
    if let Some(head) = git::branch_head(control, project.id, branch).await? {
        store::branches::set_head(connection, project.id, branch.as_str(), &head).await?;
        let count = git::commits_between(control, project.id, None, &head.sha, 1).await?.1;
        let pending = Pending {
            count: i32::try_from(count).unwrap_or(i32::MAX),
            sha: Some(&head.sha),
            last_commit_at: Some(head.committed_at),
            last_commit_author: Some(&head.author),
        };
        store::environments::set_pending(connection, environment.id, &pending).await?;
        deployments::queue(connection, &environment, &head, Starter::asked(scope)).await?;
    }
    Ok(environment)
}

/// Writes an environment with its instance, in the caller's transaction. The caller has locked the project and knows that the branch has no
/// environment.
pub(crate) async fn open(
    connection: &mut PgConnection,
    control: &Control,
    project: &PushedProject,
    branch: &BranchName,
    stage: Stage,
    instance: Option<InstanceId>,
) -> Result<Environment> {
    if stage == Stage::Production && store::environments::production_of(connection, project.id).await?.is_some() {
        return Err(Error::conflict(
            "production_exists",
            "the project has a production already; use staging or development, or another project",
        ));
    }
    let instance = match instance {
        Some(id) => {
            let instance = store::instances::lock(connection, project.organization_id, id)
                .await?
                .filter(|instance| instance.project_id == project.id)
                .ok_or(Error::NotFound { what: "instance in this project" })?;
            if instance.environment_id.is_some() {
                return Err(Error::conflict("instance_taken", format!("{} serves another environment already", instance.slug)));
            }
            instances::must_stand(&instance)?;
            id
        }
        None => instances::make_for_branch(connection, control, project, branch, stage).await?,
    };
    let new = NewEnvironment {
        id: EnvironmentId::new(),
        organization_id: project.organization_id,
        project_id: project.id,
        instance_id: instance,
        name: branch.as_str().chars().take(NAME_LENGTH).collect(),
        branch: branch.as_str().to_owned(),
        stage,
        commit_behavior: CommitBehavior::default_for(stage),
    };
    store::environments::insert(connection, &new).await?;
    let written = store::environments::lock(connection, new.id).await?;
    written.ok_or_else(|| Error::broken("an environment that was just written is not there"))
}

/// How long the last snapshot of a production stays that was removed.
pub const KEPT: TimeDelta = TimeDelta::days(30);

/// How a removal was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Of what is no production.
    Direct,
    /// The name was typed.
    Confirmed,
}

impl Removal {
    /// Production goes only when somebody has typed its name, so that nobody deletes a company's data by a slip.
    pub(crate) fn of(stage: Option<Stage>, name: &str, typed: Option<&str>, kind: &str, id: uuid::Uuid) -> Result<Self> {
        match typed {
            Some(typed) if typed == name => Ok(Self::Confirmed),
            Some(_) => Err(not_its_name(name)),
            None if stage == Some(Stage::Production) => Err(Error::conflict(
                "production_protected",
                format!(
                    "a production environment is not deleted directly, so that nobody deletes a company's data by a slip: to remove it with all its \
                     data, send its name, DELETE /api/{kind}s/{id}?confirm={name} (`ocore env delete {name} --confirm {name}`); its last snapshot is \
                     kept for {} days",
                    KEPT.num_days()
                ),
            )),
            None => Ok(Self::Direct),
        }
    }
}

/// What was typed to confirm a removal is another name.
pub(crate) fn not_its_name(name: &str) -> Error {
    Error::invalid("confirm", format!("this is not its name; to remove it with all its data, send {name}"))
}

/// Has an environment torn down, with its instance and all data. A production only when its instance's name is typed as `confirmation`; its last
/// snapshot is kept for [`KEPT`]. A second call finds that it is on its way, or done. Audited.
pub async fn delete(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    id: EnvironmentId,
    confirmation: Option<&str>,
) -> Result<EnvironmentStatus> {
    let mut transaction = control.pool.begin().await?;
    let environment = store::environments::find(&mut transaction, grant, id).await?.ok_or(Error::NotFound { what: "environment" })?;
    if environment.status != EnvironmentStatus::Active {
        return Ok(environment.status);
    }
    grant.may_touch(environment.stage)?;
    let removal = Removal::of(Some(environment.stage), &environment.instance_slug, confirmation, "environment", id.as_uuid())?;
    instances::remove(&mut transaction, grant.organization_id, environment.instance_id, removal).await?;
    let detail = json!({ "instance": environment.instance_slug, "branch": environment.branch, "stage": environment.stage });
    audit::record(&mut transaction, control, grant, "environment.removed", &subject(id), &detail).await?;
    transaction.commit().await?;
    operations::wake(control, environment.instance_id).await;
    Ok(EnvironmentStatus::Removing)
}

/// Marks an environment whose instance is being torn down. The rule about production lives here.
pub(crate) async fn mark_removing(connection: &mut PgConnection, environment: &Environment, removal: Removal) -> Result<()> {
    // It may have become production since somebody looked.
    if removal == Removal::Direct {
        Removal::of(Some(environment.stage), &environment.instance_slug, None, "environment", environment.id.as_uuid())?;
    }
    let to = environment.status.next(EnvironmentEvent::DeletionRequested)?;
    store::environments::set_status(connection, environment.id, environment.status, to, "it is being deleted").await?;
    Ok(())
}

/// Builds the head of the environment's branch now, whatever its commit behavior. A build of the head that is on its way is the answer.
pub async fn trigger_build(control: &Control, grant: &Grant<ManageDeployments>, id: EnvironmentId) -> Result<Deployment> {
    let mut transaction = control.pool.begin().await?;
    let asked = read(&mut transaction, grant, id).await?;
    if asked.stage == Stage::Production {
        projects::may_deploy_production(&mut transaction, grant, asked.project_id).await?;
    }
    let environment = store::environments::lock(&mut transaction, id).await?.ok_or(Error::NotFound { what: "environment" })?;
    if environment.status != EnvironmentStatus::Active {
        return Err(removing());
    }
    let branch: BranchName =
        environment.branch.parse().map_err(|error| Error::internal("the branch of an environment in the store", error))?;
    let head = git::branch_head(control, environment.project_id, &branch).await?.ok_or_else(|| {
        Error::conflict("branch_missing", format!("the repository has no branch {branch}; push it, or deploy a commit or a tag"))
    })?;
    if environment.live_commit_sha.as_ref() == Some(&head.sha) {
        let newest = store::deployments::newest(&mut transaction, id).await?;
        let failed = newest.is_some_and(|newest| {
            matches!(
                newest.status,
                ocore_model::deployment::DeploymentStatus::Failed | ocore_model::deployment::DeploymentStatus::Cancelled
            )
        });
        if !failed {
            return Err(Error::conflict("nothing_pending", format!("the newest commit of {branch} is live; there is nothing to build")));
        }
    }
    let deployment = deployments::queue(&mut transaction, &environment, &head, Starter::asked(grant)).await?;
    let written = store::deployments::find(&mut transaction, grant, deployment).await?;
    transaction.commit().await?;
    operations::wake(control, environment.instance_id).await;
    written.ok_or_else(|| Error::broken("a deployment that was just written is not there"))
}

pub(crate) fn subject(id: EnvironmentId) -> String {
    format!("environment:{id}")
}

fn removing() -> Error {
    Error::conflict("environment_removing", "the environment is being deleted")
}
