//! `ocore snapshot` and `ocore env snapshot-settings`.

use std::{cell::Cell, time::Duration};

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::{ClientOptions, failure::Failure, http::Api, output, output::Output, select};

/// How often a command that waits looks again.
const LOOK: Duration = Duration::from_millis(300);

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Those of an environment, or of all environments of a project, also deleted ones
    List {
        #[arg(required_unless_present = "project")]
        environment: Option<String>,
        #[arg(long, conflicts_with = "environment")]
        project: Option<String>,
        /// At most so many, the newest
        #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
    },
    Show {
        snapshot: String,
    },
    /// Take one of what is live, while it serves
    Create {
        environment: String,
        #[arg(long)]
        name: Option<String>,
        /// Do not wait until it is whole
        #[arg(long)]
        no_wait: bool,
    },
    /// Keep it until somebody unpins it
    Pin {
        snapshot: String,
    },
    Unpin {
        snapshot: String,
    },
    Rename {
        snapshot: String,
        name: String,
    },
    /// Remove it with its data
    Delete {
        snapshot: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Read all of it and name what is damaged
    Verify {
        snapshot: String,
        /// Do not wait for what is found
        #[arg(long)]
        no_wait: bool,
    },
    /// What one would hold now, without taking it
    Estimate {
        environment: String,
    },
}

const FIELDS: &[(&str, &str)] = &[
    ("Name", "/name"),
    ("Environment", "/environmentName"),
    ("Kind", "/kind"),
    ("Status", "/status"),
    ("Message", "/message"),
    ("Taken", "/takenAt"),
    ("Pinned", "/pinned"),
    ("Kept until", "/keptUntil"),
    ("Commit", "/commitSha"),
    ("Branch", "/branch"),
    ("Stage", "/environmentType"),
    ("Odoo", "/odooVersion"),
    ("Neutralized", "/isNeutralized"),
    ("Database", "/database"),
    ("Files", "/files"),
    ("Damaged", "/damagedFiles"),
    ("By", "/createdBy"),
    ("Id", "/id"),
];

impl SnapshotCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        match self {
            Self::List { environment, project, limit } => list(&api, output, environment, project, limit).await?,
            Self::Show { snapshot } => show(output, &find(&api, &snapshot).await?),
            Self::Create { environment, name, no_wait } => {
                let environment = select::environment(&api, &environment).await?;
                let body = name.map_or_else(|| json!({}), |name| json!({ "name": name }));
                let asked = api.post(&format!("/environments/{}/snapshots", select::id(&environment)), body).await?;
                if no_wait {
                    show(output, &asked);
                    return Ok(());
                }
                let taken = wait(&api, output, &asked, "Taking", |snapshot| snapshot["status"] != "creating").await?;
                show(output, &taken);
                if taken["status"] != "ready" {
                    bail!("the snapshot failed: {}", taken["message"].as_str().unwrap_or_default());
                }
            }
            Self::Pin { snapshot } => {
                let changed = change(&api, &snapshot, json!({ "pinned": true })).await?;
                output.done(&changed, "It is kept until somebody unpins it.");
            }
            Self::Unpin { snapshot } => {
                let changed = change(&api, &snapshot, json!({ "pinned": false })).await?;
                output.done(&changed, "It is kept no longer than others of its kind.");
            }
            Self::Rename { snapshot, name } => {
                let changed = change(&api, &snapshot, json!({ "name": name })).await?;
                output.done(&changed, &format!("It is called {name} now."));
            }
            Self::Delete { snapshot, yes } => {
                let snapshot = find(&api, &snapshot).await?;
                let question = format!("Remove the snapshot {} with its data?", snapshot["name"].as_str().unwrap_or_default());
                if !yes && !output::confirm(&question)? {
                    return Err(Failure::Usage("nothing was removed".to_owned()).into());
                }
                let answer = api.delete(&format!("/snapshots/{}", select::id(&snapshot))).await?;
                output.done(&answer, "It is being removed.");
            }
            Self::Verify { snapshot, no_wait } => verify(&api, output, &snapshot, no_wait).await?,
            Self::Estimate { environment } => {
                let environment = select::environment(&api, &environment).await?;
                let estimate = api.get(&format!("/environments/{}/snapshots/estimate", select::id(&environment))).await?;
                let readable = readable(&estimate, &["databaseBytes", "fileStoreBytes", "neededBytes", "availableBytes"]);
                let fields = [
                    ("Database", "/databaseBytes"),
                    ("File store", "/fileStoreBytes"),
                    ("Files", "/fileStoreFiles"),
                    ("Needed now", "/neededBytes"),
                    ("Free", "/availableBytes"),
                ];
                output.show(if output.json { &estimate } else { &readable }, &fields);
            }
        }
        Ok(())
    }
}

async fn list(api: &Api, output: Output, environment: Option<String>, project: Option<String>, limit: u32) -> Result<()> {
    let path = match environment {
        Some(environment) => format!("/environments/{}/snapshots", select::id(&select::environment(api, &environment).await?)),
        None => format!("/projects/{}/snapshots", select::id(&select::project(api, project.as_deref()).await?)),
    };
    let answer = api.get(&format!("{path}?limit={limit}")).await?;
    let rows: Vec<Value> = answer["snapshots"].as_array().into_iter().flatten().map(with_sizes).collect();
    let columns = [
        ("name", "/name"),
        ("environment", "/environmentName"),
        ("kind", "/kind"),
        ("status", "/status"),
        ("taken", "/takenAt"),
        ("pinned", "/pin"),
        ("database", "/database"),
        ("files", "/files"),
        ("id", "/id"),
    ];
    output.list(&answer, &rows, &columns, "There is no snapshot yet; take one with `ocore snapshot create`.");
    Ok(())
}

