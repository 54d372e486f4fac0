//! An environment that sleeps whole, and everything that wakes it: a request, a push, a mail, a copy that needs none.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::{admin::Admin, scene::Scene};

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_sleeps_whole_and_whoever_needs_it_wakes_it() -> Result<()> {
    let mut scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    for branch in ["main", "feature"] {
        let push = scene.push(branch)?;
        ensure!(push.success, "{}", push.output);
    }
    let feature = scene.environment("feature").await?;
    let sleep = json!({ "action": "sleep" });

    // Production never sleeps.
    let production = scene.environment("main").await?;
    let refused = scene.owner.post(&control(&production), &sleep).await.err().context("production fell asleep")?;
    ensure!(refused.to_string().contains("production_awake"), "{refused}");

    // Asleep: no Odoo, no cluster, and the API says what that frees.
    fall_asleep(&scene, &feature, 1).await?;
    let rule = scene.owner.get(&format!("/environments/{}/sleep", feature["id"].as_str().unwrap_or_default())).await?;
    ensure!(rule["afterMinutes"] == 30 && rule["asleepSince"].is_string(), "{rule}");
    ensure!(rule["freedBytes"].as_u64() > Some(50_000_000), "{rule}");

    // A program's request waits and is answered; more that come meanwhile are, too.
    let answers = futures::future::join_all((0..8).map(|_| scene.page("feature", "/shop"))).await;
    for answer in answers {
        ensure!(answer?.contains("one"));
    }
    ensure!(scene.environment("feature").await?["instanceStatus"] == "running");

    // A push updates a sleeper and leaves it awake.
    fall_asleep(&scene, &feature, 1).await?;
    write_page(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    let push = scene.push("feature")?;
    ensure!(push.success && push.output.contains("live at"), "{}", push.output);
    scene.page_says("feature", "/shop", "two", Duration::from_secs(10)).await?;

    // oCore is killed while it falls asleep, and the edge goes on: who asks is answered once oCore is back.
    scene.owner.post(&control(&feature), &sleep).await?;
    scene.installation.kill_server()?;
    scene.installation.serve(&[]).await?;
    scene.page_says("feature", "/shop", "two", Duration::from_secs(60)).await?;

    // A scheduled action that is due wakes it, once somebody wants that.
    a_scheduled_action_wakes_it(&scene, &feature).await?;

    // A sleeper is cloned without being woken.
    fall_asleep(&scene, &feature, 1).await?;
    let body = json!({ "targetBranch": "copy", "targetType": "development", "autoDestroy": false });
    let clone = scene.owner.post(&format!("/environments/{}/clone", feature["id"].as_str().unwrap_or_default()), &body).await?;
    ensure!(clone["branch"] == "copy", "{clone}");
    scene.page_says("copy", "/shop", "two", Duration::from_secs(120)).await?;
    ensure!(scene.environment("feature").await?["instanceStatus"] == "asleep");
    Ok(())
}

async fn a_scheduled_action_wakes_it(scene: &Scene, feature: &Value) -> Result<()> {
    let odoo = Admin::of(scene, "feature").await?;
    // Odoo's own ones could be due before, and one that runs cannot be changed.
    let others = odoo.values("ir.cron", json!([]), "id").await?;
    let rest = async || odoo.call("ir.cron", "write", json!([others, { "active": false }])).await.ok();
    eventually(Duration::from_secs(60), rest).await.context("Odoo's own scheduled actions cannot be switched off")?;
    let model = odoo.values("ir.model", json!([["model", "=", "ir.config_parameter"]]), "id").await?;
    let due = Utc::now() + TimeDelta::seconds(25);
    let action = json!([{
        "name": "Tick", "model_id": model[0], "state": "code", "code": "model.set_param('ticked', 'yes')",
        "interval_number": 1, "interval_type": "days", "nextcall": due.format("%Y-%m-%d %H:%M:%S").to_string(),
    }]);
    odoo.call("ir.cron", "create", action).await?;
    let path = format!("/environments/{}/sleep", feature["id"].as_str().unwrap_or_default());
    let rule = scene.owner.put(&path, &json!({ "ownMinutes": null, "wakesForScheduledActions": true })).await?;
    ensure!(rule["wakesForScheduledActions"] == true && rule["ownMinutes"].is_null(), "{rule}");
    fall_asleep(scene, feature, 1).await?;
    let rule = scene.owner.get(&path).await?;
    let next: DateTime<Utc> = rule["nextScheduledActionAt"].as_str().with_context(|| format!("{rule}"))?.parse()?;
    ensure!((due - next).num_seconds().abs() <= 1, "{rule}");
    let awake = async || (scene.environment("feature").await.ok()?["instanceStatus"] == "running").then_some(());
    eventually(Duration::from_secs(90), awake).await.context("nothing wakes it")?;
    let ticked = async || {
        let found = odoo.values("ir.config_parameter", json!([["key", "=", "ticked"]]), "value").await.ok()?;
        (found.first()? == "yes").then_some(())
    };
    eventually(Duration::from_secs(90), ticked).await.context("the action has not run")?;
    scene.owner.put(&path, &json!({ "ownMinutes": null, "wakesForScheduledActions": false })).await.map(drop)
}

/// Sends it to sleep, and waits until so many Odoos and clusters are left.
async fn fall_asleep(scene: &Scene, environment: &Value, left: usize) -> Result<()> {
    scene.owner.post(&control(environment), &json!({ "action": "sleep" })).await?;
    let own = format!("/environments/{}/sleep", environment["id"].as_str().unwrap_or_default());
    let asleep = async || scene.owner.get(&own).await.ok()?["asleepSince"].is_string().then_some(());
    ensure!(eventually(Duration::from_secs(60), asleep).await.is_some(), "it never fell asleep");
    let rests = eventually(Duration::from_secs(60), async || (scene.instance_processes() == (left, left)).then_some(())).await;
    rests.with_context(|| format!("{:#?}", scene.installation.processes()))
}

fn control(environment: &Value) -> String {
    format!("/instances/{}/control", environment["instanceId"].as_str().unwrap_or_default())
}
