//! Data sets: the cluster and the file store of an instance at one moment, in one directory.
//!
//! A data set that has its name is whole. One that is live is never changed by a deployment: the deployment works on a copy.

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use ocore_model::ids::{DataSetId, InstanceId};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    LocalHost,
    cgroups::Part,
    cluster::{self, Cluster, ClusterMemory, Tenant},
    copy::{self, WorkDirectory},
    durable::{self, blocking},
    facts,
    fence::{self, Claim},
    imports,
    layout::{Layout, Unit},
    ledger::{Allocation, OsUser},
    process::Process,
    slots::SlotDetails,
    snapshots,
    templates::give_identity,
};
use crate::{
    api::{DataSource, NewDataSet, Progress, RawDataSet, ServableDataSet, Standing},
    error::{HostError, Result},
};

/// The role that Odoo connects as, and its database.
pub const ODOO_ROLE: &str = "odoo";
/// Odoo's similarity indexes need it; Odoo makes it in databases that it makes itself.
const EXTENSIONS: &[&str] = &["pg_trgm"];
/// How long a run of Odoo may take to end before it is ended by force.
pub(super) const RUN_PATIENCE: Duration = Duration::from_secs(30);
/// Odoo with many workers, each with several connections, stays below it.
const MAX_CONNECTIONS: u32 = 120;
const MANIFEST: &str = "manifest.json";

/// What is written down in a data set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    data_set: DataSetId,
    source: DataSource,
    created_at: DateTime<Utc>,
    /// Manifests that do not say are older than the copies of other instances' data.
    #[serde(default = "own_standing")]
    standing: Standing,
    #[serde(default)]
    lacks: Lacks,
}

impl Manifest {
    fn new(data_set: DataSetId, source: DataSource, standing: Standing) -> Self {
        let lacks = if matches!(source, DataSource::Template { .. }) { Lacks::Identity } else { Lacks::Nothing };
        Self { data_set, source, created_at: Utc::now(), standing, lacks }
    }

    /// Into the directory of a data set in the making, which is synced later.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        durable::write_fleeting_json(&directory.join(MANIFEST), self)
    }
}

/// What a copy of a template has yet to get before an Odoo serves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Lacks {
    #[default]
    Nothing,
    Password,
    /// And a password.
    Identity,
}

fn own_standing() -> Standing {
    Standing::Own
}

