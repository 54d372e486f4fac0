//! Projects and organizations that somebody removed go for good when nothing of them lies on a server any more: their instances have been torn down by
//! operations, and the last snapshots of their productions have had their time. Until then they can be brought back.
//!
//! The mirror goes before the row, under the row's lock: a crash between the two leaves a project that is looked for again, never a repository that
//! belongs to nobody.

use crate::{Control, Result, projects, store};

pub(crate) const NAME: &str = "removals";

pub(crate) async fn run(control: &Control) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    for project in store::removals::finished_projects(&mut *control.pool.acquire().await?).await? {
        let mut transaction = control.pool.begin().await?;
        let Some(project) = store::removals::lock_finished_project(&mut transaction, project).await? else { continue };
        projects::remove_mirror(control, project.id).await?;
        store::removals::delete_project(&mut transaction, project.id).await?;
        transaction.commit().await?;
        changes.push(format!("the removed project {} is gone", project.slug));
    }
    for organization in store::removals::finished_organizations(&mut *control.pool.acquire().await?).await? {
        let mut transaction = control.pool.begin().await?;
        let Some(organization) = store::removals::lock_finished_organization(&mut transaction, organization).await? else { continue };
        for project in organization.projects {
            projects::remove_mirror(control, project).await?;
        }
        store::removals::delete_organization(&mut transaction, organization.id).await?;
        transaction.commit().await?;
        tracing::info!(organization_id = %organization.id, slug = organization.slug, "an organization was deleted");
        changes.push(format!("the removed organization {} is gone", organization.slug));
    }
    Ok(changes)
}
