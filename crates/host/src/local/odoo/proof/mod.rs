//! What a slot proves before anybody is sent to it: its pages answer, their styles and scripts are whole, and no error is logged meanwhile.

mod bundles;
mod files;
mod logged;
mod scripts;
mod styles;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Instant,
};

use http::{StatusCode, Uri};
use ocore_model::{ids::InstanceId, instance::Color};

use self::{
    bundles::{Kind, Known},
    files::Files,
    scripts::Script,
};
use super::{
    health::{self, BUNDLE_LIMIT, Got, Page},
    log_record::{Level, Log},
    serve::read_from,
};
use crate::{
    api::{ProbedPage, Progress, Proof},
    error::{HostError, Result},
    local::{
        LocalHost,
        cgroups::Part,
        exec::{Program, RunAs},
        private::Private,
        process::Process,
        slots::{self, SlotDetails},
    },
};

const ASSETS: &str = "/web/assets/";
const REDIRECTIONS: usize = 4;
/// Slashes in the address of a bundle that is no single website's.
const NO_WEBSITE: usize = 4;
/// Of the log, when a page fails.
const EXCERPT_LINES: usize = 40;
/// Pages that every Odoo has, without a session: what they link to is asked for too.
const FRONT_PAGES: [&str; 2] = ["/web/login", "/"];

/// What came of a page with its redirections.
enum Asked {
    Nothing,
    Endless,
    /// Where it was in the end, and what it said.
    Answered(String, StatusCode, Vec<u8>),
}

/// Something that users would see broken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    summary: String,
    excerpt: String,
    /// It lies in the database, not in what is deployed.
    foreign: bool,
}

impl Fault {
    fn new(summary: String, excerpt: String) -> Self {
        Self { summary, excerpt, foreign: false }
    }

    /// The sentence without the bundle.
    fn place(&self) -> &str {
        self.summary.split_once(": ").map_or(self.summary.as_str(), |(_, place)| place)
    }
}

/// A proof under way.
struct Proving<'a> {
    host: &'a LocalHost,
    instance: InstanceId,
    details: &'a SlotDetails,
    progress: &'a Progress,
    files: Files,
    log: PathBuf,
    begin: u64,
    probed: Vec<ProbedPage>,
    scripts: Vec<Script>,
    /// Bundles by the page that links to them.
    pages: BTreeMap<String, Vec<String>>,
    faults: Vec<Fault>,
    /// Where bundles are whose text says that they are broken.
    broken: BTreeSet<String>,
}

impl LocalHost {
    pub(in crate::local) async fn probe(
        &self,
        instance: InstanceId,
        color: Color,
        proof: &Proof,
        progress: &Progress,
    ) -> Result<Vec<ProbedPage>> {
        let Some((process, details)) = slots::find(&self.layout, instance, color)? else {
            return Err(HostError::rejected("Odoo ended before it was asked for its pages"));
        };
        let yielding = (!self.serving_beside(instance, &process).is_empty()).then(|| process.yield_processor());
        let (record, distribution) = self.runnable(&details.release).await?;
        let log = self.odoo_log_path(instance);
        let begin = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let files = Files {
            tree: self.release_tree(&details.release)?,
            modules: record.modules(),
            others: distribution.addons.iter().cloned().chain(distribution.packages.iter().map(|path| path.join("odoo/addons"))).collect(),
        };
        let mut proving = Proving {
            host: self,
            instance,
            details: &details,
            progress,
            files,
            log,
            begin,
            probed: Vec::new(),
            scripts: Vec::new(),
            pages: BTreeMap::new(),
            faults: Vec::new(),
            broken: BTreeSet::new(),
        };
        let proven = async {
            proving.ask_for_pages(&proof.pages).await?;
            proving.ask_for_bundles(proof.nobody_waits).await?;
            proving.read_scripts(color).await?;
            proving.read_log(&process);
            proving.judge()
        };
        let proven = proven.await;
        if let Err(error) = proven {
            proving.forget_what_is_broken(&process).await;
            return Err(error);
        }
        let probed = proving.probed;
        if yielding.is_some() {
            self.warm_workers(&details, &proof.pages).await;
        }
        Ok(probed)
    }

