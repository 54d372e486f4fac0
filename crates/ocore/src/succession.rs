//! The edge's process, which a newer one can follow without a lost request: who runs, who comes, who only finishes what it has begun.
//!
//! Whoever answers at the administration socket is the edge; the records here say under which pid each of them runs, and follow that. They may
//! be behind after a crash at any moment, and are put right at the next look.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use ocore_host::{
    EdgeClient,
    local::process::{Process, end_all},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    companion::{Companion, PATROL},
    config::Config,
};

/// For a newer edge to take over.
const TAKE_OVER: Duration = Duration::from_secs(45);
/// For one that another program began to start, before that program died.
const ORPHAN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
/// For another upgrade to end.
const WAIT: Duration = Duration::from_secs(60);

pub struct EdgeProcess {
    companion: Companion,
    directory: PathBuf,
    admin: EdgeClient,
}

impl EdgeProcess {
    pub fn new(config: &Config, config_file: Option<PathBuf>) -> Self {
        let directory = config.edge_directory();
        Self { companion: Companion::edge(config, config_file), admin: EdgeClient::new(config.edge_socket()), directory }
    }

    /// Starts the edge unless it runs. While somebody else upgrades it, that is theirs to see to.
    pub async fn ensure(&self) -> Result<()> {
        let Some(_lock) = self.lock(FlockArg::LockExclusiveNonblock)? else { return Ok(()) };
        self.settle().await?;
        if Process::find(&self.companion.record())?.is_some() {
            return Ok(());
        }
        self.end_unrecorded().await?;
        self.companion.start(&self.companion.record(), &self.mark("edge"), &[]).await?;
        Ok(())
    }

    /// Whether the edge that runs is another program than this one.
    pub fn is_another_program(&self) -> Result<bool> {
        let Some(process) = Process::find(&self.companion.record())? else { return Ok(false) };
        // The files themselves, also where their names have gone or lead elsewhere by now.
        let file = |pid: &str| fs::metadata(Path::new("/proc").join(pid).join("exe")).map(|file| (file.dev(), file.ino()));
        Ok(file(&process.pid().to_string())? != file("self")?)
    }

    /// Puts this program's edge in the place of the one that runs, which finishes what it has begun; starts one where none runs. The pid that
    /// serves then. An attempt that fails changes nothing.
    pub async fn upgrade(&self) -> Result<i32> {
        let _lock = self.wait_for_lock().await?;
        self.settle().await?;
        self.end_unrecorded().await?;
        if Process::find(&self.companion.record())?.is_none() {
            return Ok(self.companion.start(&self.companion.record(), &self.mark("edge"), &[]).await?.pid());
        }
        let mark = self.mark(&format!("edge-{}", uuid::Uuid::new_v4().simple()));
        let newer = self.companion.start(&self.successor(), &mark, &["--take-over"]).await?;
        if self.serves_within(&newer, TAKE_OVER).await {
            self.promote(&newer)?;
            return Ok(newer.pid());
        }
        newer.stop(&[]).await?;
        bail!("the newer edge did not take over, and the older one serves on; {} says why", self.directory.join("edge.log").display())
    }

    /// Keeps it running until the token is cancelled; leaves it running then.
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

    /// Ends it, and those before it that still finish requests. Not running is done.
    pub async fn stop(&self) -> Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _lock = self.wait_for_lock().await?;
        if let Some(newer) = Process::find(&self.successor())? {
            newer.stop(&[]).await?;
        }
        let mut all = self.left()?;
        all.push(self.companion.record());
        for record in all {
            self.companion.stop_recorded(&record).await?;
        }
        self.end_unrecorded().await
    }

    /// Puts the records right after a crash, and forgets those that have ended.
    async fn settle(&self) -> Result<()> {
        for record in self.left()? {
            if Process::find(&record)?.is_none() {
                remove(&record)?;
            }
        }
        match Process::find(&self.successor())? {
            None => remove(&self.successor()),
            Some(newer) if self.serves_within(&newer, ORPHAN).await => self.promote(&newer),
            Some(newer) => Ok(newer.stop(&[]).await.map(drop)?),
        }
    }

    /// Whether this process comes to be the one that answers.
    async fn serves_within(&self, newer: &Process, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && newer.is_alive() {
            if self.admin.status().await.is_ok_and(|status| i64::from(status.pid) == i64::from(newer.pid())) {
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// The newer edge serves: it is the edge now.
    fn promote(&self, newer: &Process) -> Result<()> {
        let record = self.companion.record();
        if let Some(older) = Process::find(&record)? {
            let left = self.directory.join(format!("left-{}.json", older.pid()));
            fs::rename(&record, &left).with_context(|| format!("cannot write {}", left.display()))?;
        }
        fs::rename(self.successor(), &record).with_context(|| format!("cannot write {}", record.display()))?;
        tracing::info!(pid = newer.pid(), "a newer edge serves");
        Ok(())
    }

    /// Ends edges that a crash left between their start and their record.
    async fn end_unrecorded(&self) -> Result<()> {
        let mut records = self.left()?;
        records.extend([self.companion.record(), self.successor()]);
        let mut recorded = BTreeSet::new();
        for record in records {
            recorded.extend(Process::find(&record)?.map(|process| process.pid()));
        }
        let ours = self.mark("edge");
        end_all(|entry| !recorded.contains(&entry.pid) && entry.mark().is_some_and(|mark| mark.starts_with(&ours))).await?;
        Ok(())
    }

    fn successor(&self) -> PathBuf {
        self.directory.join("successor.json")
    }

    /// The records of edges that have given way.
    fn left(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", self.directory.display()))?,
        };
        let is_left = |name: &str| name.strip_prefix("left-").is_some_and(|name| name.strip_suffix(".json").is_some());
        Ok(entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_left)).map(|entry| entry.path()).collect())
    }

    fn mark(&self, name: &str) -> String {
        format!("{}/{name}", self.directory.display())
    }

    async fn wait_for_lock(&self) -> Result<Flock<fs::File>> {
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(lock) = self.lock(FlockArg::LockExclusiveNonblock)? {
                return Ok(lock);
            }
            if Instant::now() > deadline {
                bail!("another program has been upgrading the edge for more than a minute; look for a second `ocore edge upgrade`");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One program at a time starts and ends edges. `None` when another one does.
    fn lock(&self, how: FlockArg) -> Result<Option<Flock<fs::File>>> {
        fs::create_dir_all(&self.directory).with_context(|| format!("cannot make {}", self.directory.display()))?;
        let path = self.directory.join("process.lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        match Flock::lock(file.with_context(|| format!("cannot open {}", path.display()))?, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

fn remove(record: &Path) -> Result<()> {
    match fs::remove_file(record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", record.display()))
        }
        _ => Ok(()),
    }
}
