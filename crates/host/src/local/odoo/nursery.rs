//! Parents that Odoo's processes are forked from: one for each series of Odoo, started when one is needed (`nursery.py` has its own rules).
//!
//! Nothing depends on one. While it is not there, or when it refuses or does not answer, Odoo is started bare, and the log says why. What it has
//! forked lives on without it. It is found again by its record, also by another oCore on the same home, and ends with `ocore stop`, or by itself
//! when its socket is gone.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ocore_model::names::OdooVersion;
use rustix::process::Signal;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::{
    error::{HostError, Result},
    local::{
        LocalHost,
        distribution::{self, InstalledDistribution},
        durable,
        exec::Program,
        forked::{Conversation, Forked},
        layout::Layout,
        process::{self, Identity, NewProcess, ProcEntry, Process},
        releases::ReleaseRecord,
    },
};

const SCRIPT: &str = include_str!("nursery.py");
/// How long it may take to import everything, on a machine that is busy.
const WARM_UP_LIMIT: Duration = Duration::from_mins(3);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// One that failed is not tried again at each start.
const RETRY_AFTER: Duration = Duration::from_mins(5);
/// How long a fork may take; it takes some 30 ms.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// Python and what it is linked with read these when they start, before a child could say what they are.
const READ_AT_START: [&str; 7] = ["PYTHON", "LD_", "GLIBC_", "MALLOC_", "LC_", "LANG", "TZ"];
/// As for a bare start.
const ENVIRONMENT: [(&str, &str); 3] = [("PYTHONNOUSERSITE", "1"), ("PYTHONDONTWRITEBYTECODE", "1"), ("LANG", "C.UTF-8")];
/// A child writes its own command line and mark over those of the parent; this is the place for them, in bytes.
const ROOM: usize = 16 * 1024;

/// How the Odoos of a host came to be, since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmStarts {
    pub forked: u64,
    pub bare: u64,
    /// Why the last bare one was bare.
    pub last_reason: Option<String>,
}

/// All nurseries of a home.
pub(in crate::local) struct Nurseries {
    layout: Layout,
    is_enabled: bool,
    known: Mutex<HashMap<OdooVersion, Arc<Nursery>>>,
    starts: Arc<Mutex<WarmStarts>>,
}

/// One parent, whether it runs or not.
pub(in crate::local) struct Nursery {
    layout: Layout,
    version: OdooVersion,
    /// Names what it has imported.
    id: String,
    python: PathBuf,
    program: PathBuf,
    turn: tokio::sync::Mutex<()>,
    failed_at: Mutex<Option<Instant>>,
    starts: Arc<Mutex<WarmStarts>>,
}

/// What a child is told, in `nursery.py`'s words.
#[derive(Debug, Serialize)]
pub(in crate::local) struct ForkRequest {
    pub(in crate::local) python: String,
    /// The program and its arguments.
    pub(in crate::local) args: Vec<String>,
    pub(in crate::local) env: BTreeMap<String, String>,
    pub(in crate::local) cwd: String,
    pub(in crate::local) uid: u32,
    pub(in crate::local) gid: u32,
    pub(in crate::local) groups: Vec<u32>,
    pub(in crate::local) network: bool,
    /// Paths of files that are appended to.
    pub(in crate::local) stdout: String,
    pub(in crate::local) stderr: String,
    /// Modules of the project, which must not be in the parent.
    pub(in crate::local) modules: Vec<String>,
    /// The path of a pipe to which it writes how it ends, when somebody will ask.
    pub(in crate::local) ending: Option<String>,
    /// Files that it writes itself to.
    pub(in crate::local) groups_to_enter: Vec<String>,
    /// Its `oom_score_adj`.
    pub(in crate::local) goes_first: Option<String>,
    pub(in crate::local) nice: Option<i32>,
    /// Type, options, source and target of each, in a mount namespace of its own.
    pub(in crate::local) mounts: Vec<[String; 4]>,
}

/// Why nothing was forked.
#[derive(Debug)]
pub(in crate::local) enum NoFork {
    /// As it should be: this start needs a bare one, or the parent is being made ready.
    Unfit(String),
    Failed(String),
}

impl Nurseries {
    pub(in crate::local) fn new(layout: Layout, is_enabled: bool) -> Self {
        Self { layout, is_enabled, known: Mutex::default(), starts: Arc::default() }
    }

