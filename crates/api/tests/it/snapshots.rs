//! Snapshots, as a client sees them. What is taken on a server is tested below this floor; here the row says so.

use anyhow::{Context, Result};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::environments::Scene;

impl Scene {
    async fn patch(&self, path: &str, body: Value, status: StatusCode) -> Result<Value> {
        self.api.call(Method::PATCH, path).json(&body).token(self.scenario.owner.token()).expect(status).await
    }
}

/// Writes what the reconciler writes when the server has taken it.
async fn take(scene: &Scene, id: &str) -> Result<()> {
    sqlx::query(
        "update snapshots
         set status = 'ready', standing = 'own', postgres_version = '15', database_bytes = 41943040, file_store_bytes = 2097152,
             file_store_files = 120, modules_count = 14, live = true, shares_blocks = true, seconds = 1.5, taken_at = now()
         where id = $1::uuid",
    )
    .bind(uuid::Uuid::parse_str(id)?)
    .execute(&scene.scenario.store.control.pool)
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_snapshot_is_asked_for_found_pinned_checked_and_removed() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let path = format!("/environments/{}/snapshots", environment.id);
    let call = scene.api.post(&path, &json!({ "name": "before the fair" })).token(scene.scenario.owner.token());
    let answer = call.send().await?;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let id = answer.body["id"].as_str().context("it has an id")?.to_owned();
    let own = format!("/snapshots/{id}");
    assert_eq!(answer.headers["location"], format!("/api{own}"));
    assert_eq!((answer.body["status"].as_str(), &answer.body["takenAt"]), (Some("creating"), &Value::Null));

    take(&scene, &id).await?;
    let page = scene.get(&path).await?;
    assert_eq!((&page["limit"], &page["offset"], &page["total"]), (&json!(20), &json!(0), &json!(1)));
    let listed = &page["snapshots"][0];
    let expected = json!({
        "name": "before the fair", "kind": "manual", "status": "ready", "message": "", "pinned": false, "inUse": false, "branch": "main",
        "environmentName": "main", "environmentType": "production", "odooVersion": "19.0", "isNeutralized": false, "postgresVersion": "15",
        "databaseBytes": 41_943_040, "fileStoreBytes": 2_097_152, "fileStoreFiles": 120, "modulesCount": 14, "live": true,
        "sharesBlocks": true, "durationMs": 1500, "damagedFiles": [], "verification": null,
    });
    for (field, value) in expected.as_object().context("an object")? {
        assert_eq!(&listed[field], value, "{field} of {listed}");
    }
    for field in ["projectId", "environmentId", "instanceId", "serverId", "deploymentId", "commitSha", "takenAt", "createdAt", "createdBy"]
    {
        assert!(listed[field].is_string(), "{field} of {listed}");
    }
    assert!(!page.to_string().contains("assword"), "{page}");
    let of_project = scene.get(&format!("/projects/{}/snapshots", scene.scenario.project)).await?;
    assert_eq!(of_project, page);

    let pinned = scene.patch(&own, json!({ "pinned": true, "name": " the fair " }), StatusCode::OK).await?;
    assert_eq!((&pinned["pinned"], &pinned["name"]), (&json!(true), &json!("the fair")));
    assert_eq!(scene.delete(&own, StatusCode::CONFLICT).await?["code"], "snapshot_pinned");
    scene.patch(&own, json!({ "pinned": false }), StatusCode::OK).await?;

    let asked = scene.post(&format!("{own}/verify"), json!({}), StatusCode::ACCEPTED).await?;
    assert!(asked["verification"]["requestedAt"].is_string() && asked["verification"]["verifiedAt"].is_null(), "{asked}");
    sqlx::query(
        "update snapshots set verified_at = verify_requested_at,
             verification = '{\"checkedFiles\": 120, \"damaged\": [{\"path\": \"data_dir/filestore/ab\", \"problem\": \"it is empty\"}]}'",
    )
    .execute(&scene.scenario.store.control.pool)
    .await?;
    let verification = scene.get(&own).await?["verification"].take();
    assert_eq!((&verification["checkedFiles"], &verification["damaged"][0]["path"]), (&json!(120), &json!("data_dir/filestore/ab")));

    scene.delete(&own, StatusCode::ACCEPTED).await?;
    scene.delete(&own, StatusCode::ACCEPTED).await?;
    assert_eq!(scene.get(&own).await?["status"], "removing");
    let refused = scene.patch(&own, json!({ "name": "x" }), StatusCode::CONFLICT).await?;
    assert_eq!(refused["code"], "snapshot_removing");
    Ok(())
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_field_and_a_body_need_not_be_there() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let path = format!("/environments/{}/snapshots", environment.id);
    let made = scene.api.call(Method::POST, &path).token(scene.scenario.owner.token()).expect(StatusCode::ACCEPTED).await?;
    assert!(made["name"].as_str().is_some_and(|name| name.starts_with("main 2")), "{made}");
    for (body, field) in [(json!({ "name": "" }), "name"), (json!({ "name": "a\nb" }), "name"), (json!({ "title": "x" }), "title")] {
        let problem = scene.post(&path, body, StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    let own = format!("/snapshots/{}", made["id"].as_str().context("it has an id")?);
    let problem = scene.post(&format!("{own}/verify"), json!({}), StatusCode::CONFLICT).await?;
    assert_eq!(problem["code"], "snapshot_not_ready");
    for bad in ["limit=0", "limit=101", "offset=-1"] {
        let call = scene.api.get(&format!("{path}?{bad}")).token(scene.scenario.owner.token());
        assert_eq!(call.problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input", "{bad}");
    }
    scene.scenario.commit("second")?;
    let empty = scene.scenario.environment_of(&scene.scenario.push("empty").await?).await?;
    let problem = scene.post(&format!("/environments/{}/snapshots", empty.id), json!({}), StatusCode::CONFLICT).await?;
    assert_eq!(problem["code"], "nothing_live");
    Ok(())
}

#[tokio::test]
async fn settings_are_made_when_they_are_first_read_and_changed_one_by_one() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let path = format!("/environments/{}/snapshot-settings", environment.id);
    // The first branch is production.
    let defaults = json!({ "autoEnabled": true, "failurePolicy": "fail", "maxPinned": 5, "retentionDays": 14, "timeoutSeconds": 600 });
    assert_eq!(scene.get(&path).await?, defaults);
    let changed = scene.put(&path, json!({ "failurePolicy": "continue", "maxPinned": 2 }), StatusCode::OK).await?;
    let expected = json!({ "autoEnabled": true, "failurePolicy": "continue", "maxPinned": 2, "retentionDays": 14, "timeoutSeconds": 600 });
    assert_eq!((&changed, &scene.get(&path).await?), (&expected, &expected));
    for (body, field) in [
        (json!({ "failurePolicy": "ignore" }), "failurePolicy"),
        (json!({ "retentionDays": 0 }), "retentionDays"),
        (json!({ "maxPinned": 101 }), "maxPinned"),
        (json!({ "timeoutSeconds": "soon" }), "timeoutSeconds"),
    ] {
        let problem = scene.put(&path, body, StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    assert_eq!(scene.get(&path).await?, expected);
    Ok(())
}
