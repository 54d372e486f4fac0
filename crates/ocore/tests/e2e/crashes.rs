//! Something is killed. It converges without hands: what served serves, or the new one does; nothing runs twice, nothing is left over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ocore_testkit::{
    Options, Repository,
    module::{write_module, write_page},
    wait::eventually,
};

use crate::{
    reload::write_code,
    scene::{DEPLOYMENT_LIMIT, Scene},
};

const STEPS: &[&str] = &["checkout", "plan", "build", "rehearse", "copy", "update", "start", "switch", "verify"];

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_each_step_of_a_deployment_it_converges() -> Result<()> {
    killed_in_each_step(|repository, version| write_page(repository, "shop", version)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_each_step_of_a_reload_it_converges() -> Result<()> {
    killed_in_each_step(write_code).await
}

/// Each step of a deployment of such a change, killed.
async fn killed_in_each_step(change: fn(&Repository, &str) -> Result<()>) -> Result<()> {
    let mut scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "version 0")?;
    change(&scene.repository, "version 0")?;
    scene.repository.commit("Version 0")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);

    for (index, step) in STEPS.iter().enumerate() {
        let version = format!("version {}", index + 1);
        change(&scene.repository, &version)?;
        scene.repository.commit(&version)?;
        // The step has begun and cannot end before the kill.
        scene.installation.terminate_server().await?;
        scene.installation.serve(&[("FAILPOINTS", &format!("deploy::{step}=sleep(60000)"))]).await?;
        let deployment = scene.push_and_go("main").await?;
        let path = format!("/deployments/{}", deployment["id"].as_str().unwrap_or_default());
        let begun = eventually(DEPLOYMENT_LIMIT, async || {
            let current = scene.owner.get(&path).await.ok()?;
            current["steps"].as_array()?.iter().find(|candidate| candidate["name"] == *step && candidate["status"] == "running").map(|_| ())
        })
        .await;
        ensure!(begun.is_some(), "{step} never began");
        scene.installation.kill_server()?;
        scene.installation.serve(&[]).await?;
        let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await.with_context(|| format!("after a kill in {step}"))?;
        ensure!(ended["status"] == "succeeded", "after a kill in {step}: {ended}");
        scene.page_says("main", "/shop", &version, Duration::from_secs(20)).await.with_context(|| format!("after a kill in {step}"))?;
        scene.settles_to_one_of_each().await.with_context(|| format!("after a kill in {step}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn odoo_and_its_cluster_come_back_and_a_restart_of_the_control_plane_disturbs_nobody() -> Result<()> {
    let mut scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "still here")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);

    // The control plane is away: the edge serves on, with the very same Odoo; back again, it adopts what runs.
    let before = odoo_pid(&scene)?;
    let environment = scene.environment("main").await?;
    scene.installation.kill_server()?;
    let environment_host = environment["autoSubdomain"].as_str().context("no host")?.to_owned();
    let client = reqwest::Client::new();
    for _ in 0..20 {
        let answer =
            client.get(format!("http://{}/shop", scene.installation.edge_address)).header("host", &environment_host).send().await?;
        ensure!(answer.status() == 200, "{}", answer.status());
    }
    scene.installation.serve(&[]).await?;
    ensure!(odoo_pid(&scene)? == before, "the Odoo was restarted");
    ensure!(scene.page("main", "/shop").await?.contains("still here"));

    // Odoo killed.
    kill(Pid::from_raw(before), Signal::SIGKILL)?;
    scene.page_says("main", "/shop", "still here", Duration::from_secs(60)).await?;
    ensure!(odoo_pid(&scene)? != before);

    // PostgreSQL killed.
    let (postmaster, _) = scene
        .installation
        .processes()
        .into_iter()
        .find(|(_, command)| command.contains("postgres") && command.contains("pool/instances") && command.contains("-D"))
        .context("no cluster runs")?;
    kill(Pid::from_raw(postmaster), Signal::SIGKILL)?;
    scene.page_says("main", "/shop", "still here", Duration::from_secs(90)).await?;
    scene.settles_to_one_of_each().await?;

    // The edge killed.
    let (edge, _) =
        scene.installation.processes().into_iter().find(|(_, command)| command.contains("ocore edge")).context("no edge runs")?;
    kill(Pid::from_raw(edge), Signal::SIGKILL)?;
    scene.page_says("main", "/shop", "still here", Duration::from_secs(30)).await?;
    let environment = scene.environment("main").await?;
    ensure!(environment["instanceStatus"] == "running", "{environment}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odoo_that_dies_again_and_again_is_reported() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "words")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let reported = eventually(Duration::from_secs(180), async || {
        if let Ok(pid) = odoo_pid(&scene) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let environment = scene.environment("main").await.ok()?;
        (environment["instanceStatus"] == "failed" && environment["statusMessage"].as_str().is_some_and(|message| !message.is_empty()))
            .then_some(())
    })
    .await;
    ensure!(reported.is_some(), "{}", scene.environment("main").await?);
    let page = scene.installation.through_edge(&scene.environment("main").await?, "/shop").await?;
    ensure!(matches!(page.status().as_u16(), 502 | 503), "{}", page.status());

    // Somebody starts it again by hand.
    let environment = scene.environment("main").await?;
    let path = format!("/instances/{}/control", environment["instanceId"].as_str().unwrap_or_default());
    scene.owner.post(&path, &serde_json::json!({ "action": "start" })).await?;
    scene.page_says("main", "/shop", "words", Duration::from_secs(60)).await
}

/// The master process of the only instance's Odoo.
fn odoo_pid(scene: &Scene) -> Result<i32> {
    let processes = scene.installation.processes();
    let mut odoos: Vec<i32> = processes
        .iter()
        .filter(|(_, command)| command.contains("python") && command.contains("odoo") && command.contains("pool/instances"))
        .map(|(pid, _)| *pid)
        .collect();
    odoos.sort_unstable();
    odoos.first().copied().context("no Odoo runs")
}
