//! Snapshots of clusters that serve, rest, die or fill the disk, and what comes to life from them.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ocore_host::{
    DataSource, Host, HostError, LocalHost, LocalHostConfig, NewDataSet, OdooSettings, Progress, ReleaseId, ServableDataSet, SlotSpec,
    Snapshot, SpaceReport, Standing, TakeSnapshot, Verification,
    local::{
        exec::Program,
        process::{self, Process},
    },
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId, SnapshotId},
    instance::Color,
};
use sha1::{Digest, Sha1};
use tokio_util::sync::CancellationToken;

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
    // And one from long ago, which is not looked for while a snapshot is taken.
    let old = store(&data_dir, owner, b"long ago")?;
    std::fs::write(data_dir.join(&old), "long")?;
    std::fs::File::options().write(true).open(data_dir.join(&old))?.set_modified(std::time::SystemTime::UNIX_EPOCH)?;
    let snapshot = take(&host, instance, data_set).await?;
    assert_eq!(snapshot.damaged_files, [short.display().to_string()]);
    let found = host.verify_snapshot(snapshot.id, progress().0).await?;
    assert!(found.checked_files > 100, "{found:?}");
    let mut expected = vec![format!("data_dir/{}", short.display()), format!("data_dir/{}", old.display())];
    expected.sort();
    assert_eq!(paths(&found), expected);

    host.stop_cluster(instance, data_set, fence(1)).await?;
    let resting = take(&host, instance, data_set).await?;
    assert_eq!(resting.damaged_files, [short.display().to_string()]);
    // One bit of one page of the database.
    let pgdata = host.layout.snapshot(resting.id).join("pgdata");
    let relation = std::fs::read_dir(pgdata.join("base/5"))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok() && entry.metadata().is_ok_and(|data| data.len() > 20_000))
        .context("there is a relation of three pages")?
        .path();
    let mut bytes = std::fs::read(&relation)?;
    bytes[8192 + 5000] ^= 4;
    std::fs::write(&relation, bytes)?;
    let found = host.verify_snapshot(resting.id, progress().0).await?;
    expected.push(relation.strip_prefix(host.layout.snapshot(resting.id))?.display().to_string());
    assert_eq!(paths(&found), expected);
    assert!(found.damaged[2].problem.ends_with("do not match their checksums: 1"), "{found:?}");
    Ok(())
}

fn paths(verification: &Verification) -> Vec<String> {
    verification.damaged.iter().map(|damage| damage.path.clone()).collect()
}

/// A source whose checkpointer stands still, so that whoever takes a snapshot waits in the middle of it.
struct Paused {
    checkpointer: rustix::process::Pid,
}

