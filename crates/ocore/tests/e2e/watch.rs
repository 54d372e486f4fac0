//! A release that updates and starts well and fails on what users do: it is noticed and taken back, and what was written meanwhile is kept.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Options, module::write_module};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{hold::User, scene::Scene};

const MODELS: &str = r#"from odoo import api, fields, models


class Thing(models.Model):
    _name = "shop.thing"
    _description = "Thing"

    name = fields.Char(required=True)
    size = fields.Char()


class Partner(models.Model):
    _inherit = "res.partner"

    @api.model_create_multi
    def create(self, vals_list):
        raise ValueError("nobody tried this")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_fails_on_what_users_do_is_taken_back() -> Result<()> {
    let scene = Arc::new(Scene::new(Options::default()).await?);
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let before = scene.environment("main").await?;
    let user = User::new(&scene).await?;

    let stop = CancellationToken::new();
    let mut clients = JoinSet::new();
    for number in 0..6 {
        clients.spawn(user.clone().hammer(format!("watched {number}"), number < 3, stop.clone()));
    }
    scene.repository.write("shop/models.py", MODELS)?;
    scene.repository.commit("A mistake that no start shows")?;
    let pushing = tokio::task::spawn_blocking({
        let scene = Arc::clone(&scene);
        move || scene.push("main")
    });
    let push = pushing.await??;
    stop.cancel();
    let done = clients.join_all().await;
    ensure!(!push.output.contains("live at"), "{}", push.output);
    let failed = scene.last_deployment("main").await?;
    let message = failed["errorMessage"].as_str().context("no message")?;
    ensure!(failed["status"] == "failed" && message.contains("errors within") && message.contains("is live again"), "{failed}");
    ensure!(failed["evidence"][0]["gateKey"] == "rehearsal" && failed["evidence"][0]["status"] == "passed", "{failed}");
    let failures: Vec<&String> = done.iter().flat_map(|done| &done.failures).collect();
    ensure!(failures.iter().all(|failure| failure.contains("nobody tried this")), "nothing but the mistake itself was seen: {failures:#?}");

    // What was live before is, with its data.
    ensure!(scene.environment("main").await?["activeDeploymentId"] == before["activeDeploymentId"]);
    user.call("res.partner", "create", json!([{ "name": "afterwards" }])).await?;
    let report = scene.owner.get(&format!("/deployments/{}/report", failed["id"].as_str().context("no id")?)).await?;
    let kept = report["keptSnapshotId"].as_str().with_context(|| format!("nothing is kept: {report}"))?;
    let snapshot = scene.owner.get(&format!("/snapshots/{kept}")).await?;
    ensure!(
        snapshot["status"] == "ready" && snapshot["name"].as_str().is_some_and(|name| name.starts_with("written after the switch")),
        "{snapshot}"
    );
    ensure!(report["held"]["requests"].as_u64().is_some_and(|held| held > 0) && report["held"]["failed"] == 0, "{report}");
    ensure!(
        report["lines"]
            .as_array()
            .is_some_and(|lines| lines.iter().any(|line| line.as_str().is_some_and(|line| line.starts_with("undone: ")))),
        "{report}"
    );
    scene.page_says("main", "/shop", "one", Duration::from_secs(20)).await?;
    scene.settles_to_one_of_each().await
}
