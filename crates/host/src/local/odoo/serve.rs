//! Odoos that serve: started, proven by a real request, adopted, stopped.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Seek, SeekFrom},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{OpenOptionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::Color,
};
use rustix::process::Signal;
use tokio::net::TcpStream;

use super::{
    command::{self, Turns},
    config::{DATABASE, OdooConfig, Serve},
    failure::{self, Failure},
    guard::Guard,
    health::{self, Answer},
    log_record::Log,
    stop::{self, Work},
    update_and_serve,
};
use crate::{
    api::{Egress, Progress, RunModules, RunningSlot, SlotSpec, Standing},
    error::{HostError, Result},
    local::{
        LocalHost,
        cgroups::Part,
        cluster::Cluster,
        data_sets::Lacks,
        fence::Claim,
        layout::{Layout, Unit},
        ledger::{OsUser, SlotPorts},
        process::{NewProcess, Process},
        slots::{self, SlotDetails},
    },
};

/// Between two looks into the log of an Odoo that starts.
const LOG_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks whether Odoo listens already: small beside the second that it takes to start.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a slot that runs already may take to prove it.
const PROOF_PATIENCE: Duration = Duration::from_secs(20);
/// How much of the log of a failed start is read, in bytes.
const LOG_LIMIT: u64 = 8 * 1024 * 1024;
/// How long websockets stay with the slot that serves because the new one does not take them yet.
const WEBSOCKET_PATIENCE: Duration = Duration::from_secs(20);

impl LocalHost {
    pub(in crate::local) async fn serve(&self, claim: &Claim, spec: &SlotSpec, progress: &Progress) -> Result<RunningSlot> {
        let instance = claim.instance;
        if self.standing_of(instance, spec.data_set.id())? == Standing::Raw {
            return Err(HostError::rejected(
                "this copy of another environment's data has not been made harmless, so no Odoo starts on it; neutralize it first",
            ));
        }
        if self.lacks(instance, spec.data_set.id())? != Lacks::Nothing {
            return Err(HostError::machine("this copy of a template has no password of its own yet, so no Odoo starts on it"));
        }
        if let Some((process, details)) = slots::find(&self.layout, instance, spec.color)? {
            let is_same = details.data_set == spec.data_set.id() && details.release == spec.release && details.settings == spec.settings;
            if is_same {
                self.run_cluster(instance, spec.data_set.id()).await?;
                if process.is_paused() {
                    progress.log.line("The Odoo that rested goes on.");
                }
                process.resume().await?;
                // A start that was broken off may have left it at another priority.
                process.yield_no_more();
                if health::login_page(details.http, PROOF_PATIENCE).await.is_good() {
                    return Ok(slots::describe(spec.color, &process, &details));
                }
                progress.log.line("The Odoo that runs does not answer; it is started again.");
            }
            self.stop_odoo(instance, &process, &details).await?;
        }
        self.begin_to_serve(claim, spec, None, progress).await
    }

    /// Starts a slot that first updates modules in data that may serve. To be judged by what the database says afterwards.
    pub(super) async fn serve_updated(
        &self,
        claim: &Claim,
        spec: &SlotSpec,
        request: &RunModules,
        progress: &Progress,
    ) -> Result<RunningSlot> {
        if self.standing_of(claim.instance, spec.data_set.id())? == Standing::Raw
            || self.lacks(claim.instance, spec.data_set.id())? != Lacks::Nothing
        {
            return Err(HostError::machine("data that may not serve are not updated by an Odoo that serves them"));
        }
        self.begin_to_serve(claim, spec, Some(request), progress).await
    }

    async fn begin_to_serve(
        &self,
        claim: &Claim,
        spec: &SlotSpec,
        update: Option<&RunModules>,
        progress: &Progress,
    ) -> Result<RunningSlot> {
        claim.check()?;
        let cluster = self.run_cluster(claim.instance, spec.data_set.id()).await?;
        let guard = Guard::begin(self, claim.instance, &cluster, progress)?;
        // On the heap, as all that is this deep: a thread's stack is small.
        let attempt = Box::pin(self.try_to_serve(claim, spec, update, &guard.progress));
        if update.is_some() { guard.over_update(attempt).await } else { guard.over_start(attempt).await }
    }

