//! A copy that cannot be made harmless stays in quarantine: it tells why, it can be asked, nothing of it runs, and it goes.

use std::{path::PathBuf, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Options, module::write_module, wait::eventually};
use serde_json::{Value, json};

use crate::{
    admin::Admin,
    copies::clone,
    scene::{DEPLOYMENT_LIMIT, Scene},
};

/// Brings what the quarantine has switched off back to life.
const SABOTAGE: &str = "-- harmless, it says\nupdate ir_mail_server set active = true;\n";
/// The reconciler's next run, on a busy machine.
const GOING_LIMIT: Duration = Duration::from_secs(90);

fn path(environment: &Value) -> String {
    format!("/environments/{}/quarantine", environment["id"].as_str().unwrap_or_default())
}

/// What lies in that directory of the environment's instance.
fn lies_in(scene: &Scene, environment: &Value, directory: &str) -> Vec<PathBuf> {
    let instance = environment["instanceId"].as_str().unwrap_or_default();
    let place = scene.installation.home.join("pool/instances").join(instance).join(directory);
    std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

async fn is_gone(scene: &Scene, environment: &Value) -> Result<()> {
    let gone = eventually(GOING_LIMIT, async || {
        let (status, _) = scene.owner.request(reqwest::Method::GET, &path(environment), None).await.ok()?;
        (status == 404 && lies_in(scene, environment, "quarantine").is_empty()).then_some(())
    });
    gone.await.with_context(|| format!("the copy is still there: {:?}", lies_in(scene, environment, "quarantine")))
}

fn command(scene: &Scene, arguments: &[&str]) -> Result<Output> {
    let output = scene.installation.command(arguments).env("OCORE_API_KEY", &scene.key).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// A production with a mail server of its own, and a project that would let a copy use it.
async fn sabotaged() -> Result<Scene> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "version 1")?;
    scene.repository.write("neutralize.sql", SABOTAGE)?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let server = json!([{ "name": "Real", "smtp_host": "mail.example.com", "smtp_port": 25, "smtp_encryption": "none" }]);
    Admin::of(&scene, "main").await?.call("ir.mail_server", "create", server).await?;
    Ok(scene)
}

