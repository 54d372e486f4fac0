//! Snapshots of clusters that serve, rest, die or fill the disk, and what comes to life from them.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use ocore_host::{
    DataSource, Host, HostError, LocalHost, NewDataSet, OdooSettings, ReleaseId, ServableDataSet, SlotSpec, Snapshot, Standing,
    TakeSnapshot,
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId, SnapshotId},
    instance::Color,
};
use sha1::{Digest, Sha1};

use crate::clusters::{as_odoo, running};

const MIB: u64 = 1024 * 1024;
/// What the accounts of [`Writer`] hold together.
const MONEY: i64 = 1000;
/// Copies of the invariant run; a hundred when `OCORE_TEST_COPIES=100` is set.
const COPIES: usize = 20;

fn request(instance: InstanceId, data_set: DataSetId) -> TakeSnapshot {
    TakeSnapshot { snapshot: SnapshotId::new(), instance, data_set, release: None }
}

async fn take(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<Snapshot, HostError> {
    host.take_snapshot(request(instance, data_set), progress().0).await
}

async fn bring_to_life(host: &LocalHost, instance: InstanceId, snapshot: SnapshotId, as_own: bool) -> Result<NewDataSet, HostError> {
    let source = DataSource::Snapshot { snapshot, as_own };
    host.create_data_set(instance, DataSetId::new(), source, fence(1), progress().0).await
}

async fn another_instance(host: &LocalHost) -> Result<InstanceId> {
    let instance = InstanceId::new();
    host.create_instance(instance, fence(1)).await?;
    Ok(instance)
}

/// What `.new-` and `.removed-` directories there are among the snapshots.
fn leftovers(host: &LocalHost) -> Vec<String> {
    let entries = std::fs::read_dir(host.layout.snapshots()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with('.')).collect()
}

fn stored(content: &[u8]) -> PathBuf {
    let name = hex::encode(Sha1::digest(content));
    Path::new("filestore/odoo").join(&name[..2]).join(name)
}

/// Writes a file of the file store as Odoo does: under its final name, in more than one step.
fn store(data_dir: &Path, owner: u32, content: &[u8]) -> Result<PathBuf> {
    use std::io::Write;
    let path = stored(content);
    let place = data_dir.join(&path);
    std::fs::create_dir_all(place.parent().context("it has a directory")?)?;
    let mut file = std::fs::File::create(&place)?;
    let (first, second) = content.split_at(content.len() / 2);
    file.write_all(first)?;
    file.write_all(second)?;
    std::os::unix::fs::chown(&place, Some(owner), Some(owner))?;
    Ok(path)
}

/// Moves money between accounts, writes each transfer down in another table, and attaches a file to it, until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Result<u64>>>,
}

impl Writer {
    async fn prepare(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        let tables = format!(
            "create table accounts as select n as id, {MONEY} / 10 as balance from generate_series(1, 10) as n;
             create table transfers (id bigserial primary key, debit int, credit int, amount int, file text);
             create index on transfers (file)"
        );
        as_odoo(host, instance, data_set, &tables).await?.expect_success("tables")?;
        Ok(())
    }

    async fn start(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let allocation = host.allocation(instance).await?;
        let cluster = host.cluster(&allocation, instance, data_set)?;
        let (data_dir, owner) = (host.layout.data_dir(instance, data_set), allocation.odoo.uid);
        let mut tasks = Vec::new();
        for writer in 0..2_i32 {
            let (stop, data_dir, mut connection) = (Arc::clone(&stop), data_dir.clone(), cluster.connect().await?);
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
                }
                Ok(written)
            }));
        }
        Ok(Self { stop, tasks })
    }

    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        for task in self.tasks {
            written += task.await??;
        }
        Ok(written)
    }
}

/// The invariant holds in a data set, whose cluster is started and stopped. Answers with how many transfers it has.
async fn check(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<usize> {
    let cluster = host.run_cluster(instance, data_set).await?;
    let mut connection = cluster.connect().await?;
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
            host.remove_data_set(target, copy.id(), fence(1)).await?;
            host.remove_snapshot(snapshot.id).await?;
        }
        Ok(seen)
    };
    let (one, two) = tokio::try_join!(work(), work())?;
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
    copies_hold_the_invariant(&Sandbox::with_image(2048 * MIB)?, copies).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_copies_hold_it_too() -> Result<()> {
    copies_hold_the_invariant(&Sandbox::new()?, 2).await
}