    /// Asks for the project's pages so often at once that each worker gets one: what it keeps in memory it has from then on, and the first users do not
    /// wait for that. What comes of it does not matter. What all pages need it has since its start (`slot.py`).
    async fn warm_workers(&self, details: &SlotDetails, paths: &[String]) {
        let times = match details.settings.workers {
            ..=1 => return,
            workers => usize::from(workers) * 2,
        };
        let warming = async {
            for page in paths.iter().filter(|path| !path.starts_with(ASSETS)) {
                futures::future::join_all((0..times).map(|_| health::get(details.http, page, BUNDLE_LIMIT))).await;
            }
        };
        let _ = tokio::time::timeout(self.config.patience.answer, warming).await;
    }
}

impl Proving<'_> {
    /// The project's own pages; which bundles they link to is noted.
    async fn ask_for_pages(&mut self, paths: &[String]) -> Result<()> {
        for path in paths {
            let (_, body) = self.ask(path).await?;
            if path.starts_with(ASSETS) {
                self.read_bundle(path, path, &body);
            } else {
                self.pages.insert(path.clone(), bundles::links(&String::from_utf8_lossy(&body)));
            }
        }
        Ok(())
    }

    /// All bundles that the project can have broken, and where nobody waits, the backend's in any case: they are built at the first request.
    async fn ask_for_bundles(&mut self, nobody_waits: bool) -> Result<()> {
        let mut keys = self.files.bundles();
        let mut known = Known::default();
        if !self.files.modules.is_empty() {
            let modules: Vec<String> = self.files.modules.keys().map(ToString::to_string).collect();
            let cluster = self.host.run_cluster(self.instance, self.details.data_set).await?;
            let mut connection = cluster.connect_as_owner().await?;
            known = Known::read(&mut connection, &modules).await.unwrap_or_else(|error| {
                self.progress.log.line(&format!(
                    "The database does not say which bundles pages are made of ({error}); those of the pages themselves are read."
                ));
                Known::default()
            });
            keys.extend(known.of_records.iter().cloned());
        }
        let mut addresses = BTreeSet::new();
        if !keys.is_empty() && bundles::is_frontend(&keys) {
            for path in FRONT_PAGES {
                match self.ask(path).await {
                    Ok((_, body)) => drop(self.pages.insert(path.to_owned(), bundles::links(&String::from_utf8_lossy(&body)))),
                    // A website need not have a page there that everybody may see.
                    Err(HostError::Rejected { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if nobody_waits || !keys.is_empty() {
            addresses.extend(self.pages.values().flatten().cloned());
        }
        if nobody_waits || !keys.is_empty() {
            let backend = bundles::backend();
            self.pages.insert("/odoo".to_owned(), backend.clone());
            addresses.extend(backend);
        }
        let linked: BTreeSet<String> = addresses.iter().map(|address| end(address).to_owned()).collect();
        // What a page links to is that bundle, in the version and for the website that the page has.
        addresses.extend(
            known.touched(&keys).into_iter().filter(|address| !linked.contains(end(address)) || address.matches('/').count() > NO_WEBSITE),
        );
        for address in addresses {
            if bundles::kind(&address).is_some() {
                match self.ask(&address).await {
                    Ok((place, body)) => self.read_bundle(&address, &place, &body),
                    // One of which there is nothing.
                    Err(HostError::Rejected { summary, .. }) if summary.ends_with("404 Not Found") => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn read_bundle(&mut self, address: &str, place: &str, body: &[u8]) {
        let text = String::from_utf8_lossy(body).into_owned();
        let name = bundles::name(address);
        let before = self.faults.len();
        let kind = bundles::kind(address);
        if kind == Some(Kind::Styles) {
            let fault = styles::error(&text).map(|said| styles::explain(name, &said, &self.files));
            // The same file is part of several bundles.
            let is_told = |fault: &Fault| self.faults.iter().any(|told| told.place() == fault.place());
            match fault {
                Some(fault) if is_told(&fault) => drop(self.broken.insert(place.to_owned())),
                fault => self.faults.extend(fault),
            }
        } else if kind == Some(Kind::Scripts) {
            self.faults.extend(scripts::noticed(name, &text, &self.files));
            self.scripts.push((address.to_owned(), text));
        }
        if self.faults.len() > before {
            self.broken.insert(place.to_owned());
        }
    }

    /// Whether a browser would read the scripts, where there is something that can say it.
    async fn read_scripts(&mut self, color: Color) -> Result<()> {
        if self.scripts.is_empty() || self.files.modules.is_empty() {
            return Ok(());
        }
        let Some(node) = scripts::node(&self.host.config.distributions) else {
            self.progress
                .log
                .line("Whether the scripts are JavaScript was not looked at: this server has no Node.js (see `ocore doctor`).");
            return Ok(());
        };
        let user = self.host.allocation(self.instance).await?.odoo;
        let group = self.host.cgroups.find(self.instance, Part::Slot(color));
        let pages = scripts::by_page(&self.pages, &self.scripts);
        let program = |program: Program| {
            let user = RunAs { uid: user.uid, gid: user.uid, groups: Vec::new() };
            program.run_as(user).private(&Private::Fleeting).group(group.clone()).goes_first().cancel(self.progress.cancel.clone())
        };
        let found = scripts::check(&node, program, &self.scripts, &pages, &self.files).await?;
        for fault in found {
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
        Ok(())
    }

    fn read_log(&mut self, process: &Process) {
        let pids: Vec<i32> = process.all().into_iter().map(|entry| entry.pid).collect();
        let (before, text) = (logged::before(&self.log, self.begin), read_from(&self.log, self.begin));
        let found = logged::errors(&before, &text, &pids, &self.files.tree, !self.broken.is_empty());
        self.faults.extend(found);
    }

    /// Refuses what users would see broken. What lies in the database is said, since no deployment mends it.
    fn judge(&self) -> Result<()> {
        for fault in self.faults.iter().filter(|fault| fault.foreign) {
            self.progress.log.line(&format!("Not of this deployment, and so let through: {}.", fault.summary));
        }
        let faults: Vec<&Fault> = self.faults.iter().filter(|fault| !fault.foreign).collect();
        let Some(first) = faults.first() else { return Ok(()) };
        // What is wrong, first of all: one fault's own words may be longer than what is shown.
        let summaries = faults.iter().filter(|_| faults.len() > 1).map(|fault| fault.summary.as_str());
        let excerpts = summaries.chain(faults.iter().map(|fault| fault.excerpt.as_str())).filter(|text| !text.is_empty());
        let more = if faults.len() > 1 { format!(" (and {} more)", faults.len() - 1) } else { String::new() };
        let lines: Vec<&str> = excerpts.flat_map(str::lines).take(EXCERPT_LINES).collect();
        Err(HostError::Rejected { summary: format!("the new Odoo started, but {}{more}", first.summary), excerpt: lines.join("\n") })
    }

    /// A bundle that was built broken is kept in the database, and found again by its version. It goes, and what serves on with the same data builds its own anew,
    /// before somebody asks for it.
    async fn forget_what_is_broken(&self, process: &Process) {
        let places: Vec<String> = self.broken.iter().cloned().collect();
        let forgotten = async {
            let cluster = self.host.run_cluster(self.instance, self.details.data_set).await?;
            let mut connection = cluster.connect_as_owner().await?;
            let statement = "delete from public.ir_attachment where url = any($1) and res_model = 'ir.ui.view' and public";
            let deleted = sqlx::query(statement).bind(&places).execute(&mut connection).await;
            deleted.map_err(|error| HostError::machine_from("a broken bundle could not be removed", error))
        };
        if places.is_empty() {
            return;
        }
        if let Err(error) = forgotten.await {
            tracing::warn!(instance = %self.instance, %error, "a bundle that was built broken stays in the database");
        }
        let beside = self.host.serving_beside(self.instance, process);
        let live = Color::ALL.iter().filter_map(|color| slots::find(&self.host.layout, self.instance, *color).ok()?);
        let live = live.filter(|(other, details)| {
            details.data_set == self.details.data_set && beside.iter().any(|beside| beside.pid() == other.pid())
        });
        for (_, details) in live {
            let build = async {
                for place in &places {
                    let _ = health::get(details.http, &unversioned(place), BUNDLE_LIMIT).await;
                }
            };
            let _ = tokio::time::timeout(self.host.config.patience.answer, build).await;
        }
    }

    /// A page with its redirections: where it ended, and what it says.
    async fn ask(&mut self, path: &str) -> Result<(String, Vec<u8>)> {
        // Of one page with its redirections. A bundle of scripts that was never built takes longer, on a busy machine much longer.
        let patience = self.host.config.patience.answer * if path.starts_with(ASSETS) { 2 } else { 1 };
        let begun = Instant::now();
        let asked = async {
            let mut place = path.to_owned();
            for _ in 0..REDIRECTIONS {
                let got = match health::read(self.details.http, &place, BUNDLE_LIMIT).await {
                    Page::Nothing => return Asked::Nothing,
                    Page::Endless => return Asked::Endless,
                    Page::Whole(got) => got,
                };
                match inside(&got) {
                    Some(next) => place = next,
                    None => return Asked::Answered(place, got.status, got.body),
                }
            }
            Asked::Nothing
        };
        let status = tokio::select! {
            biased;
            () = self.progress.cancel.cancelled() => return Err(HostError::Cancelled),
            status = tokio::time::timeout(patience, asked) => status,
        };
        let why = match status {
            Ok(Asked::Answered(place, status, body)) if status.is_success() || status.is_redirection() => {
                self.probed.push(ProbedPage { path: path.to_owned(), status: status.as_u16(), seconds: begun.elapsed().as_secs_f64() });
                return Ok((place, body));
            }
            Ok(Asked::Answered(_, status, _)) => format!("answers {path} with {status}"),
            Ok(Asked::Endless) => format!("its page {path} does not end: after {} MiB there is still more of it", BUNDLE_LIMIT >> 20),
            Ok(Asked::Nothing) => format!("does not answer {path}, or sends from one page to the next"),
            Err(_) => format!("did not answer {path} within {} s", patience.as_secs()),
        };
        Err(HostError::Rejected {
            summary: format!("the new Odoo started, but {why}"),
            excerpt: excerpt(&read_from(&self.log, self.begin)),
        })
    }
}

/// The file of a bundle, without its version.
fn end(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or(address)
}

/// The address of the same bundle in a version that none has.
fn unversioned(place: &str) -> String {
    match place.rsplit_once('/') {
        Some((before, file)) => format!("{}/0000000/{file}", before.rsplit_once('/').map_or(before, |(before, _)| before)),
        None => place.to_owned(),
    }
}

/// Where a redirection within the same Odoo leads; one elsewhere is an answer.
fn inside(got: &Got) -> Option<String> {
    let location = got.status.is_redirection().then_some(got.location.as_deref()?)?;
    let uri: Uri = location.parse().ok()?;
    uri.host().is_none().then(|| uri.path_and_query().map(ToString::to_string))?
}

/// What went wrong meanwhile, or all that was said.
fn excerpt(text: &str) -> String {
    let log = Log::parse(text);
    let mut lines: Vec<&str> = log
        .at_least(Level::Error)
        .flat_map(|record| std::iter::once(record.line.as_str()).chain(record.more.iter().map(String::as_str)))
        .collect();
    if lines.is_empty() {
        lines = text.lines().collect();
    }
    lines[lines.len().saturating_sub(EXCERPT_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_are_followed_only_within_the_same_odoo() {
        let led = |status: StatusCode, location: &str| inside(&Got { status, location: Some(location.to_owned()), body: Vec::new() });
        assert_eq!(led(StatusCode::SEE_OTHER, "/odoo?debug=1").as_deref(), Some("/odoo?debug=1"));
        assert_eq!(led(StatusCode::FOUND, "https://elsewhere.test/odoo"), None);
        assert_eq!(led(StatusCode::OK, "/odoo"), None);
        assert!(inside(&Got { status: StatusCode::FOUND, location: None, body: Vec::new() }).is_none());
    }

    #[test]
    fn a_bundle_is_asked_for_again_without_its_version() {
        assert_eq!(unversioned("/web/assets/1/abc1234/web.assets_frontend.min.css"), "/web/assets/1/0000000/web.assets_frontend.min.css");
        assert_eq!(unversioned("/web/assets/abc1234/web.assets_web.min.css"), "/web/assets/0000000/web.assets_web.min.css");
    }

    #[test]
    fn the_excerpt_shows_the_traceback() {
        let text = "2026-01-01 00:00:00,000 1 INFO odoo odoo.x: fine\n2026-01-01 00:00:00,000 1 ERROR odoo odoo.http: broken\nTraceback (most recent call last):\n  no\n";
        assert_eq!(excerpt(text).lines().count(), 3);
        assert_eq!(excerpt("all that was said"), "all that was said");
    }
}
