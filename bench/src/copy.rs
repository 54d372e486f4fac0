//! From "clone production" to a neutralized environment that answers, under load, beside `pg_dump | pg_restore` plus `cp -a` of the same data.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::wait::eventually;
use serde_json::{Value, json};

use crate::{
    report::{Report, Target, median, rounded},
    source::Source,
};

const GIGABYTE: u64 = 1 << 30;
const MODULES: &[&str] = &["base"];
/// How long the load is watched before the first copy.
const BEFORE: Duration = Duration::from_secs(15);

struct Copied {
    seconds: f64,
    used_bytes: u64,
    began: Instant,
    ended: Instant,
    steps: Vec<(String, f64)>,
}

pub async fn run(binary: PathBuf, rounds: usize, gigabytes: f64, quick: bool) -> Result<()> {
    let mut report = Report::new("copy");
    let source = Source::start(&binary, MODULES, 96 * GIGABYTE).await?;
    let bytes = |share: f64| (gigabytes * share * GIGABYTE as f64) as u64;
    eprintln!("filling: {gigabytes} GB of database, {} GB of file store", gigabytes / 2.0);
    source.fill(bytes(1.0), bytes(0.5))?;
    let small = measure(&source, rounds, "1", &mut report).await?;
    let dumped = dump_and_restore(&source)?;
    report.rows.push(json!({
        "what": "pg_dump -Fc | pg_restore -j2, cp -a", "size": "1", "s": rounded(dumped), "GB used": gigabytes * 1.5,
        "p50 before": null, "p50 during": null, "p99 before": null, "p99 during": null, "longest during": null, "per s before": null, "per s during": null, "failed": null,
    }));
    report.targets.push(Target::at_most("clone, ratio to dump and restore", "×", small / dumped, 1.0 / 15.0));
    report.targets.push(Target::at_most("clone, from the call to the login page", "s", small, 5.0));
    if !quick {
        eprintln!("filling: four times that");
        source.fill(bytes(3.0), bytes(1.5))?;
        let large = measure(&source, rounds, "4", &mut report).await?;
        report.targets.push(Target::at_most("clone at four times the size, ratio", "×", large / small, 1.3));
    }
    report.finish()
}

