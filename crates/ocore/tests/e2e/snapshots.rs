//! Snapshots of a real Odoo that serves meanwhile, by the command line as people use it; with a crash and a full pool in between.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
    wait::eventually,
};
use serde_json::Value;

use crate::scene::{DEPLOYMENT_LIMIT, Scene};

fn run(scene: &Scene, arguments: &[&str]) -> Result<std::process::Output> {
    Ok(scene.installation.command(arguments).env("OCORE_API_KEY", &scene.key).output()?)
}

fn json(scene: &Scene, arguments: &[&str]) -> Result<Value> {
    let output = run(scene, &[&["--json"], arguments].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What a command that must fail says.
fn refused(scene: &Scene, arguments: &[&str]) -> Result<String> {
    let output = run(scene, arguments)?;
    ensure!(!output.status.success(), "{arguments:?} did not fail: {}", String::from_utf8_lossy(&output.stdout));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_default().to_owned()
}

fn directory(scene: &Scene, snapshot: &str) -> PathBuf {
    scene.installation.home.join("pool/snapshots").join(snapshot)
}

async fn gone(scene: &Scene, snapshot: &str) -> Result<()> {
    let path = format!("/snapshots/{snapshot}");
    let gone = eventually(Duration::from_secs(60), async || {
        let (status, _) = scene.owner.request(reqwest::Method::GET, &path, None).await.ok()?;
        (status == 404).then_some(())
    });
    gone.await.context("it never went")?;
    ensure!(!directory(scene, snapshot).exists(), "its data are still there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_odoo_is_kept_pinned_checked_and_let_go_and_a_crash_forgets_none() -> Result<()> {
    let mut scene = Scene::new(Options { image_bytes: Some(3 << 30), ..Options::default() }).await?;
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let odoos = scene.instance_processes();

    // Taken while it serves: nothing of it stops.
    let estimate = json(&scene, &["snapshot", "estimate", "main"])?;
    let kept = json(&scene, &["snapshot", "create", "main", "--name", "the fair"])?;
    ensure!(kept["status"] == "ready" && kept["live"] == true && kept["damagedFiles"].as_array().is_some_and(Vec::is_empty), "{kept}");
    ensure!(kept["modulesCount"].as_i64().is_some_and(|count| count > 5) && kept["commitSha"].is_string(), "{kept}");
    ensure!(kept["databaseBytes"].as_u64().is_some_and(|bytes| bytes > 10 << 20), "{kept}");
    ensure!(estimate["needed_bytes"].is_null() && estimate["databaseBytes"].as_u64().is_some_and(|bytes| bytes > 10 << 20), "{estimate}");
    ensure!(scene.page("main", "/shop").await?.contains("one") && scene.instance_processes() == odoos);
    ensure!(directory(&scene, &id(&kept)).exists());

    // Pinned it is not removed; checked it is sound; the space that it needs alone is less than what it refers to.
    ensure!(run(&scene, &["snapshot", "pin", "the fair"])?.status.success());
    let said = refused(&scene, &["snapshot", "delete", "the fair", "--yes"])?;
    ensure!(said.contains("pinned"), "{said}");
    let checked = json(&scene, &["snapshot", "verify", "the fair"])?;
    ensure!(checked["verification"]["checkedFiles"].as_u64().is_some_and(|files| files > 100), "{checked}");
    let space = json(&scene, &["space"])?;
    let of_it = &space["snapshots"][0];
    ensure!(of_it["id"] == kept["id"] && of_it["exclusiveBytes"].as_u64() <= of_it["referencedBytes"].as_u64(), "{space}");
    if kept["sharesBlocks"] == true {
        ensure!(of_it["sharedBytes"].as_u64().is_some_and(|bytes| bytes > 10 << 20), "{space}");
    }
    let table = String::from_utf8_lossy(&run(&scene, &["space"])?.stdout).into_owned();
    ensure!(table.contains("the fair") && table.contains("MiB") && table.contains("ALONE"), "{table}");

    // A change of data keeps what was before it, without anybody's asking.
    write_page(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let listed = json(&scene, &["snapshot", "list", "main"])?;
    let kinds: Vec<_> =
        listed["snapshots"].as_array().into_iter().flatten().map(|one| (one["kind"].as_str(), one["status"].as_str())).collect();
    ensure!(kinds == [(Some("automatic"), Some("ready")), (Some("manual"), Some("ready"))], "{listed}");

    // Killed before the server has it, and when it has and nobody has said so: one each, and whole.
    for point in ["before", "after"] {
        scene.installation.terminate_server().await?;
        scene.installation.serve(&[("FAILPOINTS", &format!("snapshots::{point}_take=sleep(60000)"))]).await?;
        let asked = json(&scene, &["snapshot", "create", "main", "--name", point, "--no-wait"])?;
        if point == "after" {
            let whole = eventually(DEPLOYMENT_LIMIT, async || directory(&scene, &id(&asked)).exists().then_some(()));
            whole.await.context("it was never taken")?;
        }
        ensure!(json(&scene, &["snapshot", "show", point])?["status"] == "creating");
        scene.installation.kill_server()?;
        scene.installation.serve(&[]).await?;
        let path = format!("/snapshots/{}", id(&asked));
        let ended = eventually(Duration::from_secs(60), async || {
            let current = scene.owner.get(&path).await.ok()?;
            (current["status"] != "creating").then_some(current)
        });
        let ended = ended.await.context("it is still being taken")?;
        ensure!(ended["status"] == "ready", "killed {point} the take: {ended}");
    }
    let directories =
        std::fs::read_dir(scene.installation.home.join("pool/snapshots"))?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let directories = directories.filter(|name| uuid::Uuid::try_parse(name).is_ok()).count();
    ensure!(directories == 4, "there are {directories} snapshots instead of four");

    // Full: refused with numbers; what serves goes on.
    let pool = scene.installation.home.join("pool");
    let filler = pool.join("filler");
    let facts = nix::sys::statvfs::statvfs(&pool)?;
    let free = facts.blocks_available() * facts.fragment_size();
    let filled = Command::new("fallocate").args(["-l", &(free - (24 << 20)).to_string()]).arg(&filler).status()?;
    ensure!(filled.success(), "the pool could not be filled");
    let said = refused(&scene, &["snapshot", "create", "main", "--name", "too much"])?;
    std::fs::remove_file(&filler)?;
    ensure!(said.contains("free") && said.chars().any(|letter| letter.is_ascii_digit()), "{said}");
    ensure!(json(&scene, &["snapshot", "show", "too much"])?["status"] == "failed");
    scene.page_says("main", "/shop", "two", Duration::from_secs(60)).await?;

    // Let go by hand; with the environment's settings in words.
    ensure!(run(&scene, &["snapshot", "unpin", "the fair"])?.status.success());
    ensure!(run(&scene, &["snapshot", "rename", "the fair", "it was"])?.status.success());
    ensure!(run(&scene, &["snapshot", "delete", "it was", "--yes"])?.status.success());
    gone(&scene, &id(&kept)).await?;
    let settings = json(&scene, &["env", "snapshot-settings", "main", "--retention-days", "3", "--on-failure", "continue"])?;
    ensure!(settings["retentionDays"] == 3 && settings["failurePolicy"] == "continue" && settings["maxPinned"] == 5, "{settings}");
    Ok(())
}