    async fn try_to_serve(&self, claim: &Claim, spec: &SlotSpec, update: Option<&RunModules>, progress: &Progress) -> Result<RunningSlot> {
        let instance = claim.instance;
        let unit = Unit::Slot(spec.color);
        let (record, distribution) = self.runnable(&spec.release).await?;
        let cluster = self.run_cluster(instance, spec.data_set.id()).await?;
        let allocation = self.allocation(instance).await?;
        let ports = self.ledger.free_slot_ports(instance, spec.color).await?;
        self.confine(instance).await?;
        let (http, websocket) = addresses(ports, spec);
        // Beside another one that serves the same data, it is told only once it answers.
        let is_alone = self.neighbour(instance, spec.color, spec.data_set.id())?.is_none();
        if is_alone {
            self.print_from(&cluster, instance, http).await;
        }
        let log = self.odoo_log_path(instance);
        let log_start = prepare_log(&log, &allocation.odoo)?;
        let mail = self.has_mailbox(instance).then(|| allocation.mail_address());
        for done in self.catch_mail_of(instance, spec.data_set.id()).await? {
            progress.log.line(&done);
        }
        let config = self.layout.instance(instance).join(format!("odoo-{}.conf", spec.color));
        OdooConfig {
            version: &record.release.odoo_version,
            addons_path: self.addons_path(&record, &distribution)?,
            data_dir: self.layout.data_dir(instance, spec.data_set.id()),
            socket_directory: cluster.socket_directory.clone(),
            settings: &spec.settings,
            project: &self.project_options(claim, spec.data_set.id(), &record, update.map(|request| request.install.as_slice())).await?,
            serve: Some(Serve { http, websocket, log: log.clone(), mail }),
        }
        .write(&config, &allocation.odoo)?;
        claim.check()?;
        let beside = slots::find(&self.layout, instance, spec.color.other())?.is_some();
        let turns = Turns::prepare(&self.layout.instance(instance), &allocation.odoo)?;
        let details = SlotDetails {
            data_set: spec.data_set.id(),
            release: spec.release.clone(),
            http,
            websocket,
            settings: spec.settings.clone(),
            takes_turns: true,
        };
        let mut program = self
            .warm(command::serving(&distribution, &record, &allocation.odoo, &spec.settings, &turns), &distribution, &record)
            .arg("--config")
            .arg(&config)
            .args(["--database", DATABASE])
            .args(update.map(update_and_serve::options).unwrap_or_default())
            .group(self.cgroups.prepare(instance, Part::Slot(spec.color), beside));
        for (port, socket) in self.slot_sockets(instance, spec.color, &[Some(http), websocket]).await? {
            program = program.socket(port, socket);
        }
        let new = NewProcess {
            program,
            record: self.layout.record(instance, unit),
            mark: Layout::mark(instance, unit),
            data_set: Some(spec.data_set.id()),
            details: serde_json::to_value(&details).map_err(|error| HostError::machine_from("a slot could not be written down", error))?,
        };
        let output = self.layout.logs(instance).join(format!("odoo-{}.out", spec.color));
        let output_start = fs::metadata(&output).map_or(0, |metadata| metadata.len());
        let process = Process::start(new, &output).await?;
        self.quiet_when_ended(instance, spec.color, &process, &[Some(http), websocket]);
        let _yielding = (!self.serving_beside(instance, &process).is_empty()).then(|| process.yield_processor());
        let source = self.release_tree(&spec.release)?;
        // An update is ended by its guard.
        let load = if update.is_some() { Duration::MAX } else { self.config.patience.start };
        match self.wait_until_it_answers(claim, &process, &details, load, (log.as_path(), log_start), progress).await {
            Ok(()) => {
                if let Some(Err(error)) = update.map(|request| update_and_serve::judge(&read_from(&log, log_start), request, &source)) {
                    process.stop(&[(Signal::TERM, Duration::from_secs(2))]).await?;
                    return Err(error);
                }
                if !is_alone {
                    self.print_from(&cluster, instance, http).await;
                    takes_websockets(&details, progress).await;
                }
                Ok(slots::describe(spec.color, &process, &details))
            }
            Err(wait) => {
                process.stop(&[(Signal::TERM, Duration::from_secs(2))]).await?;
                let error = match wait {
                    Wait::Stopped(error) => return Err(error),
                    Wait::Failed(words) => words,
                };
                let text = read_from(&output, output_start) + &read_from(&log, log_start);
                Err(match update {
                    Some(request) => update_and_serve::explain(&text, request, &source, error),
                    None => explain(&text, &source, error),
                })
            }
        }
    }

