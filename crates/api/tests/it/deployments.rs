//! Deployments, their logs and their events, as a client sees them.

use anyhow::{Context, Result};
use axum::http::StatusCode;
use ocore_model::ids::DeploymentId;
use serde_json::{Value, json};

use crate::environments::{Scene, assert_body, known};

/// Lines and an end, as the engine writes them.
async fn end(scene: &Scene, id: DeploymentId) -> Result<()> {
    let pool = &scene.scenario.store.control.pool;
    scene.scenario.set(id, "status = 'running', started_at = now()").await?;
    sqlx::query(
        "insert into step_log_lines (deployment_id, step_id, text)
         select $1, id, name || ' ' || line from deployment_steps cross join generate_series(1, 3) as line
         where deployment_id = $1 and name in ('checkout', 'plan') order by sort_order, line",
    )
    .bind(id.as_uuid())
    .execute(pool)
    .await?;
    scene.scenario.set(id, "status = 'failed', completed_at = now(), error_message = 'no', error_excerpt = 'Traceback'").await
}

async fn deployed(scene: &Scene) -> Result<DeploymentId> {
    scene.scenario.commit("first")?;
    scene.scenario.push("main").await?.deployment_id.context("it is deployed")
}

#[tokio::test]
async fn a_deployment_is_shown_with_its_steps_and_nothing_invented() -> Result<()> {
    let scene = Scene::new().await?;
    let id = deployed(&scene).await?;
    let deployment = scene.get(&format!("/deployments/{id}")).await?;
    assert_body!("deployment", &deployment);
    Ok(())
}

#[tokio::test]
async fn a_build_is_triggered_and_refused_when_nothing_is_pending() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let path = format!("/environments/{}/trigger-build", environment.id);
    let problem = scene.post(&path, json!({}), StatusCode::CONFLICT).await?;
    assert_eq!(problem["code"], "nothing_pending");
    scene.scenario.commit("second")?;
    scene.scenario.push("main").await?;
    let call = scene.api.call(axum::http::Method::POST, &path).token(scene.scenario.owner.token());
    let deployment = call.expect(StatusCode::ACCEPTED).await?;
    assert_eq!((&deployment["status"], &deployment["commitMessage"]), (&json!("queued"), &json!("second")));
    Ok(())
}

#[tokio::test]
async fn deploy_and_cancel_answer_with_the_deployment() -> Result<()> {
    let scene = Scene::new().await?;
    scene.scenario.live("main").await?;
    let path = format!("/projects/{}/deploy", scene.scenario.project);
    let body = json!({ "branch": "main", "commitSha": null, "tag": null });
    let deployment = scene.post(&path, body, StatusCode::ACCEPTED).await?;
    assert_eq!((&deployment["triggerType"], &deployment["branch"]), (&json!("manual"), &json!("main")));
    let cancel = format!("/deployments/{}/cancel", deployment["id"].as_str().context("it has an id")?);
    let cancelled = scene.post(&cancel, json!({}), StatusCode::ACCEPTED).await?;
    assert_eq!(cancelled["status"], "cancelled");
    let problem = scene.post(&cancel, json!({}), StatusCode::CONFLICT).await?;
    assert_eq!(problem["code"], "already_ended");
    for (body, field) in [(json!({}), "branch"), (json!({ "commitSha": "abc" }), "commitSha"), (json!({ "branch": "a b" }), "branch")] {
        let problem = scene.post(&path, body, StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    Ok(())
}

#[tokio::test]
async fn stored_lines_are_read_in_pages() -> Result<()> {
    let scene = Scene::new().await?;
    let id = deployed(&scene).await?;
    end(&scene, id).await?;
    let texts = |page: &Value| -> Vec<String> {
        page["lines"].as_array().into_iter().flatten().filter_map(|line| line["text"].as_str().map(str::to_owned)).collect()
    };
    let path = format!("/deployments/{id}/logs");
    let mut seen = Vec::new();
    let mut after = 0;
    loop {
        let page = scene.get(&format!("{path}?after={after}&limit=4")).await?;
        let Some(last) = page["lines"].as_array().and_then(|lines| lines.last()?["id"].as_i64()) else { break };
        seen.extend(texts(&page));
        after = last;
    }
    assert_eq!(seen, ["checkout 1", "checkout 2", "checkout 3", "plan 1", "plan 2", "plan 3"]);
    assert_eq!(texts(&scene.get(&format!("{path}?step=plan")).await?), ["plan 1", "plan 2", "plan 3"]);
    for bad in ["limit=0", "limit=5001", "step=dance"] {
        let call = scene.api.get(&format!("{path}?{bad}")).token(scene.scenario.owner.token());
        assert_eq!(call.problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input", "{bad}");
    }
    Ok(())
}

#[tokio::test]
async fn events_go_on_after_the_last_one_that_was_seen() -> Result<()> {
    let scene = Scene::new().await?;
    let id = deployed(&scene).await?;
    end(&scene, id).await?;
    let path = format!("/deployments/{id}/events");
    let events = async |last: Option<&str>| {
        let mut call = scene.api.get(&path).token(scene.scenario.owner.token());
        if let Some(last) = last {
            call = call.header("last-event-id", last);
        }
        call.send().await
    };
    let all = events(None).await?;
    assert_eq!(all.status, StatusCode::OK);
    assert_eq!(all.headers["content-type"], "text/event-stream");
    let blocks: Vec<&str> = all.text.split_terminator("\n\n").collect();
    let field = |block: &str, name: &str| -> Option<String> {
        block.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_start().to_owned())
    };
    let kinds: Vec<String> = blocks.iter().filter_map(|block| field(block, "event:")).collect();
    assert_eq!(kinds, ["status", "status", "line", "line", "line", "line", "line", "line", "status"]);
    let line: Value = serde_json::from_str(&field(blocks[2], "data:").context("data")?)?;
    assert_eq!(line, json!({ "step": "checkout", "text": "checkout 1" }));
    let last: Value = serde_json::from_str(&field(blocks[8], "data:").context("data")?)?;
    assert_eq!(last, json!({ "status": "failed", "message": "no", "excerpt": "Traceback" }));
    for (seen, block) in blocks.iter().enumerate().take(8) {
        let rest = events(field(block, "id:").as_deref()).await?;
        assert_eq!(rest.text.split_terminator("\n\n").collect::<Vec<_>>(), blocks[seen + 1..], "after {seen}");
    }
    let nothing = events(field(blocks[8], "id:").as_deref()).await?;
    assert_eq!(nothing.status, StatusCode::NO_CONTENT, "a browser stops coming back");
    let problem = events(Some("yesterday")).await?;
    assert_eq!(problem.status, StatusCode::UNPROCESSABLE_ENTITY);
    Ok(())
}
