//! Deployments of a 72-module production under load: what its users notice, beside stop, `-u`, start by hand on an equal one.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Repository, module::write_page};
use serde_json::{Value, json};

use crate::{
    by_hand::ByHand,
    clients::{Answer, Clients, Site},
    report::{Report, Target, median, quantile, rounded},
    source::Source,
};

const MODULES: &[&str] = &["base", "web", "crm", "sale_management", "account", "stock"];
/// How long the load is watched before each kind.
const BEFORE: Duration = Duration::from_secs(10);
/// A deployment of such a production ends within this.
const LIMIT: Duration = Duration::from_secs(180);
const WORKERS: u16 = 2;
/// Requests of a deployment that are shown.
const SLOWEST: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Change {
    /// Of a controller's code.
    Reload,
    /// A new field.
    Additive,
    /// A new field that must be given.
    Required,
    /// One that the data do not have.
    Failing,
}

impl Change {
    const ALL: [Self; 4] = [Self::Reload, Self::Additive, Self::Required, Self::Failing];

    fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Additive => "update that adds a field",
            Self::Required => "update that adds a required field",
            Self::Failing => "update that fails",
        }
    }
}

/// One deployment.
struct Deployed {
    from: Instant,
    to: Instant,
    /// Of the step *update*.
    update_seconds: f64,
    longest_held: Option<f64>,
    nulls: i64,
}

pub async fn run(binary: PathBuf, rounds: usize, by_hand: usize, only: &[Change]) -> Result<()> {
    let mut report = Report::new("deploy");
    let source = Source::start(&binary, MODULES, 32 << 30).await?;
    let mut fields = Fields::default();
    write_code(&source.repository, "begin")?;
    push(&source, "Code of its own", true).await?;
    let site = Site {
        address: source.installation.edge_address.to_string(),
        host: source.environment["autoSubdomain"].as_str().context("no address")?.to_owned(),
        database: "odoo",
        password: source.password().to_owned(),
    };
    for change in Change::ALL.into_iter().filter(|change| only.is_empty() || only.contains(change)) {
        measure(&source, &site, change, rounds, &mut fields, &mut report).await?;
    }
    hand(&source, by_hand, &mut report).await?;
    report.finish()
}

