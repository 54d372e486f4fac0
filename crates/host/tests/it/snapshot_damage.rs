//! Damaged files are found; sources that die, and takers that are killed or called off, leave nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use ocore_host::{
    Host, HostError, LocalHost, LocalHostConfig, Progress, Snapshot, TakeSnapshot, Verification,
    local::process::{self, Process},
    testing::{Sandbox, fence, progress},
};
use ocore_model::ids::{DataSetId, InstanceId};
use tokio_util::sync::CancellationToken;

use crate::{
    clusters::{as_odoo, running},
    snapshots::{bring_to_life, leftovers, request, store, take},
};

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
pub(crate) struct Paused {
    checkpointer: rustix::process::Pid,
}

impl Paused {
    pub(crate) async fn new(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<Self> {
        let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect_as_superuser().await?;
        let pid: i32 =
            sqlx::query_scalar("select pid from pg_stat_activity where backend_type = 'checkpointer'").fetch_one(&mut connection).await?;
        let checkpointer = rustix::process::Pid::from_raw(pid).context("a process")?;
        rustix::process::kill_process(checkpointer, rustix::process::Signal::STOP)?;
        Ok(Self { checkpointer })
    }

    /// Starts to take a snapshot, and comes back when it waits for the checkpoint.
    pub(crate) async fn take(
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
        let waiting =
            "select count(*) from pg_stat_activity where query like 'select pg_catalog.pg_backup_start%' and wait_event like 'Checkpoint%'";
        until(host, instance, data_set, waiting, 1).await
    }

    pub(crate) fn resume(&self) -> Result<()> {
        Ok(rustix::process::kill_process(self.checkpointer, rustix::process::Signal::CONT)?)
    }
}

/// Until a query answers with that number.
async fn until(host: &LocalHost, instance: InstanceId, data_set: DataSetId, query: &'static str, expected: i64) -> Result<()> {
    let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect_as_superuser().await?;
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
