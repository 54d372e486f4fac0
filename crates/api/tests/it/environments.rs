//! Environments and the pipeline, as a client sees them.

use anyhow::{Context, Result};
use axum::http::StatusCode;
use ocore_testkit::Scenario;
use serde_json::{Value, json};

use crate::support::TestApi;

/// What differs from run to run.
macro_rules! assert_body {
    ($name:literal, $body:expr) => {
        insta::assert_json_snapshot!($name, $body, {
            ".**.id" => "[id]",
            ".**.instanceId" => "[id]",
            ".**.projectId" => "[id]",
            ".**.environmentId" => "[id]",
            ".**.serverId" => "[id]",
            ".**.previousDeploymentId" => insta::dynamic_redaction(known),
            ".**.activeDeploymentId" => insta::dynamic_redaction(known),
            ".**.commitSha" => "[sha]",
            ".**.previousCommitSha" => insta::dynamic_redaction(known),
            ".**.pendingCommitSha" => insta::dynamic_redaction(known),
            ".**.liveCommitSha" => insta::dynamic_redaction(known),
            ".**.createdAt" => "[time]",
            ".**.updatedAt" => "[time]",
            ".**.lastCommitAt" => insta::dynamic_redaction(known),
            ".**.startedAt" => insta::dynamic_redaction(known),
            ".**.completedAt" => insta::dynamic_redaction(known),
            ".**.durationMs" => insta::dynamic_redaction(known),
        })
    };
}
pub(crate) use assert_body;

/// Whether there is a value matters, not which.
pub(crate) fn known(value: insta::internals::Content, _: insta::internals::ContentPath<'_>) -> insta::internals::Content {
    if value == insta::internals::Content::None || value == insta::internals::Content::Unit { value } else { "[some]".into() }
}

pub(crate) struct Scene {
    pub(crate) api: TestApi,
    pub(crate) scenario: Scenario,
}

impl Scene {
    pub(crate) async fn new() -> Result<Self> {
        let scenario = Scenario::new().await?;
        Ok(Self { api: TestApi::on(scenario.store.clone()), scenario })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.api.get(path).token(self.scenario.owner.token()).expect(StatusCode::OK).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value, status: StatusCode) -> Result<Value> {
        self.api.post(path, &body).token(self.scenario.owner.token()).expect(status).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value, status: StatusCode) -> Result<Value> {
        self.api.put(path, &body).token(self.scenario.owner.token()).expect(status).await
    }

    pub(crate) async fn delete(&self, path: &str, status: StatusCode) -> Result<Value> {
        self.api.delete(path).token(self.scenario.owner.token()).expect(status).await
    }
}

fn id(body: &Value) -> Result<&str> {
    body["id"].as_str().context("it has an id")
}

#[tokio::test]
async fn an_environment_is_made_shown_changed_and_deleted() -> Result<()> {
    let scene = Scene::new().await?;
    let project = scene.scenario.project;
    let environments = format!("/projects/{project}/environments");
    let made = scene.post(&environments, json!({ "branch": "feature/x", "environmentType": "development" }), StatusCode::CREATED).await?;
    assert_body!("environment", &made);
    let path = format!("/environments/{}", id(&made)?);
    assert_eq!(scene.get(&path).await?, made);
    let changed = scene.put(&path, json!({ "name": "Try-out", "description": "For the new look" }), StatusCode::OK).await?;
    assert_eq!((&changed["name"], &changed["description"]), (&json!("Try-out"), &json!("For the new look")));
    let behavior = scene.put(&format!("{path}/commit-behavior"), json!({ "behavior": "do_nothing" }), StatusCode::OK).await?;
    assert_body!("commit_behavior", &behavior);
    let list = scene.get("/environments").await?;
    assert_eq!((&list["total"], &list["environments"][0]["commitBehavior"]), (&json!(1), &json!("do_nothing")));
    assert_eq!(scene.get(&environments).await?, list["environments"]);
    for _ in 0..2 {
        let deleted = scene.delete(&path, StatusCode::ACCEPTED).await?;
        assert_eq!(deleted["message"], "the environment is being deleted, with its database and files");
    }
    let removing = scene.get(&path).await?;
    assert_eq!((&removing["status"], &removing["instanceStatus"]), (&json!("removing"), &json!("removing")));
    Ok(())
}

