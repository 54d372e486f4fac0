//! Templates: data sets with modules installed that nobody has used, kept to be copied.
//!
//! What a tenant's code has touched is never copied for another tenant. So a template with a project's modules is kept from that project's own
//! build and under its key; one that is for everybody is made in the [workshop](workshop), by a release that holds nothing but Odoo.
//!
//! A template that has its name is whole: like a snapshot it is made beside its place, its `template.json` is written last, all is synced, and the
//! directory is renamed. Nobody but root enters it. All of it is read and checked each time it is used, so a damaged one is not.

mod evict;
mod identity;
mod workshop;

use std::{
    fs::File,
    io,
    path::Path,
    time::{Instant, SystemTime},
};

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{DataSetId, InstanceId, SnapshotId, TemplateId},
    names::{ModuleName, OdooVersion},
};
use sha2::{Digest, Sha256};

pub(super) use self::{identity::give_identity, workshop::WORKSHOP};
use super::{
    LocalHost, cluster,
    copy::{self, TreeCopy, WorkDirectory},
    database,
    durable::{self, blocking},
    ledger::Allocation,
    releases::ReleaseRecord,
    snapshots,
};
use crate::{
    api::{DataSource, InstalledModule, KeepTemplate, Progress, ReleaseId, Standing, TakeSnapshot, Template, TemplateContent},
    error::{HostError, Result},
};

const MANIFEST: &str = "template.json";
/// Its time is when the template was last used.
const USED: &str = "used";
/// A copy of a template gets an identity of its own, so nothing of the first one's logins is kept.
const SESSIONS: &str = "sessions";

/// What is written down of a template besides what its data set says.
struct Description {
    content: TemplateContent,
    odoo_version: OdooVersion,
    standard: Vec<ModuleName>,
}

impl LocalHost {
    /// Every template that this server can use, in no order. One that cannot be read is none.
    pub(super) async fn whole_templates(&self) -> Result<Vec<Template>> {
        let postgres = self.postgres_major().await?;
        let found = self.template_ids().into_iter().filter_map(|id| self.find_template(id).ok().flatten());
        Ok(found.filter(|template| template.postgres == postgres && template.shape == cluster::SHAPE).collect())
    }

    /// Those that a build with this release can begin with, as far as Python packages go.
    pub(super) async fn templates_for(&self, release: &ReleaseId) -> Result<Vec<Template>> {
        let environment = self.release_of_template(release)?.environment;
        let mut found = self.whole_templates().await?;
        found.retain(|Template { content, .. }| content.isolation_key.is_none() || content.environment == environment);
        Ok(found)
    }

    fn release_of_template(&self, release: &ReleaseId) -> Result<ReleaseRecord> {
        self.release(release)?.ok_or_else(|| HostError::NotFound { what: "release", id: release.to_string() })
    }

