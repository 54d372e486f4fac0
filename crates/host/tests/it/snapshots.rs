//! Snapshots of clusters that serve, rest or have been retired, and what comes to life from them.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ocore_host::{
    DataSource, Host, HostError, LocalHost, NewDataSet, OdooSettings, ReleaseId, ServableDataSet, SlotSpec, Snapshot, Standing,
    TakeSnapshot,
    local::exec::Program,
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId, SnapshotId},
    instance::Color,
};
use sha1::{Digest, Sha1};

use crate::clusters::{as_odoo, running};

pub(crate) const MIB: u64 = 1024 * 1024;

pub(crate) fn request(instance: InstanceId, data_set: DataSetId) -> TakeSnapshot {
    TakeSnapshot { snapshot: SnapshotId::new(), instance, data_set, release: None }
}

pub(crate) async fn take(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<Snapshot, HostError> {
    host.take_snapshot(request(instance, data_set), progress().0).await
}

pub(crate) async fn bring_to_life(
    host: &LocalHost,
    instance: InstanceId,
    snapshot: SnapshotId,
    as_own: bool,
) -> Result<NewDataSet, HostError> {
    let source = DataSource::Snapshot { snapshot, as_own };
    host.create_data_set(instance, DataSetId::new(), source, fence(1), progress().0).await
}

pub(crate) async fn another_instance(host: &LocalHost) -> Result<InstanceId> {
    let instance = InstanceId::new();
    host.create_instance(instance, fence(1)).await?;
    Ok(instance)
}

/// What `.new-` and `.removed-` directories there are among the snapshots.
pub(crate) fn leftovers(host: &LocalHost) -> Vec<String> {
    let entries = std::fs::read_dir(host.layout.snapshots()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with('.')).collect()
}

pub(crate) fn stored(content: &[u8]) -> PathBuf {
    let name = hex::encode(Sha1::digest(content));
    Path::new("filestore/odoo").join(&name[..2]).join(name)
}

/// Writes a file of the file store as Odoo does: under its final name, in more than one step.
pub(crate) fn store(data_dir: &Path, owner: u32, content: &[u8]) -> Result<PathBuf> {
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

/// Nothing is copied a second time; and whoever makes the data set twice finds it made.
#[tokio::test]
async fn a_snapshot_that_was_taken_for_one_data_set_becomes_it() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table t as select 'taken' as word").await?.expect_success("table")?;
    let owner = host.allocation(instance).await?.odoo.uid;
    let file = store(&host.layout.data_dir(instance, data_set), owner, b"content")?;
    std::fs::create_dir(host.layout.data_dir(instance, data_set).join("sessions"))?;
    std::fs::write(host.layout.data_dir(instance, data_set).join("sessions/session"), "logged in")?;
    let snapshot = take(&host, instance, data_set).await?;
    let inode = std::fs::metadata(host.layout.snapshot(snapshot.id).join("data_dir").join(&file))?.ino();

    let target = another_instance(&host).await?;
    let (copy, source) = (DataSetId::new(), DataSource::Taken { snapshot: snapshot.id });
    for _ in 0..2 {
        let made = host.create_data_set(target, copy, source, fence(1), progress().0).await?;
        assert!(matches!(made, NewDataSet::Raw(made) if made.id() == copy), "{made:?}");
    }
    assert!(host.snapshots().await?.is_empty() && leftovers(&host).is_empty());
    assert!(!host.layout.snapshot(snapshot.id).exists() && !host.layout.data_set(target, copy).join("snapshot.json").exists());
    let users = host.allocation(target).await?;
    let (data_dir, pgdata) = (host.layout.data_dir(target, copy), host.layout.pgdata(target, copy));
    // What Odoo never changes stays root's; the rest is the Odoo's of the copy.
    let metadata = std::fs::metadata(data_dir.join(&file))?;
    assert_eq!((metadata.ino(), metadata.uid(), metadata.permissions().mode() & 0o777), (inode, 0, 0o444));
    let metadata = std::fs::metadata(data_dir.join("filestore/odoo"))?;
    assert_eq!((metadata.uid(), metadata.gid()), (users.odoo.uid, users.odoo.uid));
    assert_eq!(std::fs::metadata(pgdata.join("PG_VERSION"))?.uid(), users.postgres.uid);
    assert!(!data_dir.join("sessions/session").exists(), "nobody is logged in at the copy");
    host.start_cluster(target, copy, fence(1)).await?;
    assert_eq!(as_odoo(&host, target, copy, "select word from t").await?.stdout_text(), "taken\n");

    host.remove_data_set(target, copy, fence(1)).await?;
    let gone = host.create_data_set(target, copy, source, fence(1), progress().0).await;
    assert!(matches!(gone, Err(HostError::NotFound { what: "snapshot", .. })), "{gone:?}");
    assert_eq!(as_odoo(&host, instance, data_set, "select word from t").await?.stdout_text(), "taken\n");
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
    let mut connection = cluster.connect_as_owner().await?;
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
    let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect_as_superuser().await?;
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
