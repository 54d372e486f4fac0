//! What oCore costs when nobody asks anything: the proportional memory of control plane and edge.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use ocore_testkit::{Installation, Options};
use serde_json::json;

use crate::report::{Report, Target, rounded};

pub async fn run(binary: PathBuf) -> Result<()> {
    let installation = Installation::start(binary, Options::default()).await?;
    // Past start-up: the reconcilers have run several times.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let mut report = Report::new("idle");
    let mut total = 0.0;
    for (name, wanted) in [("control plane", "ocore serve"), ("edge", "ocore edge")] {
        let (pid, _) = match wanted {
            "ocore serve" => (installation.server_pid().context("it does not run")?, String::new()),
            _ => installation
                .processes()
                .into_iter()
                .find(|(_, command)| command.contains(wanted))
                .with_context(|| format!("no `{wanted}` runs"))?,
        };
        let megabytes = proportional_megabytes(pid)?;
        total += megabytes;
        report.rows.push(json!({ "process": name, "PSS MB": rounded(megabytes) }));
    }
    report.targets.push(Target::at_most("control plane plus edge, idle", "MB", total, 80.0));
    report.finish()
}

/// What a process has of the machine's memory, shared pages divided among those who share them.
pub fn proportional_megabytes(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.context("the kernel gives no PSS")? / 1024.0)
}
