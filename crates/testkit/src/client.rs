//! The API as a test uses it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::wait::eventually;

#[derive(Debug, Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    pub url: String,
    pub token: Option<String>,
    pub organization: Option<String>,
}

impl ApiClient {
    pub fn new(url: &str, token: Option<String>, organization: Option<String>) -> Self {
        Self { http: reqwest::Client::new(), url: url.to_owned(), token, organization }
    }

    /// One request, whatever its answer.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{}/api{path}", self.url));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(organization) = &self.organization {
            request = request.header("x-org-slug", organization);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        Ok((status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) }))
    }

    async fn expect_success(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.request(method.clone(), path, body).await?;
        if !status.is_success() {
            bail!("{method} {path} answered {status}: {answer}");
        }
        Ok(answer)
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.expect_success(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.expect_success(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.expect_success(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.expect_success(Method::DELETE, path, None).await
    }

    /// Makes a project; `more` overrides fields of its body.
    pub async fn project(&self, name: &str, more: Value) -> Result<Value> {
        let mut body = json!({ "name": name, "odooVersion": "19.0" });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.post("/projects", &body).await
    }

    /// An API key with all rights of its maker.
    pub async fn api_key(&self) -> Result<String> {
        let organization = self.get("/org").await?;
        let body = json!({ "name": "test", "permissions": organization["permissions"] });
        Ok(self.post("/api-keys", &body).await?["key"].as_str().context("no key")?.to_owned())
    }

    /// The environment of a branch, once there is one.
    pub async fn environment(&self, project: &Value, branch: &str) -> Result<Value> {
        let path = format!("/projects/{}/environments", project["id"].as_str().unwrap_or_default());
        let environments = self.get(&path).await?;
        let found = environments.as_array().and_then(|all| all.iter().find(|environment| environment["branch"].as_str() == Some(branch)));
        found.cloned().with_context(|| format!("there is no environment for {branch}"))
    }

    /// The newest deployments of an environment, newest first.
    pub async fn deployments(&self, environment: &Value) -> Result<Vec<Value>> {
        let path = format!("/environments/{}/deployments", environment["id"].as_str().unwrap_or_default());
        Ok(self.get(&path).await?["deployments"].as_array().cloned().unwrap_or_default())
    }

    /// Waits for a deployment's end.
    pub async fn ended(&self, deployment: &Value, limit: Duration) -> Result<Value> {
        let path = format!("/deployments/{}", deployment["id"].as_str().unwrap_or_default());
        eventually(limit, async || match self.get(&path).await {
            Ok(current) if !matches!(current["status"].as_str(), Some("queued" | "running")) => Some(current),
            _ => None,
        })
        .await
        .with_context(|| format!("deployment {} did not end in {limit:?}", deployment["id"]))
    }
}
