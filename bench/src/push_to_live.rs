//! From `git push` to the first answer of the new version through the edge, beside `odoo -u`, start, first 200 by hand on an equal database.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    ApiClient, Installation, Options, Repository,
    module::{write_module, write_page},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::{
    by_hand::ByHand,
    report::{Report, Target, median, rounded},
};

/// Production has two workers; the hand-made Odoo gets as many.
const WORKERS: u16 = 2;

struct Size {
    name: &'static str,
    modules: &'static [&'static str],
}

const SIZES: &[Size] = &[
    Size { name: "14 modules", modules: &["base"] },
    Size { name: "72 modules", modules: &["base", "web", "crm", "sale_management", "account", "stock"] },
];

pub async fn run(binary: PathBuf, rounds: usize, small_only: bool) -> Result<()> {
    let mut report = Report::new("push-to-live");
    for size in SIZES.iter().take(if small_only { 1 } else { SIZES.len() }) {
        measure(&binary, size, rounds, &mut report).await?;
    }
    report.finish()
}

async fn measure(binary: &PathBuf, size: &Size, rounds: usize, report: &mut Report) -> Result<()> {
    let installation = Installation::start(binary, Options { image_bytes: Some(16 << 30), ..Options::default() }).await?;
    let owner = installation.owner("bench@example.com", "Bench").await?;
    let key = owner.api_key().await?;
    let mut modules: Vec<&str> = size.modules.to_vec();
    modules.push("changed");
    let project = owner.project("Bench", json!({ "moduleSelection": { "kind": "list", "modules": modules } })).await?;
    let remote = project["repository"]["gitRemote"].as_str().context("no remote")?.to_owned();
    let repository = Repository::new()?;
    write_module(&repository, "changed", "before")?;
    // Both bring the update live at once; a rehearsal before it is what only one of them can do.
    repository.write("ocore.toml", "[deploy]\nrehearse = []\n")?;
    repository.commit("The module that changes")?;

    eprintln!("{}: installing, ours", size.name);
    let push = repository.push(&remote, &key, "HEAD:refs/heads/main", &[])?;
    ensure!(push.success && push.output.contains("live at"), "{}", push.output);
    let environment = owner.environment(&project, "main").await?;

    eprintln!("{}: installing, by hand", size.name);
    // On the same file system, from a work tree that its user can read.
    let hand_directory = installation.home.join("pool/by-hand");
    let hand_repository = hand_directory.join("repository");
    fs::create_dir_all(&hand_repository)?;
    copy(&repository, &hand_repository)?;
    let mut hand = ByHand::new(hand_directory, &hand_repository, &modules.join(","), WORKERS)?;
    hand.start("/changed", "before").await?;

    let mut ours = Vec::new();
    let mut by_hand = Vec::new();
    for round in 0..rounds {
        let marker = format!("round {round}");
        write_page(&repository, "changed", &marker)?;
        repository.commit(&marker)?;
        // One waits while the other is measured: neither Odoo is stopped, but only one of them works.
        ours.push(push_and_wait(&installation, &environment, &repository, &remote, &key, &marker).await?);
        finished(&owner, &environment).await?;
        copy(&repository, &hand_repository)?;
        by_hand.push(hand.update("changed", "/changed", &marker).await?);
        eprintln!("{}: round {round}: ours {:.2} s, by hand {:.2} s", size.name, ours[round], by_hand[round]);
    }
    hand.stop()?;
    drop(hand);
    let (ours, by_hand) = (median(ours), median(by_hand));
    report.rows.push(json!({
        "database": size.name, "rounds": rounds, "ours s": rounded(ours), "by hand s": rounded(by_hand),
        "ratio": rounded(ours / by_hand), "over s": rounded(ours - by_hand),
    }));
    report.targets.push(Target::at_most(format!("{}: push to live, ratio to by hand", size.name), "×", ours / by_hand, 0.9));
    Ok(())
}

/// Seconds from the start of `git push` to the first answer with the new content.
async fn push_and_wait(
    installation: &Installation,
    environment: &Value,
    repository: &Repository,
    remote: &str,
    key: &str,
    marker: &str,
) -> Result<f64> {
    let begin = Instant::now();
    let push = repository.push(remote, key, "HEAD:refs/heads/main", &["-o", "no-wait"])?;
    ensure!(push.success, "{}", push.output);
    let answered = eventually(Duration::from_secs(120), async || {
        let answer = installation.through_edge(environment, "/changed").await.ok()?;
        (answer.status() == 200 && answer.text().await.ok()?.contains(marker)).then_some(())
    })
    .await;
    ensure!(answered.is_some(), "the new version never answered; {}", installation.log_tail(30));
    Ok(begin.elapsed().as_secs_f64())
}

/// Waits until the last deployment has ended, so that nothing of it runs beside the other measurement.
async fn finished(owner: &ApiClient, environment: &Value) -> Result<()> {
    let last = owner.deployments(environment).await?.into_iter().next().context("no deployment")?;
    let last = owner.ended(&last, Duration::from_secs(60)).await?;
    ensure!(last["status"] == "succeeded", "{last}");
    crate::report::print_steps("ours", &last);
    Ok(())
}

fn copy(repository: &Repository, target: &PathBuf) -> Result<()> {
    let status = Command::new("cp").arg("-r").arg(repository.path().join("changed")).arg(target).status()?;
    ensure!(status.success(), "cannot copy the work tree");
    Ok(())
}
