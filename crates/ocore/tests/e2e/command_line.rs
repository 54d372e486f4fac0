//! The client commands against a real server: tables for people, JSON for programs, exit codes for scripts.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
};
use serde_json::Value;

use crate::scene::Scene;

fn run(scene: &Scene, arguments: &[&str]) -> Result<Output> {
    Ok(scene.installation.command(arguments).env("OCORE_API_KEY", &scene.key).output()?)
}

fn json(scene: &Scene, arguments: &[&str]) -> Result<Value> {
    let output = run(scene, &[&["--json"], arguments].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// With standard output going nowhere, as `ocore … | head -0`: what it says on standard error, and how it ends.
fn into_a_closed_pipe(scene: &Scene, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = scene.installation.command(arguments);
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = command.env("OCORE_API_KEY", &scene.key).stdout(writer).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn code(scene: &Scene, arguments: &[&str]) -> Result<i32> {
    run(scene, arguments)?.status.code().context("killed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_at_the_command_line() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;

    // Before anything is there.
    ensure!(code(&scene, &["env", "list"])? == 0);
    ensure!(code(&scene, &["env", "show", "nothing"])? == 4);
    ensure!(code(&scene, &["deploy", "--branch", "nothing"])? != 0);
    let nobody = scene.installation.command(&["env", "list"]).output()?;
    ensure!(nobody.status.code() == Some(3), "{nobody:?}");
    let nowhere = scene.installation.command(&["--url", "http://127.0.0.1:9", "--api-key", "ocore_x", "env", "list"]).output()?;
    ensure!(nowhere.status.code() == Some(5), "{nowhere:?}");
    ensure!(scene.installation.command(&["no-such-command"]).output()?.status.code() == Some(2));

    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    scene.repository.push(scene.remote(), &scene.key, "HEAD:refs/heads/main", &[])?;
    let environments = json(&scene, &["env", "list"])?;
    ensure!(environments["total"] == 1 && environments["environments"][0]["branch"] == "main", "{environments}");
    let table = run(&scene, &["env", "list"])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(table.contains("PROJECT") && table.contains("BRANCH") && table.contains("main") && table.contains("http://"), "{table}");
    ensure!(json(&scene, &["env", "show", "main"])?["environmentType"] == "production");
    ensure!(json(&scene, &["env", "credentials", "main"])?["password"].is_string());
    let address = run(&scene, &["open", "--print", "main"])?;
    ensure!(String::from_utf8_lossy(&address.stdout).starts_with("http://"));
    let logs = run(&scene, &["logs", "main", "-n", "20"])?;
    ensure!(logs.status.success() && !logs.stdout.is_empty());

    // A good deployment ends with 0, a broken one with 1 and its reason; production cannot be deleted.
    scene.repository.push(scene.remote(), &scene.key, "HEAD:refs/heads/other", &["-o", "no-wait"])?;
    write_page(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    ensure!(code(&scene, &["env", "behavior", "main", "do-nothing"])? == 0);
    scene.repository.push(scene.remote(), &scene.key, "HEAD:refs/heads/main", &[])?;
    ensure!(json(&scene, &["env", "show", "main"])?["pendingCommitCount"] == 1);
    let deploy = run(&scene, &["deploy", "--branch", "main"])?;
    ensure!(deploy.status.success(), "{}", String::from_utf8_lossy(&deploy.stderr));
    scene.repository.write("shop/models.py", "def (\n")?;
    scene.repository.commit("Broken")?;
    scene.repository.push(scene.remote(), &scene.key, "HEAD:refs/heads/main", &[])?;
    let deploy = run(&scene, &["env", "build", "main"])?;
    let said = String::from_utf8_lossy(&deploy.stderr).into_owned();
    ensure!(deploy.status.code() == Some(1) && said.contains("yntax error"), "{said}");
    let deployments = json(&scene, &["deployments", "--env", "main"])?;
    ensure!(deployments["total"] == 3 && deployments["deployments"][0]["status"] == "failed", "{deployments}");
    let broken = deployments["deployments"][0]["id"].as_str().context("no id")?.to_owned();
    ensure!(json(&scene, &["deployment", "show", &broken])?["steps"].is_array());
    ensure!(run(&scene, &["deployment", "logs", &broken])?.status.success());
    ensure!(code(&scene, &["env", "delete", "--yes", "main"])? == 2);
    ensure!(code(&scene, &["env", "delete", "--yes", "other"])? == 0);

    // Who stops reading ends a command, whichever it is, without a panic.
    for arguments in [
        &["env", "list"][..],
        &["--json", "env", "list"],
        &["env", "show", "main"],
        &["env", "credentials", "main"],
        &["project", "list"],
        &["deployments", "--env", "main"],
        &["deployment", "show", &broken],
        &["deployment", "logs", &broken],
        &["logs", "main", "-n", "20"],
        &["open", "--print", "main"],
        &["api-key", "list"],
        &["doctor"],
        &["openapi"],
        &["config", "--default"],
        &["completions", "bash"],
    ] {
        let (code, said) = into_a_closed_pipe(&scene, arguments)?;
        ensure!(code == Some(141) && !said.contains("panicked"), "{arguments:?}: {code:?} {said}");
    }
    ensure!(into_a_closed_pipe(&scene, &["--help"])?.0 == Some(0), "clap's own words");

    // Keys come, are listed and go.
    let key = run(&scene, &["api-key", "create", "ci", "--permission", "view:projects"])?;
    ensure!(String::from_utf8_lossy(&key.stdout).starts_with("ocore_"), "{key:?}");
    let keys = json(&scene, &["api-key", "list"])?;
    let id = keys["apiKeys"]
        .as_array()
        .and_then(|keys| keys.iter().find(|key| key["name"] == "ci"))
        .and_then(|key| key["id"].as_str())
        .context("no key")?
        .to_owned();
    ensure!(code(&scene, &["api-key", "revoke", &id])? == 0);

    // The machine's own commands.
    ensure!(json(&scene, &["doctor"])?["checks"].is_array());
    let document: Value = serde_json::from_slice(&run(&scene, &["openapi"])?.stdout)?;
    ensure!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{}", document["openapi"]);
    for shell in ["bash", "zsh", "fish"] {
        ensure!(!run(&scene, &["completions", shell])?.stdout.is_empty());
    }
    Ok(())
}
