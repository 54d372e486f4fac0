//! `ocore logs` and `ocore instance`.

use anyhow::Result;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::{ClientOptions, http::Api, output::Output, select, sse};

#[derive(Debug, Args)]
pub struct Logs {
    environment: String,
    /// Go on with new lines as they come
    #[arg(short, long)]
    follow: bool,
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: u32,
}

impl Logs {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let environment = select::environment(&api, &self.environment).await?;
        let instance = environment["instanceId"].as_str().unwrap_or_default();
        let path = format!("/instances/{instance}/logs?lines={}&follow={}", self.lines, self.follow);
        let response = api.send(Method::GET, &path, None, &[("accept", "text/event-stream")]).await?;
        sse::read(response, |event| {
            if output.json {
                out!("{}", json!({ "line": event.data }));
            } else {
                out!("{}", event.data);
            }
            true
        })
        .await?;
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub enum InstanceCommand {
    Start {
        environment: String,
    },
    Stop {
        environment: String,
    },
    Restart {
        environment: String,
    },
    /// Stop it until somebody asks for it; the next request starts it
    Sleep {
        environment: String,
    },
}

impl InstanceCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let (environment, action) = match &self {
            Self::Start { environment } => (environment, "start"),
            Self::Stop { environment } => (environment, "stop"),
            Self::Restart { environment } => (environment, "restart"),
            Self::Sleep { environment } => (environment, "sleep"),
        };
        let environment = select::environment(&api, environment).await?;
        let path = format!("/instances/{}/control", environment["instanceId"].as_str().unwrap_or_default());
        let answer = api.post(&path, json!({ "action": action })).await?;
        output.done(&answer, &format!("Asked its Odoo to {action}."));
        Ok(())
    }
}