impl LocalHost {
    /// Makes a data set, or finds the one that an earlier call made. A copy of another data set is made again.
    pub(super) async fn make_data_set(
        &self,
        claim: &Claim,
        data_set: DataSetId,
        source: DataSource,
        progress: &Progress,
    ) -> Result<NewDataSet> {
        let instance = claim.instance;
        let allocation = self.allocation(instance).await?;
        // The source stays, and stays as it is, until the copy is there.
        let _snapshot_stays;
        let _original_rests;
        if let DataSource::Snapshot { snapshot, .. } = source {
            _snapshot_stays = self.data_locks.share(snapshot).await;
        }
        if let DataSource::CopyOf(original) = source {
            if original == data_set {
                return Err(HostError::machine("a data set cannot be a copy of itself"));
            }
            _original_rests = self.data_locks.own(original).await;
            if !self.layout.data_set(instance, original).is_dir() {
                return Err(HostError::NotFound { what: "data set", id: original.to_string() });
            }
            if !self.layout.data_set(instance, data_set).is_dir() && !self.prepared_copies.has(instance, data_set, original) {
                // Before anything rests.
                self.pool.require_for_copy(&self.layout.data_set(instance, original), "a copy of the live data").await?;
            }
            let begun = Instant::now();
            self.rest_users_of(instance, original, &self.cluster(&allocation, instance, original)?).await?;
            // Nor may anything write that an Odoo has left behind.
            self.end_strays(instance).await?;
            progress.log.line(&format!("Nothing writes to the live data any more, after {:.2} s.", begun.elapsed().as_secs_f64()));
        }
        let target = self.layout.data_set(instance, data_set);
        if target.is_dir() {
            if Self::is_current(&target, source)? {
                self.identify(claim, data_set, progress).await?;
                return Ok(with_standing(data_set, self.standing_of(instance, data_set)?));
            }
            progress.log.line("An earlier copy may be older than its source; it is made again.");
            self.delete_data_set(claim, data_set).await?;
        }
        claim.check()?;
        if let DataSource::Taken { snapshot } = source {
            let manifest = |standing| Manifest::new(data_set, source, standing);
            let standing = self.adopt_snapshot(claim, snapshot, data_set, &allocation, manifest).await?;
            progress.log.line("The snapshot was taken for this copy alone, and has become it.");
            return Ok(with_standing(data_set, standing));
        }
        let work = match source {
            DataSource::Import { import, .. } => self.restore_import(claim, data_set, import, &allocation, progress).await?,
            DataSource::CopyOf(original) => self.copy_resting(instance, data_set, original, &allocation, progress).await?,
            _ => WorkDirectory::create(&target).await?,
        };
        let cancel = [progress.cancel.clone()];
        let standing = match source {
            DataSource::Fresh => {
                self.fill_fresh(&work, &allocation, &cancel).await?;
                Standing::Own
            }
            DataSource::Rehearsal { of } => {
                self.fill_while_it_serves(&work, instance, of, &allocation, progress).await?;
                Standing::Raw
            }
            DataSource::CopyOf(original) => self.standing_of(instance, original)?,
            DataSource::Snapshot { snapshot, as_own } => {
                let found = self.find_snapshot(snapshot)?;
                let found = found.ok_or_else(|| HostError::NotFound { what: "snapshot", id: snapshot.to_string() })?;
                let is_foreign = found.instance != instance;
                self.fill_from_snapshot(&work, &found, &allocation, is_foreign, progress).await?;
                match found.standing {
                    _ if as_own => Standing::Own,
                    Standing::Own if is_foreign => Standing::Raw,
                    standing => standing,
                }
            }
            DataSource::Template { template } => {
                self.fill_from_template(&work, template, &allocation, progress).await?;
                Standing::Own
            }
            DataSource::Taken { snapshot } => return Err(HostError::machine(format!("the snapshot {snapshot} is not copied"))),
            DataSource::Import { as_own: true, .. } => Standing::Own,
            DataSource::Import { .. } => Standing::Raw,
        };
        Manifest::new(data_set, source, standing).write(work.path())?;
        open_to_group(work.path(), allocation.odoo.uid)?;
        claim.check()?;
        work.keep().await?;
        progress.log.line(match source {
            DataSource::Fresh => "Made an empty database and an empty file store.",
            DataSource::Template { .. } => "Copied the template.",
            DataSource::CopyOf(_) | DataSource::Snapshot { .. } | DataSource::Taken { .. } | DataSource::Rehearsal { .. }
                if self.pool.has_reflinks() =>
            {
                "Copied the database and the file store; the copy shares their blocks."
            }
            DataSource::CopyOf(_) | DataSource::Snapshot { .. } | DataSource::Taken { .. } | DataSource::Rehearsal { .. } => {
                "Copied the database and the file store; the file system cannot share blocks, so it is a full copy."
            }
            DataSource::Import { .. } => "Restored the backup.",
        });
        self.identify(claim, data_set, progress).await?;
        Ok(with_standing(data_set, standing))
    }

    /// Gives a new copy of a template an identity of its own. Where that cannot be, copy and template go. Done already is done.
    async fn identify(&self, claim: &Claim, data_set: DataSetId, progress: &Progress) -> Result<()> {
        let manifest = self.manifest(claim.instance, data_set)?;
        let (Lacks::Identity, DataSource::Template { template }) = (manifest.lacks, manifest.source) else { return Ok(()) };
        let identified = async {
            let found = self.find_template(template)?;
            let found = found.ok_or_else(|| HostError::NotFound { what: "template", id: template.to_string() })?;
            let cluster = self.run_cluster(claim.instance, data_set).await?;
            give_identity(&mut cluster.connect_as_owner().await?, found.content.isolation_key.is_none()).await
        };
        match identified.await {
            Ok(()) => {}
            Err(error) => {
                self.delete_data_set(claim, data_set).await?;
                return Err(match error {
                    HostError::Fenced { .. } | HostError::Cancelled => error,
                    error => self.give_template_up(template, error, progress).await,
                });
            }
        }
        self.mark_lacks(claim, data_set, Lacks::Password)?;
        progress.log.line("The database has a secret and a number of its own.");
        Ok(())
    }

    /// Whose data a data set holds.
    pub fn standing_of(&self, instance: InstanceId, data_set: DataSetId) -> Result<Standing> {
        self.manifest(instance, data_set).map(|manifest| manifest.standing)
    }

