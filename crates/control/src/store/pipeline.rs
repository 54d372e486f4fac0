//! The pipeline in the store: a project's environments with their newest deployments, in one statement.

use chrono::{DateTime, Utc};
use ocore_model::{
    deployment::{DeploymentStatus, Trigger},
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::{DeploymentId, EnvironmentId, InstanceId, OrganizationId, ProjectId, ServerId},
    instance::InstanceStatus,
    names::CommitSha,
};
use sqlx::PgConnection;

use super::environments::{Environment, select_environments};
use crate::{Result, authorization::Scope};

/// A deployment in short.
#[derive(Debug, Clone)]
pub struct RecentDeployment {
    pub id: DeploymentId,
    pub status: DeploymentStatus,
    pub trigger: Trigger,
    pub branch: String,
    pub commit_sha: CommitSha,
    pub commit_author: String,
    pub commit_message: String,
    pub error_message: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
}

/// An environment with its newest deployments, the newest first.
#[derive(Debug, Clone)]
pub struct PipelineEnvironment {
    pub environment: Environment,
    pub recent_deployments: Vec<RecentDeployment>,
}

/// One environment beside one of its deployments, or beside none.
struct Row {
    id: EnvironmentId,
    organization_id: OrganizationId,
    project_id: ProjectId,
    project_name: String,
    instance_id: InstanceId,
    instance_name: String,
    instance_slug: String,
    instance_status: InstanceStatus,
    odoo_version: String,
    server_id: ServerId,
    active_deployment_id: Option<DeploymentId>,
    name: String,
    description: String,
    branch: String,
    branch_deleted_at: Option<DateTime<Utc>>,
    stage: Stage,
    commit_behavior: CommitBehavior,
    status: EnvironmentStatus,
    status_message: String,
    auto_destroy_on_merge: bool,
    cloned_from_id: Option<EnvironmentId>,
    is_neutralized: bool,
    mail_port: Option<i32>,
    pending_commit_count: i32,
    pending_commit_sha: Option<CommitSha>,
    last_commit_at: Option<DateTime<Utc>>,
    last_commit_author: Option<String>,
    live_commit_sha: Option<CommitSha>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    recent_id: Option<DeploymentId>,
    recent_status: Option<DeploymentStatus>,
    recent_trigger: Option<Trigger>,
    recent_branch: Option<String>,
    recent_commit_sha: Option<CommitSha>,
    recent_commit_author: Option<String>,
    recent_commit_message: Option<String>,
    recent_error_message: Option<String>,
    recent_created_at: Option<DateTime<Utc>>,
    recent_started_at: Option<DateTime<Utc>>,
    recent_completed_at: Option<DateTime<Utc>>,
}

impl Row {
    fn recent(&mut self) -> Option<RecentDeployment> {
        Some(RecentDeployment {
            id: self.recent_id?,
            status: self.recent_status?,
            trigger: self.recent_trigger?,
            branch: self.recent_branch.take()?,
            commit_sha: self.recent_commit_sha.take()?,
            commit_author: self.recent_commit_author.take()?,
            commit_message: self.recent_commit_message.take()?,
            error_message: self.recent_error_message.take(),
            created_at: self.recent_created_at?,
            started_at: self.recent_started_at,
            completed_at: self.recent_completed_at,
        })
    }

    fn environment(self) -> Environment {
        Environment {
            id: self.id,
            organization_id: self.organization_id,
            project_id: self.project_id,
            project_name: self.project_name,
            instance_id: self.instance_id,
            instance_name: self.instance_name,
            instance_slug: self.instance_slug,
            instance_status: self.instance_status,
            odoo_version: self.odoo_version,
            server_id: self.server_id,
            active_deployment_id: self.active_deployment_id,
            name: self.name,
            description: self.description,
            branch: self.branch,
            branch_deleted_at: self.branch_deleted_at,
            stage: self.stage,
            commit_behavior: self.commit_behavior,
            status: self.status,
            status_message: self.status_message,
            auto_destroy_on_merge: self.auto_destroy_on_merge,
            cloned_from_id: self.cloned_from_id,
            is_neutralized: self.is_neutralized,
            mail_port: self.mail_port,
            pending_commit_count: self.pending_commit_count,
            pending_commit_sha: self.pending_commit_sha,
            last_commit_at: self.last_commit_at,
            last_commit_author: self.last_commit_author,
            live_commit_sha: self.live_commit_sha,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// The project's environments that are not deleted, the oldest first, each with its newest deployments.
pub async fn list(
    connection: &mut PgConnection,
    scope: &Scope,
    project: ProjectId,
    recent_deployments: i64,
) -> Result<Vec<PipelineEnvironment>> {
    let rows = select_environments!(
        @into Row,
        r#", recent.id as "recent_id?: DeploymentId", recent.status as "recent_status?: DeploymentStatus",
           recent.trigger_type as "recent_trigger?: Trigger", recent.branch as "recent_branch?",
           recent.commit_sha as "recent_commit_sha?: CommitSha", recent.commit_author as "recent_commit_author?",
           recent.commit_message as "recent_commit_message?", recent.error_message as "recent_error_message?",
           recent.created_at as "recent_created_at?", recent.started_at as "recent_started_at?",
           recent.completed_at as "recent_completed_at?""#,
        "left join lateral (
             select * from deployments where environment_id = environments.id order by created_at desc, id desc limit $3
         ) as recent on true
         where environments.project_id = $2 and environments.organization_id = $1 and environments.status <> 'deleted'
         order by environments.created_at, environments.id, recent.created_at desc, recent.id desc",
        scope.organization_id.as_uuid(),
        project.as_uuid(),
        recent_deployments
    )
    .fetch_all(connection)
    .await?;
    let mut environments: Vec<PipelineEnvironment> = Vec::new();
    for mut row in rows {
        let recent = row.recent();
        match environments.last_mut() {
            Some(last) if last.environment.id == row.id => last.recent_deployments.extend(recent),
            _ => {
                let environment = row.environment();
                environments.push(PipelineEnvironment { environment, recent_deployments: recent.into_iter().collect() });
            }
        }
    }
    Ok(environments)
}