    /// The parent for a distribution; `None` when there are to be none.
    fn of(&self, distribution: &InstalledDistribution) -> Option<Arc<Nursery>> {
        if !self.is_enabled || !is_roots_own(distribution) {
            return None;
        }
        let id = id(distribution);
        let mut known = lock(&self.known);
        if let Some(nursery) = known.get(&distribution.distribution.odoo_version).filter(|nursery| nursery.id == id) {
            return Some(Arc::clone(nursery));
        }
        if !is_roots_own_throughout(distribution) {
            return None;
        }
        let nursery = Arc::new(Nursery {
            layout: self.layout.clone(),
            version: distribution.distribution.odoo_version.clone(),
            id,
            python: distribution.python.clone(),
            program: distribution.program.clone(),
            turn: tokio::sync::Mutex::default(),
            failed_at: Mutex::default(),
            starts: Arc::clone(&self.starts),
        });
        known.insert(nursery.version.clone(), Arc::clone(&nursery));
        Some(nursery)
    }
}

impl LocalHost {
    /// Has Odoo's program forked when that is possible.
    pub(in crate::local) fn warm(&self, program: Program, distribution: &InstalledDistribution, record: &ReleaseRecord) -> Program {
        match self.nurseries.of(distribution) {
            Some(nursery) => program.forked_from(nursery, record.release.modules.keys().map(ToString::to_string).collect()),
            None => program,
        }
    }

    /// Waits until Odoos of a series can be forked. Does nothing when that is switched off.
    pub async fn warm_up(&self, version: &OdooVersion) -> Result<()> {
        match self.nurseries.of(&self.installed_distribution(version).await?) {
            Some(nursery) => nursery.ensure().await,
            None => Ok(()),
        }
    }

    /// How the Odoos that this value started came to be.
    pub fn warm_starts(&self) -> WarmStarts {
        lock(&self.nurseries.starts).clone()
    }
}

impl Nursery {
    /// A child that waits for [`Forked::go`], and has the sockets. It is what `request` says by then; dropped before, it ends.
    pub(in crate::local) async fn fork(self: &Arc<Self>, request: &ForkRequest, sockets: &[BorrowedFd<'_>]) -> Result<Forked, NoFork> {
        let differs = |(name, value): &(&String, &String)| {
            READ_AT_START.iter().any(|prefix| name.starts_with(prefix)) && !ENVIRONMENT.contains(&(name.as_str(), value.as_str()))
        };
        if let Some((name, _)) = request.env.iter().find(differs) {
            return Err(NoFork::Unfit(format!("its environment sets {name}, which is read when Python starts")));
        }
        let Ok(mut conversation) = Conversation::begin(&self.socket()).await else {
            return Err(self.make_ready());
        };
        let broken = |error: io::Error| NoFork::Failed(format!("the nursery of Odoo {} broke off: {error}", self.version));
        let Ok(forked) = timeout(ANSWER_LIMIT, born(&mut conversation)).await else {
            // Stopped, or in a state that nobody knows. The next start gets another one.
            let nursery = Arc::clone(self);
            tokio::spawn(async move { nursery.end().await });
            return Err(NoFork::Failed(format!("the nursery of Odoo {} did not answer; it is ended", self.version)));
        };
        let identity = forked.map_err(broken)?;
        let ask = async {
            if !sockets.is_empty() {
                conversation.pass_on(sockets).await?;
            }
            conversation.say(&serde_json::to_vec(request)?).await?;
            conversation.hear().await
        };
        let Ok(answered) = timeout(ANSWER_LIMIT, ask).await else {
            // Somebody keeps it from that, and nobody else.
            identity.signal(Signal::KILL);
            return Err(NoFork::Failed(format!("what the nursery of Odoo {} forked did not become ready; it is ended", self.version)));
        };
        let answer = answered.map_err(broken)?.unwrap_or_default();
        match answer.split_once(' ') {
            None if answer == "ready" => Ok(Forked::new(identity, conversation)),
            Some(("no", reason)) => Err(NoFork::Unfit(reason.to_owned())),
            _ => Err(NoFork::Failed(format!("what the nursery of Odoo {} forked ended at once", self.version))),
        }
    }

    /// Takes note of how a start went, and says so when it was a bare one.
    pub(in crate::local) fn note(&self, program: &str, outcome: Result<(), &NoFork>) {
        let mut starts = lock(&self.starts);
        let Err(reason) = outcome else {
            starts.forked += 1;
            return;
        };
        let (NoFork::Unfit(words) | NoFork::Failed(words)) = reason;
        match reason {
            NoFork::Unfit(_) => tracing::info!(program, version = %self.version, reason = %words, "Odoo is started bare"),
            NoFork::Failed(_) => tracing::warn!(program, version = %self.version, reason = %words, "Odoo is started bare"),
        }
        starts.bare += 1;
        starts.last_reason = Some(words.clone());
    }

    /// Begins to make it ready in the background. Whoever needs an Odoo now does not wait for that.
    fn make_ready(self: &Arc<Self>) -> NoFork {
        if lock(&self.failed_at).is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return NoFork::Unfit(format!("the nursery of Odoo {} failed a moment ago", self.version));
        }
        let nursery = Arc::clone(self);
        tokio::spawn(async move {
            // When somebody is at it already, that one says how it went.
            if let Err(error) = nursery.ensure().await {
                tracing::warn!(version = %nursery.version, %error, "Odoo is started bare for some time");
            }
        });
        NoFork::Unfit(format!("the nursery of Odoo {} is being made ready", self.version))
    }

