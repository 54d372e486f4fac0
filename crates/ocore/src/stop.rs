//! `ocore stop` and `ocore purge`: end, by id, everything that this home runs; remove everything that it is.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ocore_host::local::{LocalHost, PrivateCluster, pool, purge as purge_host};

use crate::{companion::Companion, config::Config, lock::ServerLock, port_keeper::PortKeeper, succession::EdgeProcess};

/// How long the control plane may take to end.
const GRACE: Duration = Duration::from_secs(30);

/// Ends control plane, edge, instances and clusters, in this order, and unmounts the pool. Data stays. What does not run is done.
pub async fn stop(config: &Config) -> Result<()> {
    if !config.home.exists() {
        return Ok(());
    }
    end_server(config).await?;
    EdgeProcess::new(config, None).stop().await?;
    Companion::mail(config, None).stop().await?;
    let host = config.host();
    LocalHost::open(host.clone()).await?.stop_all().await?;
    PortKeeper::new(config, None).stop().await?;
    if let Some(cluster) = PrivateCluster::find(&host).await? {
        cluster.stop().await?;
    }
    pool::unmount(&host.pool).await.context("the pool cannot be unmounted")?;
    Ok(())
}

/// Ends everything and removes the home: data, users, mounts; and the installed Odoo distributions unless they are to be kept.
pub async fn purge(config: &Config, keep_odoo: bool) -> Result<()> {
    if config.home.exists() {
        end_server(config).await?;
        EdgeProcess::new(config, None).stop().await?;
        Companion::mail(config, None).stop().await?;
        PortKeeper::new(config, None).stop().await?;
        purge_host(&config.host()).await?;
    }
    if !keep_odoo && config.odoo.directory.exists() {
        fs::remove_dir_all(&config.odoo.directory).with_context(|| format!("cannot remove {}", config.odoo.directory.display()))?;
        // A parent that we made and that is empty now; one with other things in it stays.
        if let Some(parent) = config.odoo.directory.parent().filter(|parent| parent.ends_with("ocore")) {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(())
}

async fn end_server(config: &Config) -> Result<()> {
    let Some(pid) = ServerLock::holder(&config.home)? else { return Ok(()) };
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("cannot signal process {pid}"))?;
    let begin = Instant::now();
    while ServerLock::holder(&config.home)? == Some(pid) {
        if begin.elapsed() > GRACE {
            kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("cannot kill process {pid}"))?;
        }
        if begin.elapsed() > GRACE * 2 {
            bail!("`ocore serve` (process {pid}) does not end");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