    /// The quarantine has made a raw data set harmless and checked it. Done already is done; the instance's own data are refused.
    pub(super) fn mark_neutralized(&self, claim: &Claim, data_set: DataSetId) -> Result<ServableDataSet> {
        claim.check()?;
        let manifest = self.manifest(claim.instance, data_set)?;
        match manifest.standing {
            Standing::Neutralized => {}
            Standing::Raw => {
                let neutralized = Manifest { standing: Standing::Neutralized, ..manifest };
                durable::write_json(&self.layout.data_set(claim.instance, data_set).join(MANIFEST), &neutralized)?;
            }
            Standing::Own => return Err(HostError::machine("these are the instance's own data, which nothing may neutralize")),
        }
        Ok(ServableDataSet::proven(data_set))
    }

    /// What a data set was made from.
    pub(super) fn source_of(&self, instance: InstanceId, data_set: DataSetId) -> Result<DataSource> {
        self.manifest(instance, data_set).map(|manifest| manifest.source)
    }

    pub(super) fn lacks(&self, instance: InstanceId, data_set: DataSetId) -> Result<Lacks> {
        self.manifest(instance, data_set).map(|manifest| manifest.lacks)
    }

    /// Done already is done.
    pub(super) fn mark_lacks(&self, claim: &Claim, data_set: DataSetId, lacks: Lacks) -> Result<()> {
        claim.check()?;
        let manifest = self.manifest(claim.instance, data_set)?;
        if manifest.lacks == lacks {
            return Ok(());
        }
        durable::write_json(&self.layout.data_set(claim.instance, data_set).join(MANIFEST), &Manifest { lacks, ..manifest })
    }

    fn manifest(&self, instance: InstanceId, data_set: DataSetId) -> Result<Manifest> {
        let found = durable::read_json(&self.layout.data_set(instance, data_set).join(MANIFEST))?;
        found.ok_or_else(|| HostError::NotFound { what: "data set", id: data_set.to_string() })
    }

    /// A neutralized data set goes back into quarantine, until it has been checked again.
    pub(super) fn mark_raw(&self, claim: &Claim, data_set: DataSetId) -> Result<()> {
        claim.check()?;
        let manifest = self.manifest(claim.instance, data_set)?;
        if manifest.standing == Standing::Neutralized {
            let raw = Manifest { standing: Standing::Raw, ..manifest };
            durable::write_json(&self.layout.data_set(claim.instance, data_set).join(MANIFEST), &raw)?;
        }
        Ok(())
    }

    /// Stops what uses the data set and removes it. Absent is done.
    pub(super) async fn delete_data_set(&self, claim: &Claim, data_set: DataSetId) -> Result<()> {
        let instance = claim.instance;
        self.prepared_copies.forget(instance);
        self.stop_users_of(instance, data_set).await?;
        let _ours = self.data_locks.own(data_set).await;
        if let Some(allocation) = self.ledger.find(instance).await? {
            self.cluster(&allocation, instance, data_set)?.stop().await?;
        }
        copy::remove(&self.layout.data_set(instance, data_set)).await?;
        copy::remove(&self.layout.socket_directory(data_set)).await
    }

    /// All whole data sets of an instance, oldest first.
    pub fn data_sets(&self, instance: InstanceId) -> Result<Vec<DataSetId>> {
        let directory = self.layout.data_sets(instance);
        let Ok(entries) = std::fs::read_dir(&directory) else { return Ok(Vec::new()) };
        let mut found: Vec<DataSetId> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The cluster of a data set, whether it runs or not.
    pub fn cluster(&self, allocation: &Allocation, instance: InstanceId, data_set: DataSetId) -> Result<Cluster> {
        Ok(Cluster {
            pgdata: self.layout.pgdata(instance, data_set),
            socket_directory: self.layout.socket_directory(data_set),
            log: self.layout.logs(instance).join("postgresql.log"),
            record: self.layout.record(instance, Unit::Cluster(data_set)),
            mark: Layout::mark(instance, Unit::Cluster(data_set)),
            data_set: Some(data_set),
            user: allocation.postgres.clone(),
            socket_gid: allocation.odoo.uid,
            passage_gid: allocation.odoo.uid,
            trusts_its_group: false,
            tenant: tenant(&allocation.odoo),
            memory: ClusterMemory::for_machine(facts::memory_total()?),
            max_connections: MAX_CONNECTIONS,
            place: Some(self.cgroups.place(instance, Part::Cluster(data_set))),
        })
    }

    /// Starts the data set's cluster and waits until it accepts connections. Running already is done.
    pub async fn run_cluster(&self, instance: InstanceId, data_set: DataSetId) -> Result<Cluster> {
        let _stays = self.data_locks.share(data_set).await;
        if !self.layout.data_set(instance, data_set).is_dir() {
            return Err(HostError::NotFound { what: "data set", id: data_set.to_string() });
        }
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, data_set)?;
        if cluster.find()?.is_none() {
            self.confine(instance).await?;
        }
        cluster.start().await?;
        Ok(cluster)
    }

