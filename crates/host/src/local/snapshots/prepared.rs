//! Copies of live data that are begun while those serve, so that users wait only for what has changed since.
//!
//! The database is put into backup mode and copied; the file store is gone over once. When the Odoo stands still, backup mode ends, and the log that was
//! written meanwhile brings the copy to that moment; the file store is gone over again. Nothing of it outlives this process: whoever finds no prepared
//! copy makes a whole one.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ocore_model::ids::{DataSetId, InstanceId};

use super::live::{self, Backup};
use crate::{
    api::Progress,
    error::{HostError, Result},
    local::{
        LocalHost,
        cluster::Cluster,
        copy::{self, TreeCopy, WorkDirectory},
        data_sets::ODOO_ROLE,
        ledger::Allocation,
    },
};

/// A transaction that is open for longer is not a usual request's, but a scheduled action's or that of a very long one.
const LONG: Duration = Duration::from_secs(2);
/// How long such a one is waited for while nobody else has to wait.
const LONG_PATIENCE: Duration = Duration::from_mins(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The copies that have been prepared in this process, one an instance at most.
#[derive(Default)]
pub(in crate::local) struct PreparedCopies(Mutex<HashMap<InstanceId, Prepared>>);

struct Prepared {
    data_set: DataSetId,
    of: DataSetId,
    work: WorkDirectory,
    backup: Backup,
}

impl PreparedCopies {
    /// Lets go of what was prepared for an instance: what of it is on the disk goes, and its source's log is not kept any longer.
    pub(in crate::local) fn forget(&self, instance: InstanceId) {
        let gone = self.lock().remove(&instance);
        drop(gone);
    }

    /// Whether the data set has been prepared, and its room been taken.
    pub(in crate::local) fn has(&self, instance: InstanceId, data_set: DataSetId, of: DataSetId) -> bool {
        self.lock().get(&instance).is_some_and(|prepared| (prepared.data_set, prepared.of) == (data_set, of))
    }

    fn keep(&self, instance: InstanceId, prepared: Prepared) {
        let gone = self.lock().insert(instance, prepared);
        drop(gone);
    }

    fn take(&self, instance: InstanceId, data_set: DataSetId, of: DataSetId) -> Option<Prepared> {
        self.lock().remove(&instance).filter(|prepared| (prepared.data_set, prepared.of) == (data_set, of))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Prepared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalHost {
    pub(in crate::local) async fn prepare(
        &self,
        instance: InstanceId,
        data_set: DataSetId,
        of: DataSetId,
        progress: &Progress,
    ) -> Result<()> {
        self.prepared_copies.forget(instance);
        let _stays = self.data_locks.share(of).await;
        let (original, target) = (self.layout.data_set(instance, of), self.layout.data_set(instance, data_set));
        if !original.is_dir() {
            return Err(HostError::NotFound { what: "data set", id: of.to_string() });
        }
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, of)?;
        if cluster.find()?.is_none() || target.is_dir() {
            return Ok(());
        }
        self.pool.require_for_copy(&original, "a copy of the live data").await?;
        let work = WorkDirectory::create(&target).await?;
        self.begin_with_warm_copy(instance, &work).await;
        let share = self.pool.has_reflinks();
        let (pgdata, data_dir) = (work.path().join("pgdata"), work.path().join("data_dir"));
        let again = data_dir.is_dir();
        let files = TreeCopy { live: true, again, prune: again, ..TreeCopy::exact(share) };
        let source = self.layout.data_dir(instance, of);
        let copied = copy::side_by_side(
            std::slice::from_ref(&progress.cancel),
            async |cancel| {
                let backup = Backup::begin(&cluster, "a deployment").await?;
                live::copy_files(&cluster.pgdata, &pgdata, share, work.hold(), &cancel).await?;
                Ok(backup)
            },
            async |cancel| files.run(&source, &data_dir, work.hold(), &cancel, None).await,
        );
        let (backup, _) = self.explain_full_copy(copied.await, &original).await?;
        until_no_long_transaction(&cluster, progress).await?;
        self.prepared_copies.keep(instance, Prepared { data_set, of, work, backup });
        Ok(())
    }

    /// A directory with a copy of a data set that nobody writes to any more; its cluster may run.
    pub(in crate::local) async fn copy_resting(
        &self,
        instance: InstanceId,
        data_set: DataSetId,
        of: DataSetId,
        allocation: &Allocation,
        progress: &Progress,
    ) -> Result<WorkDirectory> {
        if let Some(prepared) = self.prepared_copies.take(instance, data_set, of) {
            match self.complete(instance, prepared, allocation, progress).await {
                Err(error) if !matches!(error, HostError::Cancelled) => {
                    progress.log.line(&format!("The copy that was prepared cannot be completed and is made anew: {error}"));
                }
                completed => return completed,
            }
        }
        let work = WorkDirectory::create(&self.layout.data_set(instance, data_set)).await?;
        // Users wait for this one.
        self.begin_with_warm_copy(instance, &work).await;
        self.fill_copy(&work, instance, of, allocation, std::slice::from_ref(&progress.cancel)).await?;
        Ok(work)
    }

    async fn complete(
        &self,
        instance: InstanceId,
        Prepared { of, work, mut backup, .. }: Prepared,
        allocation: &Allocation,
        progress: &Progress,
    ) -> Result<WorkDirectory> {
        let cluster = self.cluster(allocation, instance, of)?;
        let (pgdata, data_dir) = (work.path().join("pgdata"), work.path().join("data_dir"));
        let (share, source) = (self.pool.has_reflinks(), self.layout.data_dir(instance, of));
        let again = TreeCopy { again: true, prune: true, ..TreeCopy::exact(share) };
        let completed = copy::side_by_side(
            std::slice::from_ref(&progress.cancel),
            async |_| {
                backup.end(&cluster, &pgdata, share, work.hold()).await?.complete(&cluster.pgdata, &pgdata, share, work.hold()).await?;
                backup.close().await;
                copy::change_owner(&pgdata, allocation.postgres.uid, allocation.postgres.uid).await
            },
            async |cancel| again.run(&source, &data_dir, work.hold(), &cancel, None).await,
        );
        self.explain_full_copy(completed.await, &self.layout.data_set(instance, of)).await?;
        Ok(work)
    }

    /// What a disk that was full says to who reads it.
    async fn explain_full_copy<T>(&self, copied: Result<T>, original: &Path) -> Result<T> {
        match copied {
            Err(error) if copy::is_full(&error) => {
                Err(self.pool.full(self.pool.copy_cost(original).await?, "a copy of the live data").await)
            }
            copied => copied,
        }
    }
}

/// Waits for Odoo's long transactions, for a bounded time: what is open when the Odoo is to stand still keeps everybody waiting, and is rolled back in
/// the end.
async fn until_no_long_transaction(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let failed = |error| HostError::machine_from("the transactions of the live database could not be looked at", error);
    let mut connection = cluster.connect_as_superuser().await.map_err(failed)?;
    let begun = Instant::now();
    let mut is_said = false;
    loop {
        let longest: Option<f64> = sqlx::query_scalar(
            "select extract(epoch from pg_catalog.max(pg_catalog.clock_timestamp() - xact_start))::pg_catalog.float8
             from pg_catalog.pg_stat_activity where usename = $1 and datname = $1",
        )
        .bind(ODOO_ROLE)
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
        let Some(seconds) = longest.filter(|seconds| *seconds > LONG.as_secs_f64()) else { return Ok(()) };
        if begun.elapsed() >= LONG_PATIENCE {
            progress.log.line("It has not ended; the deployment goes on, and may roll it back.");
            return Ok(());
        }
        if !is_said {
            progress.log.line(&format!(
                "A transaction has been open for {seconds:.0} s (a scheduled action, or a long request); its end is waited for, up to {} s, before anybody \
                 else has to wait.",
                LONG_PATIENCE.as_secs()
            ));
            is_said = true;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = progress.cancel.cancelled() => return Err(HostError::Cancelled),
        }
    }
}
