//! The API over HTTP: one request function, problems as errors, a session that renews itself.

use std::cell::RefCell;

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    ClientOptions,
    failure::{ApiProblem, Failure},
    profile::Profile,
};

pub const DEFAULT_URL: &str = "http://127.0.0.1:8700";

pub struct Api {
    http: reqwest::Client,
    pub url: String,
    api_key: Option<String>,
    organization: Option<String>,
    profile: RefCell<Profile>,
}

impl Api {
    /// An API client with whatever credentials the options and the profile have, which may be none.
    pub fn new(options: &ClientOptions) -> Result<Self> {
        let profile = Profile::load()?;
        let url = options.url.clone().or_else(|| profile.url.clone()).unwrap_or_else(|| DEFAULT_URL.to_owned());
        Ok(Self {
            http: reqwest::Client::builder()
                .user_agent(concat!("ocore/", env!("CARGO_PKG_VERSION")))
                .build()
                .context("cannot set up HTTP")?,
            url: url.trim_end_matches('/').to_owned(),
            api_key: options.api_key.clone().or_else(|| profile.api_key.clone()),
            organization: options.org.clone().or_else(|| profile.organization.clone()),
            profile: RefCell::new(profile),
        })
    }

    /// An API client that has credentials.
    pub fn logged_in(options: &ClientOptions) -> Result<Self> {
        let api = Self::new(options)?;
        if api.token().is_none() {
            return Err(Failure::LoggedOut.into());
        }
        Ok(api)
    }

    pub fn refresh_token(&self) -> Option<String> {
        self.profile.borrow().refresh_token.clone()
    }

    fn token(&self) -> Option<String> {
        self.api_key.clone().or_else(|| self.profile.borrow().access_token.clone())
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, None).await
    }

    /// An answer that is no JSON.
    pub async fn text(&self, path: &str) -> Result<String> {
        self.send(Method::GET, path, None, &[]).await?.text().await.context("the answer broke off")
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.request(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Result<Value> {
        self.request(Method::PUT, path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Result<Value> {
        self.request(Method::PATCH, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.request(Method::DELETE, path, None).await
    }

    async fn request(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let response = self.send(method, path, body, &[]).await?;
        let text = response.text().await.context("the answer broke off")?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{} does not answer like oCore", self.url))
    }

    /// Sends a request and returns the open response; renews an expired session once.
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>, headers: &[(&str, &str)]) -> Result<reqwest::Response> {
        let response = self.send_once(&method, path, body.as_ref(), headers).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && self.api_key.is_none()
            && self.refresh_token().is_some()
            && !path.starts_with("/auth/")
        {
            self.renew().await?;
            return check(self.send_once(&method, path, body.as_ref(), headers).await?).await;
        }
        check(response).await
    }

    async fn send_once(&self, method: &Method, path: &str, body: Option<&Value>, headers: &[(&str, &str)]) -> Result<reqwest::Response> {
        let mut request = self.http.request(method.clone(), format!("{}/api{path}", self.url));
        if let Some(token) = self.token() {
            request = request.bearer_auth(token);
        }
        if let Some(organization) = &self.organization {
            request = request.header("x-org-slug", organization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.map_err(|error| {
            let reason = if error.is_connect() { "nothing listens there; is `ocore serve` running?".to_owned() } else { error.to_string() };
            Failure::Unreachable { url: self.url.clone(), reason }.into()
        })
    }

    /// Sends bytes that belong at an offset of something that is being uploaded. A session that has expired is not renewed: the caller asks where
    /// to go on before each call, which does.
    pub async fn upload(&self, path: &str, offset: u64, body: reqwest::Body) -> Result<()> {
        let mut request = self.http.patch(format!("{}/api{path}", self.url)).header("upload-offset", offset);
        if let Some(token) = self.token() {
            request = request.bearer_auth(token);
        }
        if let Some(organization) = &self.organization {
            request = request.header("x-org-slug", organization);
        }
        let sent = request.header("content-type", "application/offset+octet-stream").body(body).send().await;
        let response = sent.map_err(|error| Failure::Unreachable { url: self.url.clone(), reason: error.to_string() })?;
        check(response).await.map(drop)
    }

    async fn renew(&self) -> Result<()> {
        let refresh_token = self.refresh_token();
        let response = self.send_once(&Method::POST, "/auth/refresh", Some(&json!({ "refreshToken": refresh_token })), &[]).await?;
        if !response.status().is_success() {
            return Err(Failure::LoggedOut.into());
        }
        let tokens: Value = response.json().await.context("the answer broke off")?;
        self.remember(&tokens)
    }

    /// Keeps the tokens that a login or a renewal gave.
    pub fn remember(&self, tokens: &Value) -> Result<()> {
        let mut profile = self.profile.borrow_mut();
        profile.url = Some(self.url.clone());
        profile.access_token = tokens["accessToken"].as_str().map(str::to_owned);
        profile.refresh_token = tokens["refreshToken"].as_str().map(str::to_owned);
        profile.save()
    }

    /// Changes the profile and writes it.
    pub fn update_profile(&self, change: impl FnOnce(&mut Profile)) -> Result<()> {
        let mut profile = self.profile.borrow_mut();
        change(&mut profile);
        profile.save()
    }
}

async fn check(response: reqwest::Response) -> Result<reqwest::Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    let problem = serde_json::from_str(&text).unwrap_or_else(|_| ApiProblem {
        status: status.as_u16(),
        code: "unknown".to_owned(),
        detail: format!("the server answered {status}"),
        request_id: None,
        errors: Vec::new(),
    });
    Err(Failure::Problem(problem).into())
}