    /// It runs and answers. May run twice, also at once.
    async fn ensure(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        if let Some(process) = Process::find(&self.record())? {
            if process.record.details == self.id && self.socket().exists() {
                return Ok(());
            }
            // Of an Odoo that was replaced, or half made by an oCore that is no more.
            process.stop(&[(Signal::TERM, STOP_PATIENCE)]).await?;
        }
        let started = self.start().await;
        *lock(&self.failed_at) = started.is_err().then(Instant::now);
        started
    }

    async fn start(&self) -> Result<()> {
        let begun = Instant::now();
        durable::make_directory(&self.layout.nurseries(), 0o700)?;
        let script = self.layout.nurseries().join("nursery.py");
        let log = self.layout.nurseries().join(format!("{}.log", self.version));
        let prepare = || -> std::io::Result<()> {
            durable::write(&script, SCRIPT.as_bytes())?;
            durable::remove_fleeting(&log)?;
            durable::remove_fleeting(&self.socket())
        };
        prepare().map_err(|error| HostError::machine_from(format!("the nursery could not be prepared: {error}"), error))?;
        let program = ENVIRONMENT.iter().fold(Program::new(&self.python), |program, (name, value)| program.env(name, value));
        let new = NewProcess {
            program: program.env("OCORE_ROOM", ".".repeat(ROOM)).arg(&script).arg(self.socket()).arg(&self.program),
            record: self.record(),
            mark: format!("{}{}", mark_of(&self.layout), self.version),
            data_set: None,
            details: serde_json::Value::String(self.id.clone()),
        };
        let process = Process::start(new, &log).await?;
        let listens = async {
            while !self.socket().exists() {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            () = listens => {
                tracing::info!(version = %self.version, pid = process.pid(), seconds = begun.elapsed().as_secs_f32(), "a nursery is ready");
                Ok(())
            }
            ended = process.exited() => {
                ended?;
                process.forget()?;
                let text = fs::read_to_string(&log).unwrap_or_default();
                let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("without a word").to_owned();
                Err(HostError::machine(format!("the nursery of Odoo {} ended: {last}; see {}", self.version, log.display())))
            }
            () = tokio::time::sleep(WARM_UP_LIMIT) => {
                process.stop(&[]).await?;
                Err(HostError::machine(format!("the nursery of Odoo {} was not ready after {} s", self.version, WARM_UP_LIMIT.as_secs())))
            }
        }
    }

    async fn end(&self) {
        let _turn = self.turn.lock().await;
        let ended = async {
            match Process::find(&self.record())? {
                Some(process) => process.stop(&[]).await.map(drop),
                None => Ok(()),
            }
        };
        if let Err(error) = ended.await {
            tracing::error!(version = %self.version, %error, "a nursery that does not answer could not be ended");
        }
        // So that nobody connects to what nobody serves.
        let _ = durable::remove_fleeting(&self.socket());
    }

    fn socket(&self) -> PathBuf {
        self.layout.sockets().join(format!("{}.nursery", self.id))
    }

    fn record(&self) -> PathBuf {
        self.layout.nurseries().join(format!("{}.json", self.version))
    }
}

/// The child that was forked for this conversation. Its parent says who it is before it is anybody's: nobody else has the connection by then. Even so the kernel
/// is asked whether that is a child of whoever listens at the socket.
async fn born(conversation: &mut Conversation) -> io::Result<Identity> {
    let parent = conversation.listener()?;
    let line = conversation.hear().await?.unwrap_or_default();
    let pid: Option<i32> = line.strip_prefix("forked ").and_then(|pid| pid.parse().ok());
    let entry = pid.filter(|pid| *pid > 1).and_then(ProcEntry::read).filter(|entry| entry.parent == parent);
    let identity = entry.and_then(|entry| Identity::of(entry.pid).filter(|identity| identity.start_ticks == entry.start_ticks));
    identity.ok_or_else(|| io::Error::other(format!("it says {line:?}, which is no child of its own")))
}

/// Ends the parents of a home. What they have forked lives on. Absent is done.
pub(in crate::local) async fn stop_all(layout: &Layout) -> Result<()> {
    for entry in fs::read_dir(layout.nurseries()).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(process) = Process::find(&path)?
        {
            process.stop(&[(Signal::TERM, STOP_PATIENCE)]).await?;
        }
    }
    // Started by an oCore that was killed before it wrote that down.
    let mark = mark_of(layout);
    process::end_all(|entry| entry.mark().is_some_and(|found| found.starts_with(&mark))).await?;
    for entry in fs::read_dir(layout.sockets()).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "nursery") {
            let _ = durable::remove_fleeting(&entry.path());
        }
    }
    Ok(())
}

