//! Processes of their own beside the control plane: started by `ocore serve`, found again by the next one, never ended by it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

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
pub const PATROL: Duration = Duration::from_secs(1);

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

    pub fn ports(config: &Config, config_file: Option<PathBuf>) -> Self {
        Self { command: "port-keeper", title: "the keeper of the ports", directory: config.port_directory(), config_file }
    }

    pub fn record(&self) -> PathBuf {
        self.directory.join("process.json")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.command))
    }

    /// Starts it unless it runs. Whether it was started now.
    pub async fn ensure(&self) -> Result<bool> {
        if Process::find(&self.record())?.is_some() {
            return Ok(false);
        }
        let mark = format!("{}/{}", self.directory.display(), self.command);
        self.start(&self.record(), &mark, &[]).await.map(|_| true)
    }

    /// Starts one, whether another runs or not.
    pub async fn start(&self, record: &Path, mark: &str, arguments: &[&str]) -> Result<Process> {
        tokio::fs::create_dir_all(&self.directory).await.with_context(|| format!("cannot make {}", self.directory.display()))?;
        let mut program = Program::new(our_program()?);
        for (name, value) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("OCORE__") || name == "PATH") {
                program = program.env(name, value);
            }
        }
        program = program.arg(self.command);
        for argument in arguments {
            program = program.arg(argument);
        }
        if let Some(file) = &self.config_file {
            program = program.arg("--config").arg(file);
        }
        let new =
            NewProcess { program, record: record.to_owned(), mark: mark.to_owned(), data_set: None, details: serde_json::Value::Null };
        let process = Process::start(new, &self.log()).await.with_context(|| format!("{} cannot be started", self.title))?;
        tracing::info!(pid = process.pid(), "{} was started", self.title);
        Ok(process)
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
        self.stop_recorded(&self.record()).await
    }

    pub async fn stop_recorded(&self, record: &Path) -> Result<()> {
        if let Some(process) = Process::find(record)? {
            process.stop(&[(Signal::TERM, GRACE)]).await?;
            process.forget()?;
        }
        Ok(())
    }
}

/// The file that we are, or the one that took its name since: a package's upgrade removes the old one under us.
fn our_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find our own program")?;
    let gone = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(gone.unwrap_or(path))
}