#[tokio::test]
async fn inputs_that_do_not_fit_name_their_field() -> Result<()> {
    let scene = Scene::new().await?;
    let environments = format!("/projects/{}/environments", scene.scenario.project);
    for (body, field) in [
        (json!({}), "branch"),
        (json!({ "branch": "-x" }), "branch"),
        (json!({ "branch": "../x" }), "branch"),
        (json!({ "branch": "x", "environmentType": "test" }), "environmentType"),
        (json!({ "branch": "x", "instanceId": "y" }), "instanceId"),
        (json!({ "branch": "x", "stage": "production" }), "stage"),
    ] {
        let problem = scene.post(&environments, body, StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    let made = scene.post(&environments, json!({ "branch": "main", "environmentType": "production" }), StatusCode::CREATED).await?;
    let path = format!("/environments/{}", id(&made)?);
    for body in [json!({}), json!({ "behavior": "sometimes" })] {
        let problem = scene.put(&format!("{path}/commit-behavior"), body, StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], "behavior", "{problem}");
    }
    let problem = scene.delete(&path, StatusCode::CONFLICT).await?;
    assert_eq!(problem["code"], "production_protected");
    let problem = scene.put(&path, json!({ "environmentType": "staging" }), StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(problem["errors"][0]["field"], "environmentType", "the type cannot be changed here");
    Ok(())
}

#[tokio::test]
async fn the_pipeline_groups_environments_by_stage() -> Result<()> {
    let scene = Scene::new().await?;
    scene.scenario.live("main").await?;
    scene.scenario.commit("second")?;
    scene.scenario.push("main").await?;
    scene.scenario.push("feature/x").await?;
    let path = format!("/projects/{}/pipeline", scene.scenario.project);
    let pipeline = scene.get(&path).await?;
    assert_body!("pipeline", &pipeline);
    let more = scene.get(&format!("{path}?recentDeployments=10")).await?;
    assert_eq!(more["stages"]["production"]["environments"][0]["recentDeployments"].as_array().map(Vec::len), Some(2));
    for bad in ["11", "-1", "x"] {
        let call = scene.api.get(&format!("{path}?recentDeployments={bad}")).token(scene.scenario.owner.token());
        assert_eq!(call.problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input", "{bad}");
    }
    Ok(())
}

#[tokio::test]
async fn deployments_come_in_pages_of_twenty_and_a_hundred_at_most() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    for number in 0..24 {
        scene.scenario.commit(&number.to_string())?;
        scene.scenario.push("main").await?;
    }
    let path = format!("/environments/{}/deployments", environment.id);
    let page = scene.get(&path).await?;
    assert_eq!(
        (page["deployments"].as_array().map(Vec::len), &page["limit"], &page["offset"], &page["total"]),
        (Some(20), &json!(20), &json!(0), &json!(25))
    );
    assert_eq!(page["deployments"][0]["commitMessage"], "23");
    let page = scene.get(&format!("{path}?limit=10&offset=20")).await?;
    let messages: Vec<&str> =
        page["deployments"].as_array().into_iter().flatten().filter_map(|one| one["commitMessage"].as_str()).collect();
    assert_eq!(messages, ["3", "2", "1", "0", "first"]);
    let all = scene.get(&format!("{path}?limit=100")).await?;
    assert_eq!(all["deployments"].as_array().map(Vec::len), Some(25));
    let of_project = scene.get(&format!("/projects/{}/deployments?limit=100", scene.scenario.project)).await?;
    assert_eq!(of_project, all);
    for bad in ["limit=0", "limit=101", "limit=x", "offset=-1"] {
        let call = scene.api.get(&format!("{path}?{bad}")).token(scene.scenario.owner.token());
        assert_eq!(call.problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input", "{bad}");
    }
    Ok(())
}

#[tokio::test]
async fn commits_since_a_commit_are_listed() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.scenario.commit("first")?;
    scene.scenario.commit("second")?;
    scene.scenario.push("main").await?;
    let path = format!("/projects/{}/commits-since", scene.scenario.project);
    let commits = scene.get(&format!("{path}?since={first}&branch=main")).await?;
    insta::assert_json_snapshot!("commits_since", &commits, {
        ".commits[].sha" => "[sha]", ".commits[].authoredAt" => "[time]", ".commits[].committedAt" => "[time]",
    });
    for query in ["", "?since=x&branch=main", &format!("?since={first}&branch=a..b"), &format!("?since={first}")] {
        let call = scene.api.get(&format!("{path}{query}")).token(scene.scenario.owner.token());
        assert_eq!(call.problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input", "{query}");
    }
    Ok(())
}

#[tokio::test]
async fn many_readers_at_once_get_the_same_and_each_tenant_its_own() -> Result<()> {
    let scene = Scene::new().await?;
    scene.scenario.live("main").await?;
    let other = scene.scenario.store.organization("other").await?;
    let reads = (0..32).map(|number| {
        let token = if number % 2 == 0 { scene.scenario.owner.token() } else { other.token() };
        let call = scene.api.get("/environments").token(token);
        async move { anyhow::Ok((number, call.expect(StatusCode::OK).await?)) }
    });
    for (number, body) in futures::future::try_join_all(reads).await? {
        assert_eq!(body["total"], i32::from(number % 2 == 0), "reader {number}");
    }
    Ok(())
}
