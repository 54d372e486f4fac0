//! Instances as a server knows them: users, ports, directories and processes. Made, claimed, observed, destroyed.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::{ids::InstanceId, instance::Color};
use rustix::process::Signal;

use super::{
    LocalHost,
    cgroups::{Group, Part},
    copy,
    data_sets::open_to_group,
    durable::{self, blocking},
    fence::Claim,
    layout::{Layout, Unit},
    ledger::Allocation,
    process::{self, ProcEntry, Process},
    slots,
    templates::WORKSHOP,
};
use crate::{
    api::{Fence, InstanceObservation},
    error::{HostError, Result},
};

/// How long a process of an instance that is removed may take to end before it is ended by force.
const GRACE: Duration = Duration::from_secs(30);

impl LocalHost {
    /// The right to work on the instance. Whatever an older generation has left running in its name is ended first.
    pub async fn claim(&self, instance: InstanceId, fence: Fence) -> Result<Claim> {
        let claim = self.fences.enter(instance, fence).await?;
        if claim.must_clear() {
            self.prepared_copies.forget(instance);
            self.end_strays(instance).await?;
            claim.cleared();
        }
        Ok(claim)
    }

    /// What the instance has been given; `NotFound` when nothing has.
    pub async fn allocation(&self, instance: InstanceId) -> Result<Allocation> {
        let found = self.ledger.find(instance).await?;
        found.ok_or_else(|| HostError::NotFound { what: "instance", id: instance.to_string() })
    }

    pub(super) async fn make_instance(&self, claim: &Claim) -> Result<()> {
        let instance = claim.instance;
        let allocation = self.ledger.allocate(instance).await?;
        durable::make_directory(&self.layout.records(instance), 0o700)?;
        for directory in [self.layout.instance(instance), self.layout.data_sets(instance), self.layout.logs(instance)] {
            durable::make_directory(&directory, 0o710)?;
            open_to_group(&directory, allocation.odoo.uid)?;
        }
        // Whether it is to be closed at all is said later; what starts asks again.
        if let Err(error) = self.put_egress_into_force().await {
            tracing::warn!(%instance, %error, "a new instance has no network rules yet");
        }
        Ok(())
    }

    /// Ends everything of the instance and removes it. Absent is done.
    pub(super) async fn remove_instance(&self, claim: &Claim) -> Result<()> {
        let instance = claim.instance;
        let mut ours = Vec::new();
        let quarantined = self.quarantined_in(instance);
        for data_set in self.data_sets(instance)?.into_iter().chain(quarantined.iter().copied()) {
            ours.push(self.data_locks.own(data_set).await);
        }
        // After the data sets': whoever copies one of them waits for this in that order.
        let _nobody_writes_there = self.warm_copies.pause().await;
        for process in self.recorded_processes(instance)? {
            let is_cluster = process.record.data_set.is_some_and(|id| process.path() == self.layout.record(instance, Unit::Cluster(id)));
            let signal = if is_cluster { Signal::QUIT } else { Signal::TERM };
            process.stop(&[(signal, GRACE)]).await?;
        }
        self.cgroups.all_of(instance).end().await?;
        if let Some(allocation) = self.ledger.find(instance).await? {
            process::end_users(&BTreeSet::from([allocation.postgres.uid, allocation.odoo.uid])).await?;
        }
        for data_set in self.data_sets(instance)?.into_iter().chain(quarantined) {
            copy::remove(&self.layout.socket_directory(data_set)).await?;
        }
        copy::remove(&self.layout.instance(instance)).await?;
        self.remove_mailbox(instance).await?;
        self.cgroups.remove(instance);
        copy::remove(&self.layout.records(instance)).await?;
        self.ledger.release(instance).await?;
        self.forget_egress(instance).await
    }

    /// What is there of every instance.
    pub(super) async fn observe_instances(&self) -> Result<Vec<InstanceObservation>> {
        let mut observations = Vec::new();
        // The workshop is nobody's; who observes it could only take it for a leftover.
        for instance in self.ledger.instances().await?.into_iter().filter(|instance| *instance != WORKSHOP) {
            let data_sets = self.data_sets(instance)?;
            let mut clusters = Vec::new();
            for data_set in &data_sets {
                if Process::find(&self.layout.record(instance, Unit::Cluster(*data_set)))?.is_some() {
                    clusters.push(*data_set);
                }
            }
            let slots = slots::running(&self.layout, instance)?;
            let memory_kills = self.cgroups.memory_kills(instance).unwrap_or_default();
            observations.push(InstanceObservation { instance, data_sets, clusters, slots, memory_kills });
        }
        Ok(observations)
    }

