//! Copies of a source that is written to hold what the source holds.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ocore_host::{
    Host, HostError, LocalHost, NewDataSet,
    testing::{Sandbox, fence, progress},
};
use ocore_model::ids::{DataSetId, InstanceId};
use tokio_util::sync::CancellationToken;

use crate::{
    clusters::{as_odoo, running},
    snapshots::{MIB, another_instance, bring_to_life, leftovers, store, stored, take},
    warm_copies::warm_up,
};

/// What the accounts of [`Writer`] hold together.
const MONEY: i64 = 1000;
/// Copies of the invariant run; a hundred when `OCORE_TEST_COPIES=100` is set.
const COPIES: usize = 20;

const WARM_PAUSE: Duration = Duration::from_millis(200);

/// So much each writer writes as fast as it can.
const AT_FULL_SPEED: u64 = 3000;

/// Moves money between accounts, writes each transfer down in another table, and attaches a file to it, until it is told to stop.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Result<u64>>>,
}

impl Writer {
    pub(crate) async fn prepare(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        let tables = format!(
            "create table accounts as select n as id, {MONEY} / 10 as balance from generate_series(1, 10) as n;
             create table transfers (id bigserial primary key, debit int, credit int, amount int, file text);
             create index on transfers (file)"
        );
        as_odoo(host, instance, data_set, &tables).await?.expect_success("tables")?;
        Ok(())
    }

    pub(crate) async fn start(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let allocation = host.allocation(instance).await?;
        let cluster = host.cluster(&allocation, instance, data_set)?;
        let (data_dir, owner) = (host.layout.data_dir(instance, data_set), allocation.odoo.uid);
        let mut tasks = Vec::new();
        for writer in 0..2_i32 {
            let (stop, data_dir, mut connection) = (Arc::clone(&stop), data_dir.clone(), cluster.connect_as_owner().await?);
            tasks.push(tokio::spawn(async move {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    let content = format!("{writer}/{written} ").repeat(100);
                    let file = store(&data_dir, owner, content.as_bytes())?;
                    let (from, to) = ((written % 10) as i32 + 1, ((written * 7 + 3) % 10) as i32 + 1);
                    let mut transaction = sqlx::Connection::begin(&mut connection).await?;
                    // In one order, so that the writers do not wait for each other.
                    sqlx::query("select 1 from accounts order by id for update").execute(&mut *transaction).await?;
                    sqlx::query("update accounts set balance = balance - 1 where id = $1").bind(from).execute(&mut *transaction).await?;
                    sqlx::query("insert into transfers (debit, credit, amount, file) values ($1, $2, 1, $3)")
                        .bind(from)
                        .bind(to)
                        .bind(file.display().to_string())
                        .execute(&mut *transaction)
                        .await?;
                    sqlx::query("update accounts set balance = balance + 1 where id = $1").bind(to).execute(&mut *transaction).await?;
                    transaction.commit().await?;
                    written += 1;
                    if written > AT_FULL_SPEED {
                        // Each copy has all that was ever written: a hundred of them would never end.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                Ok(written)
            }));
        }
        Ok(Self { stop, tasks })
    }

    pub(crate) async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        for task in self.tasks {
            written += task.await??;
        }
        Ok(written)
    }
}