    /// Until the login page comes: some time after it has loaded the database, for which it has `load`. The port for websockets opens about a second
    /// later, since Odoo starts a program of its own for them; requests that wait do not wait for that.
    async fn wait_until_it_answers(
        &self,
        claim: &Claim,
        process: &Process,
        details: &SlotDetails,
        load: Duration,
        (log, log_start): (&Path, u64),
        progress: &Progress,
    ) -> Result<(), Wait> {
        let answers = async {
            loop {
                // Connects as soon as Odoo listens; the answer comes when the database is loaded.
                match health::login_page(details.http, Duration::MAX).await {
                    answer if answer.is_good() => return Ok(()),
                    Answer::Status(status) => return Err(Wait::Failed(format!("Odoo started and answers its login page with {status}"))),
                    Answer::Endless => {
                        return Err(Wait::Failed(format!(
                            "Odoo started, but the log-in page does not end: after {} KiB there is still more of it",
                            health::PAGE_LIMIT / 1024
                        )));
                    }
                    Answer::Nothing => tokio::time::sleep(LOOK_INTERVAL).await,
                }
            }
        };
        let answer = self.config.patience.answer;
        let silent = async {
            // At a log level above `info` nobody hears that it has loaded.
            if tokio::time::timeout(load.saturating_add(answer), loaded(log, log_start, process.pid())).await.is_err() {
                return Wait::Failed(format!("Odoo had not loaded its database and answered {} s after its start", load.as_secs()));
            }
            tokio::time::sleep(answer).await;
            Wait::Failed(format!(
                "Odoo has loaded its database, but has not answered its login page within {} s: something in the modules waits for what does not come when a \
                 page is asked for",
                answer.as_secs()
            ))
        };
        tokio::select! {
            biased;
            answered = answers => answered,
            silent = silent => Err(silent),
            ended = process.exited() => {
                ended.map_err(Wait::Stopped)?;
                Err(Wait::Failed("Odoo ended while it started".to_owned()))
            }
            () = progress.cancel.cancelled() => Err(Wait::Stopped(HostError::Cancelled)),
            () = claim.superseded.cancelled() => Err(Wait::Stopped(claim.check().err().unwrap_or(HostError::Cancelled))),
        }
    }

    /// The slot's Odoo stands still until [`LocalHost::serve`] lets it go on. Not running is done.
    pub(in crate::local) async fn rest_slot(&self, claim: &Claim, color: Color) -> Result<()> {
        let instance = claim.instance;
        let Some((_, details)) = slots::find(&self.layout, instance, color)? else { return Ok(()) };
        let cluster = self.cluster(&self.allocation(instance).await?, instance, details.data_set)?;
        self.rest_users_of(instance, details.data_set, &cluster).await
    }

    pub(in crate::local) async fn end_slot(&self, claim: &Claim, color: Color) -> Result<()> {
        let found = slots::find(&self.layout, claim.instance, color)?;
        if let Some((process, details)) = &found {
            self.stop_odoo(claim.instance, process, details).await?;
        }
        self.cgroups.release(claim.instance, Part::Slot(color.other()));
        let Some((_, details)) = found else { return Ok(()) };
        if let Some(http) = self.neighbour(claim.instance, color, details.data_set)? {
            let cluster = self.run_cluster(claim.instance, details.data_set).await?;
            self.print_from(&cluster, claim.instance, http).await;
        }
        Ok(())
    }

    /// The other Odoos of the instance that serve users. One whose record cannot be read keeps nobody from stopping this one.
    pub(super) fn serving_beside(&self, instance: InstanceId, process: &Process) -> Vec<Process> {
        let slots = Color::ALL.iter().filter_map(|color| slots::find(&self.layout, instance, *color).ok()?);
        slots.map(|(other, _)| other).filter(|other| other.pid() != process.pid() && !other.is_paused()).collect()
    }

    /// Where the instance's other slot answers, when it serves the same data.
    fn neighbour(&self, instance: InstanceId, color: Color, data_set: DataSetId) -> Result<Option<SocketAddr>> {
        let found = slots::find(&self.layout, instance, color.other())?;
        Ok(found.filter(|(_, details)| details.data_set == data_set).map(|(_, details)| details.http))
    }

    async fn print_from(&self, cluster: &Cluster, instance: InstanceId, http: SocketAddr) {
        if let Err(error) = print_from(cluster, http, self.egress_policy(instance) != Egress::Open).await {
            tracing::warn!(%instance, %error, "Odoo is not told where its reports find their styles; they may come without");
        }
    }

    /// Gracefully, and by force after a while. A paused one does not run again: what it would write now is in no copy of its data.
    pub(in crate::local) async fn stop_odoo(&self, instance: InstanceId, process: &Process, details: &SlotDetails) -> Result<()> {
        let beside = self.serving_beside(instance, process);
        if process.is_paused() {
            let _yielding = (!beside.is_empty()).then(|| process.yield_processor());
            return process.stop(&[]).await.map(drop);
        }
        let cluster = self.cluster(&self.allocation(instance).await?, instance, details.data_set)?;
        let work = Work { http: details.http, cluster, beside };
        if !stop::stop(process, work).await? {
            tracing::warn!(pid = process.pid(), "an Odoo did not end its requests in time and was ended by force");
        }
        Ok(())
    }

