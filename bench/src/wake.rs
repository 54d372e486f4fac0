//! From a request to a sleeping 72-module environment to its answer, beside a bare start of the same; and what sleeping and awake ones cost in memory.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::wait::eventually;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    api, idle,
    report::{Report, Target, median, rounded},
    rollback::bare_start,
    source::Source,
};

const MODULES: &[&str] = &["base", "web", "crm", "sale_management", "account", "stock"];
const SLEEPERS: i32 = 200;
/// After a start or an end, until nothing of it goes on.
const SETTLED: Duration = Duration::from_secs(3);
const MEGABYTE: f64 = 1024.0 * 1024.0;

pub async fn run(binary: PathBuf, rounds: usize) -> Result<()> {
    let mut source = Source::start(&binary, MODULES, 32 << 30).await?;
    let main = source.environment["id"].as_str().context("no id")?;
    let body = json!({ "targetBranch": "sleeper", "targetType": "staging", "autoDestroy": false });
    let sleeper = source.owner.post(&format!("/environments/{main}/clone"), &body).await?;
    let deployment = source.owner.deployments(&sleeper).await?.into_iter().next().context("no deployment")?;
    let ended = source.owner.ended(&deployment, Duration::from_secs(120)).await?;
    ensure!(ended["status"] == "succeeded", "{ended}");

    let (mut wakes, mut warm, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let freed = sleep(&source, &sleeper).await?;
        warm.push(freed.of_all);
        shares.push(freed.own_share);
        let begin = Instant::now();
        let answer = source.installation.through_edge(&sleeper, "/changed").await?.error_for_status()?;
        answer.bytes().await?;
        wakes.push(begin.elapsed().as_secs_f64());
        eprintln!("round {round}: awake after {:.2} s", wakes[round]);
    }
    source.installation.terminate_server().await?;
    source.installation.serve(&[("OCORE__ODOO__WARM_STARTS", "false")]).await?;
    let (mut starts, mut bare) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        starts.push(bare_start(&source, &sleeper).await?);
        bare.push(sleep(&source, &sleeper).await?.of_all);
        source.installation.through_edge(&sleeper, "/changed").await?.error_for_status()?;
        eprintln!("round {round}: bare start {:.2} s", starts[round]);
    }
    let sleeping = cost_of_sleepers(&source).await?;

    let (wake, start, warm, bare, share) = (median(wakes), median(starts), median(warm), median(bare), median(shares));
    let mut report = Report::new("wake");
    report.rows.push(json!({
        "database": "72 modules", "rounds": rounds, "wake s": rounded(wake), "bare start s": rounded(start), "one more MB": rounded(warm),
        "own share MB": rounded(share), "one more bare MB": rounded(bare), "asleep MB": rounded(sleeping),
    }));
    report.targets.push(Target::at_most("wake, ratio to a bare start of Odoo and its cluster", "×", wake / start, 0.7));
    report.targets.push(Target::at_most(format!("memory of each of {SLEEPERS} sleeping environments"), "MB", sleeping, 1.0));
    report.targets.push(Target::at_most("memory of one more awake environment, ratio to a bare one", "×", warm / bare, 0.6));
    report.finish()
}

/// What it had awake, in MB.
struct Freed {
    /// By how much all processes of the installation have less without it. What it shares with others (the nursery's pages, programs) is there all the same.
    of_all: f64,
    /// What its own processes had, with their parts of what they shared.
    own_share: f64,
}

/// Puts it to sleep.
async fn sleep(source: &Source, environment: &Value) -> Result<Freed> {
    let id = environment["id"].as_str().context("no id")?;
    let control = format!("/instances/{}/control", environment["instanceId"].as_str().context("no instance")?);
    let awake = async || (source.owner.get(&format!("/environments/{id}")).await.ok()?["instanceStatus"] == "running").then_some(());
    ensure!(eventually(Duration::from_secs(60), awake).await.is_some(), "it is not awake");
    tokio::time::sleep(SETTLED).await;
    let before = memory_of_all(source);
    source.owner.post(&control, &json!({ "action": "sleep" })).await?;
    let asleep = async || source.owner.get(&format!("/environments/{id}/sleep")).await.ok()?["freedBytes"].as_f64();
    let freed = eventually(Duration::from_secs(60), asleep).await.context("it does not fall asleep")?;
    tokio::time::sleep(SETTLED).await;
    Ok(Freed { of_all: before - memory_of_all(source), own_share: freed / MEGABYTE })
}

/// Each page once, in MB, however many of them share it.
fn memory_of_all(source: &Source) -> f64 {
    // One that ends meanwhile has none.
    source.installation.processes().into_iter().filter_map(|(pid, _)| idle::proportional_megabytes(pid).ok()).sum()
}

/// What each of many sleeping environments costs control plane and edge, in MB.
async fn cost_of_sleepers(source: &Source) -> Result<f64> {
    let before = memory(source)?;
    let store = PgPool::connect(&api::store_url(&source.installation)?).await?;
    let project = source.owner.project("Sleepers", json!({ "createEnvironmentOnPush": false })).await?;
    api::fill(&store, project["id"].as_str().context("no id")?.parse()?, SLEEPERS).await?;
    sqlx::query("update instances set status = 'asleep' where project_id = $1::uuid").bind(project["id"].as_str()).execute(&store).await?;
    // The reconcilers have seen them, and the edge has their routes.
    source.installation.through_edge(&source.environment, "/changed").await?.error_for_status()?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.close().await;
    Ok((memory(source)? - before).max(0.0) / f64::from(SLEEPERS))
}

fn memory(source: &Source) -> Result<f64> {
    let serve = source.installation.server_pid().context("it does not run")?;
    let edge = source.installation.processes().into_iter().find(|(_, command)| command.contains("ocore edge")).context("no edge runs")?.0;
    Ok(idle::proportional_megabytes(serve)? + idle::proportional_megabytes(edge)?)
}
