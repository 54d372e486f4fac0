//! Clones and rollbacks with real data: what of a production is live in its clone (nothing), what comes back with a rollback (everything).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_manifest, write_module, write_page},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::{
    admin::Admin,
    scene::{DEPLOYMENT_LIMIT, Scene},
};

/// "the first invoice", as Odoo takes files.
const INVOICE: &str = "dGhlIGZpcnN0IGludm9pY2U=";
const TOKEN: &str = "sk_live_0123456789abcdef";

/// A mail server somewhere else, which counts who comes.
struct MailServer {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl MailServer {
    async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        // Ends with the test's runtime.
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { port, connections })
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Modules with which a production reaches out.
const OUTWARD: &[&str] = &["base", "web", "mail", "payment_stripe", "auth_oauth", "base_automation"];
/// The subject of what the production's scheduled action sends.
const NEWS: &str = "News of the engine";

/// What a production has that a copy must not have; the API key.
async fn furnish(admin: &Admin<'_>, elsewhere: &MailServer) -> Result<Value> {
    let server = json!([{ "name": "Real", "smtp_host": "127.0.0.1", "smtp_port": elsewhere.port, "smtp_encryption": "none", "smtp_user": "shop", "smtp_pass": "secret" }]);
    admin.call("ir.mail_server", "create", server).await?;
    admin.call("ir.config_parameter", "set_param", json!(["thirdparty.api_token", TOKEN])).await?;
    let stripe = admin.values("payment.provider", json!([["code", "=", "stripe"]]), "id").await?;
    let enabled = json!({ "state": "enabled", "stripe_publishable_key": "pk_live_x", "stripe_secret_key": TOKEN });
    admin.call("payment.provider", "write", json!([stripe, enabled])).await?;
    let oauth = admin.call("auth.oauth.provider", "search", json!([[]])).await?;
    admin.call("auth.oauth.provider", "write", json!([oauth, { "enabled": true, "client_id": "our-client" }])).await?;
    let model = admin.values("ir.model", json!([["model", "=", "res.users"]]), "id").await?;
    let webhook = json!([{ "name": "Hook", "model_id": model[0], "state": "webhook", "webhook_url": "https://hooks.example.com/T0/B0" }]);
    admin.call("ir.actions.server", "create", webhook).await?;
    admin.call("base.automation", "create", json!([{ "name": "Incoming", "model_id": model[0], "trigger": "on_webhook" }])).await?;
    let mails = format!(
        "env['mail.mail'].create({{'subject': '{NEWS}', 'email_from': 'shop@example.com', 'email_to': 'ada@example.com', 'body_html': 'x'}}).send(raise_exception=True)"
    );
    // Far away, so that the production itself sends nothing meanwhile.
    let cron = json!([{ "name": NEWS, "model_id": model[0], "state": "code", "code": mails, "interval_number": 1, "interval_type": "days", "nextcall": "2100-01-01 00:00:00", "active": true }]);
    admin.call("ir.cron", "create", cron).await?;

    let code = "key = env['res.users.apikeys']._generate('rpc', 'a program', datetime.datetime.now() + datetime.timedelta(days=30))\n\
                env['ir.config_parameter'].set_param('shown.once', key)";
    let action = json!([{ "name": "key", "model_id": model[0], "state": "code", "code": code }]);
    let action = admin.call("ir.actions.server", "create", action).await?;
    admin.call("ir.actions.server", "run", json!([[action]])).await?;
    let key = admin.parameter("shown.once").await?;
    admin.call("ir.config_parameter", "set_param", json!(["shown.once", false])).await?;
    ensure!(admin.with_password(key.clone()).parameter("thirdparty.api_token").await? == TOKEN, "the API key opens the production");
    Ok(key)
}

/// None of it lives in the copy, and a mail that is sent there goes to its catcher.
async fn nothing_is_live(copy: &Admin<'_>, production: &Admin<'_>, key: Value, elsewhere: &MailServer) -> Result<()> {
    let hosts = copy.values("ir.mail_server", json!([["active", "=", true]]), "smtp_host").await?;
    ensure!(hosts == [json!("127.0.0.1")], "{hosts:?}");
    let secrets =
        copy.values("ir.mail_server", json!(["|", ["smtp_user", "!=", false], ["smtp_port", "=", elsewhere.port]]), "name").await?;
    ensure!(secrets.is_empty(), "{secrets:?}");
    ensure!(copy.values("payment.provider", json!([["state", "!=", "disabled"]]), "code").await?.is_empty());
    ensure!(copy.values("payment.provider", json!([["code", "=", "stripe"]]), "stripe_secret_key").await? == [json!(false)]);
    let providers = json!(["|", ["enabled", "=", true], ["client_id", "!=", false]]);
    ensure!(copy.values("auth.oauth.provider", providers, "name").await?.is_empty());
    ensure!(copy.values("res.users.apikeys", json!([]), "name").await?.is_empty(), "an API key of the production is in the copy");
    ensure!(copy.with_password(key).parameter("thirdparty.api_token").await.is_err(), "the production's API key opens the copy");
    let hooks = copy.values("ir.actions.server", json!([["webhook_url", "like", "example.com"]]), "name").await?;
    ensure!(hooks.is_empty(), "{hooks:?}");
    let incoming = [copy, production].map(|admin| admin.values("base.automation", json!([["name", "=", "Incoming"]]), "webhook_uuid"));
    let [here, there] = incoming;
    ensure!(here.await? != there.await?, "the address of the production's webhook works in the copy");
    let crons = copy.values("ir.cron", json!([]), "cron_name").await?;
    ensure!(crons.len() == 1, "only Odoo's own cleaning runs: {crons:?}");
    ensure!(copy.parameter("thirdparty.api_token").await? == json!(false), "the token of a third party lives in the copy");
    for key in ["database.secret", "database.uuid"] {
        ensure!(copy.parameter(key).await? != production.parameter(key).await?, "{key}");
    }

    // By hand, as somebody who tries it out.
    let cron = copy.values("ir.cron", json!([["active", "=", false], ["cron_name", "=", NEWS]]), "id").await?;
    let triggered = copy.call("ir.cron", "method_direct_trigger", json!([cron])).await?;
    ensure!(triggered == true, "the scheduled action failed: {triggered}");
    let path = format!("/environments/{}/mail/api/v1/messages", id(&copy.environment));
    let caught = copy.scene.owner.get(&path).await?;
    ensure!(caught["messages"].as_array().is_some_and(|all| all.iter().any(|mail| mail["Subject"] == NEWS)), "{caught}");
    ensure!(elsewhere.connections() == 0, "somebody has talked to the production's mail server");
    Ok(())
}

/// Asks a page again and again until it is told to stop; every answer that was not 200.
struct Visitor {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Visitor {
    fn start(scene: &Scene, environment: &Value, path: &'static str) -> Result<Self> {
        let host = environment["autoSubdomain"].as_str().context("no host")?.to_owned();
        let url = format!("http://{}{path}", scene.installation.edge_address);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let (mut answers, mut bad) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                match client.get(&url).header("host", &host).send().await {
                    Ok(answer) if answer.status() == 200 => {}
                    Ok(answer) => bad.push(answer.status().to_string()),
                    Err(error) => bad.push(error.to_string()),
                }
                answers += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (answers, bad)
        });
        Ok(Self { stop, task })
    }