#[tokio::test]
async fn a_snapshot_keeps_its_moment_and_is_there_until_it_is_removed() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table t as select 'before' as word").await?.expect_success("table")?;
    let owner = host.allocation(instance).await?.odoo.uid;
    store(&host.layout.data_dir(instance, data_set), owner, b"content")?;
    std::fs::create_dir(host.layout.data_dir(instance, data_set).join("sessions"))?;
    std::fs::write(host.layout.data_dir(instance, data_set).join("sessions/session"), "logged in")?;

    let wanted = request(instance, data_set);
    let snapshot = host.take_snapshot(wanted.clone(), progress().0).await?;
    assert_eq!((snapshot.id, snapshot.instance, snapshot.data_set), (wanted.snapshot, instance, data_set));
    assert_eq!((snapshot.standing, snapshot.live, snapshot.shares_blocks), (Standing::Own, true, true));
    assert_eq!((snapshot.file_store_bytes, snapshot.file_store_files), (7, 1));
    assert_eq!(snapshot.postgres_version, "15");
    assert!(snapshot.database_bytes > 5 * MIB);
    assert_eq!(host.take_snapshot(wanted.clone(), progress().0).await?, snapshot, "taken already is done");
    let again = TakeSnapshot { data_set: DataSetId::new(), ..wanted };
    assert!(host.take_snapshot(again, progress().0).await.is_err(), "of something else it is not");
    let mode = std::fs::metadata(host.layout.snapshot(snapshot.id))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    as_odoo(&host, instance, data_set, "update t set word = 'after'").await?.expect_success("update")?;
    // The instance's own: with its sessions, and as its own data.
    let own = bring_to_life(&host, instance, snapshot.id, false).await?;
    assert!(matches!(own, NewDataSet::Servable(_)));
    assert!(host.layout.data_dir(instance, own.id()).join("sessions/session").exists());
    host.start_cluster(instance, own.id(), fence(1)).await?;
    assert_eq!(as_odoo(&host, instance, own.id(), "select word from t").await?.stdout_text(), "before\n");
    assert_eq!(as_odoo(&host, instance, data_set, "select word from t").await?.stdout_text(), "after\n");
    // Somebody else's: nobody is logged in there.
    let target = another_instance(&host).await?;
    let foreign = bring_to_life(&host, target, snapshot.id, false).await?;
    assert!(!host.layout.data_dir(target, foreign.id()).join("sessions/session").exists());

    assert_eq!(sandbox.host().await?.snapshots().await?, vec![snapshot.clone()], "another value on the same home finds it");
    host.remove_snapshot(snapshot.id).await?;
    host.remove_snapshot(snapshot.id).await?;
    assert!(host.snapshots().await?.is_empty());
    let gone = bring_to_life(&host, target, snapshot.id, false).await;
    assert!(matches!(gone, Err(HostError::NotFound { what: "snapshot", .. })), "{gone:?}");
    host.start_cluster(target, foreign.id(), fence(1)).await?;
    assert_eq!(as_odoo(&host, target, foreign.id(), "select word from t").await?.stdout_text(), "before\n");
    Ok(())
}

#[tokio::test]
async fn a_resting_source_is_left_resting() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table ir_module_module (name text, state text, latest_version text); insert into ir_module_module values ('base', 'installed', '1.0')")
        .await?
        .expect_success("table")?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    let snapshot = take(&host, instance, data_set).await?;
    assert_eq!((snapshot.live, snapshot.shares_blocks), (false, false));
    assert_eq!(snapshot.modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["base"]);
    assert!(host.observe().await?[0].clusters.is_empty());
    let copy = bring_to_life(&host, instance, snapshot.id, false).await?;
    assert_eq!(host.installed_modules(instance, copy.id(), fence(1)).await?, snapshot.modules);
    Ok(())
}

#[tokio::test]
async fn a_long_transaction_neither_waits_nor_is_waited_for() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table t as select 1 as n").await?.expect_success("table")?;
    let cluster = host.cluster(&host.allocation(instance).await?, instance, data_set)?;
    let mut connection = cluster.connect().await?;
    let mut transaction = sqlx::Connection::begin(&mut connection).await?;
    sqlx::query("update t set n = 2").execute(&mut *transaction).await?;
    sqlx::query("lock table t").execute(&mut *transaction).await?;
    let snapshot = take(&host, instance, data_set).await?;
    sqlx::query("update t set n = n + 1").execute(&mut *transaction).await?;
    transaction.commit().await?;
    let copy = bring_to_life(&host, instance, snapshot.id, false).await?;
    host.start_cluster(instance, copy.id(), fence(1)).await?;
    assert_eq!(as_odoo(&host, instance, copy.id(), "select n from t").await?.stdout_text(), "1\n");
    assert_eq!(as_odoo(&host, instance, data_set, "select n from t").await?.stdout_text(), "3\n");
    Ok(())
}

