//! A copy in quarantine, as a client sees it. What lies on a server is tested below this floor; here the row says so.

use anyhow::Result;
use axum::http::StatusCode;
use serde_json::json;

use crate::environments::Scene;

#[tokio::test]
async fn a_copy_in_quarantine_tells_why_and_goes_when_it_is_destroyed() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let path = format!("/environments/{}/quarantine", environment.id);
    let absent = scene.api.get(&path).token(scene.scenario.owner.token()).expect(StatusCode::NOT_FOUND).await?;
    assert_eq!(absent["detail"], "there is no such copy in quarantine");
    scene.delete(&path, StatusCode::NO_CONTENT).await?;
    let report = json!({
        "facts": [
            { "name": "mail_servers", "statement": "A mail server other than the catcher is active: Real.", "holds": false },
            { "name": "crons", "statement": "No cron runs.", "holds": true },
        ],
        "modules": [], "findings": [], "scripts": ["neutralize.sql"], "masked": [],
    });
    sqlx::query(
        "insert into quarantines (instance_id, environment_id, deployment_id, data_set_id, status, step, message, excerpt,
                                  source_environment_id, of_production, report, database_bytes, file_store_bytes, created_at, expires_at)
         select instance_id, environment_id, id, id, 'kept', 'neutralize', 'it is not harmless', 'mail_servers: …', environment_id, false, $2,
                41943040, 2097152, now(), now() + interval '7 days'
         from deployments where environment_id = $1",
    )
    .bind(environment.id.as_uuid())
    .bind(&report)
    .execute(&scene.scenario.store.control.pool)
    .await?;

    let shown = scene.get(&path).await?;
    let expected = json!({
        "environmentId": environment.id, "status": "kept", "step": "neutralize", "reason": "it is not harmless", "excerpt": "mail_servers: …",
        "sourceEnvironmentId": environment.id, "sourceEnvironmentName": "main", "ofProduction": false, "databaseBytes": 41_943_040,
        "fileStoreBytes": 2_097_152, "failedFacts": [report["facts"][0]],
    });
    for (field, value) in expected.as_object().into_iter().flatten() {
        assert_eq!(&shown[field], value, "{field} of {shown}");
    }
    assert_eq!((&shown["coverage"]["facts"], &shown["coverage"]["scripts"]), (&report["facts"], &report["scripts"]));
    for field in ["deploymentId", "since", "expiresAt"] {
        assert!(shown[field].is_string(), "{field} of {shown}");
    }

    // A production's data as they are take more than the right to manage snapshots.
    let query = format!("{path}/query");
    let developer = scene.scenario.store.member(&scene.scenario.owner.scope, "developer@example.com", "Developer").await?;
    let ask = json!({ "sql": "select 1" });
    scene.api.post(&query, &ask).token(developer.token()).expect(StatusCode::FORBIDDEN).await?;
    scene.post(&query, json!({ "sql": " " }), StatusCode::UNPROCESSABLE_ENTITY).await?;
    scene.post(&query, json!({ "query": "select 1" }), StatusCode::UNPROCESSABLE_ENTITY).await?;

    scene.delete(&path, StatusCode::NO_CONTENT).await?;
    scene.delete(&path, StatusCode::NO_CONTENT).await?;
    scene.api.get(&path).token(scene.scenario.owner.token()).expect(StatusCode::NOT_FOUND).await?;
    let log = scene.get("/audit").await?;
    let actions: Vec<&str> = log["entries"].as_array().into_iter().flatten().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions, ["quarantine.destroyed", "member.joined", "member.invited"], "{log}");
    Ok(())
}
