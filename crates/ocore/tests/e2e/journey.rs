//! The main job: from `git push` to a live Odoo, as the acceptance of the first release asks for it.

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Options, module::write_module};
use serde_json::{Value, json};

use crate::scene::{DEPLOYMENT_LIMIT, Scene, examples};

#[tokio::test(flavor = "multi_thread")]
async fn a_push_ends_in_a_live_odoo_and_the_next_one_updates_it_with_its_data() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    scene.repository.copy_from(&examples())?;
    let first = scene.repository.commit("The example modules\n\nWith a body.")?;
    let push = scene.push("main")?;
    ensure!(push.success && push.output.contains("live at http://"), "{}", push.output);

    // The API tells the truth about it.
    let environment = scene.environment("main").await?;
    ensure!(environment["environmentType"] == "production" && environment["instanceStatus"] == "running", "{environment}");
    ensure!(environment["lastCommitAuthor"] == "Ada Lovelace" && environment["pendingCommitCount"] == 0, "{environment}");
    let deployment = scene.last_deployment("main").await?;
    ensure!(
        deployment["commitSha"] == first.as_str()
            && deployment["commitMessage"].as_str().is_some_and(|message| message.contains("With a body.")),
        "{deployment}"
    );
    ensure!(
        deployment["status"] == "succeeded" && deployment["activeColor"].is_string() && deployment["imageTag"].is_string(),
        "{deployment}"
    );
    ensure!(
        deployment["evidence"].as_array().is_none_or(Vec::is_empty) && deployment["findings"].as_array().is_none_or(Vec::is_empty),
        "{deployment}"
    );
    let steps = deployment["steps"].as_array().context("no steps")?;
    let names: Vec<&str> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
    ensure!(names == ["checkout", "plan", "build", "copy", "update", "start", "switch", "verify"], "{names:?}");
    ensure!(steps.iter().all(|step| step["status"] == "succeeded" && step["durationMs"].is_number()), "{steps:?}");

    // A person and a program get in; the database manager is closed.
    ensure!(scene.page("main", "/web/login").await?.contains("login"));
    let credentials =
        scene.owner.get(&format!("/instances/{}/credentials", environment["instanceId"].as_str().unwrap_or_default())).await?;
    let user = json_rpc(&scene, &environment, "common", "login", json!(["odoo", credentials["login"], credentials["password"]])).await?;
    ensure!(user.as_i64().is_some_and(|id| id > 0), "{user}");
    let refused = json_rpc(&scene, &environment, "common", "login", json!(["odoo", "admin", "admin"])).await?;
    ensure!(refused == json!(false), "{refused}");
    ensure!(scene.installation.through_edge(&environment, "/web/database/manager").await?.status() == 404);
    ensure!(json_rpc(&scene, &environment, "db", "list", json!([])).await.is_err());

    // What a user writes survives the next push, which changes a view.
    let partner = call(&scene, &environment, &user, &credentials, "res.partner", "create", json!([{ "name": "Charles Babbage" }])).await?;
    write_module(&scene.repository, "extra", "an extra page")?;
    scene.repository.commit("An extra module")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.page("main", "/extra").await?.contains("an extra page"));
    let names = call(&scene, &environment, &user, &credentials, "res.partner", "read", json!([[partner], ["name"]])).await?;
    ensure!(names[0]["name"] == "Charles Babbage", "{names}");
    let deployment = scene.last_deployment("main").await?;
    ensure!(deployment["previousCommitSha"] == first.as_str() && deployment["snapshotId"].is_string(), "{deployment}");
    scene.settles_to_one_of_each().await?;

    // Two tenants do not see each other.
    let stranger = scene.installation.owner("eve@example.com", "Elsewhere").await?;
    let (status, _) =
        stranger.request(reqwest::Method::GET, &format!("/environments/{}", environment["id"].as_str().unwrap_or_default()), None).await?;
    ensure!(status == 404, "{status}");
    ensure!(stranger.get("/environments").await?["total"] == 0);
    let key = stranger.api_key().await?;
    let push = scene.repository.push(scene.remote(), &key, "HEAD:refs/heads/main", &[])?;
    ensure!(!push.success, "{}", push.output);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_two_pushes_is_what_goes_live() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    let first = scene.push_and_go("main").await?;
    write_module(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    let second = scene.push_and_go("main").await?;
    write_module(&scene.repository, "shop", "three")?;
    scene.repository.commit("Three")?;
    let third = scene.push_and_go("main").await?;
    let third = scene.owner.ended(&third, DEPLOYMENT_LIMIT).await?;
    ensure!(third["status"] == "succeeded", "{third}");
    let second = scene.owner.ended(&second, DEPLOYMENT_LIMIT).await?;
    ensure!(second["status"] == "superseded", "{second}");
    let first = scene.owner.ended(&first, DEPLOYMENT_LIMIT).await?;
    ensure!(matches!(first["status"].as_str(), Some("superseded" | "succeeded")), "{first}");
    ensure!(scene.page("main", "/shop").await?.contains("three"));
    Ok(())
}

pub async fn json_rpc(scene: &Scene, environment: &Value, service: &str, method: &str, arguments: Value) -> Result<Value> {
    let host = environment["autoSubdomain"].as_str().context("no host")?;
    let body =
        json!({ "jsonrpc": "2.0", "method": "call", "id": 1, "params": { "service": service, "method": method, "args": arguments } });
    let url = format!("http://{}/jsonrpc", scene.installation.edge_address);
    let answer: Value = reqwest::Client::new().post(url).header("host", host).json(&body).send().await?.json().await?;
    ensure!(answer.get("error").is_none(), "{}", answer["error"]);
    Ok(answer["result"].clone())
}

async fn call(
    scene: &Scene,
    environment: &Value,
    user: &Value,
    credentials: &Value,
    model: &str,
    method: &str,
    arguments: Value,
) -> Result<Value> {
    json_rpc(scene, environment, "object", "execute_kw", json!(["odoo", user, credentials["password"], model, method, arguments])).await
}
