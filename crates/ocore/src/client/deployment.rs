//! `ocore deploy`, `deployments`, `deployment`: start one and see it through.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ClientOptions,
    failure::Failure,
    http::Api,
    output::Output,
    select,
    sse::{self, Event},
};

#[derive(Debug, Args)]
pub struct Deploy {
    #[command(flatten)]
    target: select::Target,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

impl Deploy {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let deployment = self.target.post(&api, "deploy").await?;
        if self.no_wait {
            output.done(&deployment, &format!("Queued as deployment {}.", select::id(&deployment)));
            return Ok(());
        }
        follow(&api, output, &deployment).await
    }
}

#[derive(Debug, Args)]
pub struct List {
    /// Of one environment
    #[arg(long = "env")]
    environment: Option<String>,
    #[arg(long)]
    project: Option<String>,
    #[arg(long, default_value_t = 20)]
    limit: u16,
}

impl List {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let path = match &self.environment {
            Some(environment) => format!("/environments/{}/deployments", select::id(&select::environment(&api, environment).await?)),
            None => format!("/projects/{}/deployments", select::id(&select::project(&api, self.project.as_deref()).await?)),
        };
        let answer = api.get(&format!("{path}?limit={}", self.limit)).await?;
        let rows: Vec<Value> = answer["deployments"].as_array().cloned().unwrap_or_default().into_iter().map(shortened).collect();
        let columns = [
            ("started", "/createdAt"),
            ("branch", "/branch"),
            ("commit", "/shortSha"),
            ("status", "/status"),
            ("took", "/took"),
            ("message", "/commitMessage"),
            ("id", "/id"),
        ];
        output.list(&answer, &rows, &columns, "Nothing has been deployed yet.");
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub enum DeploymentCommand {
    Show {
        id: String,
    },
    /// Follow it to its end
    Follow {
        id: String,
    },
    /// Ask it to stop; what served before goes on serving
    Cancel {
        id: String,
    },
    /// What its steps wrote
    Logs {
        id: String,
    },
    /// How it was for the users: requests, failures, who had to wait, what was taken back
    Report {
        id: String,
    },
}

impl DeploymentCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        match self {
            Self::Show { id } => {
                let deployment = shortened(api.get(&format!("/deployments/{id}")).await?);
                output.show(
                    &deployment,
                    &[
                        ("Status", "/status"),
                        ("Branch", "/branch"),
                        ("Commit", "/commitSha"),
                        ("By", "/commitAuthor"),
                        ("Message", "/commitMessage"),
                        ("Started", "/startedAt"),
                        ("Took", "/took"),
                        ("Error", "/errorMessage"),
                    ],
                );
                if !output.json {
                    let steps: Vec<Value> =
                        deployment["steps"].as_array().cloned().unwrap_or_default().into_iter().map(shortened).collect();
                    let columns = [("step", "/name"), ("status", "/status"), ("took", "/took"), ("", "/output")];
                    out!();
                    output.list(&deployment, &steps, &columns, "");
                }
            }
            Self::Follow { id } => {
                let deployment = api.get(&format!("/deployments/{id}")).await?;
                follow(&api, output, &deployment).await?;
            }
            Self::Report { id } => {
                let report = api.get(&format!("/deployments/{id}/report")).await?;
                if output.json {
                    out!("{report}");
                } else {
                    for line in report["lines"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                        out!("{line}");
                    }
                }
            }
            Self::Cancel { id } => {
                let answer = api.post(&format!("/deployments/{id}/cancel"), json!({})).await?;
                output.done(&answer, "It was asked to stop.");
            }
            Self::Logs { id } => {
                let mut after = 0;
                loop {
                    let page = api.get(&format!("/deployments/{id}/logs?after={after}&limit=1000")).await?;
                    let lines = page["lines"].as_array().cloned().unwrap_or_default();
                    for line in &lines {
                        if output.json {
                            out!("{line}");
                        } else {
                            out!("{} | {}", line["step"].as_str().unwrap_or_default(), line["text"].as_str().unwrap_or_default());
                        }
                    }
                    match lines.last().and_then(|line| line["id"].as_i64()) {
                        Some(last) => after = last,
                        None => break,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Adds what tables show and the API has no field for.
fn shortened(mut value: Value) -> Value {
    if let Some(milliseconds) = value["durationMs"].as_i64() {
        value["took"] = json!(seconds(milliseconds));
    }
    if let Some(sha) = value["commitSha"].as_str() {
        value["shortSha"] = json!(sha.chars().take(9).collect::<String>());
    }
    value
}

fn seconds(milliseconds: i64) -> String {
    format!("{:.1} s", milliseconds as f64 / 1000.0)
}

/// Shows a deployment's progress until its end; comes back after a broken connection without missing anything. Fails when it fails.
pub async fn follow(api: &Api, output: Output, deployment: &Value) -> Result<()> {
    let id = select::id(deployment).to_owned();
    let bar = output.interactive.then(|| {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    });
    let say = |text: &str| match &bar {
        Some(bar) => bar.println(text),
        None if !output.json => note!("{text}"),
        None => {}
    };
    let mut last_id: Option<String> = None;
    let mut broken_connections = 0;
    loop {
        let headers: Vec<(&str, &str)> = last_id.as_deref().map(|id| ("last-event-id", id)).into_iter().collect();
        let outcome = match api.send(Method::GET, &format!("/deployments/{id}/events"), None, &headers).await {
            Ok(response) => sse::read(response, |event: Event| {
                if event.id.is_some() {
                    last_id.clone_from(&event.id);
                }
                broken_connections = 0;
                let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
                match event.kind.as_str() {
                    "step" => {
                        let name = data["name"].as_str().unwrap_or_default();
                        match data["status"].as_str().unwrap_or_default() {
                            "running" => {
                                if let Some(bar) = &bar {
                                    bar.set_message(name.to_owned());
                                }
                            }
                            "succeeded" => say(&step_line("✔", name, &data)),
                            "failed" => say(&step_line("✘", name, &data)),
                            _ => {}
                        }
                        true
                    }
                    "status" => matches!(data["status"].as_str(), Some("queued" | "running") | None),
                    _ => true,
                }
            })
            .await
            .map_err(anyhow::Error::from),
            Err(error) if matches!(error.downcast_ref(), Some(Failure::Problem(problem)) if problem.status < 500) => return Err(error),
            Err(error) => Err(error),
        };
        let current = api.get(&format!("/deployments/{id}")).await;
        if let Ok(current) = &current
            && !matches!(current["status"].as_str(), Some("queued" | "running"))
        {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            return conclude(output, current);
        }
        broken_connections += 1;
        if broken_connections > 60 {
            outcome?;
            current?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn step_line(mark: &str, name: &str, data: &Value) -> String {
    let took = data["durationMs"].as_i64().map(seconds).unwrap_or_default();
    format!("{mark} {name:<9} {took:>8}  {}", data["summary"].as_str().unwrap_or_default()).trim_end().to_owned()
}

fn conclude(output: Output, deployment: &Value) -> Result<()> {
    let status = deployment["status"].as_str().unwrap_or_default();
    if status == "succeeded" {
        let took = deployment["durationMs"].as_i64().map(seconds).unwrap_or_default();
        let url = deployment["url"].as_str().unwrap_or_default();
        output.done(deployment, format!("Live in {took}  {url}").trim_end());
        return Ok(());
    }
    if output.json {
        out!("{deployment:#}");
    } else if let Some(excerpt) = deployment["errorExcerpt"].as_str().filter(|excerpt| !excerpt.is_empty()) {
        note!("{excerpt}");
    }
    let message = deployment["errorMessage"].as_str().unwrap_or("no reason was recorded");
    Err(Failure::Unsuccessful(format!(
        "the deployment {}: {message}",
        if status == "failed" { "failed".to_owned() } else { format!("was {status}") }
    ))
    .into())
}