fn mark_of(layout: &Layout) -> String {
    format!("nursery{}/", layout.home().display())
}

/// Its code runs as root in the parent: whoever may change it would be root.
fn is_roots_own(distribution: &InstalledDistribution) -> bool {
    let own_addons = distribution.own_addons();
    let environment = distribution.python.parent().and_then(Path::parent).map(|environment| environment.join("pyvenv.cfg"));
    let files = [&distribution.program, &distribution.python].into_iter().chain(environment.as_ref().filter(|path| path.exists()));
    let mut all = files.chain(&distribution.packages).chain(&own_addons).chain(&distribution.addons);
    is_nobody_elses(all.find(|path| !distribution::is_roots_own(path)))
}

/// The same of each file of one that an operator keeps; one that was installed is root's own from the beginning.
fn is_roots_own_throughout(distribution: &InstalledDistribution) -> bool {
    let code = distribution.program.parent().map(|source| source.join("odoo"));
    let mut trees = distribution.packages.iter().chain(&distribution.addons).chain(&code);
    is_nobody_elses(trees.find(|tree| !distribution.addons.is_empty() && !distribution::is_all_roots_own(tree)))
}

fn is_nobody_elses(others: Option<&PathBuf>) -> bool {
    if let Some(path) = others {
        tracing::info!(path = %path.display(), "others than root may change this Odoo, so that it is started bare");
    }
    others.is_none()
}

/// 16 hexadecimal digits that name what a parent has imported and how it talks.
fn id(distribution: &InstalledDistribution) -> String {
    let mut digest = Sha256::new();
    let paths = [&distribution.python, &distribution.program].map(|path| path.display().to_string());
    for part in [SCRIPT, &distribution.distribution.id, &paths[0], &paths[1]] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())[..16].to_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::process::Command;

    use super::*;

    /// What comes of a child of which the one who listens says this.
    async fn born_as(said: &str) -> io::Result<Identity> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nursery");
        let listener = UnixListener::bind(&socket).unwrap();
        let said = format!("{said}\n");
        let nursery = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            io::Write::write_all(&mut stream, said.as_bytes()).unwrap();
            stream
        });
        let mut conversation = Conversation::begin(&socket).await.unwrap();
        let born = born(&mut conversation).await;
        drop(nursery.join().unwrap());
        born
    }

    #[tokio::test]
    async fn only_a_child_of_who_listens_is_believed_to_be_one() {
        let mut child = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let pid = child.id().unwrap().cast_signed();
        assert_eq!(born_as(&format!("forked {pid}")).await.unwrap(), Identity::of(pid).unwrap());
        // A grandchild, the one who listens itself, its parent, the first process, groups, and words of somebody who has the connection.
        let mut shell = Command::new("sh").args(["-c", "sleep 1000 & wait"]).kill_on_drop(true).spawn().unwrap();
        let grandchild = loop {
            let parent = shell.id().unwrap().cast_signed();
            if let Some(entry) = process::scan().into_iter().find(|entry| entry.parent == parent) {
                break entry.pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let ourselves = ProcEntry::read(std::process::id().cast_signed()).unwrap();
        let lies = [grandchild, ourselves.pid, ourselves.parent, 1, 0, -1, -pid, i32::MAX].map(|pid| format!("forked {pid}"));
        for lie in lies.into_iter().chain([
            "ready".to_owned(),
            format!("ready {pid}"),
            "forked".to_owned(),
            format!("forked {pid} {pid}"),
            String::new(),
        ]) {
            let believed = born_as(&lie).await;
            assert!(believed.is_err(), "{lie}: {believed:?}");
        }
        process::end_all(|entry| entry.pid == grandchild).await.unwrap();
        shell.wait().await.unwrap();
        child.kill().await.unwrap();
        assert!(born_as(&format!("forked {pid}")).await.is_err(), "it has ended and is reaped");
    }
}
