use std::{io::Read, os::unix::fs::MetadataExt, path::Path};

use anyhow::Result;
use nix::unistd::{Uid, User};
use ocore_host::{
    DataSource, Host, HostError, LocalHost,
    local::{
        copy::{WorkDirectory, copy_tree},
        process,
    },
    testing::{Sandbox, fence, progress},
};
use ocore_model::ids::{DataSetId, InstanceId};

use crate::clusters::{as_odoo, running};

const MIB: u64 = 1024 * 1024;

async fn copy(host: &LocalHost, instance: InstanceId, original: DataSetId) -> Result<DataSetId, HostError> {
    let data_set = DataSetId::new();
    host.create_data_set(instance, data_set, DataSource::CopyOf(original), fence(1), progress().0).await?;
    Ok(data_set)
}

async fn copies_have_the_data_and_a_life_of_their_own(host: &LocalHost) -> Result<()> {
    let (instance, original) = running(host).await?;
    as_odoo(host, instance, original, "create table t as select 'before' as word").await?.expect_success("table")?;
    let user = host.allocation(instance).await?.odoo;
    let file = host.layout.data_dir(instance, original).join("file");
    std::fs::write(&file, "content")?;
    std::os::unix::fs::chown(&file, Some(user.uid), Some(user.uid))?;

    let copied = copy(host, instance, original).await?;
    assert_eq!(host.observe().await?[0].clusters, [original], "the source's cluster runs on, and the copy's does not run yet");
    let copied_file = host.layout.data_dir(instance, copied).join("file");
    assert_eq!(std::fs::read_to_string(&copied_file)?, "content");
    assert_eq!(std::fs::metadata(&copied_file)?.uid(), user.uid);

    host.start_cluster(instance, original, fence(1)).await?;
    host.start_cluster(instance, copied, fence(1)).await?;
    as_odoo(host, instance, copied, "update t set word = 'after'").await?.expect_success("update")?;
    assert_eq!(as_odoo(host, instance, copied, "select word from t").await?.stdout_text(), "after\n");
    assert_eq!(as_odoo(host, instance, original, "select word from t").await?.stdout_text(), "before\n");

    host.remove_data_set(instance, copied, fence(1)).await?;
    host.remove_data_set(instance, copied, fence(1)).await?;
    assert_eq!(host.data_sets(instance)?, vec![original]);
    assert!(!host.layout.socket_directory(copied).exists());
    assert!(as_odoo(host, instance, original, "select 1").await?.status.success());
    Ok(())
}

#[tokio::test]
async fn a_copy_lives_its_own_life_on_a_plain_directory() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    assert!(!host.facts().await?.pool.reflinks || host.pool.has_reflinks());
    copies_have_the_data_and_a_life_of_their_own(&host).await
}

#[tokio::test]
async fn a_copy_on_an_image_shares_its_blocks() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let facts = host.facts().await?;
    assert!(facts.pool.reflinks);
    assert_eq!(facts.pool.file_system, "xfs");
    copies_have_the_data_and_a_life_of_their_own(&host).await?;
    let (instance, original) = running(&host).await?;
    as_odoo(&host, instance, original, "create table t as select repeat('x', 1000) from generate_series(1, 40000)")
        .await?
        .expect_success("table")?;
    host.stop_cluster(instance, original, fence(1)).await?;
    let before = host.facts().await?.pool.available_bytes;
    copy(&host, instance, original).await?;
    let taken = before.saturating_sub(host.facts().await?.pool.available_bytes);
    assert!(taken < 20 * MIB, "a copy of more than 80 MiB took {taken} bytes");
    Ok(())
}

#[tokio::test]
async fn the_image_of_an_earlier_run_is_found_and_mounted_again() -> Result<()> {
    let sandbox = Sandbox::with_image(512 * MIB)?;
    let host = sandbox.host().await?;
    std::fs::write(host.pool.path().join("kept"), "here")?;
    host.pool.unmount().await?;
    assert!(!sandbox.config().pool.path.join("kept").exists());
    let host = sandbox.host().await?;
    assert!(host.pool.has_reflinks());
    assert_eq!(std::fs::read_to_string(host.pool.path().join("kept"))?, "here");
    sandbox.host().await?;
    Ok(())
}

