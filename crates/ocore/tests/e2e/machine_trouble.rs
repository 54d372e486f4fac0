//! The machine is at fault: the disk is full, a port is taken, somebody has no permission, somebody cancels. And at the end nothing is left.

use std::{net::TcpListener, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
    wait::eventually,
};
use serde_json::json;

use crate::scene::{DEPLOYMENT_LIMIT, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_deployment_and_not_what_serves() -> Result<()> {
    let scene = Scene::new(Options { image_bytes: Some(1 << 30), ..Options::default() }).await?;
    write_module(&scene.repository, "shop", "before")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);

    let filler = scene.installation.home.join("pool/filler");
    // As full as it gets: dd ends with "no space left".
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=1M", &format!("of={}", filler.display())]).output()?;
    write_page(&scene.repository, "shop", "after")?;
    scene.repository.commit("Another page")?;
    let push = scene.push("main")?;
    let deployment = scene.last_deployment("main").await?;
    let message = deployment["errorMessage"].as_str().unwrap_or_default().to_lowercase();
    ensure!(deployment["status"] == "failed" && message.contains("stay free"), "{deployment}\n{}", push.output);
    std::fs::remove_file(&filler)?;
    scene.page_says("main", "/shop", "before", Duration::from_secs(60)).await?;
    scene.settles_to_one_of_each().await?;

    write_page(&scene.repository, "shop", "with room again")?;
    scene.repository.commit("Again")?;
    let push = scene.push("main")?;
    ensure!(push.success && push.output.contains("live at"), "{}", push.output);
    scene.page_says("main", "/shop", "with room again", Duration::from_secs(10)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_others_hold_are_passed_over_and_a_cancelled_deployment_leaves_nothing() -> Result<()> {
    let mut scene = Scene::new(Options::default()).await?;
    // Everything in the first part of the range belongs to somebody else.
    let first = scene.installation.first_port();
    let held: Vec<TcpListener> = (first..first + 16).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).collect();
    ensure!(held.len() > 8, "the test could take only {} ports", held.len());
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.page("main", "/shop").await?.contains("one"));

    // Cancelled while Odoo updates: what served serves on.
    write_page(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    let deployment = scene.push_and_go("main").await?;
    let path = format!("/deployments/{}", deployment["id"].as_str().unwrap_or_default());
    let updating = eventually(DEPLOYMENT_LIMIT, async || {
        let current = scene.owner.get(&path).await.ok()?;
        current["steps"].as_array()?.iter().find(|step| step["name"] == "update" && step["status"] == "running").map(|_| ())
    })
    .await;
    ensure!(updating.is_some(), "the update never began");
    scene.owner.post(&format!("{path}/cancel"), &json!({})).await?;
    let ended = scene.owner.ended(&deployment, Duration::from_secs(60)).await?;
    ensure!(ended["status"] == "cancelled", "{ended}");
    scene.page_says("main", "/shop", "one", Duration::from_secs(30)).await?;
    scene.settles_to_one_of_each().await?;

    // Stopped by a person: a page says so; started again: as before.
    let environment = scene.environment("main").await?;
    let control = format!("/instances/{}/control", environment["instanceId"].as_str().unwrap_or_default());
    scene.owner.post(&control, &json!({ "action": "stop" })).await?;
    let stopped = eventually(Duration::from_secs(60), async || (scene.instance_processes() == (0, 0)).then_some(())).await;
    ensure!(stopped.is_some(), "{:#?}", scene.installation.processes());
    let answer = scene.installation.through_edge(&environment, "/shop").await?;
    ensure!(answer.status() == 503, "{}", answer.status());
    scene.owner.post(&control, &json!({ "action": "start" })).await?;
    scene.page_says("main", "/shop", "one", Duration::from_secs(60)).await?;

    // `stop` ends every process and keeps the data; `serve` brings everything up again.
    let status = scene.installation.command(&["stop"]).status()?;
    ensure!(status.success(), "ocore stop failed");
    scene.installation.wait_for_server_exit(Duration::from_secs(30)).await?;
    ensure!(scene.installation.processes().is_empty(), "{:#?}", scene.installation.processes());
    scene.installation.serve(&[]).await?;
    scene.page_says("main", "/shop", "one", Duration::from_secs(60)).await?;

    // And purged, nothing is left of it: no process, no mount, no user, no directory.
    scene.installation.purge()?;
    ensure!(scene.installation.processes().is_empty(), "{:#?}", scene.installation.processes());
    let home = scene.installation.home.display().to_string();
    ensure!(!std::fs::read_to_string("/proc/mounts")?.contains(&home), "the pool is still mounted");
    ensure!(!scene.installation.home.exists(), "{home} is still there");
    let users = Command::new("getent").arg("passwd").output().context("getent")?;
    let first_uid = scene.installation.first_uid();
    let ours = String::from_utf8_lossy(&users.stdout)
        .lines()
        .filter_map(|line| line.split(':').nth(2)?.parse::<u32>().ok())
        .filter(|uid| (first_uid..first_uid + 1000).contains(uid))
        .count();
    ensure!(ours == 0, "{ours} users are left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_without_permission_and_branches_named_to_hurt_change_nothing() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "words")?;
    scene.repository.commit("A shop")?;

    // A key that may look and not push; no key; a wrong one.
    let viewer = scene.owner.post("/api-keys", &json!({ "name": "viewer", "permissions": ["view:projects", "view:environments"] })).await?;
    for key in [viewer["key"].as_str().context("no key")?, "ocore_wrong", ""] {
        let push = scene.repository.push(scene.remote(), key, "HEAD:refs/heads/main", &[])?;
        ensure!(!push.success, "pushed with {key:?}: {}", push.output);
    }
    ensure!(scene.environment("main").await.is_err(), "a refused push made an environment");

    // Names that Git accepts and that would hurt a careless program; those that are fine deploy, the others are refused with a reason.
    for (branch, accepted) in [("-x", false), ("HEAD", false), ("a;b", true), ("feature/$(id)", true), ("grün/日本", true)] {
        let push = scene.repository.push(scene.remote(), &scene.key, &format!("HEAD:refs/heads/{branch}"), &["-o", "no-wait"])?;
        if accepted {
            ensure!(push.success, "{branch}: {}", push.output);
            let environment = scene.environment(branch).await?;
            let slug = environment["instanceSlug"].as_str().unwrap_or_default();
            ensure!(
                slug.len() <= 63 && slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
                "{slug}"
            );
            scene.owner.delete(&format!("/environments/{}", environment["id"].as_str().unwrap_or_default())).await?;
        } else {
            ensure!(!push.success && scene.environment(branch).await.is_err(), "{branch}: {}", push.output);
        }
    }
    let long = "x".repeat(200);
    let push = scene.repository.push(scene.remote(), &scene.key, &format!("HEAD:refs/heads/{long}"), &["-o", "no-wait"])?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.environment(&long).await?["instanceSlug"].as_str().is_some_and(|slug| slug.len() <= 63));
    Ok(())
}
