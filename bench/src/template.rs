//! From the first push to a new development branch to its first answer, beside the same commit in an Odoo whose database is installed from
//! nothing, as production's is.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    ApiClient, Installation, Options, Repository,
    module::{write_module, write_page},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::report::{Report, Target, median, print_steps, rounded};

/// The templates for everybody are made when nothing is being deployed, one after the other.
const MAKING_LIMIT: Duration = Duration::from_mins(10);

/// A project with Odoo's modules and one of its own.
struct Project {
    value: Value,
    repository: Repository,
}

pub async fn run(binary: PathBuf, rounds: usize, modules: &[String]) -> Result<()> {
    let installation = Installation::start(binary, Options { image_bytes: Some(32 << 30), ..Options::default() }).await?;
    let owner = installation.owner("bench@example.com", "Bench").await?;
    let key = owner.api_key().await?;
    let project = async |name: String| -> Result<Project> {
        let modules: Vec<&str> = modules.iter().map(String::as_str).chain(["changed"]).collect();
        let value = owner.project(&name, json!({ "moduleSelection": { "kind": "list", "modules": modules } })).await?;
        let repository = Repository::new()?;
        write_module(&repository, "changed", "the same")?;
        repository.commit("A module")?;
        Ok(Project { value, repository })
    };
    let mut from_nothing = Vec::new();
    let mut whole = Vec::new();
    let mut changed = Vec::new();
    let first = project("First".to_owned()).await?;
    let making = push(&installation, &owner, &first, &key, "dev/first", "the same").await?;
    eprintln!("the first one, which is kept as a template: {making:.2} s");
    let shared = eventually(MAKING_LIMIT, async || {
        let (ours, shared) = templates(&installation);
        (ours > 0 && shared + 1 == ours).then_some(shared)
    });
    let shared = shared.await.with_context(|| format!("no template was made for everybody; {}", installation.log_tail(30)))?;
    for round in 0..rounds {
        // Production's own database begins with nothing.
        let fresh = project(format!("Round {round}")).await?;
        from_nothing.push(push(&installation, &owner, &fresh, &key, "main", "the same").await?);
        whole.push(push(&installation, &owner, &first, &key, &format!("dev/{round}"), "the same").await?);
        // The project's module is another one: only Odoo's own come from a template.
        let marker = format!("round {round}");
        write_page(&fresh.repository, "changed", &marker)?;
        fresh.repository.commit(&marker)?;
        changed.push(push(&installation, &owner, &fresh, &key, "dev/changed", &marker).await?);
        eprintln!(
            "round {round}: from nothing {:.2} s, from the whole template {:.2} s, with one module to install {:.2} s",
            from_nothing[round], whole[round], changed[round]
        );
    }
    let (from_nothing, whole, changed) = (median(from_nothing), median(whole), median(changed));
    let mut report = Report::new("template");
    report.rows.push(json!({
        "database": format!("{} modules", shared + 1), "rounds": rounds, "from nothing s": rounded(from_nothing),
        "first, and kept s": rounded(making),
        "same modules s": rounded(whole), "ratio": rounded(whole / from_nothing),
        "one changed s": rounded(changed), "changed ratio": rounded(changed / from_nothing),
    }));
    report.targets.push(Target::at_most(
        "new development environment, ratio to an install from nothing",
        "×",
        whole / from_nothing,
        1.0 / 6.0,
    ));
    report.finish()
}

/// How many modules the largest template of a project has, and the largest one for everybody.
fn templates(installation: &Installation) -> (usize, usize) {
    let (mut ours, mut shared) = (0, 0);
    let directories = std::fs::read_dir(installation.home.join("pool/templates")).into_iter().flatten().flatten();
    for content in directories.filter_map(|directory| std::fs::read(directory.path().join("template.json")).ok()) {
        let Ok(template) = serde_json::from_slice::<Value>(&content) else { continue };
        let largest = if template["content"]["isolationKey"].is_null() { &mut shared } else { &mut ours };
        *largest = (*largest).max(template["installed"].as_array().map_or(0, Vec::len));
    }
    (ours, shared)
}

/// Seconds from the start of `git push` to the first answer of a branch's new environment; returns once nothing of its deployment runs.
async fn push(installation: &Installation, owner: &ApiClient, project: &Project, key: &str, branch: &str, marker: &str) -> Result<f64> {
    let remote = project.value["repository"]["gitRemote"].as_str().context("no remote")?;
    let begin = Instant::now();
    let push = project.repository.push(remote, key, &format!("HEAD:refs/heads/{branch}"), &["-o", "no-wait"])?;
    ensure!(push.success, "{}", push.output);
    let environment = owner.environment(&project.value, branch).await?;
    let answered = eventually(Duration::from_secs(300), async || {
        let answer = installation.through_edge(&environment, "/changed").await.ok()?;
        (answer.status() == 200 && answer.text().await.ok()?.contains(marker)).then_some(())
    })
    .await;
    ensure!(answered.is_some(), "{branch} never answered; {}", installation.log_tail(30));
    let seconds = begin.elapsed().as_secs_f64();
    let last = owner.deployments(&environment).await?.into_iter().next().context("no deployment")?;
    let last = owner.ended(&last, Duration::from_secs(60)).await?;
    ensure!(last["status"] == "succeeded", "{last}");
    print_steps(branch, &last);
    Ok(seconds)
}