#[tokio::test]
async fn a_retired_data_set_is_a_snapshot_and_nothing_is_copied() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table t as select 'kept' as word").await?.expect_success("table")?;
    let inode = std::fs::metadata(host.layout.pgdata(instance, data_set))?.ino();
    let wanted = request(instance, data_set);
    let snapshot = host.retire_data_set(wanted.clone(), fence(1), progress().0).await?;
    assert_eq!(host.retire_data_set(wanted, fence(1), progress().0).await?, snapshot, "done already is done");
    assert!(!snapshot.live);
    assert_eq!(std::fs::metadata(host.layout.snapshot(snapshot.id).join("pgdata"))?.ino(), inode);
    let observed = host.observe().await?;
    assert!(observed[0].data_sets.is_empty() && observed[0].clusters.is_empty());
    assert_eq!(host.snapshots().await?, vec![snapshot.clone()]);
    let copy = bring_to_life(&host, instance, snapshot.id, false).await?;
    host.start_cluster(instance, copy.id(), fence(1)).await?;
    assert_eq!(as_odoo(&host, instance, copy.id(), "select word from t").await?.stdout_text(), "kept\n");
    Ok(())
}

#[tokio::test]
async fn copies_of_copies_keep_their_standing_and_no_odoo_starts_on_a_raw_one() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    assert_eq!(host.standing_of(instance, data_set)?, Standing::Own);
    let snapshot = take(&host, instance, data_set).await?;
    let target = another_instance(&host).await?;
    let raw = bring_to_life(&host, target, snapshot.id, false).await?;
    assert!(matches!(raw, NewDataSet::Raw(_)));
    assert_eq!(host.standing_of(target, raw.id())?, Standing::Raw);
    // Whatever the caller says it is.
    let spec = SlotSpec {
        color: Color::Blue,
        data_set: ServableDataSet::proven(raw.id()),
        release: ReleaseId("0".repeat(64)),
        settings: OdooSettings::default(),
    };
    let refused = host.start_slot(target, spec, fence(1), progress().0).await;
    assert!(matches!(&refused, Err(HostError::Rejected { summary, .. }) if summary.contains("harmless")), "{refused:?}");

    // A copy of it, a snapshot of it, and what comes to life from that, there or elsewhere.
    let copy = DataSetId::new();
    let copied = host.create_data_set(target, copy, DataSource::CopyOf(raw.id()), fence(1), progress().0).await?;
    assert!(matches!(copied, NewDataSet::Raw(_)));
    let again = host.create_data_set(target, copy, DataSource::CopyOf(raw.id()), fence(1), progress().0).await?;
    assert!(matches!(again, NewDataSet::Raw(_)), "found again it is still raw");
    let of_raw = take(&host, target, raw.id()).await?;
    assert_eq!(of_raw.standing, Standing::Raw);
    assert!(matches!(bring_to_life(&host, target, of_raw.id, false).await?, NewDataSet::Raw(_)));
    let third = another_instance(&host).await?;
    assert!(matches!(bring_to_life(&host, third, of_raw.id, false).await?, NewDataSet::Raw(_)));
    // Production takes over what is given to it.
    let own = bring_to_life(&host, third, snapshot.id, true).await?;
    assert!(matches!(own, NewDataSet::Servable(_)));
    assert_eq!(host.standing_of(third, own.id())?, Standing::Own);
    Ok(())
}

#[tokio::test]
async fn the_source_of_a_copy_may_go() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table t as select 'kept' as word").await?.expect_success("table")?;
    let snapshot = take(&host, instance, data_set).await?;
    let target = another_instance(&host).await?;
    let copy = bring_to_life(&host, target, snapshot.id, false).await?;
    host.destroy_instance(instance, fence(2)).await?;
    assert_eq!(host.snapshots().await?, vec![snapshot.clone()], "a snapshot outlives its source");
    let later = bring_to_life(&host, target, snapshot.id, false).await?;
    host.remove_snapshot(snapshot.id).await?;
    for data_set in [copy.id(), later.id()] {
        host.start_cluster(target, data_set, fence(1)).await?;
        assert_eq!(as_odoo(&host, target, data_set, "select word from t").await?.stdout_text(), "kept\n");
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_file_is_found_and_named() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let (data_dir, owner) = (host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid);
    let short = store(&data_dir, owner, b"whole")?;
    store(&data_dir, owner, b"another")?;
    let place = data_dir.join(&short);
    std::fs::write(&place, "who")?;
    // As a crash a minute ago left it.
    let minute_ago = std::time::SystemTime::now() - std::time::Duration::from_mins(1);
    std::fs::File::options().write(true).open(&place)?.set_modified(minute_ago)?;
    let snapshot = take(&host, instance, data_set).await?;
    assert_eq!(snapshot.damaged_files, [short.display().to_string()]);
    host.stop_cluster(instance, data_set, fence(1)).await?;
    assert_eq!(take(&host, instance, data_set).await?.damaged_files, [short.display().to_string()]);
    Ok(())
}
