//! From "roll back" to the first answer of the old state, beside a bare start of the same Odoo with its cluster.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{module::write_page, wait::eventually};
use serde_json::{Value, json};

use crate::{
    report::{Report, Target, median, rounded},
    source::Source,
};

const MODULES: &[&str] = &["base", "web", "crm", "sale_management", "account", "stock"];

pub async fn run(binary: PathBuf, rounds: usize) -> Result<()> {
    let mut source = Source::start(&binary, MODULES, 32 << 30).await?;
    let environment = format!("/environments/{}", source.environment["id"].as_str().context("no id")?);
    let mut rollbacks = Vec::new();
    let mut starts = Vec::new();
    for round in 0..rounds {
        let snapshot = source.owner.post(&format!("{environment}/snapshots"), &json!({ "name": format!("round {round}") })).await?;
        let id = snapshot["id"].as_str().context("no snapshot")?.to_owned();
        let ready = async || (source.owner.get(&format!("/snapshots/{id}")).await.ok()?["status"] == "ready").then_some(());
        ensure!(eventually(Duration::from_secs(60), ready).await.is_some(), "the snapshot is not ready");
        let old = page(&source).await?;
        write_page(&source.repository, "changed", &format!("after {round}"))?;
        source.repository.commit("A change that is taken back")?;
        let push = source.repository.push(&source.remote, &source.key, "HEAD:refs/heads/main", &[])?;
        ensure!(push.success, "{}", push.output);
        ensure!(page(&source).await? != old, "the change is not seen");

        let begin = Instant::now();
        let answer =
            source.owner.post(&format!("{environment}/rollback"), &json!({ "snapshotId": id, "createSafetySnapshot": true })).await?;
        let back = async || (page(&source).await.ok()? == old).then_some(());
        ensure!(
            eventually(Duration::from_secs(120), back).await.is_some(),
            "the old state never came; {}",
            source.installation.log_tail(30)
        );
        rollbacks.push(begin.elapsed().as_secs_f64());
        let deployment = source.owner.get(&format!("/deployments/{}", answer["deploymentId"].as_str().context("no deployment")?)).await?;
        let ended = source.owner.ended(&deployment, Duration::from_secs(60)).await?;
        crate::report::print_steps(&format!("rollback {round}"), &ended);
        eprintln!("round {round}: rollback {:.2} s", rollbacks[round]);
    }
    // A bare start is one without a parent that has imported Odoo already.
    source.installation.terminate_server().await?;
    source.installation.serve(&[("OCORE__ODOO__WARM_STARTS", "false")]).await?;
    for round in 0..rounds {
        starts.push(bare_start(&source, &source.environment).await?);
        eprintln!("round {round}: bare start {:.2} s", starts[round]);
    }
    let (rollback, start) = (median(rollbacks), median(starts));
    let mut report = Report::new("rollback");
    report.rows.push(json!({
        "database": "72 modules", "rounds": rounds, "rollback s": rounded(rollback), "bare start s": rounded(start), "ratio": rounded(rollback / start),
    }));
    report.targets.push(Target::at_most("rollback, ratio to a bare start of Odoo and its cluster", "×", rollback / start, 1.5));
    report.finish()
}

async fn page(source: &Source) -> Result<String> {
    page_of(source, &source.environment).await
}

async fn page_of(source: &Source, environment: &Value) -> Result<String> {
    let answer = source.installation.through_edge(environment, "/changed").await?;
    Ok(answer.error_for_status()?.text().await?)
}

/// The instance is stopped whole; the clock runs from the call that starts it to its first answer.
pub async fn bare_start(source: &Source, environment: &Value) -> Result<f64> {
    let control = format!("/instances/{}/control", environment["instanceId"].as_str().context("no instance")?);
    let status = async |wanted: &'static str| {
        let path = format!("/environments/{}", environment["id"].as_str().unwrap_or_default());
        eventually(Duration::from_secs(60), async || {
            let environment: Value = source.owner.get(&path).await.ok()?;
            (environment["instanceStatus"] == wanted).then_some(())
        })
        .await
        .with_context(|| format!("the instance is not {wanted}"))
    };
    source.owner.post(&control, &json!({ "action": "stop" })).await?;
    status("stopped").await?;
    let begin = Instant::now();
    source.owner.post(&control, &json!({ "action": "start" })).await?;
    ensure!(eventually(Duration::from_secs(60), async || page_of(source, environment).await.ok()).await.is_some(), "it never answered");
    let seconds = begin.elapsed().as_secs_f64();
    status("running").await?;
    Ok(seconds)
}