    /// Stops the data set's cluster, after a snapshot that is being taken of it. Not running is done.
    pub async fn halt_cluster(&self, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        let _ours = self.data_locks.own(data_set).await;
        let allocation = self.allocation(instance).await?;
        self.cluster(&allocation, instance, data_set)?.stop().await
    }

    /// Stops, gracefully and then by force, every recorded process that uses the data set, but for its cluster.
    pub(super) async fn stop_users_of(&self, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        for (process, slot) in self.users_of(instance, data_set)? {
            match slot {
                Some(details) => self.stop_odoo(instance, &process, &details).await?,
                None => drop(process.stop(&[(Signal::TERM, RUN_PATIENCE)]).await?),
            }
        }
        Ok(())
    }

    /// Every living recorded process that uses the data set, but for its cluster; of a slot with its details.
    pub(super) fn users_of(&self, instance: InstanceId, data_set: DataSetId) -> Result<Vec<(Process, Option<SlotDetails>)>> {
        let cluster = self.layout.record(instance, Unit::Cluster(data_set));
        let processes = self.recorded_processes(instance)?.into_iter();
        let users = processes.filter(|process| process.record.data_set == Some(data_set) && process.path() != cluster);
        Ok(users
            .map(|process| {
                let details = serde_json::from_value(process.record.details.clone()).ok();
                (process, details)
            })
            .collect())
    }

    /// The living processes that the instance has records of.
    pub(super) fn recorded_processes(&self, instance: InstanceId) -> Result<Vec<Process>> {
        let directory = self.layout.records(instance);
        let Ok(entries) = std::fs::read_dir(&directory) else { return Ok(Vec::new()) };
        let records =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        records.filter(|path| !is_hidden(path)).filter_map(|path| Process::find(&path).transpose()).collect()
    }

    pub(super) async fn fill_fresh(&self, work: &WorkDirectory, allocation: &Allocation, cancel: &[CancellationToken]) -> Result<()> {
        self.fill_fresh_cluster(work, allocation, cancel).await?;
        let data_dir = work.path().join("data_dir");
        durable::make_directory(&data_dir, 0o700)?;
        own(&data_dir, &allocation.odoo)
    }

    pub(super) async fn fill_fresh_cluster(
        &self,
        work: &WorkDirectory,
        allocation: &Allocation,
        cancel: &[CancellationToken],
    ) -> Result<()> {
        let template = self.cluster_template(&allocation.postgres, &tenant(&allocation.odoo)).await?;
        let pgdata = work.path().join("pgdata");
        copy::copy_tree(&self.pool, &template.join("pgdata"), &pgdata, work, cancel).await?;
        copy::change_owner(&pgdata, allocation.postgres.uid, allocation.postgres.uid).await
    }

    /// Copies a data set that nobody writes to; its cluster may run. What has been begun with the warm copy is made whole.
    pub(super) async fn fill_copy(
        &self,
        work: &WorkDirectory,
        instance: InstanceId,
        original: DataSetId,
        allocation: &Allocation,
        cancel: &[CancellationToken],
    ) -> Result<()> {
        let cluster = self.cluster(allocation, instance, original)?;
        let is_running = cluster.find()?.is_some();
        let data_dir = self.layout.data_dir(instance, original);
        let (pgdata_copy, data_dir_copy) = (work.path().join("pgdata"), work.path().join("data_dir"));
        copy::side_by_side(
            cancel,
            async |cancel| {
                if !is_running {
                    return copy::copy_tree(&self.pool, &cluster.pgdata, &pgdata_copy, work, &cancel).await;
                }
                let share = self.pool.has_reflinks();
                snapshots::copy_database(&cluster, &pgdata_copy, share, work.hold(), &cancel).await?;
                copy::change_owner(&pgdata_copy, allocation.postgres.uid, allocation.postgres.uid).await
            },
            async |cancel| copy::copy_tree(&self.pool, &data_dir, &data_dir_copy, work, &cancel).await,
        )
        .await
        .map(drop)
    }

