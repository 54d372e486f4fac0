//! Rollbacks: a snapshot's database, file store and release become live again, together.
//!
//! What is written here is the wish; the rollback itself is a deployment with [`DataOrigin::Snapshot`], with its steps, its log and its undo.

use chrono::{DateTime, Utc};
use ocore_model::{
    deployment::{DataOrigin, Trigger},
    environment::{EnvironmentStatus, Stage},
    ids::{DeploymentId, EnvironmentId, SnapshotId},
    names::CommitSha,
};
use serde_json::json;

pub use crate::store::rollbacks::RollbackLog;
use crate::{
    Control, Error, Result, audit,
    authorization::{Grant, ManageDeployments, ViewDeployments},
    deployments::{self, Starter},
    environments,
    git::{self, Commit},
    operations, store,
};

/// What to go back to, and where.
#[derive(Debug, Clone, Copy)]
pub struct RollbackRequest {
    pub snapshot: SnapshotId,
    /// What is live until then is kept as a snapshot.
    pub create_safety_snapshot: bool,
    /// Another environment of the project.
    pub target: Option<EnvironmentId>,
}

/// A rollback that is on its way.
#[derive(Debug, Clone)]
pub struct Rollback {
    pub deployment: DeploymentId,
    pub environment: EnvironmentId,
    pub snapshot: SnapshotId,
    /// What happens, in a sentence.
    pub message: String,
}

/// Queues the deployment that goes back. In another environment than the snapshot's the data are made harmless on their way, unless it is
/// production, whose data go back only with `manage:production`. Audited.
pub async fn rollback(
    control: &Control,
    grant: &Grant<ManageDeployments>,
    environment: EnvironmentId,
    request: RollbackRequest,
) -> Result<Rollback> {
    let mut transaction = control.pool.begin().await?;
    let asked = environments::read(&mut transaction, grant, environment).await?;
    let target = match request.target {
        Some(target) => environments::read(&mut transaction, grant, target).await?,
        None => asked.clone(),
    };
    if target.project_id != asked.project_id {
        return Err(Error::NotFound { what: "environment in this project" });
    }
    let target = store::environments::lock(&mut transaction, target.id).await?.ok_or(Error::NotFound { what: "environment" })?;
    grant.may_touch(target.stage)?;
    if target.status != EnvironmentStatus::Active {
        return Err(Error::conflict("environment_removing", "the environment is being deleted"));
    }
    let Some(snapshot) = store::snapshots::lock_usable(&mut transaction, grant, request.snapshot).await? else {
        return Err(match store::snapshots::find(&mut transaction, grant, request.snapshot).await? {
            Some(there) if there.project_id == asked.project_id => {
                Error::conflict("snapshot_not_ready", format!("the snapshot is {}; choose one that is ready", there.status))
            }
            _ => Error::NotFound { what: "snapshot" },
        });
    };
    if snapshot.project_id != asked.project_id {
        return Err(Error::NotFound { what: "snapshot" });
    }
    if snapshot.odoo_version.as_str() != target.odoo_version {
        return Err(Error::conflict(
            "another_odoo_version",
            format!("the snapshot is of Odoo {}, and {} runs {}", snapshot.odoo_version, target.name, target.odoo_version),
        ));
    }
    let own = snapshot.instance_id == target.instance_id;
    if target.stage == Stage::Production && !own && snapshot.standing.as_deref() != Some("own") {
        return Err(Error::conflict(
            "snapshot_neutralized",
            "the snapshot is of a neutralized copy: production would come up without mail, payments and scheduled actions; choose one of data \
             that were never neutralized",
        ));
    }
    let sha = snapshot.commit_sha.clone().ok_or_else(|| {
        Error::conflict("commit_unknown", "it is not known which commit ran on the snapshot's data, so it cannot be brought live")
    })?;
    let commit = git::find_commit(control, asked.project_id, &sha).await?.unwrap_or_else(|| forgotten(sha, snapshot.taken_at));
    let origin = DataOrigin::Snapshot { snapshot: snapshot.id, of: snapshot.instance_id };
    let (starter, keeps) = (Starter::new(Trigger::Rollback, grant), request.create_safety_snapshot);
    let deployment = deployments::insert(&mut transaction, &target, &commit, starter, origin, keeps).await?;
    let detail = json!({
        "branch": target.branch, "stage": target.stage, "snapshot": snapshot.id, "snapshotName": snapshot.name, "deployment": deployment,
        "createSafetySnapshot": keeps,
    });
    audit::record(&mut transaction, control, grant, "environment.rolled_back", &environments::subject(target.id), &detail).await?;
    transaction.commit().await?;
    operations::wake(control, target.instance_id).await;
    let message = match (own, target.stage) {
        (true, _) => format!("{} goes back to {}", target.name, snapshot.name),
        (false, Stage::Production) => format!("{} takes over {} as it is", target.name, snapshot.name),
        (false, _) => format!("{} gets a neutralized copy of {}", target.name, snapshot.name),
    };
    Ok(Rollback { deployment, environment: target.id, snapshot: snapshot.id, message })
}

/// A commit that the repository has forgotten. Its release is kept with the snapshot.
fn forgotten(sha: CommitSha, at: Option<DateTime<Utc>>) -> Commit {
    let at = at.unwrap_or_default();
    Commit {
        sha,
        author: String::new(),
        author_email: String::new(),
        authored_at: at,
        committed_at: at,
        message: "a commit that the repository does not have any more".to_owned(),
    }
}

/// The rollbacks of an environment, the newest first.
pub async fn logs(control: &Control, grant: &Grant<ViewDeployments>, environment: EnvironmentId) -> Result<Vec<RollbackLog>> {
    let mut connection = control.pool.acquire().await?;
    environments::read(&mut connection, grant, environment).await?;
    store::rollbacks::of_environment(&mut connection, grant, environment).await
}