async fn failed_clone(scene: &Scene, branch: &str) -> Result<Value> {
    let (clone, deployment) = clone(scene, "main", json!({ "targetBranch": branch })).await?;
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "failed", "{ended}");
    let message = ended["errorMessage"].as_str().unwrap_or_default();
    ensure!(message.contains("stays in quarantine") && message.contains("mail catcher"), "{message}");
    Ok(clone)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_brought_back_to_life_stays_in_quarantine_and_is_corrected_or_destroyed() -> Result<()> {
    let mut scene = sabotaged().await?;
    let copy = failed_clone(&scene, "try").await?;

    // It tells why.
    let shown = scene.owner.get(&path(&copy)).await?;
    ensure!(shown["status"] == "kept" && shown["step"] == "neutralize" && shown["sourceEnvironmentName"] == "main", "{shown}");
    ensure!(shown["ofProduction"] == true && shown["databaseBytes"].as_i64().is_some_and(|bytes| bytes > 1 << 20), "{shown}");
    let failed: Vec<&Value> = shown["failedFacts"].as_array().into_iter().flatten().map(|fact| &fact["name"]).collect();
    ensure!(failed == ["mail_servers"], "{failed:?}");
    ensure!(shown["coverage"]["scripts"] == json!(["neutralize.sql"]), "{}", shown["coverage"]["scripts"]);
    let table = command(&scene, &["quarantine", "show", "try"])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(table.contains("stays in quarantine") && table.contains("mail_servers"), "{table}");

    // Nothing of it runs or answers; it is asked all the same, and then rests again.
    let answer = scene.installation.through_edge(&copy, "/web/login").await?;
    ensure!(answer.status() != 200, "a copy in quarantine is served");
    ensure!(lies_in(&scene, &copy, "data").is_empty() && lies_in(&scene, &copy, "quarantine").len() == 1);
    scene.settles_to_one_of_each().await?;
    let sql = "select name, active from ir_mail_server where name = 'Real'";
    let found = scene.owner.post(&format!("{}/query", path(&copy)), &json!({ "sql": sql })).await?;
    ensure!(found["columns"] == json!(["name", "active"]) && found["rows"] == json!([["Real", "true"]]), "{found}");
    let change = json!({ "sql": "update ir_mail_server set active = false returning id" });
    let (status, refused) = scene.owner.request(reqwest::Method::POST, &format!("{}/query", path(&copy)), Some(&change)).await?;
    ensure!(status == 409 && refused["code"] == "rejected", "{status} {refused}");
    let table = command(&scene, &["quarantine", "query", "try", sql])?;
    ensure!(String::from_utf8_lossy(&table.stdout).contains("Real"));
    scene.settles_to_one_of_each().await?;
    let space = scene.owner.get("/space").await?;
    let of_copy = space["environments"].as_array().into_iter().flatten().find(|one| one["environmentId"] == copy["id"]);
    ensure!(of_copy.is_some_and(|one| one["referencedBytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20)), "{space}");

    // oCore is killed, and finds it as it was.
    scene.installation.kill_server()?;
    scene.installation.serve(&[]).await?;
    ensure!(scene.owner.get(&path(&copy)).await?["since"] == shown["since"]);
    ensure!(lies_in(&scene, &copy, "quarantine").len() == 1);

    // Corrected by a push, it goes.
    scene.repository.write("neutralize.sql", "update res_partner set email = null;\n")?;
    scene.repository.commit("Correct it")?;
    let push = scene.push("try")?;
    ensure!(push.success, "{}", push.output);
    let admin = Admin::of(&scene, "try").await?;
    ensure!(admin.environment["isNeutralized"] == true, "{}", admin.environment);
    is_gone(&scene, &copy).await?;
    ensure!(lies_in(&scene, &copy, "data").len() == 1, "what serves is still there");
    ensure!(scene.page("try", "/shop").await?.contains("version 1"));

    // Another one is destroyed by hand.
    let other = failed_clone(&scene, "other").await?;
    ensure!(lies_in(&scene, &other, "quarantine").len() == 1);
    for _ in 0..2 {
        command(&scene, &["quarantine", "destroy", "other", "--yes"])?;
    }
    is_gone(&scene, &other).await?;
    ensure!(lies_in(&scene, &other, "data").is_empty());
    let audited = scene.owner.get("/audit").await?;
    let actions = audited["entries"].as_array().into_iter().flatten().filter_map(|entry| entry["action"].as_str());
    let actions: Vec<&str> = actions.filter(|action| action.starts_with("quarantine.")).collect();
    ensure!(actions == ["quarantine.destroyed", "quarantine.inspected", "quarantine.inspected", "quarantine.inspected"], "{actions:?}");
    ensure!(scene.page("main", "/shop").await?.contains("version 1"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_copy_is_set_aside_it_converges_and_leaks_nothing() -> Result<()> {
    let mut scene = sabotaged().await?;
    for point in ["after_neutralize", "before_undo_copy", "after_undo_copy"] {
        scene.installation.terminate_server().await?;
        scene.installation.serve(&[("FAILPOINTS", &format!("deploy::{point}=return"))]).await?;
        let (copy, deployment) = clone(&scene, "main", json!({ "targetBranch": point.replace('_', "-") })).await?;
        scene.installation.wait_for_server_exit(DEPLOYMENT_LIMIT).await.with_context(|| format!("{point} was not reached"))?;
        scene.installation.serve(&[]).await?;
        let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
        ensure!(ended["status"] == "failed", "{point}: {ended}");
        let shown = scene.owner.get(&path(&copy)).await.with_context(|| format!("killed at {point}"))?;
        ensure!(shown["status"] == "kept" && shown["deploymentId"] == deployment["id"], "{point}: {shown}");
        ensure!(lies_in(&scene, &copy, "quarantine").len() == 1 && lies_in(&scene, &copy, "data").is_empty(), "{point}");
        scene.settles_to_one_of_each().await.with_context(|| format!("killed at {point}"))?;
        // With its environment, all of it goes.
        scene.owner.delete(&format!("/environments/{}", copy["id"].as_str().unwrap_or_default())).await?;
        let instance = scene.installation.home.join("pool/instances").join(copy["instanceId"].as_str().unwrap_or_default());
        let gone = eventually(GOING_LIMIT, async || (!instance.exists()).then_some(())).await;
        gone.with_context(|| format!("{} is still there", instance.display()))?;
        ensure!(scene.page("main", "/shop").await?.contains("version 1"), "{point}");
    }
    Ok(())
}
