//! Development builds that begin with what an earlier one has installed.

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
};
use serde_json::{Value, json};

use crate::scene::Scene;

/// What a step of a branch's last deployment said.
async fn said(scene: &Scene, branch: &str, step: &str) -> Result<String> {
    let deployment = scene.last_deployment(branch).await?;
    ensure!(deployment["status"] == "succeeded", "{deployment}");
    let path = format!("/deployments/{}/logs?step={step}", deployment["id"].as_str().unwrap_or_default());
    Ok(scene.owner.get(&path).await?.to_string())
}

/// The login, user and password of an environment's administrator, and its database's own id.
async fn identity(scene: &Scene, branch: &str) -> Result<(Value, Value)> {
    let environment = scene.environment(branch).await?;
    let credentials =
        scene.owner.get(&format!("/instances/{}/credentials", environment["instanceId"].as_str().unwrap_or_default())).await?;
    let call = async |service: &str, method: &str, arguments: Value| -> Result<Value> {
        let body =
            json!({ "jsonrpc": "2.0", "method": "call", "id": 1, "params": { "service": service, "method": method, "args": arguments } });
        let host = environment["autoSubdomain"].as_str().context("no host")?;
        let url = format!("http://{}/jsonrpc", scene.installation.edge_address);
        let answer: Value = reqwest::Client::new().post(url).header("host", host).json(&body).send().await?.json().await?;
        ensure!(answer.get("error").is_none(), "{}", answer["error"]);
        Ok(answer["result"].clone())
    };
    let user = call("common", "login", json!(["odoo", credentials["login"], credentials["password"]])).await?;
    ensure!(user.is_i64(), "the administrator's password does not open {branch}");
    let key = json!(["odoo", user, credentials["password"], "ir.config_parameter", "get_param", ["database.uuid"]]);
    Ok((credentials["password"].clone(), call("object", "execute_kw", key).await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_build_of_the_same_modules_installs_nothing_and_another_tenant_gets_none_of_them() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    let push = scene.push("dev/one")?;
    ensure!(push.success, "{}", push.output);
    let copy = said(&scene, "dev/one", "copy").await?;
    ensure!(copy.contains("makes a template with web") && copy.contains("begins with template"), "{copy}");
    ensure!(said(&scene, "dev/one", "update").await?.contains("kept as template"));

    let push = scene.push("dev/two")?;
    ensure!(push.success, "{}", push.output);
    ensure!(!said(&scene, "dev/two", "copy").await?.contains("makes a template"));
    let update = said(&scene, "dev/two", "update").await?;
    ensure!(update.contains("the template has everything") && !update.contains("Installing"), "{update}");
    ensure!(scene.page("dev/two", "/shop").await?.contains("one"));
    // Equal databases, and yet each is its own.
    let (one, two) = (identity(&scene, "dev/one").await?, identity(&scene, "dev/two").await?);
    ensure!(one.0 != two.0 && one.1 != two.1, "{one:?} {two:?}");

    write_page(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    let push = scene.push("dev/two")?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.page("dev/two", "/shop").await?.contains("two"));
    let push = scene.push("dev/three")?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.page("dev/three", "/shop").await?.contains("two"));

    // The same files in another tenant's project: Odoo's own modules come from the template, the project's are installed.
    let stranger = scene.installation.owner("eve@example.com", "Elsewhere").await?;
    let key = stranger.api_key().await?;
    let project = stranger.project("Shop", json!({})).await?;
    let remote = project["repository"]["gitRemote"].as_str().context("no remote")?;
    let push = scene.repository.push(remote, &key, "HEAD:refs/heads/dev/theirs", &[])?;
    ensure!(push.success, "{}", push.output);
    let environment = stranger.environment(&project, "dev/theirs").await?;
    let deployment = stranger.deployments(&environment).await?.first().context("no deployment")?["id"].clone();
    let log = stranger.get(&format!("/deployments/{}/logs", deployment.as_str().unwrap_or_default())).await?.to_string();
    ensure!(log.contains("begins with template") && log.contains("Installing shop"), "{log}");
    ensure!(!log.contains("makes a template"), "{log}");
    Ok(())
}