impl Paused {
    async fn new(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<Self> {
        let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect().await?;
        let pid: i32 =
            sqlx::query_scalar("select pid from pg_stat_activity where backend_type = 'checkpointer'").fetch_one(&mut connection).await?;
        let checkpointer = rustix::process::Pid::from_raw(pid).context("a process")?;
        rustix::process::kill_process(checkpointer, rustix::process::Signal::STOP)?;
        Ok(Self { checkpointer })
    }

    /// Starts to take a snapshot, and comes back when it waits for the checkpoint.
    async fn take(
        &self,
        host: &Arc<LocalHost>,
        request: TakeSnapshot,
        cancel: CancellationToken,
    ) -> Result<tokio::task::JoinHandle<Result<Snapshot, HostError>>> {
        let (instance, data_set) = (request.instance, request.data_set);
        let progress = Progress { cancel, ..progress().0 };
        let task = tokio::spawn({
            let host = Arc::clone(host);
            async move { host.take_snapshot(request, progress).await }
        });
        Self::wait_for_backup(host, instance, data_set).await?;
        Ok(task)
    }

    async fn wait_for_backup(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        let waiting = "select count(*) from pg_stat_activity where query like 'select pg_backup_start%' and wait_event like 'Checkpoint%'";
        until(host, instance, data_set, waiting, 1).await
    }

    fn resume(&self) -> Result<()> {
        Ok(rustix::process::kill_process(self.checkpointer, rustix::process::Signal::CONT)?)
    }
}

/// Until a query answers with that number.
async fn until(host: &LocalHost, instance: InstanceId, data_set: DataSetId, query: &'static str, expected: i64) -> Result<()> {
    let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect().await?;
    let waits = async {
        loop {
            if sqlx::query_scalar::<_, i64>(query).fetch_one(&mut connection).await? == expected {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waits).await.context("it does not come")?
}

const SLOTS: &str = "select count(*) from pg_replication_slots";

#[tokio::test]
async fn removing_or_stopping_the_source_waits_until_it_is_copied_and_cancelling_does_not() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let paused = Paused::new(&host, instance, data_set).await?;

    let cancel = CancellationToken::new();
    let task = paused.take(&host, request(instance, data_set), cancel.clone()).await?;
    cancel.cancel();
    assert!(matches!(task.await?, Err(HostError::Cancelled)));
    paused.resume()?;
    until(&host, instance, data_set, SLOTS, 0).await?;

    let paused = Paused::new(&host, instance, data_set).await?;
    let task = paused.take(&host, request(instance, data_set), CancellationToken::new()).await?;
    let halt = tokio::spawn({
        let host = Arc::clone(&host);
        async move { host.stop_cluster(instance, data_set, fence(1)).await }
    });
    let removal = tokio::spawn({
        let host = Arc::clone(&host);
        async move { host.remove_data_set(instance, data_set, fence(1)).await }
    });
    // Both have had their chance.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!task.is_finished() && !halt.is_finished() && !removal.is_finished());
    paused.resume()?;
    let snapshot = task.await??;
    halt.await??;
    removal.await??;
    assert!(host.data_sets(instance)?.is_empty());
    assert!(leftovers(&host).is_empty());
    let gone = take(&host, instance, data_set).await;
    assert!(matches!(gone, Err(HostError::NotFound { what: "data set", .. })), "{gone:?}");
    let copy = bring_to_life(&host, instance, snapshot.id, false).await?;
    host.start_cluster(instance, copy.id(), fence(1)).await?;
    Ok(())
}

#[tokio::test]
async fn a_source_that_dies_in_the_middle_leaves_nothing_and_says_so() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let paused = Paused::new(&host, instance, data_set).await?;
    let task = paused.take(&host, request(instance, data_set), CancellationToken::new()).await?;
    let record = host.layout.record(instance, ocore_host::local::layout::Unit::Cluster(data_set));
    let postmaster = Process::find(&record)?.context("the cluster runs")?;
    postmaster.signal(rustix::process::Signal::KILL);
    postmaster.exited().await?;
    // As the system does when the whole machine goes down: the rest of it dies too.
    paused.resume()?;
    let allocation = host.allocation(instance).await?;
    process::end_users(&std::collections::BTreeSet::from([allocation.postgres.uid])).await?;
    let error = task.await?.unwrap_err().to_string();
    assert!(error.contains("stopped or died") && error.contains("take it again"), "{error}");
    assert!(leftovers(&host).is_empty() && host.snapshots().await?.is_empty());
    // It recovers to be copied, and rests as before.
    let snapshot = take(&host, instance, data_set).await?;
    assert!(!snapshot.live);
    assert!(host.observe().await?[0].clusters.is_empty());
    Ok(())
}

/// Not a test: the process that [`killed_in_the_middle_nothing_is_left_and_it_can_be_taken_again`] kills.
#[tokio::test]
async fn a_process_of_its_own_that_takes_a_snapshot() -> Result<()> {
    let Ok(words) = std::env::var("OCORE_TEST_TAKES") else { return Ok(()) };
    let words: Vec<&str> = words.split(' ').collect();
    let mut config = LocalHostConfig::new(words[0]);
    config.pool.image = None;
    let host = LocalHost::open(config).await?;
    let request = TakeSnapshot { snapshot: words[1].parse()?, instance: words[2].parse()?, data_set: words[3].parse()?, release: None };
    host.take_snapshot(request, progress().0).await?;
    Ok(())
}

#[tokio::test]
async fn killed_in_the_middle_nothing_is_left_and_it_can_be_taken_again() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    store(&host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid, b"content")?;
    let wanted = request(instance, data_set);
    let paused = Paused::new(&host, instance, data_set).await?;
    let words = format!("{} {} {instance} {data_set}", sandbox.home().display(), wanted.snapshot);
    let name = module_path!().split_once("::").map(|(_, module)| module).unwrap_or_default();
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--exact", &format!("{name}::a_process_of_its_own_that_takes_a_snapshot")])
        .env("OCORE_TEST_TAKES", words)
        .kill_on_drop(true)
        .spawn()?;
    Paused::wait_for_backup(&host, instance, data_set).await?;
    let half_made = host.layout.snapshots().join(format!(".new-{}", wanted.snapshot));
    while !half_made.join("data_dir").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().await?;
    paused.resume()?;
    assert!(half_made.exists());
    assert!(host.snapshots().await?.is_empty(), "half of one is none");
    // What the next start finds is swept, and the source leaves backup mode by itself.
    let host = sandbox.host().await?;
    assert!(leftovers(&host).is_empty());
    until(&host, instance, data_set, SLOTS, 0).await?;
    assert!(as_odoo(&host, instance, data_set, "select 1").await?.status.success());
    let snapshot = host.take_snapshot(wanted, progress().0).await?;
    assert_eq!((snapshot.live, snapshot.file_store_files), (true, 1));
    Ok(())
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
            let mut connection = cluster.connect().await?;
            let mut rounds = 0;
            while !stop.is_cancelled() {
                sqlx::query("insert into t select n, repeat('x', 500) from generate_series(1, 2000) as n").execute(&mut connection).await?;
                sqlx::query("select pg_switch_wal()").execute(&mut connection).await?;
                sqlx::query("checkpoint").execute(&mut connection).await?;
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

#[tokio::test]
async fn what_a_snapshot_takes_alone_is_what_comes_free_with_it() -> Result<()> {
    let sandbox = Sandbox::with_image(1536 * MIB)?;
    let host = sandbox.host().await?;
    shared_space_is_told(&host).await
}

async fn shared_space_is_told(host: &LocalHost) -> Result<()> {
    let (instance, data_set) = running(host).await?;
    as_odoo(host, instance, data_set, "create table t as select n, repeat(md5(n::text), 30) as filler from generate_series(1, 60000) as n")
        .await?
        .expect_success("table")?;
    let estimate = host.estimate_snapshot(instance, data_set).await?;
    assert!(estimate.database_bytes > 60 * MIB && estimate.needed_bytes < 60 * MIB, "{estimate:?}");
    let snapshot = take(host, instance, data_set).await?;
    let second = take(host, instance, data_set).await?;
    let usage = |report: &SpaceReport, id: SnapshotId| report.snapshots.iter().find(|(found, _)| *found == id).map(|(_, usage)| *usage);
    let report = host.space().await?;
    let shared = usage(&report, snapshot.id).context("it is in the report")?;
    assert!(shared.referenced_bytes > 60 * MIB, "{shared:?}");
    // Its own are a part of the log, and little else.
    assert!(shared.exclusive_bytes < 40 * MIB, "{shared:?}");
    assert_eq!(report.instances.len(), 1);
    assert!(
        report.instances[0].1.referenced_bytes > 60 * MIB && report.instances[0].1.exclusive_bytes < report.instances[0].1.referenced_bytes
    );

    // The source writes all of it anew, and the other snapshot goes: now it is the snapshot's alone.
    as_odoo(host, instance, data_set, "create table u as select * from t; drop table t").await?.expect_success("tables")?;
    as_superuser(host, instance, data_set, "checkpoint").await?;
    host.remove_snapshot(second.id).await?;
    let report = host.space().await?;
    let alone = usage(&report, snapshot.id).context("it is in the report")?;
    assert!(alone.exclusive_bytes > shared.exclusive_bytes + 50 * MIB, "{alone:?}");
    let before = settled(host)?;
    host.remove_snapshot(snapshot.id).await?;
    let freed = settled(host)? - before;
    let expected = i64::try_from(alone.exclusive_bytes)?;
    assert!((freed - expected).abs() < 12 * MIB as i64, "{freed} came free, and {expected} were said to");
    assert!(host.space().await?.snapshots.is_empty());
    Ok(())
}

/// What is free when all is on the disk.
fn settled(host: &LocalHost) -> Result<i64> {
    rustix::fs::syncfs(std::fs::File::open(host.pool.path())?)?;
    let found = rustix::fs::statvfs(host.pool.path())?;
    Ok(i64::try_from(found.f_bfree * found.f_frsize)?)
}

async fn as_superuser(host: &LocalHost, instance: InstanceId, data_set: DataSetId, sql: &'static str) -> Result<()> {
    let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect().await?;
    sqlx::query(sql).execute(&mut connection).await?;
    Ok(())
}

/// A home whose pool is a file system of another kind, of that size.
async fn on(kind: &str, options: &[&str], bytes: u64) -> Result<Sandbox> {
    let sandbox = Sandbox::new()?;
    let (image, pool) = (sandbox.path().join("disk"), sandbox.config().pool.path.clone());
    std::fs::File::create(&image)?.set_len(bytes)?;
    std::fs::create_dir_all(&pool)?;
    std::fs::set_permissions(sandbox.home(), std::fs::Permissions::from_mode(0o711))?;
    Program::new(format!("mkfs.{kind}")).arg("-q").args(options).arg(&image).run().await?.expect_success("mkfs")?;
    Program::new("mount").args(["-o", "loop"]).arg(&image).arg(&pool).run().await?.expect_success("mount")?;
    Ok(sandbox)
}

#[tokio::test]
async fn on_btrfs_blocks_are_shared_too() -> Result<()> {
    let sandbox = on("btrfs", &[], 1536 * MIB).await?;
    let host = sandbox.host().await?;
    assert_eq!(host.facts().await?.pool.file_system, "btrfs");
    let (instance, data_set) = running(&host).await?;
    Writer::prepare(&host, instance, data_set).await?;
    let writer = Writer::start(&host, instance, data_set).await?;
    let snapshot = take(&host, instance, data_set).await?;
    writer.stop().await?;
    assert!(snapshot.shares_blocks && snapshot.live);
    let target = another_instance(&host).await?;
    let copy = bring_to_life(&host, target, snapshot.id, false).await?;
    check(&host, target, copy.id()).await?;
    let report = host.space().await?;
    let (_, usage) = report.snapshots[0];
    assert!(usage.exclusive_bytes < usage.referenced_bytes / 2, "{usage:?}");
    Ok(())
}

#[tokio::test]
async fn a_snapshot_without_room_is_refused_with_numbers_and_one_that_runs_out_of_it_leaves_nothing() -> Result<()> {
    let sandbox = on("ext4", &["-m", "0"], 400 * MIB).await?;
    let host = sandbox.host().await?;
    let facts = host.facts().await?.pool;
    assert_eq!((facts.file_system.as_str(), facts.reflinks), ("ext4", false));
    let (instance, data_set) = running(&host).await?;
    let fill = async |left: u64| -> Result<PathBuf> {
        let ballast = host.pool.path().join("ballast");
        let available = host.facts().await?.pool.available_bytes;
        let file = std::fs::File::create(&ballast)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, available.saturating_sub(left))?;
        Ok(ballast)
    };
    let ballast = fill(80 * MIB).await?;
    let error = take(&host, instance, data_set).await.unwrap_err();
    assert!(matches!(error, HostError::Machine { .. }));
    let text = error.to_string();
    assert!(text.contains(" left") && text.contains("this snapshot needs") && text.contains("stay free"), "{text}");
    std::fs::remove_file(ballast)?;

    let paused = Paused::new(&host, instance, data_set).await?;
    let task = paused.take(&host, request(instance, data_set), CancellationToken::new()).await?;
    let ballast = fill(24 * MIB).await?;
    paused.resume()?;
    let text = task.await?.unwrap_err().to_string();
    assert!(text.contains(" left") && text.contains("this snapshot needs"), "{text}");
    assert!(leftovers(&host).is_empty() && host.snapshots().await?.is_empty());
    // The source never noticed.
    as_odoo(&host, instance, data_set, "create table t as select 1 as n").await?.expect_success("table")?;
    std::fs::remove_file(ballast)?;
    let snapshot = take(&host, instance, data_set).await?;
    let other = fill(80 * MIB).await?;
    let text = bring_to_life(&host, instance, snapshot.id, false).await.unwrap_err().to_string();
    assert!(text.contains("this copy of a snapshot needs"), "{text}");
    assert_eq!(host.data_sets(instance)?, vec![data_set]);
    std::fs::remove_file(other)?;
    Ok(())
}

#[tokio::test]
async fn a_pool_image_that_is_nearly_full_grows_before_anybody_asks() -> Result<()> {
    let sandbox = Sandbox::with(|config| {
        config.pool.image_size = 400 * MIB;
        config.pool.image_size_limit = 700 * MIB;
    })?;
    let host = sandbox.host().await?;
    host.rotate_logs().await?;
    let before = host.facts().await?.pool;
    assert!(before.total_bytes < 400 * MIB);
    let ballast = std::fs::File::create(host.pool.path().join("ballast"))?;
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, before.available_bytes - 20 * MIB)?;
    host.rotate_logs().await?;
    let after = host.facts().await?.pool;
    assert!(after.total_bytes > 600 * MIB && after.total_bytes <= 700 * MIB, "{after:?}");
    Ok(())
}