    fn is_current(target: &Path, source: DataSource) -> Result<bool> {
        let Some(manifest) = durable::read_json::<Manifest>(&target.join(MANIFEST))? else { return Ok(false) };
        Ok(manifest.source == source
            && match source {
                // Their sources may have been written to since.
                DataSource::Rehearsal { .. } | DataSource::CopyOf(_) => false,
                DataSource::Fresh
                | DataSource::Snapshot { .. }
                | DataSource::Taken { .. }
                | DataSource::Template { .. }
                | DataSource::Import { .. } => true,
            })
    }

    /// A cluster that has been made once and is copied for each fresh data set: `initdb` takes seconds, a copy does not.
    async fn cluster_template(&self, user: &OsUser, tenant: &Tenant) -> Result<std::path::PathBuf> {
        let _one_at_a_time = self.template_turn.lock().await;
        let bin = self.config.postgres_bin()?;
        let version = super::exec::Program::new(bin.join("postgres")).arg("--version").run().await?;
        let version = version.expect_success("PostgreSQL did not say its version")?.stdout_text();
        let mut digest = Sha256::new();
        digest.update(version.as_bytes());
        digest.update(format!("{} {:?} {}", tenant.name, tenant.extensions, cluster::SHAPE));
        let template = self.layout.templates().join(format!("cluster-{}", &hex::encode(digest.finalize())[..16]));
        if template.is_dir() {
            return Ok(template);
        }
        durable::make_directory(&self.layout.templates(), 0o711)?;
        let work = WorkDirectory::create(&template).await?;
        durable::make_directory(work.path(), 0o711)?;
        let pgdata = work.path().join("pgdata");
        durable::make_directory(&pgdata, 0o700)?;
        own(&pgdata, user)?;
        cluster::initialise(&bin, &pgdata, user, tenant).await?;
        copy::change_owner(&pgdata, 0, 0).await?;
        work.keep().await?;
        Ok(template)
    }
}

fn tenant(odoo: &OsUser) -> Tenant {
    Tenant { name: ODOO_ROLE, os_users: vec![odoo.name.clone()], extensions: EXTENSIONS }
}

fn with_standing(data_set: DataSetId, standing: Standing) -> NewDataSet {
    match standing {
        Standing::Raw => NewDataSet::Raw(RawDataSet::quarantined(data_set)),
        Standing::Own | Standing::Neutralized => NewDataSet::Servable(ServableDataSet::proven(data_set)),
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn own(path: &Path, user: &OsUser) -> Result<()> {
    chown(path, Some(user.uid), Some(user.uid))
        .map_err(|error| HostError::machine_from(format!("the owner of {} could not be set", path.display()), error))
}

/// The instance's own users may pass, nobody else; what is inside has its own rights.
pub(super) fn open_to_group(directory: &Path, gid: u32) -> Result<()> {
    chown(directory, Some(0), Some(gid))
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o710)))
        .map_err(|error| HostError::machine_from(format!("the rights of {} could not be set", directory.display()), error))
}

impl LocalHost {
    /// Removes what crashes have left of half-made and half-removed data sets, and fences that nobody can run into any more.
    pub(super) async fn sweep(&self) -> Result<()> {
        let layout = self.layout.clone();
        blocking(move || {
            copy::sweep(&layout.templates())?;
            copy::sweep(&layout.releases())?;
            copy::sweep(&layout.environments())?;
            copy::sweep(&layout.sources())?;
            copy::sweep(&layout.uploads())?;
            imports::sweep(&layout);
            copy::sweep(&layout.exports())?;
            copy::sweep(&layout.instances())?;
            snapshots::sweep(&layout)?;
            copy::sweep(&layout.sockets())?;
            fence::prune(&layout)?;
            let Ok(instances) = std::fs::read_dir(layout.instances()) else { return Ok(()) };
            for instance in instances.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
                copy::sweep(&layout.data_sets(instance))?;
                copy::sweep(&layout.quarantine(instance))?;
            }
            Ok(())
        })
        .await
    }
}