    /// Ends the instance's processes that no record of a cluster or a slot accounts for: programs of an operation that is no more, and
    /// processes that were never recorded.
    pub(super) async fn end_strays(&self, instance: InstanceId) -> Result<()> {
        let Some(allocation) = self.ledger.find(instance).await? else { return Ok(()) };
        let _nothing_begins = self.data_locks.own(instance).await;
        self.end_groups_without_record(instance).await?;
        let mut sessions = BTreeSet::new();
        let mut marks = BTreeSet::new();
        let mut directories = Vec::new();
        let mut groups = Vec::new();
        for data_set in self.data_sets(instance)? {
            if let Some(process) = Process::find(&self.layout.record(instance, Unit::Cluster(data_set)))? {
                directories.push(self.layout.pgdata(instance, data_set));
                groups.push(process.record.group);
            }
        }
        // Somebody may be asking what was set aside.
        for data_set in self.quarantined_in(instance) {
            if let Some(process) = Process::find(&self.layout.record(instance, Unit::Cluster(data_set)))? {
                directories.push(self.layout.quarantined(instance, data_set).join("pgdata"));
                groups.push(process.record.group);
            }
        }
        for color in Color::ALL {
            let unit = Unit::Slot(*color);
            if let Some(process) = Process::find(&self.layout.record(instance, unit))? {
                sessions.insert(process.pid());
                marks.insert(Layout::mark(instance, unit));
                groups.push(process.record.group);
            }
        }
        // What a process says of itself counts only where the kernel does not say where it belongs.
        let is_told = groups.iter().all(Group::is_whole);
        let belongs = |entry: &ProcEntry| groups.iter().any(|group| group.processes().contains(&entry.pid));
        process::end_all(|entry| match entry.uid() {
            Some(uid) if is_told && (uid == allocation.postgres.uid || uid == allocation.odoo.uid) => !belongs(entry),
            Some(uid) if uid == allocation.postgres.uid => {
                !entry.cwd().is_some_and(|cwd| directories.iter().any(|directory| cwd.starts_with(directory)))
            }
            Some(uid) if uid == allocation.odoo.uid => {
                !sessions.contains(&entry.session) && !entry.mark().is_some_and(|mark| marks.contains(&mark))
            }
            _ => false,
        })
        .await?;
        for run_record in self.run_records(instance) {
            durable::remove_fleeting(&run_record)
                .map_err(|error| HostError::machine_from("the record of an old program could not be removed", error))?;
        }
        Ok(())
    }

    /// Ends what is left in control groups whose process has ended or was never recorded, whatever it forks meanwhile.
    async fn end_groups_without_record(&self, instance: InstanceId) -> Result<()> {
        let runs = self.cgroups.runs(instance);
        runs.end().await?;
        runs.remove();
        for color in Color::ALL {
            if Process::find(&self.layout.record(instance, Unit::Slot(*color)))?.is_none() {
                self.cgroups.find(instance, Part::Slot(*color)).end().await?;
            }
        }
        for data_set in self.cgroups.clusters_of(instance) {
            if Process::find(&self.layout.record(instance, Unit::Cluster(data_set)))?.is_none() {
                let group = self.cgroups.find(instance, Part::Cluster(data_set));
                group.end().await?;
                group.remove();
            }
        }
        Ok(())
    }

    /// The memory of its processes, in bytes.
    pub(super) async fn memory_of(&self, instance: InstanceId) -> Result<u64> {
        let allocation = self.allocation(instance).await?;
        let uids = [allocation.postgres.uid, allocation.odoo.uid];
        blocking(move || {
            let ours = process::scan().into_iter().filter(|entry| entry.uid().is_some_and(|uid| uids.contains(&uid)));
            Ok(ours.map(|entry| entry.memory()).sum())
        })
        .await
    }

    fn run_records(&self, instance: InstanceId) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.layout.records(instance)) else { return Vec::new() };
        let is_run = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"run-"));
        entries.flatten().map(|entry| entry.path()).filter(|path| is_run(path)).collect()
    }
}
