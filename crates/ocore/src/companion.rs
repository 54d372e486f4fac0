//! The edge and the mail catcher as processes of their own: started by `ocore serve`, found again by the next one, never ended by it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use ocore_host::local::{
    exec::Program,
    process::{NewProcess, Process},
};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How long one may take to let its requests end.
const GRACE: Duration = Duration::from_secs(35);
/// How often the processes are looked for.
const PATROL: Duration = Duration::from_secs(1);

pub struct Companion {
    /// The command that it is, and its name.
    command: &'static str,
    /// Whom a person knows it as.
    title: &'static str,
    directory: PathBuf,
    config_file: Option<PathBuf>,
}

impl Companion {
    pub fn edge(config: &Config, config_file: Option<PathBuf>) -> Self {
        Self { command: "edge", title: "the edge", directory: config.edge_directory(), config_file }
    }

    pub fn mail(config: &Config, config_file: Option<PathBuf>) -> Self {
        Self { command: "mail-catcher", title: "the mail catcher", directory: config.mail_directory(), config_file }
    }

    fn record(&self) -> PathBuf {
        self.directory.join("process.json")
    }

    /// Starts it unless it runs.
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
        program = program.arg(self.command);
        if let Some(file) = &self.config_file {
            program = program.arg("--config").arg(file);
        }
        let mark = format!("{}/{}", self.directory.display(), self.command);
        let new = NewProcess { program, record: self.record(), mark, data_set: None, details: serde_json::Value::Null };
        let log = self.directory.join(format!("{}.log", self.command));
        let process = Process::start(new, &log).await.with_context(|| format!("{} cannot be started", self.title))?;
        tracing::info!(pid = process.pid(), "{} was started", self.title);
        Ok(())
    }

    /// Keeps it running until the token is cancelled; leaves it running then.
    pub async fn patrol(self, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.ensure().await {
                tracing::error!(error = format!("{error:#}"), "{} is not running", self.title);
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
