//! The edge as a process of its own: started by `ocore serve`, found again by the next one, never ended by it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use ocore_host::local::{
    exec::Program,
    process::{NewProcess, Process},
};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How long the edge may take to let its requests end.
const GRACE: Duration = Duration::from_secs(35);
/// How often its process is looked for.
const PATROL: Duration = Duration::from_secs(1);

pub struct EdgeProcess {
    directory: PathBuf,
    config_file: Option<PathBuf>,
}

impl EdgeProcess {
    pub fn new(config: &Config, config_file: Option<PathBuf>) -> Self {
        Self { directory: config.edge_directory(), config_file }
    }

    fn record(&self) -> PathBuf {
        self.directory.join("process.json")
    }

    /// Starts the edge unless it runs.
    pub async fn ensure(&self) -> Result<()> {
        if Process::find(&self.record())?.is_some() {
            return Ok(());
        }
        tokio::fs::create_dir_all(&self.directory).await.with_context(|| format!("cannot make {}", self.directory.display()))?;
        let mut program = Program::new(std::env::current_exe().context("cannot find our own program")?);
        for (name, value) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("OCORE__") || name == "PATH") {
                program = program.env(name, value);
            }
        }
        program = program.arg("edge");
        if let Some(file) = &self.config_file {
            program = program.arg("--config").arg(file);
        }
        let mark = format!("{}/edge", self.directory.display());
        let new = NewProcess { program, record: self.record(), mark, data_set: None, details: serde_json::Value::Null };
        let process = Process::start(new, &self.directory.join("edge.log")).await.context("the edge cannot be started")?;
        tracing::info!(pid = process.pid(), "the edge was started");
        Ok(())
    }

    /// Keeps the edge running until the token is cancelled; leaves it running then.
    pub async fn patrol(self, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.ensure().await {
                tracing::error!(error = format!("{error:#}"), "the edge is not running");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PATROL) => {}
            }
        }
    }

    /// Ends it. Not running is done.
    pub async fn stop(&self) -> Result<()> {
        if let Some(process) = Process::find(&self.record())? {
            process.stop(&[(Signal::TERM, GRACE)]).await?;
            process.forget()?;
        }
        Ok(())
    }
}