fn show(output: Output, snapshot: &Value) {
    if output.json {
        output.show(snapshot, FIELDS);
    } else {
        output.show(&with_sizes(snapshot), FIELDS);
    }
}

/// The snapshot with its sizes for people.
fn with_sizes(snapshot: &Value) -> Value {
    let mut row = snapshot.clone();
    let size = |key: &str| snapshot[key].as_u64().map(output::bytes);
    row["database"] = json!(size("databaseBytes"));
    row["files"] = json!(size("fileStoreBytes"));
    row["pin"] = json!(if snapshot["pinned"] == true { "yes" } else { "" });
    row
}

/// The object with these numbers of bytes for people.
pub fn readable(object: &Value, keys: &[&str]) -> Value {
    let mut row = object.clone();
    for key in keys {
        row[*key] = json!(object[*key].as_u64().map(output::bytes));
    }
    row
}

/// A snapshot by id, or by name when only one has it.
async fn find(api: &Api, wanted: &str) -> Result<Value> {
    if uuid::Uuid::try_parse(wanted).is_ok() {
        return api.get(&format!("/snapshots/{wanted}")).await;
    }
    let projects = api.get("/projects").await?;
    let mut found = Vec::new();
    for project in projects["projects"].as_array().into_iter().flatten() {
        let mut offset = 0;
        loop {
            let page = api.get(&format!("/projects/{}/snapshots?limit=100&offset={offset}", select::id(project))).await?;
            let snapshots = page["snapshots"].as_array().cloned().unwrap_or_default();
            offset += snapshots.len();
            let last = snapshots.is_empty() || offset as u64 >= page["total"].as_u64().unwrap_or_default();
            found.extend(snapshots.into_iter().filter(|snapshot| snapshot["name"].as_str() == Some(wanted)));
            if last {
                break;
            }
        }
    }
    select::one("snapshot", wanted, found)
}

async fn change(api: &Api, snapshot: &str, body: Value) -> Result<Value> {
    let snapshot = find(api, snapshot).await?;
    api.patch(&format!("/snapshots/{}", select::id(&snapshot)), body).await
}

/// Asks again until it is as wanted.
async fn wait(api: &Api, output: Output, snapshot: &Value, doing: &str, done: impl Fn(&Value) -> bool) -> Result<Value> {
    let path = format!("/snapshots/{}", select::id(snapshot));
    let told = Cell::new(false);
    loop {
        let current = api.get(&path).await?;
        if done(&current) {
            return Ok(current);
        }
        if output.interactive && !told.replace(true) {
            note!("{doing} {} …", current["name"].as_str().unwrap_or_default());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn verify(api: &Api, output: Output, snapshot: &str, no_wait: bool) -> Result<()> {
    let snapshot = find(api, snapshot).await?;
    let asked = api.post(&format!("/snapshots/{}/verify", select::id(&snapshot)), json!({})).await?;
    if no_wait {
        output.done(&asked, "It is being checked; `ocore snapshot show` says what is found.");
        return Ok(());
    }
    let checked = wait(api, output, &asked, "Checking", |snapshot| !snapshot["verification"]["verifiedAt"].is_null()).await?;
    let verification = &checked["verification"];
    if let Some(error) = verification["error"].as_str() {
        bail!("the snapshot could not be checked: {error}");
    }
    let damaged = verification["damaged"].as_array().cloned().unwrap_or_default();
    if damaged.is_empty() {
        output.done(&checked, &format!("All {} files are sound.", verification["checkedFiles"]));
        return Ok(());
    }
    output.list(&checked, &damaged, &[("file", "/path"), ("problem", "/problem")], "");
    bail!("{} of {} files are damaged", damaged.len(), verification["checkedFiles"]);
}

/// Shows the settings, or changes what is given
#[derive(Debug, Args)]
pub struct Settings {
    environment: String,
    /// Deployments keep the data as they were before them
    #[arg(long)]
    auto: Option<bool>,
    /// What the next deployment does when the data before an earlier one still cannot be kept
    #[arg(long, value_enum)]
    on_failure: Option<OnFailure>,
    /// How many snapshots may be pinned
    #[arg(long)]
    max_pinned: Option<u32>,
    /// How many days automatic ones stay
    #[arg(long)]
    retention_days: Option<u32>,
    /// How many seconds taking one may last
    #[arg(long)]
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OnFailure {
    Fail,
    Continue,
}

impl Settings {
    pub async fn run(self, api: &Api, output: Output) -> Result<()> {
        let environment = select::environment(api, &self.environment).await?;
        let path = format!("/environments/{}/snapshot-settings", select::id(&environment));
        let mut changes = Map::new();
        let mut change = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                changes.insert(key.to_owned(), value);
            }
        };
        change("autoEnabled", self.auto.map(Value::from));
        change(
            "failurePolicy",
            self.on_failure.map(|policy| match policy {
                OnFailure::Fail => json!("fail"),
                OnFailure::Continue => json!("continue"),
            }),
        );
        change("maxPinned", self.max_pinned.map(Value::from));
        change("retentionDays", self.retention_days.map(Value::from));
        change("timeoutSeconds", self.timeout_seconds.map(Value::from));
        let settings = if changes.is_empty() { api.get(&path).await? } else { api.put(&path, Value::Object(changes)).await? };
        let fields = [
            ("Automatic", "/autoEnabled"),
            ("On failure", "/failurePolicy"),
            ("Pinned at most", "/maxPinned"),
            ("Days kept", "/retentionDays"),
            ("Seconds to take", "/timeoutSeconds"),
        ];
        output.show(&settings, &fields);
        Ok(())
    }
}
