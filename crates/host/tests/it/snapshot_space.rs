//! What snapshots take of the disk, what is said about it, and what happens when there is none left.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use ocore_host::{Host, HostError, LocalHost, SpaceReport, local::exec::Program, testing::Sandbox};
use ocore_model::ids::{DataSetId, InstanceId, SnapshotId};
use tokio_util::sync::CancellationToken;

use crate::{
    clusters::{as_odoo, running},
    snapshot_consistency::{self, Writer},
    snapshot_damage::Paused,
    snapshots::{MIB, another_instance, bring_to_life, leftovers, request, take},
};

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
    let before = settled(host).await?;
    host.remove_snapshot(snapshot.id).await?;
    let freed = settled(host).await? - before;
    let expected = i64::try_from(alone.exclusive_bytes)?;
    assert!((freed - expected).abs() < 12 * MIB as i64, "{freed} came free, and {expected} were said to");
    assert!(host.space().await?.snapshots.is_empty());
    Ok(())
}

/// What is free when all is on the disk, and when nothing comes free any more: XFS gives the blocks of removed files free in its own time.
async fn settled(host: &LocalHost) -> Result<i64> {
    let free = || -> Result<i64> {
        rustix::fs::syncfs(std::fs::File::open(host.pool.path())?)?;
        let found = rustix::fs::statvfs(host.pool.path())?;
        Ok(i64::try_from(found.f_bfree * found.f_frsize)?)
    };
    let mut seen = free()?;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = free()?;
        if (now - seen).abs() < MIB as i64 {
            return Ok(now);
        }
        seen = now;
    }
}

async fn as_superuser(host: &LocalHost, instance: InstanceId, data_set: DataSetId, sql: &'static str) -> Result<()> {
    let mut connection = host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect_as_superuser().await?;
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
    snapshot_consistency::check(&host, target, copy.id()).await?;
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
