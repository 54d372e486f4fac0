//! An update on a throw-away copy of the live data, watched.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use ocore_model::{
    ids::{DataSetId, InstanceId, SnapshotId},
    rehearsal::{Rehearsal, TableLock, without_details},
};
use sqlx::PgConnection;

use super::{
    guard::Guard,
    log_record::{Level, Log},
};
use crate::{
    api::{DataSource, Progress, RunModules, TakeSnapshot},
    error::{HostError, Result},
    local::{
        LocalHost,
        cluster::Cluster,
        copy::{self, WorkDirectory},
        fence::Claim,
        ledger::Allocation,
        schema,
    },
};

/// How often the locks are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Weaker ones do not keep others from writing. From the weakest to the strongest.
const MODES: [&str; 4] = ["ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"];
const LOCKS_KEPT: usize = 20;
const WARNINGS_KEPT: usize = 200;
const WARNING_LENGTH: usize = 300;

impl LocalHost {
    /// Fills a data set with what another one is now, while that one serves; or as it rests.
    pub(in crate::local) async fn fill_while_it_serves(
        &self,
        work: &WorkDirectory,
        instance: InstanceId,
        original: DataSetId,
        allocation: &Allocation,
        progress: &Progress,
    ) -> Result<()> {
        if !self.layout.data_set(instance, original).is_dir() {
            return Err(HostError::NotFound { what: "data set", id: original.to_string() });
        }
        self.pool.require_for_copy(&self.layout.data_set(instance, original), "a copy of the live data for the rehearsal").await?;
        let cancel = [progress.cancel.clone()];
        let cluster = self.cluster(allocation, instance, original)?;
        loop {
            {
                let _stays = self.data_locks.share(original).await;
                if cluster.find()?.is_some() {
                    let request = TakeSnapshot { snapshot: SnapshotId::new(), instance, data_set: original, release: None };
                    let standing = self.standing_of(instance, original)?;
                    // On the heap, as all that is this deep: a thread's stack is small.
                    let taking = Box::pin(self.copy_live(&request, &cluster, work, Instant::now(), standing, progress));
                    tokio::select! {
                        biased;
                        () = progress.cancel.cancelled() => return Err(HostError::Cancelled),
                        taken = taking => taken.map(drop)?,
                    }
                    for (part, user) in [("pgdata", &allocation.postgres), ("data_dir", &allocation.odoo)] {
                        copy::change_owner(&work.path().join(part), user.uid, user.uid).await?;
                    }
                    return Ok(());
                }
            }
            let _rests = self.data_locks.own(original).await;
            if cluster.find()?.is_none() {
                return Box::pin(self.fill_copy(work, instance, original, allocation, &cancel)).await;
            }
        }
    }

    pub(in crate::local) async fn rehearse(&self, claim: &Claim, request: &RunModules, progress: &Progress) -> Result<Rehearsal> {
        if !matches!(self.source_of(claim.instance, request.data_set)?, DataSource::Rehearsal { .. }) {
            return Err(HostError::machine("an update is rehearsed on a copy that was made for it, and on nothing else"));
        }
        let cluster = self.run_cluster(claim.instance, request.data_set).await?;
        let guard = Guard::begin(self, claim.instance, &cluster, progress)?;
        guard.over_start(self.rehearse_in(&cluster, claim, request, progress)).await
    }

