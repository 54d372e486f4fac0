//! What a push does is the environment's commit behaviour; all three do what they say.

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::scene::{DEPLOYMENT_LIMIT, Scene};

async fn set_behavior(scene: &Scene, environment: &Value, behavior: &str) -> Result<()> {
    let path = format!("/environments/{}/commit-behavior", environment["id"].as_str().unwrap_or_default());
    let answer = scene.owner.put(&path, &json!({ "behavior": behavior })).await?;
    ensure!(answer["commitBehavior"] == behavior, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_updating_and_building_anew() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    let live = scene.repository.commit("One")?;
    let push = scene.push("feature/x")?;
    ensure!(push.success, "{}", push.output);
    let environment = scene.environment("feature/x").await?;
    ensure!(environment["environmentType"] == "development", "{environment}");

    // do_nothing counts, truly, and says so to the terminal.
    set_behavior(&scene, &environment, "do_nothing").await?;
    write_page(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    scene.push("feature/x")?;
    write_page(&scene.repository, "shop", "three")?;
    let head = scene.repository.commit("Three")?;
    scene.push("feature/x")?;
    let pending = scene.environment("feature/x").await?;
    ensure!(pending["pendingCommitCount"] == 2 && pending["pendingCommitSha"] == head.as_str(), "{pending}");
    ensure!(scene.page("feature/x", "/shop").await?.contains("one"));
    let since = scene
        .owner
        .get(&format!("/projects/{}/commits-since?since={live}&branch=feature/x", scene.project["id"].as_str().unwrap_or_default()))
        .await?;
    ensure!(since["totalCount"] == 2 && since["commits"][0]["sha"] == head.as_str(), "{since}");

    // Building what waits.
    let path = format!("/environments/{}/trigger-build", environment["id"].as_str().unwrap_or_default());
    let deployment = scene.owner.post(&path, &json!({})).await?;
    let deployment = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(deployment["status"] == "succeeded", "{deployment}");
    let built = scene.environment("feature/x").await?;
    ensure!(built["pendingCommitCount"] == 0 && built["pendingCommitSha"].as_str().is_none_or(str::is_empty), "{built}");
    ensure!(scene.page("feature/x", "/shop").await?.contains("three"));

    // create_new_build: the old one serves until the new one is good.
    set_behavior(&scene, &environment, "create_new_build").await?;
    write_page(&scene.repository, "shop", "four")?;
    scene.repository.commit("Four")?;
    let deployment = scene.push_and_go("feature/x").await?;
    let mut served = 0;
    let path = format!("/deployments/{}", deployment["id"].as_str().unwrap_or_default());
    let ended = eventually(DEPLOYMENT_LIMIT, async || {
        let page = scene.page("feature/x", "/shop").await;
        let current = scene.owner.get(&path).await.ok()?;
        let status = current["status"].as_str().unwrap_or_default().to_owned();
        if status == "queued" || status == "running" {
            served += usize::from(page.is_ok_and(|page| page.contains("three") || page.contains("four")));
            None
        } else {
            Some(current)
        }
    })
    .await
    .context("the new build did not end")?;
    ensure!(ended["status"] == "succeeded", "{ended}");
    ensure!(served > 10, "the old one answered only {served} times while the new one was built");
    ensure!(scene.page("feature/x", "/shop").await?.contains("four"));
    scene.settles_to_one_of_each().await?;

    // A deleted branch is remembered and destroys nothing.
    let push = scene.repository.push(scene.remote(), &scene.key, ":refs/heads/feature/x", &[])?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.page("feature/x", "/shop").await?.contains("four"));

    // Deleting the environment leaves nothing of it.
    let instance = environment["instanceId"].as_str().unwrap_or_default().to_owned();
    scene.owner.delete(&format!("/environments/{}", environment["id"].as_str().unwrap_or_default())).await?;
    let directory = scene.installation.home.join("pool/instances").join(&instance);
    let gone = eventually(DEPLOYMENT_LIMIT, async || (!directory.exists() && scene.instance_processes() == (0, 0)).then_some(())).await;
    ensure!(gone.is_some(), "something is left: {:#?}", scene.installation.processes());
    Ok(())
}
