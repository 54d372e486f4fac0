//! Instances, as a client sees them.

use anyhow::{Context, Result};
use axum::http::StatusCode;
use ocore_control::secrets::{self, Place, Secret};
use serde_json::json;
use uuid::Uuid;

use crate::environments::{Scene, assert_body, known};

#[tokio::test]
async fn an_instance_is_made_changed_and_deleted() -> Result<()> {
    let scene = Scene::new().await?;
    let body = json!({
        "name": "Shop Test", "projectId": scene.scenario.project, "workers": 3, "envVars": { "STRIPE_KEY": "sk_test" },
        "branch": "staging", "environmentType": "staging",
    });
    let made = scene.post("/instances", body, StatusCode::ACCEPTED).await?;
    assert_body!("instance", &made);
    let path = format!("/instances/{}", made["id"].as_str().context("it has an id")?);
    assert_eq!(scene.get(&path).await?, made);
    let changed = scene.put(&path, json!({ "name": "Shop", "envVars": {}, "limitTimeReal": 300 }), StatusCode::OK).await?;
    assert_eq!((&changed["name"], &changed["envVars"], &changed["limitTimeReal"]), (&json!("Shop"), &json!({}), &json!(300)));
    let server = made["serverId"].as_str().context("it has a server")?;
    assert_eq!(scene.get(&format!("/instances?serverId={server}")).await?["total"], 1);
    assert_eq!(scene.get(&format!("/instances?serverId={}", Uuid::now_v7())).await?["total"], 0);
    let problem = scene.post(&format!("{path}/control"), json!({ "action": "restart" }), StatusCode::CONFLICT).await?;
    assert_eq!(problem["code"], "nothing_deployed");
    let problem = scene.post(&format!("{path}/control"), json!({ "action": "dance" }), StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(problem["errors"][0]["field"], "action");
    let logs = scene.api.get(&format!("{path}/logs")).token(scene.scenario.owner.token()).send().await?;
    assert_eq!((logs.status, logs.text.as_str()), (StatusCode::OK, ""), "nothing has run: an empty log");
    for _ in 0..2 {
        scene.delete(&path, StatusCode::ACCEPTED).await?;
    }
    assert_eq!(scene.get(&path).await?["status"], "removing");
    Ok(())
}

#[tokio::test]
async fn who_only_views_instances_sees_the_names_of_variables_and_not_their_values() -> Result<()> {
    let scene = Scene::new().await?;
    let body = json!({ "name": "Shop", "projectId": scene.scenario.project, "envVars": { "STRIPE_KEY": "sk_test" } });
    let made = scene.post("/instances", body, StatusCode::ACCEPTED).await?;
    let viewer = scene.scenario.store.member(scene.scenario.scope(), "viewer@example.com", "Viewer").await?;
    let path = format!("/instances/{}", made["id"].as_str().context("it has an id")?);
    let seen = scene.api.get(&path).token(viewer.token()).organization("acme").expect(StatusCode::OK).await?;
    assert_eq!((&made["envVars"], &seen["envVars"]), (&json!({ "STRIPE_KEY": "sk_test" }), &json!({ "STRIPE_KEY": "***" })));
    Ok(())
}

#[tokio::test]
async fn instances_that_do_not_fit_name_their_field() -> Result<()> {
    let scene = Scene::new().await?;
    let project = scene.scenario.project;
    for (body, field) in [
        (json!({ "projectId": project }), "name"),
        (json!({ "name": "x" }), "projectId"),
        (json!({ "name": " ", "projectId": project }), "name"),
        (json!({ "name": "x", "projectId": Uuid::now_v7() }), "projectId"),
        (json!({ "name": "x", "projectId": project, "slug": "A" }), "slug"),
        (json!({ "name": "x", "projectId": project, "environmentType": "production" }), "branch"),
        (json!({ "name": "x", "projectId": project, "odooVersion": "nineteen" }), "odooVersion"),
        (json!({ "name": "x", "projectId": project, "workers": 65 }), "workers"),
        (json!({ "name": "x", "projectId": project, "envVars": { "LD_PRELOAD": "/x.so" } }), "envVars.LD_PRELOAD"),
    ] {
        let problem = scene.post("/instances", body, StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    Ok(())
}

#[tokio::test]
async fn the_password_is_shown_to_who_manages_instances_and_kept_by_no_cache() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let control = &scene.scenario.store.control;
    let place = Place { table: "instances", column: "admin_password", row: environment.instance_id.as_uuid() };
    let sealed = secrets::seal(&control.settings, place, &Secret::new("hunter2"))?;
    sqlx::query("update instances set admin_password = $2 where id = $1")
        .bind(environment.instance_id.as_uuid())
        .bind(sealed)
        .execute(&control.pool)
        .await?;
    let path = format!("/instances/{}/credentials", environment.instance_id);
    let answer = scene.api.get(&path).token(scene.scenario.owner.token()).send().await?;
    assert_eq!(answer.body, json!({ "login": "admin", "password": "hunter2" }));
    assert_eq!(answer.headers["cache-control"], "no-store");
    let viewer = scene.scenario.store.member(scene.scenario.scope(), "viewer@example.com", "Viewer").await?;
    scene.api.get(&path).token(viewer.token()).organization("acme").expect(StatusCode::FORBIDDEN).await?;
    Ok(())
}