/// The invariant holds in a data set, whose cluster is started and stopped. Answers with how many transfers it has.
pub(crate) async fn check(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<usize> {
    let cluster = host.run_cluster(instance, data_set).await?;
    let mut connection = cluster.connect_as_owner().await?;
    let (money, accounts): (i64, i64) = sqlx::query_as("select sum(balance), count(*) from accounts").fetch_one(&mut connection).await?;
    ensure!((money, accounts) == (MONEY, 10), "{accounts} accounts hold {money}");
    let wrong: i64 = sqlx::query_scalar(
        "select count(*) from accounts where balance <> $1
             + (select count(*) from transfers where credit = accounts.id) - (select count(*) from transfers where debit = accounts.id)",
    )
    .bind(MONEY / 10)
    .fetch_one(&mut connection)
    .await?;
    ensure!(wrong == 0, "{wrong} accounts do not agree with their transfers");
    let files: Vec<String> = sqlx::query_scalar("select file from transfers order by id").fetch_all(&mut connection).await?;
    let owner = host.allocation(instance).await?.odoo.uid;
    for file in &files {
        let place = host.layout.data_dir(instance, data_set).join(file);
        let content = std::fs::read(&place).with_context(|| format!("{file} is named by a row and is not there"))?;
        ensure!(stored(&content) == Path::new(file), "{file} is not whole");
        ensure!(std::fs::metadata(&place)?.uid() == owner, "{file} has another owner");
    }
    drop(connection);
    host.halt_cluster(instance, data_set).await?;
    Ok(files.len())
}

/// Copies of a source that is written to, each brought to life and checked.
async fn copies_hold_the_invariant(sandbox: &Sandbox, copies: usize) -> Result<()> {
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    Writer::prepare(&host, instance, data_set).await?;
    let writer = Writer::start(&host, instance, data_set).await?;
    // Two at a time: one is taken while another is looked at.
    let line = Arc::new(std::sync::Mutex::new(0..copies));
    let work = async || -> Result<Vec<usize>> {
        let target = another_instance(&host).await?;
        let mut seen = Vec::new();
        while line.lock().map_err(|_| anyhow::anyhow!("the other one failed"))?.next().is_some() {
            let snapshot = take(&host, instance, data_set).await?;
            ensure!(snapshot.live && snapshot.damaged_files.is_empty(), "{snapshot:?}");
            let copy = bring_to_life(&host, target, snapshot.id, false).await?;
            ensure!(matches!(copy, NewDataSet::Raw(_)), "{copy:?}");
            seen.push(check(&host, target, copy.id()).await?);
            eprintln!("a copy holds, with {} transfers", seen.last().copied().unwrap_or_default());
            host.remove_data_set(target, copy.id(), fence(1)).await?;
            host.remove_snapshot(snapshot.id).await?;
        }
        Ok(seen)
    };
    // Most of them begin with a warm copy, in whatever state it is when they need it.
    let stop = CancellationToken::new();
    let keep_warm = async || -> Result<usize> {
        let mut passes = 0;
        while !stop.is_cancelled() {
            passes += match warm_up(&host, instance, data_set).await {
                Err(error) if matches!(error.downcast_ref(), Some(HostError::Cancelled)) => 0,
                passed => passed.map(|()| 1)?,
            };
            tokio::time::sleep(WARM_PAUSE).await;
        }
        Ok(passes)
    };
    let copied = async {
        let copied = tokio::try_join!(work(), work());
        stop.cancel();
        copied
    };
    let ((one, two), passes) = tokio::try_join!(copied, keep_warm())?;
    eprintln!("beside them {passes} passes of a warm copy");
    let written = writer.stop().await?;
    eprintln!("{copies} copies, the last with {:?} of {written} transfers", one.iter().chain(&two).max());
    // The source never noticed, and each copy shows a later moment than the one before.
    assert!(one.is_sorted() && two.is_sorted());
    assert_eq!(check(&host, instance, data_set).await? as u64, written);
    assert!(leftovers(&host).is_empty());
    assert!(host.snapshots().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_copy_of_a_source_that_is_written_to_holds_its_invariant() -> Result<()> {
    let copies = std::env::var("OCORE_TEST_COPIES").ok().and_then(|count| count.parse().ok()).unwrap_or(COPIES);
    // The source writes all the while, and each copy keeps what it shared with it.
    copies_hold_the_invariant(&Sandbox::with_image((2048 + 192 * copies as u64) * MIB)?, copies).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_copies_hold_it_too() -> Result<()> {
    copies_hold_the_invariant(&Sandbox::new()?, 2).await
}

#[tokio::test]
async fn a_checkpoint_in_the_middle_does_not_take_the_log_away() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table t (n int, filler text)").await?.expect_success("table")?;
    let cluster = host.cluster(&host.allocation(instance).await?, instance, data_set)?;
    let stop = CancellationToken::new();
    let heavy = tokio::spawn({
        let stop = stop.clone();
        async move {
            let (mut connection, mut superuser) = (cluster.connect_as_owner().await?, cluster.connect_as_superuser().await?);
            let mut rounds = 0;
            while !stop.is_cancelled() {
                sqlx::query("insert into t select n, repeat('x', 500) from generate_series(1, 2000) as n").execute(&mut connection).await?;
                sqlx::query("select pg_switch_wal()").execute(&mut superuser).await?;
                sqlx::query("checkpoint").execute(&mut superuser).await?;
                rounds += 1;
            }
            anyhow::Ok(rounds)
        }
    });
    let mut rows = Vec::new();
    for _ in 0..3 {
        let snapshot = take(&host, instance, data_set).await?;
        let copy = bring_to_life(&host, instance, snapshot.id, false).await?;
        host.start_cluster(instance, copy.id(), fence(1)).await?;
        let count: i64 = as_odoo(&host, instance, copy.id(), "select count(*) from t").await?.stdout_text().trim().parse()?;
        assert_eq!(count % 2000, 0, "a transaction is in it whole or not at all");
        rows.push(count);
        host.remove_data_set(instance, copy.id(), fence(1)).await?;
        assert!(host.verify_snapshot(snapshot.id, progress().0).await?.damaged.is_empty());
    }
    stop.cancel();
    assert!(heavy.await?? > 3);
    assert!(rows.is_sorted() && rows[2] > rows[0], "{rows:?}");
    Ok(())
}
