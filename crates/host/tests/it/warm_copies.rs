//! Copies of file stores that are begun before anybody asks for them.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use ocore_host::{
    DataSource, Host, HostError, LocalHost,
    local::exec::Program,
    testing::{Sandbox, fence, progress},
};
use ocore_model::ids::{DataSetId, InstanceId};

use crate::{
    clusters::running,
    snapshots::{MIB, another_instance, store, take},
};

/// A pass over the file store, whenever the last one was.
pub(crate) async fn warm_up(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<()> {
    // Not the one of a moment ago.
    if let Ok(mark) = std::fs::File::options().write(true).open(host.layout.warm_copy(instance).join("boot")) {
        mark.set_modified(SystemTime::now() - Duration::from_mins(6))?;
    }
    Ok(host.keep_copy_warm(instance, data_set, progress().0).await?)
}

/// The file store's contents, by name.
fn contents(data_dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for shard in std::fs::read_dir(data_dir.join("filestore/odoo"))? {
        for file in std::fs::read_dir(shard?.path())? {
            let path = file?.path();
            found.push((path.strip_prefix(data_dir)?.to_owned(), std::fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn a_snapshot_begins_with_it_and_is_what_the_source_is() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let (data_dir, owner) = (host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid);
    let kept = store(&data_dir, owner, b"stays as it is")?;
    let removed = store(&data_dir, owner, b"goes")?;
    let changed = store(&data_dir, owner, b"is still being written")?;
    std::fs::write(data_dir.join(&changed), "is still")?;
    warm_up(&host, instance, data_set).await?;
    let warm = host.layout.warm_copy(instance).join("data_dir");
    let inode = std::fs::metadata(warm.join(&kept))?.ino();

    std::fs::remove_file(data_dir.join(&removed))?;
    std::fs::write(data_dir.join(&changed), "is still being written")?;
    let new = store(&data_dir, owner, b"new")?;
    // A second pass, and something new after it.
    warm_up(&host, instance, data_set).await?;
    assert_eq!(contents(&warm)?, contents(&data_dir)?);
    let newest = store(&data_dir, owner, b"newest")?;
    std::fs::remove_file(data_dir.join(&new))?;

    let snapshot = take(&host, instance, data_set).await?;
    let taken = host.layout.snapshot(snapshot.id).join("data_dir");
    assert_eq!(contents(&taken)?, contents(&data_dir)?);
    assert_eq!((snapshot.file_store_files, snapshot.damaged_files.len()), (3, 0));
    assert_eq!(std::fs::metadata(taken.join(&kept))?.ino(), inode, "it was not copied a second time");
    assert!(taken.join(&newest).exists() && !warm.exists(), "the warm copy has become the snapshot's");

    // Somebody else's data set: its Odoo reads the files, may remove them, and cannot change them.
    let target = another_instance(&host).await?;
    let copy = host.create_data_set(target, DataSetId::new(), DataSource::Taken { snapshot: snapshot.id }, fence(1), progress().0).await?;
    let copied = host.layout.data_dir(target, copy.id());
    let metadata = std::fs::metadata(copied.join(&kept))?;
    assert_eq!((metadata.ino(), metadata.uid(), metadata.permissions().mode() & 0o777), (inode, 0, 0o444));
    let odoo = host.allocation(target).await?.odoo;
    let run = async |command: &str| {
        let shell = Program::new("/usr/bin/setpriv")
            .args([&format!("--reuid={}", odoo.uid), &format!("--regid={}", odoo.uid), "--clear-groups"])
            .args(["sh", "-c", command]);
        shell.run().await
    };
    let file = copied.join(&kept).display().to_string();
    assert_eq!(run(&format!("cat {file}")).await?.expect_success("reading")?.stdout_text(), "stays as it is");
    assert!(run(&format!("echo changed > {file}")).await?.expect_success("changing").is_err());
    run(&format!("rm -f {file}")).await?.expect_success("removing")?;
    assert_eq!(std::fs::read(data_dir.join(&kept))?, b"stays as it is");
    Ok(())
}

#[tokio::test]
async fn a_deployment_s_copy_begins_with_it_and_belongs_to_its_odoo() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let (data_dir, owner) = (host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid);
    let kept = store(&data_dir, owner, b"stays")?;
    let removed = store(&data_dir, owner, b"goes")?;
    std::process::Command::new("chown").args(["-R", &format!("{owner}:{owner}")]).arg(&data_dir).status()?;
    std::fs::create_dir(data_dir.join("sessions"))?;
    std::fs::write(data_dir.join("sessions/session"), "logged in")?;
    warm_up(&host, instance, data_set).await?;
    let inode = std::fs::metadata(host.layout.warm_copy(instance).join("data_dir").join(&kept))?.ino();
    std::fs::remove_file(data_dir.join(&removed))?;
    store(&data_dir, owner, b"new")?;

    let copy = host.create_data_set(instance, DataSetId::new(), DataSource::CopyOf(data_set), fence(1), progress().0).await?;
    let copied = host.layout.data_dir(instance, copy.id());
    assert_eq!(contents(&copied)?, contents(&data_dir)?);
    assert_eq!(std::fs::metadata(copied.join(&kept))?.ino(), inode);
    assert_eq!(std::fs::read(copied.join("sessions/session"))?, b"logged in");
    for directory in ["filestore", "filestore/odoo"] {
        assert_eq!(std::fs::metadata(copied.join(directory))?.uid(), owner, "{directory}");
    }
    Ok(())
}

/// A power cut can leave a file that looks whole: of what an earlier run of the system has left nothing counts.
#[tokio::test]
async fn what_was_made_before_the_system_s_start_is_not_believed() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let (data_dir, owner) = (host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid);
    let file = store(&data_dir, owner, b"content")?;
    let warm = host.layout.warm_copy(instance).join("data_dir");
    for next_is_snapshot in [true, false] {
        warm_up(&host, instance, data_set).await?;
        std::fs::write(host.layout.warm_copy(instance).join("boot"), "another one")?;
        let modified = std::fs::metadata(warm.join(&file))?.modified()?;
        std::fs::write(warm.join(&file), [0; 7])?;
        std::fs::File::options().write(true).open(warm.join(&file))?.set_modified(modified)?;
        if next_is_snapshot {
            let snapshot = take(&host, instance, data_set).await?;
            assert_eq!(std::fs::read(host.layout.snapshot(snapshot.id).join("data_dir").join(&file))?, b"content");
        } else {
            warm_up(&host, instance, data_set).await?;
            assert_eq!(std::fs::read(warm.join(&file))?, b"content");
        }
    }
    Ok(())
}

#[tokio::test]
async fn whoever_needs_it_does_not_wait_for_whoever_keeps_it_warm() -> Result<()> {
    let sandbox = Sandbox::with_image(2048 * MIB)?;
    let host = std::sync::Arc::new(sandbox.host().await?);
    let (instance, data_set) = running(&host).await?;
    let (data_dir, owner) = (host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid);
    for number in 0..5000_u32 {
        store(&data_dir, owner, &number.to_le_bytes())?;
    }
    let pass = tokio::spawn({
        let host = std::sync::Arc::clone(&host);
        async move { host.keep_copy_warm(instance, data_set, progress().0).await }
    });
    let warm = host.layout.warm_copy(instance).join("data_dir");
    let begun = async || {
        while !warm.join("filestore").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), begun()).await.context("the pass never begins")?;
    let snapshot = take(&host, instance, data_set).await?;
    let passed = pass.await?;
    assert!(matches!(passed, Err(HostError::Cancelled)), "{passed:?}");
    assert_eq!(contents(&host.layout.snapshot(snapshot.id).join("data_dir"))?, contents(&data_dir)?);

    // Nor does the end of the instance, and nothing is left.
    let pass = tokio::spawn({
        let host = std::sync::Arc::clone(&host);
        async move { host.keep_copy_warm(instance, data_set, progress().0).await }
    });
    tokio::time::timeout(Duration::from_secs(20), begun()).await.context("the pass never begins")?;
    host.destroy_instance(instance, fence(2)).await?;
    let _ = pass.await?;
    assert!(!host.layout.instance(instance).exists());
    Ok(())
}
