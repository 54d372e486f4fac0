//! Keeping the store true to the mirrors: what Git took and a crash left unrecorded, and the mirrors' own upkeep.

use std::collections::HashMap;

use ocore_model::{
    deployment::Trigger,
    ids::ProjectId,
    names::{BranchName, CommitSha},
    project::RepositoryKind,
};

use super::{Commit, commits, mirror::Mirror};
use crate::{
    Control, Result,
    authorization::System,
    branches::{self, BranchUpdate, PushOutcome},
    deployments::Starter,
    store::repositories::{self, Repository},
};

/// Compares every mirror's branches with the store and records what is missing. For the start and a timer; a push that is under way is left
/// alone, since it records itself. A project that fails is logged, and the others go on.
pub async fn reconcile(control: &Control) -> Result<()> {
    let projects = repositories::all_projects(&mut *control.pool.acquire().await?, System).await?;
    for project in projects {
        if let Err(error) = reconcile_project(control, project).await {
            tracing::error!(%project, error = &error as &dyn std::error::Error, "a project's branches could not be compared with the store");
        }
    }
    Ok(())
}

async fn reconcile_project(control: &Control, project: ProjectId) -> Result<()> {
    let Some(mirror) = Mirror::existing(&control.settings, project) else { return Ok(()) };
    let Some(_no_pushes) = mirror.try_lock_out_pushes()? else { return Ok(()) };
    let Some(repository) = repositories::find_any(&mut *control.pool.acquire().await?, System, project).await? else { return Ok(()) };
    // Until an external repository has been fetched, the mirror is not its picture.
    let (trigger, current) = match repository.kind {
        RepositoryKind::BuiltIn => (Trigger::Push, true),
        RepositoryKind::External => (Trigger::Webhook, repository.fetched_at.is_some()),
    };
    if current {
        record_heads(control, &repository, &mirror, Starter::nobody(trigger)).await?;
    }
    Ok(())
}

/// Records every branch whose head in the mirror is another than in the store.
pub(super) async fn record_heads(
    control: &Control,
    repository: &Repository,
    mirror: &Mirror,
    starter: Starter,
) -> Result<Vec<PushOutcome>> {
    let project = repository.project_id;
    let heads = mirror.heads(&control.settings).await?;
    for refused in &heads.refused {
        tracing::debug!(%project, %refused, "a branch is left out");
    }
    let recorded = repositories::recorded_heads(&mut *control.pool.acquire().await?, System, project).await?;
    let recorded: HashMap<String, String> = recorded.into_iter().collect();
    let moved: Vec<&(BranchName, CommitSha)> =
        heads.named.iter().filter(|(branch, sha)| recorded.get(branch.as_str()).map(String::as_str) != Some(sha.as_str())).collect();
    let names: Vec<String> = moved.iter().map(|(_, sha)| sha.to_string()).collect();
    let found: HashMap<CommitSha, Commit> =
        commits::named(mirror, &control.settings, &names).await?.into_iter().map(|commit| (commit.sha.clone(), commit)).collect();

    let old = |branch: &str| recorded.get(branch).and_then(|sha| sha.parse().ok());
    let mut updates: Vec<BranchUpdate> = moved
        .into_iter()
        .filter_map(|(branch, sha)| {
            Some(BranchUpdate { branch: branch.clone(), old: old(branch.as_str()), new: Some(found.get(sha)?.clone()) })
        })
        .collect();
    let gone = recorded.keys().filter(|name| !heads.named.iter().any(|(branch, _)| branch.as_str() == name.as_str()));
    updates.extend(gone.filter_map(|name| Some(BranchUpdate { branch: name.parse().ok()?, old: old(name), new: None })));
    if updates.is_empty() {
        return Ok(Vec::new());
    }
    branches::record(control, project, updates, starter).await
}

/// Packs the mirrors and forgets what nothing needs. For a daily timer.
pub async fn maintain(control: &Control) -> Result<()> {
    let projects = repositories::all_projects(&mut *control.pool.acquire().await?, System).await?;
    for project in projects {
        let Some(mirror) = Mirror::existing(&control.settings, project) else { continue };
        let needed = repositories::needed_commits(&mut *control.pool.acquire().await?, System, project).await?;
        if let Err(error) = mirror.maintain(&control.settings, &needed).await {
            tracing::warn!(%project, error = &error as &dyn std::error::Error, "a mirror could not be packed");
        }
    }
    Ok(())
}
