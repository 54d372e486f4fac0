//! Mail of a development environment with a real Odoo: caught, shown through the API to who may see it, never lost, and nothing else can send.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ocore_testkit::{
    Options,
    module::{write_manifest, write_module},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::{journey::json_rpc, scene::Scene};

const PATIENCE: Duration = Duration::from_secs(90);

/// The mail catcher's process, by its record.
fn catcher(scene: &Scene) -> Option<i32> {
    let record = std::fs::read(scene.installation.home.join("mail/process.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    record["identity"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| kill(Pid::from_raw(*pid), None).is_ok())
}

struct Odoo<'a> {
    scene: &'a Scene,
    environment: &'a Value,
    user: Value,
    password: Value,
}

impl Odoo<'_> {
    async fn call(&self, model: &str, method: &str, arguments: Value) -> Result<Value> {
        let arguments = json!(["odoo", self.user, self.password, model, method, arguments]);
        json_rpc(self.scene, self.environment, "object", "execute_kw", arguments).await
    }

    async fn send(&self, subject: &str) -> Result<()> {
        let mail = json!([{ "subject": subject, "email_from": "shop@example.com", "email_to": "ada@example.com", "body_html": "<p>Hello <b>Ada</b></p>" }]);
        let id = self.call("mail.mail", "create", mail).await?;
        self.call("mail.mail", "send", json!([[id], false, true])).await.map(drop)
    }
}

#[tokio::test]
async fn mail_of_a_development_environment_is_caught_and_only_caught() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    write_manifest(&scene.repository, "shop", &["base", "web", "mail"], "1.0")?;
    scene.repository.commit("Send mail")?;
    let push = scene.push("feature")?;
    ensure!(push.success, "{}", push.output);
    let environment = scene.environment("feature").await?;
    ensure!(environment["mailpitPort"].as_i64().is_some_and(|port| port > 0), "{environment}");
    let id = environment["id"].as_str().context("an id")?;
    let base = format!("/environments/{id}/mail");
    let credentials =
        scene.owner.get(&format!("/instances/{}/credentials", environment["instanceId"].as_str().unwrap_or_default())).await?;
    let user = json_rpc(&scene, &environment, "common", "login", json!(["odoo", credentials["login"], credentials["password"]])).await?;
    let odoo = Odoo { scene: &scene, environment: &environment, user, password: credentials["password"].clone() };

    odoo.send("The first").await?;
    let seen = scene.owner.get(&format!("{base}/api/v1/wait?query=subject%3A%22the%20first%22&timeout=60")).await?;
    ensure!(seen["To"][0]["Address"] == "ada@example.com", "{seen}");
    let detail = scene.owner.get(&format!("{base}/api/v1/message/latest")).await?;
    ensure!(detail["HTML"].as_str().is_some_and(|html| html.contains("<b>Ada</b>")), "{detail}");

    // What a person adds is switched off again.
    odoo.call("ir.mail_server", "create", json!([{ "name": "Sneaky", "smtp_host": "smtp.example.com", "smtp_port": 25 }])).await?;
    let alone = eventually(PATIENCE, async || {
        let active = odoo.call("ir.mail_server", "search_read", json!([[], ["name"]])).await.ok()?;
        let names: Vec<_> = active.as_array()?.iter().filter_map(|server| server["name"].as_str()).collect();
        (names == ["oCore mail catcher"]).then_some(())
    });
    alone.await.context("the added server stayed active")?;
    odoo.send("The second").await?;

    // A killed catcher is started again and has everything.
    let before = catcher(&scene).context("the catcher runs")?;
    kill(Pid::from_raw(before), Signal::SIGKILL)?;
    let again = eventually(PATIENCE, async || catcher(&scene).filter(|pid| *pid != before)).await;
    again.context("the catcher was not started again")?;
    let list = eventually(PATIENCE, async || scene.owner.get(&format!("{base}/api/v1/messages")).await.ok()).await.context("no list")?;
    let subjects: Vec<_> =
        list["messages"].as_array().context("messages")?.iter().filter_map(|message| message["Subject"].as_str()).collect();
    ensure!(subjects.contains(&"The first") && subjects.contains(&"The second"), "{subjects:?}");
    odoo.send("The third").await?;

    // Asleep: the page answers, and Odoo stays down.
    scene
        .owner
        .post(&format!("/instances/{}/control", environment["instanceId"].as_str().unwrap_or_default()), &json!({ "action": "stop" }))
        .await?;
    let stopped = eventually(PATIENCE, async || {
        let environment = scene.environment("feature").await.ok()?;
        (environment["instanceStatus"] == "stopped").then_some(())
    });
    stopped.await.context("the instance does not stop")?;
    let found = scene.owner.get(&format!("{base}/api/v1/search?query=third")).await?;
    ensure!(found["messages_count"] == 1, "{found}");
    Ok(())
}