/// Clones under load; the answer is the median time in seconds.
async fn measure(source: &Source, rounds: usize, size: &str, report: &mut Report) -> Result<f64> {
    let load = source.load()?;
    let begin = Instant::now();
    tokio::time::sleep(BEFORE).await;
    let before = load.between(begin, Instant::now());
    let mut copies = Vec::new();
    for round in 0..rounds {
        source.has_warm_copy().await?;
        let copied = clone(source, &format!("copy-{size}-{round}")).await?;
        eprintln!("size {size}, round {round}: {:.2} s", copied.seconds);
        copies.push(copied);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let seen: Vec<_> = copies.iter().map(|copied| load.between(copied.began, copied.ended)).collect();
    load.stop().await;
    let middle = |value: fn(&crate::source::Seen) -> f64| median(seen.iter().map(value).collect());
    let seconds = median(copies.iter().map(|copied| copied.seconds).collect());
    let failed: usize = seen.iter().map(|seen| seen.failed).sum();
    let p99 = middle(|seen| seen.p99);
    report.rows.push(json!({
        "what": "clone, live, neutralized", "size": size, "s": rounded(seconds),
        "GB used": rounded(median(copies.iter().map(|copied| copied.used_bytes as f64 / GIGABYTE as f64).collect())),
        "p50 before": rounded(before.p50), "p50 during": rounded(middle(|seen| seen.p50)),
        "p99 before": rounded(before.p99), "p99 during": rounded(p99),
        "longest during": rounded(middle(|seen| seen.longest)),
        "per s before": rounded(before.per_second), "per s during": rounded(middle(|seen| seen.per_second)), "failed": failed,
    }));
    eprintln!("size {size}, the middle of {rounds} rounds: {}", middle_steps(&copies));
    report.targets.push(Target::at_most(format!("size {size}: requests of the source that failed"), "", failed as f64, 0.0));
    report.targets.push(Target::at_most(format!("size {size}: the source's p99 meanwhile, ratio to before"), "×", p99 / before.p99, 3.0));
    Ok(seconds)
}

fn middle_steps(copies: &[Copied]) -> String {
    let Some(first) = copies.first() else { return String::new() };
    let middle = |name: &str| {
        let times = copies.iter().flat_map(|copied| &copied.steps).filter(|(step, _)| step == name);
        median(times.map(|(_, milliseconds)| *milliseconds).collect())
    };
    first.steps.iter().map(|(name, _)| format!("{name} {} ms", middle(name))).collect::<Vec<_>>().join(", ")
}

/// From the call to the first login page of the clone; then the clone is destroyed.
async fn clone(source: &Source, branch: &str) -> Result<Copied> {
    let path = format!("/environments/{}", source.environment["id"].as_str().context("no id")?);
    let used = used_bytes(&source.pool())?;
    let began = Instant::now();
    let body = json!({ "targetBranch": branch, "targetType": "staging", "autoDestroy": false });
    let made = source.owner.post(&format!("{path}/clone"), &body).await?;
    let answers = async || {
        let answer = source.installation.through_edge(&made, "/web/login").await.ok()?;
        (answer.status() == 200).then_some(())
    };
    let answered = eventually(Duration::from_secs(120), answers).await;
    ensure!(answered.is_some(), "the clone never answered; {}", source.installation.log_tail(30));
    let ended = Instant::now();
    let own = format!("/environments/{}", made["id"].as_str().context("no id")?);
    // The flag is written in the moment in which the copy becomes live.
    let clone: Value = source.owner.get(&own).await?;
    ensure!(clone["isNeutralized"] == true, "{clone}");
    let deployment = source.owner.deployments(&clone).await?.into_iter().next().context("no deployment")?;
    let deployment = source.owner.ended(&deployment, Duration::from_secs(60)).await?;
    crate::report::print_steps(branch, &deployment);
    let used_bytes = used_bytes(&source.pool())?.saturating_sub(used);
    source.owner.delete(&own).await?;
    let gone = async || source.owner.get(&own).await.ok().is_none_or(|left| left["status"] == "deleted").then_some(());
    ensure!(eventually(Duration::from_secs(60), gone).await.is_some(), "the clone is still there");
    Ok(Copied { seconds: (ended - began).as_secs_f64(), used_bytes, began, ended, steps: crate::report::steps(&deployment) })
}

/// What everybody else does: seconds of the copy alone, without neutralizing and starting it.
fn dump_and_restore(source: &Source) -> Result<f64> {
    let directory = source.pool().join("by-hand");
    fs::create_dir_all(&directory)?;
    let status = Command::new("chmod").arg("777").arg(&directory).status()?;
    ensure!(status.success(), "the directory cannot be opened");
    eprintln!("dump and restore");
    let begin = Instant::now();
    let dump = directory.join("dump");
    succeed(source.postgres_program("pg_dump")?.args(["-Fc", "-f"]).arg(&dump))?;
    source.administer("create database restored owner odoo")?;
    // The later `-d` counts.
    succeed(source.postgres_program("pg_restore")?.args(["-d", "restored", "-j2", "--no-owner"]).arg(&dump))?;
    succeed(Command::new("cp").arg("-a").arg("--reflink=never").arg(source.data_set()?.join("data_dir")).arg(directory.join("data_dir")))?;
    let seconds = begin.elapsed().as_secs_f64();
    source.administer("drop database restored")?;
    fs::remove_dir_all(&directory)?;
    Ok(seconds)
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn used_bytes(path: &Path) -> Result<u64> {
    let output = Command::new("df").args(["--output=used", "-B1"]).arg(path).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().last().and_then(|line| line.trim().parse().ok()).context("df said nothing")
}