#[tokio::test]
async fn a_full_image_grows_up_to_its_limit() -> Result<()> {
    let sandbox = Sandbox::with(|config| {
        config.pool.image_size = 400 * MIB;
        config.pool.image_size_limit = 900 * MIB;
    })?;
    let host = sandbox.host().await?;
    let before = host.facts().await?.pool.total_bytes;
    host.pool.require(500 * MIB, "a test").await?;
    assert!(host.facts().await?.pool.total_bytes > before + 400 * MIB);
    let error = host.pool.require(5000 * MIB, "a test").await.unwrap_err().to_string();
    assert!(error.contains("a test needs 4.9 GiB"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_copy_without_room_fails_clearly_and_leaves_nothing() -> Result<()> {
    let sandbox = Sandbox::with_image(400 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, original) = running(&host).await?;
    host.stop_cluster(instance, original, fence(1)).await?;
    let available = host.facts().await?.pool.available_bytes;
    let ballast = std::fs::File::create(host.pool.path().join("ballast"))?;
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, available.saturating_sub(60 * MIB))?;
    let error = copy(&host, instance, original).await.unwrap_err();
    assert!(matches!(error, HostError::Machine { .. }));
    let text = error.to_string();
    assert!(text.contains("left") && text.contains("needs") && text.contains("remove instances"), "{text}");
    assert_only(&host.layout.data_sets(instance), &[original])?;
    assert!(!host.layout.socket_directory(original).join(".s.PGSQL.5432").exists());
    host.start_cluster(instance, original, fence(1)).await?;
    assert!(as_odoo(&host, instance, original, "select 1").await?.status.success());
    Ok(())
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_copy_ends_it_clearly_and_leaves_nothing() -> Result<()> {
    // The room is asked of one file system and taken from another, smaller one: as when somebody else fills the disk meanwhile.
    let (roomy, small) = (Sandbox::new()?, Sandbox::with_image(400 * MIB)?);
    let (roomy_host, small_host) = (roomy.host().await?, small.host().await?);
    let source = roomy.path().join("source");
    std::fs::create_dir(&source)?;
    let file = std::fs::File::create(source.join("file"))?;
    std::io::copy(&mut std::io::repeat(1).take(500 * MIB), &mut &file)?;
    std::fs::write(source.join("small"), "content")?;
    let target = small_host.pool.path().join("target");
    let work = WorkDirectory::create(&target).await?;
    let error = copy_tree(&roomy_host.pool, &source, &work.path().join("tree"), &work, &[]).await.unwrap_err().to_string();
    assert!(error.contains("left") && error.contains("needs 50"), "{error}");
    drop(work);
    assert_eq!(
        std::fs::read_dir(small_host.pool.path())?
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("target")))
            .count(),
        0
    );
    // XFS frees what is removed a moment later.
    for _ in 0..100 {
        if small_host.facts().await?.pool.available_bytes > 250 * MIB {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    anyhow::bail!("the copy's room is not there again: {:?}", small_host.facts().await?.pool)
}

#[tokio::test]
async fn a_copy_is_made_again_with_what_its_source_has_by_then() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, original) = running(&host).await?;
    let (source, data_set) = (DataSource::CopyOf(original), DataSetId::new());
    host.create_data_set(instance, data_set, source, fence(1), progress().0).await?;

    // The operation was broken off, and the old data set served again for a while.
    host.start_cluster(instance, original, fence(2)).await?;
    as_odoo(&host, instance, original, "create table written_meanwhile ()").await?.expect_success("table")?;
    host.create_data_set(instance, data_set, source, fence(3), progress().0).await?;
    host.start_cluster(instance, data_set, fence(3)).await?;
    assert_eq!(as_odoo(&host, instance, data_set, "select count(*) from written_meanwhile").await?.stdout_text(), "0\n");
    Ok(())
}

#[tokio::test]
async fn a_copy_of_nothing_is_refused_and_a_cancelled_one_leaves_nothing() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, original) = running(&host).await?;
    assert!(matches!(copy(&host, instance, DataSetId::new()).await, Err(HostError::NotFound { what: "data set", .. })));
    let (cancelled, _) = progress();
    cancelled.cancel.cancel();
    let outcome = host.create_data_set(instance, DataSetId::new(), DataSource::CopyOf(original), fence(1), cancelled).await;
    assert!(matches!(outcome, Err(HostError::Cancelled)), "{outcome:?}");
    assert_only(&host.layout.data_sets(instance), &[original])?;
    Ok(())
}

#[tokio::test]
async fn what_a_crash_left_half_made_is_swept_at_the_next_start() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, original) = running(&host).await?;
    for name in [format!(".new-{}", DataSetId::new()), format!(".removed-{}", DataSetId::new())] {
        std::fs::create_dir_all(host.layout.data_sets(instance).join(name).join("pgdata"))?;
    }
    let host = sandbox.host().await?;
    assert_only(&host.layout.data_sets(instance), &[original])?;
    assert_eq!(host.observe().await?[0].data_sets, vec![original]);
    Ok(())
}

#[tokio::test]
async fn a_fresh_data_set_has_no_modules() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    assert!(host.installed_modules(instance, data_set, fence(1)).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn destroying_leaves_no_user_process_or_directory() -> Result<()> {
    let sandbox = Sandbox::with_image(512 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let allocation = host.allocation(instance).await?;
    host.destroy_instance(instance, fence(2)).await?;
    host.destroy_instance(instance, fence(2)).await?;
    for user in [&allocation.postgres, &allocation.odoo] {
        assert_eq!(User::from_uid(Uid::from_raw(user.uid))?, None);
        assert!(process::scan().iter().all(|entry| entry.uid() != Some(user.uid) || entry.is_dead()));
    }
    for path in [host.layout.instance(instance), host.layout.socket_directory(data_set), host.layout.records(instance)] {
        assert!(!path.exists(), "{}", path.display());
    }
    assert!(host.observe().await?.is_empty());
    assert!(matches!(host.create_instance(instance, fence(1)).await, Err(HostError::Fenced { .. })), "a destroyed instance stays so");

    let home = sandbox.home();
    running(&host).await?;
    drop(sandbox);
    assert!(!home.exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&home.display().to_string()));
    Ok(())
}

fn assert_only(directory: &Path, expected: &[DataSetId]) -> Result<()> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    assert_eq!(names, expected.iter().map(ToString::to_string).collect::<Vec<_>>());
    Ok(())
}