    /// Of everything that has a template's name, whole or damaged.
    fn template_ids(&self) -> Vec<TemplateId> {
        let Ok(entries) = std::fs::read_dir(self.layout.templates()) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    pub(super) fn find_template(&self, template: TemplateId) -> Result<Option<Template>> {
        let directory = self.layout.template(template);
        let Some(mut found) = durable::read_json::<Template>(&directory.join(MANIFEST))? else { return Ok(None) };
        found.used_at = used_at(&directory).unwrap_or(found.created_at);
        Ok(Some(found))
    }

    /// Keeps what a project's build has just installed in a fresh data set, for the builds with the same key. Kept already is done.
    pub(super) async fn keep_project_template(
        &self,
        instance: InstanceId,
        request: &KeepTemplate,
        progress: &Progress,
    ) -> Result<Template> {
        let ReleaseRecord { release, environment, .. } = self.release_of_template(&request.release)?;
        if !matches!(self.source_of(instance, request.data_set)?, DataSource::Fresh | DataSource::Template { .. }) {
            return Err(HostError::rejected("only a database that was made fresh, and that nobody has used, becomes a template"));
        }
        let cluster = self.run_cluster(instance, request.data_set).await?;
        let installed = installed(database::modules(&mut cluster.connect_as_owner().await?).await?);
        let modules =
            release.modules.into_iter().filter(|(name, _)| installed.iter().any(|installed| installed == name.as_str())).collect();
        let content = TemplateContent {
            distribution_id: release.distribution_id,
            with_demo: request.with_demo,
            isolation_key: Some(request.isolation_key.clone()),
            requested: sorted(&request.requested),
            environment,
            modules,
        };
        let description = Description { content, odoo_version: release.odoo_version, standard: sorted(&request.standard) };
        self.keep(instance, request.data_set, description, progress).await
    }

    /// Copies a data set, whose cluster runs, to the template's place.
    async fn keep(&self, instance: InstanceId, data_set: DataSetId, description: Description, progress: &Progress) -> Result<Template> {
        let Description { content, odoo_version, standard } = description;
        let id = self.template_id(&content).await?;
        let _turn = self.data_locks.own(id).await;
        if let Ok(Some(found)) = self.find_template(id) {
            return Ok(found);
        }
        let _stays = self.data_locks.share(data_set).await;
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, data_set)?;
        if cluster.find()?.is_none() {
            return Err(HostError::machine("the database was stopped before it could be kept as a template"));
        }
        self.pool.require_for_copy(&self.layout.data_set(instance, data_set), "this template").await?;
        let place = self.layout.template(id);
        durable::make_directory(&self.layout.templates(), 0o711)?;
        // One that could not be read.
        copy::remove(&place).await?;
        let work = WorkDirectory::create(&place).await?;
        let request = TakeSnapshot { snapshot: SnapshotId(id.0), instance, data_set, release: None };
        let taken = Box::pin(self.copy_live(&request, &cluster, &work, Instant::now(), Standing::Own, progress)).await;
        let taken = match taken {
            Err(error) if copy::is_full(&error) => return Err(self.pool.full(0, "this template").await),
            taken => taken?,
        };
        if let Some(damaged) = taken.damaged_files.first() {
            return Err(HostError::machine(format!("the file {damaged} is not what its name says")));
        }
        let sessions = work.path().join("data_dir").join(SESSIONS);
        blocking(move || durable::remove_tree(&sessions)).await?;
        let sizes = snapshots::measure(work.path(), DateTime::<Utc>::MAX_UTC).await?;
        let now = Utc::now();
        let template = Template {
            id,
            content,
            odoo_version,
            postgres: taken.postgres_version,
            shape: cluster::SHAPE,
            standard,
            installed: installed(taken.modules),
            created_at: now,
            used_at: now,
            bytes: sizes.bytes,
            entries: sizes.entries,
        };
        durable::write_fleeting_json(&work.path().join(USED), &())?;
        durable::write_fleeting_json(&work.path().join(MANIFEST), &template)?;
        work.keep().await?;
        Ok(template)
    }

    /// Fills the directory of a new data set from a template. The instance's users own what is made. A template that is not as it was kept is
    /// removed, and not found.
    pub(super) async fn fill_from_template(
        &self,
        work: &WorkDirectory,
        template: TemplateId,
        allocation: &Allocation,
        progress: &Progress,
    ) -> Result<()> {
        let directory = self.layout.template(template);
        if !directory.is_dir() {
            return Err(HostError::NotFound { what: "template", id: template.to_string() });
        }
        let filled = {
            let _stays = self.data_locks.share(template).await;
            self.pool.require_for_copy(&directory, "this copy of a template").await?;
            self.copy_checked(work, &directory, template, allocation, progress).await
        };
        match filled {
            Err(error @ (HostError::Cancelled | HostError::Fenced { .. })) => Err(error),
            Err(error) if copy::is_full(&error) => Err(self.pool.full(0, "this copy of a template").await),
            Err(error) => Err(self.give_template_up(template, error, progress).await),
            Ok(found) => {
                // It only decides which templates go first.
                let used = File::options().write(true).open(directory.join(USED)).and_then(|file| file.set_modified(SystemTime::now()));
                if let Err(error) = used {
                    tracing::warn!(%template, %error, "the use of a template could not be noted");
                }
                progress.log.line(&format!("Took the template {} with {} modules.", found.id, found.installed.len()));
                Ok(())
            }
        }
    }