    async fn was_served(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let (answers, bad) = self.task.await?;
        ensure!(answers > 0 && bad.is_empty(), "of {answers} answers these were bad: {bad:?}");
        Ok(())
    }
}

pub async fn clone(scene: &Scene, branch: &str, body: Value) -> Result<(Value, Value)> {
    let source = scene.environment(branch).await?;
    let clone = scene.owner.post(&format!("/environments/{}/clone", id(&source)), &body).await?;
    let deployment = scene.owner.deployments(&clone).await?.first().context("no deployment")?.clone();
    Ok((clone, deployment))
}

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap_or_default()
}

async fn snapshots(scene: &Scene, branch: &str) -> Result<Vec<Value>> {
    let environment = scene.environment(branch).await?;
    let answer = scene.owner.get(&format!("/environments/{}/snapshots", id(&environment))).await?;
    Ok(answer["snapshots"].as_array().cloned().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_serving_production_has_nothing_live_and_a_rollback_brings_everything_back() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "version 1")?;
    write_manifest(&scene.repository, "shop", OUTWARD, "1.0")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let production = Admin::of(&scene, "main").await?;
    let elsewhere = MailServer::start().await?;
    let key = furnish(&production, &elsewhere).await?;
    let attachment = json!([{ "name": "invoice.txt", "datas": INVOICE }]);
    production.call("ir.attachment", "create", attachment).await?;
    production.call("res.partner", "create", json!([{ "name": "Charles Babbage", "email": "charles@example.com" }])).await?;

    // The clone, while somebody uses the production.
    let visitor = Visitor::start(&scene, &production.environment, "/shop")?;
    let (clone_of_it, deployment) = clone(&scene, "main", json!({ "targetBranch": "try", "targetType": "staging" })).await?;
    ensure!(clone_of_it["isNeutralized"] == false && clone_of_it["clonedFromId"] == production.environment["id"], "{clone_of_it}");
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded" && ended["triggerType"] == "clone", "{ended}");
    visitor.was_served().await?;
    ensure!(scene.page("try", "/shop").await?.contains("version 1"));
    let copy = Admin::of(&scene, "try").await?;
    ensure!(copy.environment["isNeutralized"] == true && copy.environment["environmentType"] == "staging", "{}", copy.environment);

    // Nothing of the production is live in it, and its people and files are there.
    nothing_is_live(&copy, &production, key, &elsewhere).await?;
    ensure!(copy.parameter("web.base.url").await? == copy.environment["url"], "{}", copy.parameter("web.base.url").await?);
    ensure!(copy.values("res.partner", json!([["name", "=", "Charles Babbage"]]), "name").await?.len() == 1);
    let datas = copy.values("ir.attachment", json!([["name", "=", "invoice.txt"]]), "datas").await?;
    ensure!(datas == [json!(INVOICE)], "{datas:?}");
    let path = format!("/environments/{}/neutralization", id(&copy.environment));
    let report = scene.owner.get(&path).await?;
    let facts = report["facts"].as_array().context("no facts")?;
    ensure!(!facts.is_empty() && facts.iter().all(|fact| fact["holds"] == true), "{report}");
    let findings = report["findings"].as_array().context("no findings")?;
    let token = findings.iter().find(|finding| finding["place"] == "ir_config_parameter:thirdparty.api_token");
    let token = token.context("the token of a third party is not in the report")?;
    ensure!(token["verdict"] == "handled" && token["reason"].as_str().is_some_and(|reason| reason.starts_with("masked: ")), "{token}");
    ensure!(!report.to_string().contains(TOKEN), "the report tells the token");
    ensure!(report["changes"].is_null(), "there was no copy before");

    // The production has what it had.
    ensure!(production.parameter("thirdparty.api_token").await? == TOKEN);
    let hosts = production.values("ir.mail_server", json!([]), "smtp_host").await?;
    ensure!(hosts == [json!("127.0.0.1")], "{hosts:?}");
    let payments = production.values("payment.provider", json!([["code", "=", "stripe"]]), "state").await?;
    ensure!(payments == [json!("enabled")], "{payments:?}");

    // A push to the clone's branch deploys there, with the data that it has.
    copy.call("res.partner", "create", json!([{ "name": "Only in the copy" }])).await?;
    write_page(&scene.repository, "shop", "version of the copy")?;
    scene.repository.commit("Try something")?;
    let push = scene.push("try")?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.page("try", "/shop").await?.contains("version of the copy"));
    let copy = Admin::of(&scene, "try").await?;
    ensure!(copy.environment["isNeutralized"] == true, "{}", copy.environment);
    ensure!(copy.values("res.partner", json!([["name", "=", "Only in the copy"]]), "name").await?.len() == 1);
    ensure!(scene.page("main", "/shop").await?.contains("version 1"));

    // A change that destroys, in the production; and back.
    write_page(&scene.repository, "shop", "version 2")?;
    scene.repository.commit("Version 2")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let after = Admin::of(&scene, "main").await?;
    let doomed = after.values("res.partner", json!([["name", "=", "Charles Babbage"]]), "id").await?;
    after.call("res.partner", "unlink", json!([doomed])).await?;
    let invoices = after.values("ir.attachment", json!([["name", "=", "invoice.txt"]]), "id").await?;
    after.call("ir.attachment", "unlink", json!([invoices])).await?;
    after.call("res.partner", "create", json!([{ "name": "Written since" }])).await?;
    let before = snapshots(&scene, "main").await?;
    let snapshot = before.iter().find(|snapshot| snapshot["kind"] == "automatic").context("no automatic snapshot")?;
    let path = format!("/environments/{}/rollback", id(&after.environment));
    let rollback = scene.owner.post(&path, &json!({ "snapshotId": snapshot["id"] })).await?;
    let ended = scene.owner.ended(&json!({ "id": rollback["deploymentId"] }), DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded" && ended["triggerType"] == "rollback", "{ended}");
    ensure!(scene.page("main", "/shop").await?.contains("version 1"), "the code of that moment");
    let back = Admin::of(&scene, "main").await?;
    ensure!(back.environment["isNeutralized"] == false, "{}", back.environment);
    ensure!(back.values("res.partner", json!([["name", "=", "Charles Babbage"]]), "name").await?.len() == 1, "the rows of that moment");
    ensure!(back.values("res.partner", json!([["name", "=", "Written since"]]), "name").await?.is_empty());
    ensure!(
        back.values("ir.attachment", json!([["name", "=", "invoice.txt"]]), "datas").await? == [json!(INVOICE)],
        "the files of that moment"
    );
    let logs = scene.owner.get(&format!("/environments/{}/rollback-logs", id(&back.environment))).await?;
    let safety = logs["rollbackLogs"][0]["safetySnapshotId"].clone();
    ensure!(safety.is_string() && logs["rollbackLogs"][0]["status"] == "succeeded", "{logs}");

    // What was written since is in the safety snapshot, which the clone's environment gets as a neutralized copy.
    let body = json!({ "snapshotId": safety, "targetEnvironmentId": copy.environment["id"] });
    let rollback = scene.owner.post(&path, &body).await?;
    let ended = scene.owner.ended(&json!({ "id": rollback["deploymentId"] }), DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded", "{ended}");
    let copy = Admin::of(&scene, "try").await?;
    ensure!(copy.environment["isNeutralized"] == true, "{}", copy.environment);
    ensure!(copy.values("res.partner", json!([["name", "=", "Written since"]]), "name").await?.len() == 1);
    ensure!(copy.values("res.users.apikeys", json!([]), "name").await?.is_empty());
    let report = scene.owner.get(&format!("/environments/{}/neutralization", id(&copy.environment))).await?;
    ensure!(report["changes"].is_array(), "there was a copy before: {report}");

    // Another tenant finds none of it.
    let stranger = scene.installation.owner("eve@example.com", "Elsewhere").await?;
    let (status, _) = stranger.request(reqwest::Method::POST, &path, Some(&json!({ "snapshotId": snapshot["id"] }))).await?;
    ensure!(status == 404, "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_each_step_of_a_clone_and_of_a_rollback_it_converges_and_leaks_nothing() -> Result<()> {
    let mut scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "version 0")?;
    scene.repository.commit("Version 0")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    for step in ["snapshot", "copy", "neutralize", "start"] {
        kill_in(&mut scene, step).await?;
        let (clone, deployment) = clone(&scene, "main", json!({ "targetBranch": format!("kill-{step}") })).await?;
        killed(&mut scene, &deployment, step).await.with_context(|| format!("a clone, killed in {step}"))?;
        scene.page_says(&format!("kill-{step}"), "/shop", "version 0", Duration::from_secs(20)).await?;
        ensure!(scene.page("main", "/shop").await?.contains("version 0"));
        ensure!(snapshots(&scene, "main").await?.iter().all(|snapshot| snapshot["kind"] != "clone"), "the clone's snapshot is still there");
        scene.owner.delete(&format!("/environments/{}", id(&clone))).await?;
        scene.settles_to_one_of_each().await.with_context(|| format!("after a clone that was killed in {step}"))?;
    }
    write_page(&scene.repository, "shop", "version 1")?;
    scene.repository.commit("Version 1")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    for (number, step) in ["copy", "start", "switch", "verify"].iter().enumerate() {
        let environment = scene.environment("main").await?;
        let newest = snapshots(&scene, "main").await?.first().context("no snapshot")?.clone();
        kill_in(&mut scene, step).await?;
        let path = format!("/environments/{}/rollback", id(&environment));
        let rollback = scene.owner.post(&path, &json!({ "snapshotId": newest["id"] })).await?;
        killed(&mut scene, &json!({ "id": rollback["deploymentId"] }), step)
            .await
            .with_context(|| format!("a rollback, killed in {step}"))?;
        // Each goes back to what the one before took away.
        let version = format!("version {}", number % 2);
        scene.page_says("main", "/shop", &version, Duration::from_secs(20)).await.with_context(|| format!("killed in {step}"))?;
        scene.settles_to_one_of_each().await.with_context(|| format!("after a rollback that was killed in {step}"))?;
        let settled = eventually(Duration::from_secs(90), async || {
            let snapshots = snapshots(&scene, "main").await.ok()?;
            (snapshots.len() == number + 2 && snapshots.iter().all(|snapshot| snapshot["status"] == "ready")).then_some(())
        })
        .await;
        ensure!(settled.is_some(), "after a rollback that was killed in {step}: {:?}", snapshots(&scene, "main").await?);
    }
    Ok(())
}

/// The next server stops in a step, for good.
async fn kill_in(scene: &mut Scene, step: &str) -> Result<()> {
    scene.installation.terminate_server().await?;
    scene.installation.serve(&[("FAILPOINTS", &format!("deploy::{step}=sleep(60000)"))]).await
}

/// Kills the server in the step and starts it again; the deployment succeeds.
async fn killed(scene: &mut Scene, deployment: &Value, step: &str) -> Result<()> {
    let path = format!("/deployments/{}", id(deployment));
    let begun = eventually(DEPLOYMENT_LIMIT, async || {
        let current = scene.owner.get(&path).await.ok()?;
        current["steps"].as_array()?.iter().find(|candidate| candidate["name"] == step && candidate["status"] == "running").map(|_| ())
    })
    .await;
    ensure!(begun.is_some(), "{step} never began: {}", scene.owner.get(&path).await?);
    scene.installation.kill_server()?;
    scene.installation.serve(&[]).await?;
    let ended = scene.owner.ended(deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded", "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neutralize_script_that_fails_keeps_the_copy_from_everybody_and_its_correction_clones_again() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "version 0")?;
    scene.repository.write("neutralize.sql", "update no_such_table set secret = null;\n")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let (clone, deployment) = clone(&scene, "main", json!({ "targetBranch": "try" })).await?;
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "failed", "{ended}");
    let message = ended["errorMessage"].as_str().unwrap_or_default();
    ensure!(message.contains("neutralize.sql of the project failed, line 1") && message.contains("no_such_table"), "{message}");
    let excerpt = ended["errorExcerpt"].as_str().unwrap_or_default();
    ensure!(excerpt.contains("update no_such_table"), "the reason outlives the copy: {ended}");
    let kept = scene.owner.get(&format!("/environments/{}/quarantine", id(&clone))).await?;
    ensure!(kept["reason"] == ended["errorMessage"] && kept["excerpt"] == ended["errorExcerpt"] && kept["coverage"].is_null(), "{kept}");
    let answer = scene.installation.through_edge(&clone, "/web/login").await?;
    ensure!(answer.status() != 200, "a copy that is not harmless is served");
    scene.settles_to_one_of_each().await?;
    scene.repository.write("neutralize.sql", "update res_partner set email = null;\n")?;
    scene.repository.commit("Correct it")?;
    let push = scene.push("try")?;
    ensure!(push.success, "{}", push.output);
    let copy = Admin::of(&scene, "try").await?;
    ensure!(copy.environment["isNeutralized"] == true, "{}", copy.environment);
    ensure!(copy.values("res.partner", json!([["email", "!=", false]]), "email").await?.is_empty());
    Ok(())
}