    async fn rehearse_in(&self, cluster: &Cluster, claim: &Claim, request: &RunModules, progress: &Progress) -> Result<Rehearsal> {
        let before = schema::read(&mut cluster.connect_as_owner().await?).await?;
        let mut watch = LockWatch::default();
        let watching = async {
            let mut connection = cluster.connect_as_owner().await?;
            loop {
                watch.take_in(Instant::now(), locked(&mut connection).await?);
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        let begun = Instant::now();
        let mut run = Box::pin(self.install_and_update(claim, request, progress));
        let log = tokio::select! {
            log = &mut run => log?,
            // The cluster may have died; the run says so.
            Err::<(), HostError>(_) = watching => (&mut run).await?,
        };
        let seconds = begun.elapsed().as_millis() as f64 / 1000.0;
        let after = schema::read(&mut cluster.connect_as_owner().await?).await?;
        let mut locks = watch.end(Instant::now());
        // What is new nobody waits for.
        locks.retain(|lock| before.tables.contains_key(&lock.table));
        locks.truncate(LOCKS_KEPT);
        let rehearsal = Rehearsal {
            seconds,
            schema: before.changes(&after),
            rewritten: before.rewritten(&after),
            locks,
            warnings: warnings(&log, &self.release_tree(&request.release)?),
            new_warnings: None,
        };
        Ok(rehearsal)
    }
}

/// The locks that others hold now, under which nobody else writes: table and mode.
async fn locked(connection: &mut PgConnection) -> Result<Vec<(String, String)>> {
    sqlx::query_as(
        "select c.relname::text, l.mode::text from pg_catalog.pg_locks as l join pg_catalog.pg_class as c on c.oid = l.relation
         where l.granted and l.locktype = 'relation' and l.pid <> pg_catalog.pg_backend_pid() and l.mode = any($1)
             and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
             and c.relkind in ('r', 'p') and c.relnamespace = 'public'::pg_catalog.regnamespace",
    )
    .bind(MODES.map(str::to_owned).to_vec())
    .fetch_all(connection)
    .await
    .map_err(|error| HostError::machine_from("the locks of the rehearsal could not be read", error))
}

/// How long which tables were locked.
#[derive(Debug, Default)]
struct LockWatch {
    open: BTreeMap<String, (usize, Instant)>,
    ended: BTreeMap<String, (usize, Duration)>,
}

impl LockWatch {
    fn take_in(&mut self, now: Instant, held: Vec<(String, String)>) {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (table, mode) in held {
            let rank = MODES.iter().position(|known| *known == mode).unwrap_or_default();
            let strongest = seen.entry(table).or_default();
            *strongest = rank.max(*strongest);
        }
        let gone: Vec<String> = self.open.keys().filter(|table| !seen.contains_key(*table)).cloned().collect();
        for table in gone {
            self.close(&table, now);
        }
        for (table, rank) in seen {
            let open = self.open.entry(table).or_insert((rank, now));
            open.0 = rank.max(open.0);
        }
    }

    fn close(&mut self, table: &str, now: Instant) {
        if let Some((rank, since)) = self.open.remove(table) {
            let ended = self.ended.entry(table.to_owned()).or_default();
            *ended = (rank.max(ended.0), (now - since).max(ended.1));
        }
    }

    /// The longest first.
    fn end(mut self, now: Instant) -> Vec<TableLock> {
        self.take_in(now, Vec::new());
        let mut locks: Vec<TableLock> = self
            .ended
            .into_iter()
            .map(|(table, (rank, time))| TableLock {
                table,
                mode: MODES.get(rank).copied().unwrap_or_default().to_owned(),
                seconds: time.as_millis() as f64 / 1000.0,
            })
            .collect();
        locks.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
        locks
    }
}

/// Each kind of warning once, without what differs from run to run.
fn warnings(log: &Log, source: &Path) -> Vec<String> {
    let mut told = Vec::new();
    for record in log.at_least(Level::Warning) {
        let message = record.message.replace(&format!("{}/", source.display()), "");
        let warning: String = without_details(&format!("{}: {message}", record.logger)).chars().take(WARNING_LENGTH).collect();
        if !told.contains(&warning) {
            told.push(warning);
        }
        if told.len() == WARNINGS_KEPT {
            break;
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_of_a_lock_without_a_break_counts() {
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let held = |table: &str, mode: &str| (table.to_owned(), mode.to_owned());
        let mut watch = LockWatch::default();
        watch.take_in(at(0), vec![held("a", "ShareLock")]);
        watch.take_in(at(20), vec![held("a", "ShareLock"), held("a", "AccessExclusiveLock")]);
        watch.take_in(at(40), Vec::new());
        watch.take_in(at(60), vec![held("a", "ShareLock"), held("b", "ShareLock")]);
        watch.take_in(at(80), vec![held("b", "ShareLock")]);
        let locks = watch.end(at(200));
        let told: Vec<String> = locks.iter().map(|lock| format!("{} {} {}", lock.table, lock.mode, lock.seconds)).collect();
        assert_eq!(told, ["b ShareLock 0.14", "a AccessExclusiveLock 0.04"]);
    }

    #[test]
    fn a_warning_is_told_once_and_without_its_numbers() {
        let line = |message: &str| format!("2026-01-01 00:00:00,000 1 WARNING odoo odoo.x: {message}\n");
        let log = Log::parse(&(line("12 left in /pool/tree/shop/models.py") + &line("9 left in /pool/tree/shop/models.py")));
        assert_eq!(warnings(&log, Path::new("/pool/tree")), ["odoo.x: # left in shop/models.py"]);
    }
}
