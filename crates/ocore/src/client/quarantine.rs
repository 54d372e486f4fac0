//! `ocore quarantine`: a copy that could not be made harmless.

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{ClientOptions, failure::Failure, http::Api, output, output::Output, select, snapshot::readable};

#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// Say why it is in quarantine, and until when
    Show { environment: String },
    /// Ask its database; only reads, is audited, and shows the original's data as they are
    Query {
        environment: String,
        /// One statement that gives rows
        sql: String,
    },
    /// Remove it with its data
    Destroy {
        environment: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

const FIELDS: &[(&str, &str)] = &[
    ("Reason", "/reason"),
    ("Step", "/step"),
    ("Status", "/status"),
    ("Data of", "/sourceEnvironmentName"),
    ("Production's", "/ofProduction"),
    ("Since", "/since"),
    ("Goes", "/expiresAt"),
    ("Database", "/databaseBytes"),
    ("Files", "/fileStoreBytes"),
    ("Deployment", "/deploymentId"),
];

impl QuarantineCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        match self {
            Self::Show { environment } => show(output, &api.get(&path(&api, &environment).await?).await?),
            Self::Query { environment, sql } => {
                let answer = api.post(&format!("{}/query", path(&api, &environment).await?), json!({ "sql": sql })).await?;
                table(output, &answer);
            }
            Self::Destroy { environment, yes } => {
                let path = path(&api, &environment).await?;
                if !yes && !output::confirm(&format!("Remove what is in quarantine in {environment} with its data?"))? {
                    return Err(Failure::Usage("nothing was removed".to_owned()).into());
                }
                output.done(&api.delete(&path).await?, "It is being removed.");
            }
        }
        Ok(())
    }
}

async fn path(api: &Api, environment: &str) -> Result<String> {
    Ok(format!("/environments/{}/quarantine", select::id(&select::environment(api, environment).await?)))
}

fn show(output: Output, quarantine: &Value) {
    if output.json {
        return output.show(quarantine, FIELDS);
    }
    output.show(&readable(quarantine, &["databaseBytes", "fileStoreBytes"]), FIELDS);
    let failed = quarantine["failedFacts"].as_array().cloned().unwrap_or_default();
    if !failed.is_empty() {
        out!();
        output.list(quarantine, &failed, &[("does not hold", "/name"), ("as found", "/statement")], "");
    } else if let Some(excerpt) = quarantine["excerpt"].as_str() {
        out!("\n{excerpt}");
    }
}

fn table(output: Output, answer: &Value) {
    let names: Vec<&str> = answer["columns"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let pointers: Vec<String> = (0..names.len()).map(|index| format!("/{index}")).collect();
    let columns: Vec<(&str, &str)> = names.into_iter().zip(pointers.iter().map(String::as_str)).collect();
    output.list(answer, answer["rows"].as_array().map_or(&[], Vec::as_slice), &columns, "No row.");
    if answer["truncated"] == true && !output.json {
        note!("There is more; ask for less.");
    }
}