async fn measure(source: &Source, site: &Site, change: Change, rounds: usize, fields: &mut Fields, report: &mut Report) -> Result<()> {
    let clients = Clients::start(site).await?;
    let began = Instant::now();
    tokio::time::sleep(BEFORE).await;
    let before = clients.between(began, Instant::now());
    let mut deployments = Vec::new();
    for round in 0..rounds {
        deployments.push(deploy(source, change, round, fields).await?);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let end = Instant::now();
    let during: Vec<Answer> = deployments.iter().flat_map(|one| clients.between(one.from, one.to)).collect();
    for one in &deployments {
        print_slowest(&clients.between(one.from, one.to), one.from);
    }
    let mut gaps = clients.gaps(began, end);
    gaps.sort_by(f64::total_cmp);
    for failure in clients.failures() {
        eprintln!("  {failure}");
    }
    let all = clients.between(began, end);
    let lost = clients.stop().await?;
    let failed = all.iter().filter(|answer| !answer.good).count();
    let nulls: i64 = deployments.iter().map(|one| one.nulls).sum();
    let (p99_before, p99_during) = (p99(&before), p99(&during));
    let held: Vec<f64> = deployments.iter().filter_map(|one| one.longest_held).collect();
    let over: Vec<f64> = deployments.iter().filter_map(|one| Some(one.longest_held? - one.update_seconds)).collect();
    let name = change.name();
    report.rows.push(json!({
        "what": name, "rounds": rounds, "requests": all.len(), "failed": failed, "lost writes": lost, "nulls": nulls,
        "p99 before ms": rounded(p99_before * 1000.0), "p99 during ms": rounded(p99_during * 1000.0),
        "longest held s": rounded(held.iter().copied().fold(0.0, f64::max)),
        "update s": rounded(median(deployments.iter().map(|one| one.update_seconds).collect())),
        "ws gap p99 s": if gaps.is_empty() { Value::Null } else { json!(rounded(quantile(&gaps, 0.99))) }, "ws moved": gaps.len(),
    }));
    report.targets.push(Target::at_most(format!("{name}: failed requests"), "", failed as f64, 0.0));
    report.targets.push(Target::at_most(format!("{name}: writes that are not there, and NULLs"), "", lost as f64 + nulls as f64, 0.0));
    match change {
        Change::Reload => {
            report.targets.push(Target::at_most(format!("{name}: p99 during, ratio to before"), "×", p99_during / p99_before, 2.0));
        }
        Change::Failing => {}
        Change::Additive | Change::Required => {
            report.targets.push(Target::at_most(format!("{name}: held longer than the update itself took"), "s", median(over), 1.5));
        }
    }
    if change != Change::Failing {
        report.targets.push(Target::at_most(format!("{name}: websocket gap, p99"), "s", quantile(&gaps, 0.99), 1.5));
    }
    Ok(())
}

async fn deploy(source: &Source, change: Change, round: usize, fields: &mut Fields) -> Result<Deployed> {
    let repository = &source.repository;
    let marker = format!("{} {round}", change.name());
    let field = format!(
        "{}_{round}",
        match change {
            Change::Reload => "none",
            Change::Additive => "note",
            Change::Required => "need",
            Change::Failing => "fail",
        }
    );
    match change {
        Change::Reload => write_code(repository, &marker)?,
        Change::Additive => fields.add(repository, &field, "")?,
        Change::Required => fields.add(repository, &field, "required=True, default=\"given\"")?,
        Change::Failing => fields.add(repository, &field, "required=True")?,
    }
    let from = Instant::now();
    let deployment = push(source, &marker, change != Change::Failing).await?;
    let to = Instant::now();
    crate::report::print_steps(&marker, &deployment);
    let id = deployment["id"].as_str().context("no id")?;
    let told = source.owner.get(&format!("/deployments/{id}/report")).await?;
    for line in told["lines"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("    {line}");
    }
    let update_seconds =
        crate::report::steps(&deployment).into_iter().find(|(name, _)| name == "update").map_or(0.0, |(_, time)| time / 1000.0);
    let nulls = match change {
        Change::Required => source.count(&format!("select count(*) from changed_thing where {field} is null"))?,
        _ => 0,
    };
    if change == Change::Failing {
        fields.remove(repository, &field)?;
    }
    Ok(Deployed { from, to, update_seconds, longest_held: told["held"]["longestSeconds"].as_f64(), nulls })
}

/// Pushes what was changed and waits for the end.
async fn push(source: &Source, message: &str, succeeds: bool) -> Result<Value> {
    source.repository.commit(message)?;
    let pushed = source.repository.push(&source.remote, &source.key, "HEAD:refs/heads/main", &["-o", "no-wait"])?;
    ensure!(pushed.success, "{}", pushed.output);
    let last = source.owner.deployments(&source.environment).await?.into_iter().next().context("no deployment")?;
    let ended = source.owner.ended(&last, LIMIT).await?;
    ensure!((ended["status"] == "succeeded") == succeeds, "{message}: {ended}");
    Ok(ended)
}

/// The fields of the model beside its name.
#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl Fields {
    fn add(&mut self, repository: &Repository, name: &str, options: &str) -> Result<()> {
        self.0.push((name.to_owned(), options.to_owned()));
        self.write(repository)
    }

    fn remove(&mut self, repository: &Repository, name: &str) -> Result<()> {
        self.0.retain(|(field, _)| field != name);
        self.write(repository)
    }

    fn write(&self, repository: &Repository) -> Result<()> {
        let fields: Vec<String> = self.0.iter().map(|(name, options)| format!("    {name} = fields.Char({options})\n")).collect();
        let fields = fields.concat();
        repository.write(
            "changed/models.py",
            &format!(
                "from odoo import fields, models\n\n\nclass Thing(models.Model):\n    _name = \"changed.thing\"\n    _description = \"Thing\"\n\n    name = fields.Char(required=True)\n{fields}"
            ),
        )
    }
}