#[tokio::test]
async fn tablespaces_are_refused_and_manifests_of_old_are_the_instances_own() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let manifest = host.layout.data_set(instance, data_set).join("manifest.json");
    let mut old: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest)?)?;
    old.as_object_mut().context("an object")?.remove("standing").context("it says its standing")?;
    std::fs::write(&manifest, old.to_string())?;
    assert_eq!(host.standing_of(instance, data_set)?, Standing::Own);

    let place = host.layout.data_set(instance, data_set).join("pgdata/elsewhere");
    std::fs::create_dir(&place)?;
    std::os::unix::fs::chown(&place, Some(host.allocation(instance).await?.postgres.uid), None)?;
    let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect().await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("create tablespace elsewhere location '{}'", place.display())))
        .execute(&mut connection)
        .await?;
    let error = take(&host, instance, data_set).await.unwrap_err().to_string();
    assert!(error.contains("tablespaces"), "{error}");
    Ok(())
}

/// A tenant's process may put links and pipes where a file was; none of them leads out of its own directory.
#[tokio::test]
async fn links_in_a_file_store_are_copied_and_not_followed() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let data_dir = host.layout.data_dir(instance, data_set);
    let secret = sandbox.path().join("secret");
    std::fs::write(&secret, "secret")?;
    std::os::unix::fs::symlink(&secret, data_dir.join("link"))?;
    std::os::unix::fs::symlink(sandbox.path(), data_dir.join("filestore"))?;
    Program::new("mkfifo").arg(data_dir.join("pipe")).run().await?.expect_success("mkfifo")?;
    let snapshot = take(&host, instance, data_set).await?;
    let copied = host.layout.snapshot(snapshot.id).join("data_dir");
    assert_eq!(std::fs::read_link(copied.join("link"))?, secret);
    assert!(std::fs::symlink_metadata(copied.join("filestore"))?.is_symlink());
    assert!(!copied.join("pipe").exists());
    assert_eq!(snapshot.file_store_files, 0);
    Ok(())
}
