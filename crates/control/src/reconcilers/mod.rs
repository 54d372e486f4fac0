//! Reconcilers: each keeps one thing true for ever. None takes input: a run looks at what should be and what is, and does the difference. Each
//! runs on a timer and on a signal, one run at a time, and keeps what its last run did.

mod egress;
mod exports;
mod first_account;
mod git;
mod heartbeat;
mod imports;
mod keep_running;
mod leftovers;
mod logs;
mod mail;
mod prune;
pub(crate) mod quarantines;
pub(crate) mod removals;
mod routes;
mod sessions;
mod sleep;
pub(crate) mod snapshot_work;
mod snapshots;
pub(crate) mod templates;
mod warm_copies;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use ocore_host::LogSink;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Control, Result};

/// A reconciler's runs are this far apart after one that failed, at least.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Output that nobody follows goes to the server's log.
pub(crate) struct Quiet;

impl LogSink for Quiet {
    fn line(&self, text: &str) {
        tracing::debug!(target: "ocore::host", "{text}");
    }
}

/// What the last run of a reconciler did.
#[derive(Debug, Clone)]
pub struct LastRun {
    pub ended_at: DateTime<Utc>,
    pub duration: Duration,
    /// What it changed, one sentence each; or why it failed.
    pub result: std::result::Result<Vec<String>, String>,
}

/// One thing that is kept true.
struct Reconciler {
    name: &'static str,
    every: Duration,
    run: for<'a> fn(&'a Control) -> BoxFuture<'a, Result<Vec<String>>>,
}

const ALL: &[Reconciler] = &[
    Reconciler { name: "keep_running", every: Duration::from_secs(5), run: |control| Box::pin(keep_running::run(control)) },
    Reconciler { name: "routes", every: Duration::from_secs(10), run: |control| Box::pin(routes::run(control)) },
    Reconciler { name: "egress", every: Duration::from_mins(1), run: |control| Box::pin(egress::run(control)) },
    Reconciler { name: "heartbeat", every: Duration::from_mins(1), run: |control| Box::pin(heartbeat::run(control)) },
    Reconciler { name: "webhooks", every: Duration::from_mins(1), run: |control| Box::pin(git::webhooks(control)) },
    Reconciler { name: "branches", every: Duration::from_mins(5), run: |control| Box::pin(git::branches(control)) },
    Reconciler { name: "leftovers", every: Duration::from_mins(1), run: |control| Box::pin(leftovers::run(control)) },
    Reconciler { name: "snapshots", every: Duration::from_mins(5), run: |control| Box::pin(snapshots::run(control)) },
    Reconciler { name: snapshot_work::NAME, every: Duration::from_secs(5), run: |control| Box::pin(snapshot_work::run(control)) },
    Reconciler { name: "logs", every: Duration::from_mins(1), run: |control| Box::pin(logs::run(control)) },
    Reconciler { name: "imports", every: Duration::from_secs(2), run: |control| Box::pin(imports::run(control)) },
    Reconciler { name: "exports", every: Duration::from_secs(2), run: |control| Box::pin(exports::run(control)) },
    Reconciler { name: "mail", every: Duration::from_secs(30), run: |control| Box::pin(mail::run(control)) },
    Reconciler { name: "sleep", every: Duration::from_secs(15), run: |control| Box::pin(sleep::run(control)) },
    Reconciler { name: "mirrors", every: Duration::from_hours(24), run: |control| Box::pin(git::mirrors(control)) },
    Reconciler { name: "prune", every: Duration::from_hours(1), run: |control| Box::pin(prune::run(control)) },
    Reconciler { name: templates::NAME, every: Duration::from_secs(30), run: |control| Box::pin(templates::run(control)) },
    Reconciler { name: "warm_copies", every: Duration::from_mins(1), run: |control| Box::pin(warm_copies::run(control)) },
    Reconciler { name: quarantines::NAME, every: Duration::from_secs(30), run: |control| Box::pin(quarantines::run(control)) },
    Reconciler { name: "first_account", every: Duration::from_mins(1), run: |control| Box::pin(first_account::run(control)) },
    Reconciler { name: removals::NAME, every: Duration::from_mins(1), run: |control| Box::pin(removals::run(control)) },
    Reconciler { name: "sessions", every: Duration::from_hours(1), run: |control| Box::pin(sessions::run(control)) },
];

/// The running reconcilers of this process. Only the process that has the server's host runs them.
#[derive(Clone)]
pub struct Reconcilers {
    signals: BTreeMap<&'static str, Arc<Notify>>,
    last: Arc<Mutex<BTreeMap<&'static str, LastRun>>>,
    tasks: TaskTracker,
}

impl Reconcilers {
    /// Runs each at once, so that what a machine's restart has stopped is started, and then regularly.
    pub fn start(control: &Control, shutdown: &CancellationToken) -> Self {
        let last = Arc::new(Mutex::new(BTreeMap::new()));
        let tasks = TaskTracker::new();
        let mut signals = BTreeMap::new();
        for reconciler in ALL {
            let signal = control.signals.waker(reconciler.name);
            signals.insert(reconciler.name, signal.clone());
            tasks.spawn(keep(reconciler, control.clone(), signal, last.clone(), shutdown.clone()));
        }
        tasks.spawn(sleep::listen(control.clone(), shutdown.clone()));
        tasks.close();
        Self { signals, last, tasks }
    }

    /// Has one run soon. An unknown name does nothing.
    pub fn signal(&self, name: &str) {
        if let Some(signal) = self.signals.get(name) {
            signal.notify_one();
        }
    }

    /// What each did last, by name.
    pub fn last_runs(&self) -> BTreeMap<&'static str, LastRun> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until none runs any more, after the shutdown token was cancelled.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

async fn keep(
    reconciler: &'static Reconciler,
    control: Control,
    signal: Arc<Notify>,
    last: Arc<Mutex<BTreeMap<&'static str, LastRun>>>,
    shutdown: CancellationToken,
) {
    loop {
        let started = tokio::time::Instant::now();
        let result = tokio::select! {
            result = (reconciler.run)(&control) => result,
            () = shutdown.cancelled() => return,
        };
        match &result {
            Ok(changes) => changes.iter().for_each(|change| tracing::info!(reconciler = reconciler.name, "{change}")),
            Err(error) => tracing::warn!(reconciler = reconciler.name, %error, "a reconciler failed; it tries again"),
        }
        let pause = if result.is_err() { reconciler.every.max(AFTER_FAILURE) } else { reconciler.every };
        let run = LastRun { ended_at: control.clock.now(), duration: started.elapsed(), result: result.map_err(|error| error.to_string()) };
        last.lock().unwrap_or_else(PoisonError::into_inner).insert(reconciler.name, run);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = signal.notified() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One run of every reconciler, in their order; for whoever wants the world settled now (tests, `ocore doctor`).
pub async fn run_all(control: &Control) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    for reconciler in ALL {
        changes.extend((reconciler.run)(control).await?);
    }
    Ok(changes)
}
