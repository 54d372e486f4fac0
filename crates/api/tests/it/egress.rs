//! Network policies and the audit log, as a client sees them.

use anyhow::{Context, Result};
use axum::http::StatusCode;
use ocore_testkit::Scenario;
use serde_json::json;

use crate::{environments::Scene, support::TestApi};

async fn environment(scene: &Scene, stage: &str) -> Result<String> {
    let path = format!("/projects/{}/environments", scene.scenario.project);
    let made = scene.post(&path, json!({ "branch": format!("feature/{stage}"), "environmentType": stage }), StatusCode::CREATED).await?;
    Ok(format!("/environments/{}/egress", made["id"].as_str().context("it has an id")?))
}

#[tokio::test]
async fn a_policy_is_shown_and_changed_and_the_change_is_in_the_audit_log() -> Result<()> {
    let scene = Scene::new().await?;
    let path = environment(&scene, "staging").await?;
    let shown = scene.get(&path).await?;
    assert_eq!((&shown["closed"], &shown["production"], &shown["enforced"]), (&json!(true), &json!(false), &json!(false)));
    assert_eq!((&shown["allow"], &shown["attempts"]), (&json!([]), &json!([])));
    assert!(shown["problem"].is_string(), "this test has no machine, and it says so: {shown}");

    let changed = scene.put(&path, json!({ "closed": false, "allow": ["192.0.2.1:443"] }), StatusCode::OK).await?;
    assert_eq!(changed["closed"], false);
    assert_eq!(changed["allow"], json!([{ "destination": "192.0.2.1:443", "addresses": ["192.0.2.1"] }]));
    let log = scene.get("/audit?limit=1").await?;
    assert_eq!((&log["total"], &log["limit"], &log["offset"]), (&json!(1), &json!(1), &json!(0)));
    let entry = &log["entries"][0];
    assert_eq!((&entry["action"], &entry["userEmail"]), (&json!("egress.opened"), &json!("owner@acme.example")));
    assert_eq!(entry["detail"]["after"], json!({ "mode": "open", "allow": ["192.0.2.1:443"] }));
    assert_eq!(scene.get("/audit?offset=1").await?["entries"], json!([]));

    let refused = scene.put(&path, json!({ "allow": ["example"] }), StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert!(refused.to_string().contains("allow[0]"), "{refused}");
    scene.put(&path, json!({ "open": true }), StatusCode::UNPROCESSABLE_ENTITY).await?;
    Ok(())
}

#[tokio::test]
async fn production_says_that_it_is_open_and_stays_so() -> Result<()> {
    let scene = Scene::new().await?;
    let path = environment(&scene, "production").await?;
    let shown = scene.get(&path).await?;
    assert_eq!((&shown["closed"], &shown["production"]), (&json!(false), &json!(true)));
    let refused = scene.put(&path, json!({ "closed": true }), StatusCode::CONFLICT).await?;
    assert_eq!(refused["code"], "production_open");
    Ok(())
}

#[tokio::test]
async fn a_developer_sees_the_policy_and_may_neither_change_it_nor_read_the_log() -> Result<()> {
    let scene = Scene::new().await?;
    let Scenario { store, owner, .. } = &scene.scenario;
    let path = environment(&scene, "development").await?;
    let api = TestApi::on(store.clone());
    for (role, may) in [("Developer", StatusCode::FORBIDDEN), ("Viewer", StatusCode::FORBIDDEN), ("Admin", StatusCode::OK)] {
        let member = store.member(&owner.scope, &format!("{role}@example.com"), role).await?;
        api.get(&path).token(member.token()).expect(StatusCode::OK).await?;
        api.put(&path, &json!({ "closed": false })).token(member.token()).expect(may).await?;
        api.get("/audit").token(member.token()).expect(may).await?;
    }
    let stranger = store.organization("globex").await?;
    api.get(&path).token(stranger.token()).expect(StatusCode::NOT_FOUND).await?;
    let log = api.get("/audit").token(stranger.token()).expect(StatusCode::OK).await?;
    assert_eq!(log["entries"], json!([]), "another organization's log is its own");
    Ok(())
}