/// A page, and one that takes a second; the comment is what changes.
fn write_code(repository: &Repository, marker: &str) -> Result<()> {
    repository.write(
        "changed/controllers.py",
        &format!(
            "import time\n\nfrom odoo import http\n\n\nclass Page(http.Controller):\n    @http.route(\"/changed\", auth=\"public\")\n    def page(self):\n        return http.request.env.ref(\"changed.page\").sudo().arch_db + \"{marker}\"\n\n    @http.route(\"/changed/long\", auth=\"public\")\n    def long(self):\n        time.sleep(1)\n        return \"{marker}\"\n"
        ),
    )
}

/// As one does without oCore, under the same load.
async fn hand(source: &Source, rounds: usize, report: &mut Report) -> Result<()> {
    if rounds == 0 {
        return Ok(());
    }
    eprintln!("by hand: installing");
    let directory = source.pool().join("by-hand");
    let repository = directory.join("repository");
    fs::create_dir_all(&repository)?;
    write_code(&source.repository, "by hand")?;
    write_page(&source.repository, "changed", "by hand")?;
    copy(&source.repository, &repository)?;
    let modules: Vec<&str> = MODULES.iter().copied().chain(["changed"]).collect();
    let mut hand = ByHand::new(directory, &repository, &modules.join(","), WORKERS)?;
    hand.start("/changed", "by hand").await?;
    let site = Site { address: hand.address(), host: hand.address(), database: "hand", password: "admin".to_owned() };
    let clients = Clients::start(&site).await?;
    let began = Instant::now();
    tokio::time::sleep(BEFORE).await;
    let before = clients.between(began, Instant::now());
    let (mut times, mut during) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let marker = format!("by hand {round}");
        write_page(&source.repository, "changed", &marker)?;
        copy(&source.repository, &repository)?;
        let from = Instant::now();
        times.push(hand.deploy("changed", "/changed", &marker).await?);
        during.extend(clients.between(from, Instant::now()));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let end = Instant::now();
    let mut gaps = clients.gaps(began, end);
    gaps.sort_by(f64::total_cmp);
    let all = clients.between(began, end);
    let lost = clients.stop().await?;
    report.rows.push(json!({
        "what": "by hand: stop, -u, start", "rounds": rounds, "requests": all.len(), "failed": all.iter().filter(|answer| !answer.good).count(),
        "lost writes": lost, "nulls": 0, "p99 before ms": rounded(p99(&before) * 1000.0), "p99 during ms": rounded(p99(&during) * 1000.0),
        "longest held s": null, "update s": rounded(median(times)),
        "ws gap p99 s": if gaps.is_empty() { Value::Null } else { json!(rounded(quantile(&gaps, 0.99))) }, "ws moved": gaps.len(),
    }));
    hand.stop()
}

fn copy(repository: &Repository, target: &PathBuf) -> Result<()> {
    let status = Command::new("cp").arg("-r").arg(repository.path().join("changed")).arg(target).status()?;
    ensure!(status.success(), "cannot copy the work tree");
    Ok(())
}

/// In seconds, of the requests that Odoo answers as soon as it can.
fn p99(answers: &[Answer]) -> f64 {
    let mut times: Vec<f64> =
        answers.iter().filter(|answer| answer.good && answer.kind != crate::clients::Kind::Long).map(|answer| answer.seconds).collect();
    times.sort_by(f64::total_cmp);
    quantile(&times, 0.99)
}

/// Where the time goes that a p99 only counts.
fn print_slowest(answers: &[Answer], since: Instant) {
    let mut slowest: Vec<&Answer> = answers.iter().filter(|answer| answer.kind != crate::clients::Kind::Long).collect();
    slowest.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    let words = slowest
        .iter()
        .take(SLOWEST)
        .map(|answer| format!("{:?} at {:.1} s {:.0} ms", answer.kind, (answer.began - since).as_secs_f64(), answer.seconds * 1000.0));
    eprintln!("    slowest: {}", words.collect::<Vec<_>>().join(", "));
}