    /// Where both slots of an instance log.
    pub(in crate::local) fn odoo_log_path(&self, instance: InstanceId) -> PathBuf {
        self.layout.logs(instance).join("odoo.log")
    }
}

/// Until the port for websockets is open, for some seconds, where users are served meanwhile: whom the old slot sends away the new one takes at once.
async fn takes_websockets(details: &SlotDetails, progress: &Progress) {
    let Some(address) = details.websocket else { return };
    let opened = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = opened => {}
        () = progress.cancel.cancelled() => {}
        () = tokio::time::sleep(WEBSOCKET_PATIENCE) => {
            progress.log.line("Odoo answers, but has not opened its port for websockets yet; they wait for it.");
        }
    }
}

/// Until this process logs that it has loaded its registry.
async fn loaded(log: &Path, start: u64, pid: i32) {
    let mut position = start;
    loop {
        let text = read_from(log, position);
        if text.lines().any(|line| says_loaded(line, pid)) {
            return;
        }
        // A line that is not complete is read again.
        position += text.rfind('\n').map_or(0, |end| end as u64 + 1);
        tokio::time::sleep(LOG_INTERVAL).await;
    }
}

/// `2026-01-01 00:00:00,000 4711 INFO odoo odoo.registry: Registry loaded in 2.368s`
fn says_loaded(line: &str, pid: i32) -> bool {
    line.contains("registry: Registry loaded in ") && line.split_whitespace().nth(2) == Some(&pid.to_string())
}

/// Why the wait for a start ended.
enum Wait {
    /// Not Odoo's doing.
    Stopped(HostError),
    Failed(String),
}

/// Has reports fetch their styles and pictures from this Odoo itself. Otherwise they would ask for `web.base.url`, which is the edge, where a closed
/// Odoo may not go. An open one keeps what somebody has set, unless it is an earlier port of this kind.
async fn print_from(cluster: &Cluster, http: SocketAddr, is_closed: bool) -> Result<()> {
    let mut connection = cluster.connect_as_owner().await?;
    let statement = if is_closed {
        "insert into public.ir_config_parameter (key, value) values ('report.url', $1) on conflict (key) do update set value = excluded.value"
    } else {
        r"update public.ir_config_parameter set value = $1 where key = 'report.url' and value ~ '^http://127\.0\.0\.1:\d+$'"
    };
    sqlx::query(statement)
        .bind(format!("http://{http}"))
        .execute(&mut connection)
        .await
        .map_err(|error| HostError::machine_from("the address of reports could not be set", error))?;
    Ok(())
}

fn addresses(ports: SlotPorts, spec: &SlotSpec) -> (SocketAddr, Option<SocketAddr>) {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    (at(ports.http), (spec.settings.workers > 0).then(|| at(ports.websocket)))
}

/// Odoo may write the file and nothing else in the directory; it does not make it. Answers with its length.
fn prepare_log(path: &Path, user: &OsUser) -> Result<u64> {
    let prepare = || -> std::io::Result<u64> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        chown(path, Some(user.uid), Some(user.uid))?;
        Ok(file.metadata()?.len())
    };
    prepare().map_err(|error| HostError::machine_from(format!("the log {} could not be made: {error}", path.display()), error))
}

/// What has been written since, also when the log was rotated meanwhile.
pub(super) fn read_from(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        let start = if start > length { 0 } else { start };
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_LIMIT))))?;
        let mut bytes = Vec::new();
        file.take(LOG_LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

fn explain(text: &str, source: &Path, otherwise: String) -> HostError {
    let log = Log::parse(text);
    if let Some(Failure { summary, excerpt }) = failure::explain(&log, source) {
        return HostError::Rejected { summary: format!("Odoo does not start: {summary}"), excerpt };
    }
    let lines: Vec<&str> = text.lines().collect();
    HostError::Rejected { summary: otherwise, excerpt: lines[lines.len().saturating_sub(20)..].join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_slots_registry_is_not_this_ones() {
        let line = "2026-11-24 06:18:47,562 28837 INFO odoo odoo.registry: Registry loaded in 2.368s ";
        assert!(says_loaded(line, 28837) && !says_loaded(line, 28838));
        assert!(says_loaded(&line.replace("odoo.registry", "odoo.modules.registry"), 28837), "up to Odoo 18");
        assert!(!says_loaded("2026-11-24 06:18:47,554 28837 INFO odoo odoo.modules.loading: Modules loaded. ", 28837));
    }
}