    async fn copy_checked(
        &self,
        work: &WorkDirectory,
        directory: &Path,
        template: TemplateId,
        allocation: &Allocation,
        progress: &Progress,
    ) -> Result<Template> {
        let found = self.find_template(template)?.ok_or_else(|| HostError::machine("it has no description"))?;
        let cancel = [progress.cancel.clone()];
        let how = |owner: u32, take| TreeCopy { owner: Some((owner, owner)), take, ..TreeCopy::exact(self.pool.has_reflinks()) };
        let [pgdata, data_dir] = ["pgdata", "data_dir"].map(|part| (directory.join(part), work.path().join(part)));
        let (sizes, checked, _, _) = tokio::try_join!(
            snapshots::measure(directory, DateTime::<Utc>::MAX_UTC),
            self.check(directory, progress),
            how(allocation.postgres.uid, snapshots::all).run(&pgdata.0, &pgdata.1, work.hold(), &cancel, None),
            how(allocation.odoo.uid, snapshots::all_but_sessions).run(&data_dir.0, &data_dir.1, work.hold(), &cancel, None),
        )?;
        if let Some(damage) = checked.damaged.first() {
            return Err(HostError::machine(format!("{}: {}", damage.path, damage.problem)));
        }
        if (sizes.bytes, sizes.entries) != (found.bytes, found.entries) {
            return Err(HostError::machine(format!(
                "it has {} bytes in {} files and directories, and was kept with {} in {}",
                sizes.bytes, sizes.entries, found.bytes, found.entries
            )));
        }
        Ok(found)
    }

    /// Removes a template that turned out to be no use, and says so. Answers with the error of whoever wanted it.
    pub(super) async fn give_template_up(&self, template: TemplateId, reason: HostError, progress: &Progress) -> HostError {
        tracing::warn!(%template, error = &reason as &dyn std::error::Error, "a template is damaged and is removed");
        progress.log.line(&format!("The template {template} is damaged and is removed: {reason}."));
        match self.remove_template(template).await {
            Ok(()) => HostError::NotFound { what: "template", id: template.to_string() },
            Err(error) => error,
        }
    }

    /// Waits until nobody copies it, and removes it. Absent is done.
    async fn remove_template(&self, template: TemplateId) -> Result<()> {
        let _ours = self.data_locks.own(template).await;
        copy::remove(&self.layout.template(template)).await
    }

    /// The same content in a cluster of the same kind has the same name.
    async fn template_id(&self, content: &TemplateContent) -> Result<TemplateId> {
        let postgres = self.postgres_major().await?;
        let text = serde_json::to_string(&(content, postgres, cluster::SHAPE))
            .map_err(|error| HostError::machine_from("a template's name could not be written", error))?;
        let digest: [u8; 32] = Sha256::digest(text).into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Ok(TemplateId(uuid::Builder::from_custom_bytes(bytes).into_uuid()))
    }

    /// Of new clusters.
    async fn postgres_major(&self) -> Result<String> {
        let version = self.postgres_version().await?;
        Ok(version.split('.').next().unwrap_or_default().to_owned())
    }
}

fn installed(modules: Vec<InstalledModule>) -> Vec<String> {
    let mut installed: Vec<String> = modules.into_iter().filter(|module| module.state == "installed").map(|module| module.name).collect();
    installed.sort_unstable();
    installed
}

fn sorted(names: &[ModuleName]) -> Vec<ModuleName> {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    names
}

fn used_at(directory: &Path) -> io::Result<DateTime<Utc>> {
    std::fs::metadata(directory.join(USED))?.modified().map(DateTime::from)
}
