//! `ocore env egress`: what an environment may reach on the network, and what it tried; `ocore audit`: who changed that.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{ClientOptions, http::Api, output::Output, select};

#[derive(Debug, Subcommand)]
pub enum EgressCommand {
    /// Show the policy and what was refused
    Show { environment: String },
    /// Let it reach everything but other instances (needs manage:egress, is audited)
    Open { environment: String },
    /// Let it reach only its database, its mail catcher and what is allowed
    Close { environment: String },
    /// Allow places, <host>:<port>, that it may reach while it is closed
    Allow {
        environment: String,
        #[arg(required = true)]
        places: Vec<String>,
        /// Take them back instead
        #[arg(long)]
        remove: bool,
    },
}

impl EgressCommand {
    pub async fn run(self, api: &Api, output: Output) -> Result<()> {
        match self {
            Self::Show { environment } => {
                let path = path(api, &environment).await?;
                show(output, &api.get(&path).await?);
            }
            Self::Open { environment } => {
                let path = path(api, &environment).await?;
                show(output, &api.put(&path, json!({ "closed": false })).await?);
            }
            Self::Close { environment } => {
                let path = path(api, &environment).await?;
                show(output, &api.put(&path, json!({ "closed": true })).await?);
            }
            Self::Allow { environment, places, remove } => {
                let path = path(api, &environment).await?;
                let now = api.get(&path).await?;
                let mut allow: Vec<String> = allowed(&now).into_iter().filter(|place| !places.contains(place)).collect();
                if !remove {
                    allow.extend(places);
                }
                show(output, &api.put(&path, json!({ "allow": allow })).await?);
            }
        }
        Ok(())
    }
}

async fn path(api: &Api, environment: &str) -> Result<String> {
    let environment = select::environment(api, environment).await?;
    Ok(format!("/environments/{}/egress", select::id(&environment)))
}

fn allowed(egress: &Value) -> Vec<String> {
    let places = egress["allow"].as_array().into_iter().flatten();
    places.filter_map(|place| place["destination"].as_str().map(ToOwned::to_owned)).collect()
}

fn show(output: Output, egress: &Value) {
    let attempts = egress["attempts"].as_array().cloned().unwrap_or_default();
    if output.json {
        output.list(egress, &attempts, &[], "");
        return;
    }
    let policy = match (egress["production"].as_bool(), egress["closed"].as_bool()) {
        (Some(true), _) => "open, as production is",
        (_, Some(true)) => "closed",
        _ => "open",
    };
    let allow = allowed(egress);
    let shown = json!({
        "policy": policy,
        "allow": if allow.is_empty() { "nothing".to_owned() } else { allow.join(", ") },
        "enforced": match (egress["enforced"].as_bool(), egress["problem"].as_str()) {
            (Some(true), _) => "yes".to_owned(),
            (_, Some(problem)) => format!("no: {problem}"),
            _ => "no".to_owned(),
        },
    });
    output.show(&shown, &[("Network", "/policy"), ("Allowed besides", "/allow"), ("Enforced", "/enforced")]);
    out!();
    let columns = [("refused", "/packets"), ("protocol", "/protocol"), ("to", "/destination"), ("port", "/port")];
    output.list(egress, &attempts, &columns, "It has tried to reach nothing else.");
}

/// `ocore audit`
#[derive(Debug, Args)]
pub struct Audit {
    /// How many entries, at most 100
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// How many of the newest to leave out
    #[arg(long, default_value_t = 0)]
    offset: u32,
}

impl Audit {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let answer = api.get(&format!("/audit?limit={}&offset={}", self.limit, self.offset)).await?;
        let rows = answer["entries"].as_array().cloned().unwrap_or_default();
        let columns =
            [("when", "/createdAt"), ("who", "/userEmail"), ("what", "/action"), ("where", "/detail/branch"), ("subject", "/subject")];
        output.list(&answer, &rows, &columns, "Nobody has changed anything yet that is kept here.");
        Ok(())
    }
}
