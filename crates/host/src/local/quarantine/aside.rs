//! What could not be made harmless, set aside.
//!
//! A data set that is set aside is moved out of the directory in which data sets are looked for, whole, by one rename. From then on nothing finds it
//! that serves, copies, updates or keeps data sets: what is not there cannot be mixed up. Killed before the rename, it is the raw data set that it
//! was; killed after, it is set aside. Odoo's user can reach neither its files nor, when it is asked something, its database.

use std::{
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use chrono::{DateTime, Utc};
use ocore_model::ids::{DataSetId, InstanceId};

use super::super::{
    LocalHost,
    cluster::{Cluster, ClusterMemory, Tenant},
    copy,
    durable::{self, blocking},
    fence::Claim,
    snapshots,
};
use crate::{
    api::{Inspect, Inspected, NeutralizationReport, Quarantined, SetAside, Standing},
    error::{HostError, Result},
};

const MANIFEST: &str = "aside.json";
/// Of a question, in bytes: it must not fill the pool.
const TEMPORARY_FILES: u64 = 128 * 1024 * 1024;

impl LocalHost {
    /// Done already is done.
    pub(in crate::local) async fn put_aside(&self, claim: &Claim, request: &SetAside) -> Result<Quarantined> {
        let (instance, data_set) = (claim.instance, request.data_set.id());
        let aside = match self.find_quarantined(instance, data_set)? {
            Some(found) => found,
            None => self.move_aside(claim, request).await?,
        };
        // One is enough to see why, and each holds the original's secrets.
        for earlier in self.quarantined_in(instance).into_iter().filter(|other| *other != data_set) {
            claim.check()?;
            self.delete_quarantined(instance, earlier).await?;
        }
        Ok(aside)
    }

    async fn move_aside(&self, claim: &Claim, request: &SetAside) -> Result<Quarantined> {
        let (instance, data_set) = (claim.instance, request.data_set.id());
        if self.standing_of(instance, data_set)? == Standing::Own {
            return Err(HostError::machine("these are the instance's own data, which are never set aside"));
        }
        self.mark_raw(claim, data_set)?;
        self.stop_users_of(instance, data_set).await?;
        let ours = self.data_locks.own(data_set).await;
        let allocation = self.allocation(instance).await?;
        self.cluster(&allocation, instance, data_set)?.stop().await?;
        // Nor may anything go on that a module or a script has left behind.
        self.end_strays(instance).await?;
        let directory = self.layout.data_set(instance, data_set);
        let sizes = snapshots::measure(&directory, DateTime::<Utc>::MAX_UTC).await?;
        let aside = Quarantined {
            instance,
            data_set,
            source: self.source_of(instance, data_set)?,
            reason: request.reason.clone(),
            since: Utc::now(),
            database_bytes: sizes.database_bytes,
            file_store_bytes: sizes.file_store_bytes,
            file_store_files: sizes.file_store_files,
            report: durable::read_json::<NeutralizationReport>(&self.findings_path(instance, data_set))?,
        };
        let (quarantine, place) = (self.layout.quarantine(instance), self.layout.quarantined(instance, data_set));
        durable::make_directory(&quarantine, 0o700)?;
        open_to_database(&quarantine, allocation.postgres.uid)?;
        // In a data set it means nothing; in the new place it says what lies there.
        durable::write_json(&directory.join(MANIFEST), &aside)?;
        claim.check()?;
        let database = allocation.postgres.uid;
        // The lock moves along: who removes it after this call was dropped waits for the thread.
        blocking(move || {
            let _ours = ours;
            open_to_database(&directory, database)?;
            let rename = || {
                std::fs::rename(&directory, &place)?;
                durable::sync_parent(&place)?;
                durable::sync_parent(&directory)
            };
            rename().map_err(|error: io::Error| {
                HostError::machine_from(format!("{} could not be set aside: {error}", directory.display()), error)
            })
        })
        .await?;
        copy::remove(&self.layout.socket_directory(data_set)).await?;
        Ok(aside)
    }

    pub(in crate::local) async fn all_quarantined(&self) -> Result<Vec<Quarantined>> {
        let mut found = Vec::new();
        for instance in self.ledger.instances().await? {
            for data_set in self.quarantined_in(instance) {
                found.extend(self.find_quarantined(instance, data_set)?);
            }
        }
        Ok(found)
    }

    /// The names of what is set aside of an instance.
    pub(in crate::local) fn quarantined_in(&self, instance: InstanceId) -> Vec<DataSetId> {
        let Ok(entries) = std::fs::read_dir(self.layout.quarantine(instance)) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn find_quarantined(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Quarantined>> {
        durable::read_json(&self.layout.quarantined(instance, data_set).join(MANIFEST))
    }

    /// Starts its cluster for one question, and stops it again.
    pub(in crate::local) async fn ask_quarantined(
        &self,
        instance: InstanceId,
        data_set: DataSetId,
        question: &Inspect,
    ) -> Result<Inspected> {
        let _ours = self.data_locks.own(data_set).await;
        if self.find_quarantined(instance, data_set)?.is_none() {
            return Err(HostError::NotFound { what: "quarantined copy", id: data_set.to_string() });
        }
        let cluster = self.quarantined_cluster(instance, data_set).await?;
        self.confine(instance).await?;
        let answer = async {
            {
                // Without a claim: it must not be taken for a stray before it is recorded.
                let _no_strays_end = self.data_locks.share(instance).await;
                cluster.start().await?;
            }
            super::inspect::ask(&cluster, question).await
        };
        let answer = answer.await;
        cluster.stop().await?;
        copy::remove(&self.layout.socket_directory(data_set)).await?;
        answer
    }

    pub(in crate::local) async fn delete_quarantined(&self, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        let _ours = self.data_locks.own(data_set).await;
        if self.layout.quarantined(instance, data_set).exists() {
            self.quarantined_cluster(instance, data_set).await?.stop().await?;
            copy::remove(&self.layout.socket_directory(data_set)).await?;
        }
        copy::remove(&self.layout.quarantined(instance, data_set)).await
    }

    /// Stops what questions have left running that a crash cut off.
    pub(in crate::local) async fn stop_forgotten_questions(&self) -> Result<u32> {
        let mut stopped = 0;
        for instance in self.ledger.instances().await? {
            stopped += u32::from(self.stop_questions(instance).await?);
        }
        Ok(stopped)
    }

    /// Whether one was left.
    pub(in crate::local) async fn stop_questions(&self, instance: InstanceId) -> Result<bool> {
        let mut was_left = false;
        for data_set in self.quarantined_in(instance) {
            // Whoever asks now stops it when there is an answer.
            let _ours = self.data_locks.own(data_set).await;
            let cluster = self.quarantined_cluster(instance, data_set).await?;
            was_left |= cluster.find()?.is_some();
            // Also what was never recorded.
            cluster.stop().await?;
            copy::remove(&self.layout.socket_directory(data_set)).await?;
        }
        Ok(was_left)
    }

    /// Nobody but root becomes the role that owns the database: not the instance's Odoo, which may be serving other data.
    async fn quarantined_cluster(&self, instance: InstanceId, data_set: DataSetId) -> Result<Cluster> {
        let cluster = self.cluster(&self.allocation(instance).await?, instance, data_set)?;
        Ok(Cluster {
            pgdata: self.layout.quarantined(instance, data_set).join("pgdata"),
            tenant: Tenant { os_users: Vec::new(), ..cluster.tenant.clone() },
            memory: ClusterMemory { temporary_files: Some(TEMPORARY_FILES), ..cluster.memory },
            ..cluster
        })
    }
}

/// PostgreSQL's user may pass, Odoo's may not.
fn open_to_database(directory: &Path, gid: u32) -> Result<()> {
    chown(directory, Some(0), Some(gid))
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o710)))
        .map_err(|error| HostError::machine_from(format!("the rights of {} could not be set", directory.display()), error))
}
