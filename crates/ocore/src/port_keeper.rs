//! `ocore port-keeper`: holds the ports of this server's instances, so that nobody else can take one, whatever else of oCore runs or does not.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_host::local::LocalHost;
use ocore_machine::ports::{Keeper, answers};
use tokio_util::sync::CancellationToken;

use crate::{
    companion::{Companion, PATROL},
    config::Config,
};

/// For a keeper to open its socket, which it does at once.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

pub fn run(config: &Config) -> Result<()> {
    let directory = config.port_directory();
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // When memory is short, it has next to none, and everybody needs it (proc(5), `oom_score_adj`).
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!(%error, "the kernel may end the keeper of the ports when memory is short");
    }
    Keeper::open(&config.port_socket()).context("cannot keep the ports")?.serve().context("the keeper of the ports ended")
}

/// The keeper's process.
pub struct PortKeeper {
    companion: Companion,
    socket: PathBuf,
}

impl PortKeeper {
    pub fn new(config: &Config, config_file: Option<PathBuf>) -> Self {
        Self { companion: Companion::ports(config, config_file), socket: config.port_socket() }
    }

    /// Starts it unless it runs, and waits until it answers. Whether it was started now, and holds nothing yet.
    pub async fn ensure(&self) -> Result<bool> {
        let is_new = self.companion.ensure().await?;
        let begun = Instant::now();
        while !answers(&self.socket) {
            ensure!(begun.elapsed() < OPEN_LIMIT, "the keeper of the ports does not answer; {} says why", self.companion.log().display());
            tokio::time::sleep(LOOK).await;
        }
        Ok(is_new)
    }

    /// Keeps it running until the token is cancelled; leaves it running then. A new one gets the ports to hold.
    pub async fn patrol(self, host: Arc<LocalHost>, shutdown: CancellationToken) {
        let mut is_empty = false;
        loop {
            match self.ensure().await {
                Ok(is_new) => is_empty |= is_new,
                Err(error) => tracing::error!(error = format!("{error:#}"), "the keeper of the ports is not running"),
            }
            if is_empty {
                match host.hold_ports().await {
                    Ok(()) => is_empty = false,
                    Err(error) => tracing::error!(%error, "the ports of instances are not held"),
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PATROL) => {}
            }
        }
    }

    /// Ends it. Not running is done.
    pub async fn stop(&self) -> Result<()> {
        self.companion.stop().await
    }
}
