//! `ocore env` and `ocore open`.

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{ClientOptions, egress::EgressCommand, failure::Failure, http::Api, output, output::Output, select};

#[derive(Debug, Subcommand)]
pub enum EnvironmentCommand {
    List {
        #[arg(long)]
        project: Option<String>,
    },
    /// Show one: by id, slug, branch or project/branch
    Show {
        environment: String,
    },
    /// Make an environment for a branch
    Create {
        branch: String,
        #[arg(long)]
        project: Option<String>,
        #[arg(long, value_enum, default_value = "development")]
        stage: Stage,
    },
    /// Delete it with all its data; the last snapshot of a production stays for 30 days
    Delete {
        environment: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Of a production: its slug, instead of asking for it
        #[arg(long, value_name = "SLUG")]
        confirm: Option<String>,
    },
    /// What a push does
    Behavior {
        environment: String,
        #[arg(value_enum)]
        behavior: Behavior,
    },
    /// Make a harmless copy of it, with its live data, on a branch of its own
    Clone(Clone),
    /// What was checked and found when its copy was made harmless
    Neutralization {
        environment: String,
        /// A table for a spreadsheet
        #[arg(long)]
        csv: bool,
    },
    /// Build the commits that wait
    Build {
        environment: String,
    },
    /// What it may reach on the network
    #[command(subcommand)]
    Egress(EgressCommand),
    /// When it sleeps; `ocore instance sleep` does it now
    Sleep {
        environment: String,
        /// After so many minutes without a request
        #[arg(long, conflicts_with_all = ["never", "default"])]
        after: Option<u32>,
        /// Keep it awake
        #[arg(long, conflicts_with = "default")]
        never: bool,
        /// As its stage does
        #[arg(long)]
        default: bool,
        /// Whether a scheduled action that is due wakes it
        #[arg(long, value_name = "YES_OR_NO", action = clap::ArgAction::Set)]
        wake_for_actions: Option<bool>,
    },
    /// How to log in to its Odoo
    Credentials {
        environment: String,
    },
    /// How its snapshots are made and kept
    SnapshotSettings(super::snapshot::Settings),
    Import(super::import::Import),
    Export(super::export::Export),
}

#[derive(Debug, Args)]
pub struct Clone {
    /// The source; it serves on
    environment: String,
    /// The clone's branch, made when the built-in repository does not have it
    #[arg(long)]
    branch: Option<String>,
    #[arg(long = "type", value_enum, default_value = "development")]
    stage: CloneStage,
    /// The clone goes when its branch is merged into the source's, or deleted
    #[arg(long)]
    auto_destroy: bool,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CloneStage {
    Staging,
    Development,
}

impl Clone {
    async fn run(self, api: &Api, output: Output) -> Result<()> {
        let source = select::environment(api, &self.environment).await?;
        let body = json!({ "targetBranch": self.branch, "targetType": word(&self.stage), "autoDestroy": self.auto_destroy });
        let clone = api.post(&format!("/environments/{}/clone", select::id(&source)), body).await?;
        let deployments = api.get(&format!("/environments/{}/deployments?limit=1", select::id(&clone))).await?;
        match deployments["deployments"].get(0) {
            Some(deployment) if !self.no_wait => super::deployment::follow(api, output, deployment).await,
            _ => {
                output.show(&clone, FIELDS);
                Ok(())
            }
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Stage {
    Production,
    Staging,
    Development,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Behavior {
    DoNothing,
    CreateNewBuild,
    UpdatePreviousBuild,
}

fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().replace('-', "_")).unwrap_or_default()
}

const FIELDS: &[(&str, &str)] = &[
    ("Name", "/name"),
    ("Project", "/projectName"),
    ("Branch", "/branch"),
    ("Stage", "/environmentType"),
    ("Odoo", "/instanceStatus"),
    ("Address", "/url"),
    ("On push", "/commitBehavior"),
    ("Last commit", "/lastCommitAt"),
    ("By", "/lastCommitAuthor"),
    ("Pending", "/pendingCommitCount"),
    ("Message", "/statusMessage"),
    ("Id", "/id"),
];

impl EnvironmentCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        match self {
            Self::Import(command) => command.run(options, output).await?,
            Self::Export(command) => command.run(options, output).await?,
            Self::List { project } => {
                let answer = match project {
                    Some(project) => {
                        let project = select::project(&api, Some(&project)).await?;
                        api.get(&format!("/projects/{}/environments", select::id(&project))).await?
                    }
                    None => api.get("/environments").await?,
                };
                let rows = answer.as_array().or_else(|| answer["environments"].as_array()).cloned().unwrap_or_default();
                let columns = [
                    ("project", "/projectName"),
                    ("branch", "/branch"),
                    ("stage", "/environmentType"),
                    ("odoo", "/instanceStatus"),
                    ("pending", "/pendingCommitCount"),
                    ("address", "/url"),
                    ("id", "/id"),
                ];
                output.list(&answer, &rows, &columns, "There is no environment yet; push a branch, or use `ocore env create`.");
            }
            Self::Show { environment } => output.show(&select::environment(&api, &environment).await?, FIELDS),
            Self::Create { branch, project, stage } => {
                let project = select::project(&api, project.as_deref()).await?;
                let body = json!({ "branch": branch, "environmentType": word(&stage) });
                output.show(&api.post(&format!("/projects/{}/environments", select::id(&project)), body).await?, FIELDS);
            }
            Self::Delete { environment, yes, confirm } => {
                let environment = select::environment(&api, &environment).await?;
                if environment["environmentType"] == "production" || confirm.is_some() {
                    let question = format!("Remove the production {} with all its data?", environment["name"].as_str().unwrap_or_default());
                    let typed = output::typed(confirm, &question, environment["instanceSlug"].as_str().unwrap_or_default())?;
                    let answer = api.delete(&format!("/environments/{}?confirm={typed}", select::id(&environment))).await?;
                    output.done(&answer, "It is being removed. Its last snapshot stays for 30 days.");
                    return Ok(());
                }
                if !yes
                    && !output::confirm(&format!(
                        "Delete {} with its database and files?",
                        environment["branch"].as_str().unwrap_or_default()
                    ))?
                {
                    return Err(Failure::Usage("nothing was deleted".to_owned()).into());
                }
                let answer = api.delete(&format!("/environments/{}", select::id(&environment))).await?;
                output.done(&answer, "It is being deleted.");
            }
            Self::Behavior { environment, behavior } => {
                let environment = select::environment(&api, &environment).await?;
                let path = format!("/environments/{}/commit-behavior", select::id(&environment));
                let answer = api.put(&path, json!({ "behavior": word(&behavior) })).await?;
                output.done(&answer, answer["message"].as_str().unwrap_or("Done."));
            }
            Self::Clone(clone) => clone.run(&api, output).await?,
            Self::Neutralization { environment, csv } => {
                let environment = select::environment(&api, &environment).await?;
                let path = format!("/environments/{}/neutralization", select::id(&environment));
                if csv {
                    crate::terminal::write(&api.text(&format!("{path}?format=csv")).await?);
                } else {
                    show_neutralization(output, &api.get(&path).await?);
                }
            }
            Self::Build { environment } => {
                let environment = select::environment(&api, &environment).await?;
                let deployment = api.post(&format!("/environments/{}/trigger-build", select::id(&environment)), json!({})).await?;
                super::deployment::follow(&api, output, &deployment).await?;
            }
            Self::Egress(command) => command.run(&api, output).await?,
            Self::Sleep { environment, after, never, default, wake_for_actions } => {
                let environment = select::environment(&api, &environment).await?;
                let path = format!("/environments/{}/sleep", select::id(&environment));
                let mut sleep = api.get(&path).await?;
                let changes_rule = after.is_some() || never || default;
                if changes_rule || wake_for_actions.is_some() {
                    let minutes = if changes_rule { json!(if never { Some(0) } else { after }) } else { sleep["ownMinutes"].clone() };
                    let rule = json!({ "ownMinutes": minutes, "wakesForScheduledActions": wake_for_actions });
                    sleep = api.put(&path, rule).await?;
                }
                let shown = if output.json { sleep } else { sleep_in_words(&sleep) };
                output.show(&shown, &[("Sleeps", "/rule"), ("Asleep since", "/since"), ("Next action", "/next"), ("Frees", "/freed")]);
            }
            Self::Credentials { environment } => {
                let environment = select::environment(&api, &environment).await?;
                let path = format!("/instances/{}/credentials", environment["instanceId"].as_str().unwrap_or_default());
                output.show(&api.get(&path).await?, &[("Login", "/login"), ("Password", "/password")]);
            }
            Self::SnapshotSettings(command) => command.run(&api, output).await?,
        }
        Ok(())
    }
}

fn show_neutralization(output: Output, report: &Value) {
    let rows = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    if output.json {
        out!("{report:#}");
        return;
    }
    for fact in rows("facts") {
        let mark = if fact["holds"] == true { "✔" } else { "✘" };
        out!("{mark} {}", fact["statement"].as_str().unwrap_or_default());
    }
    let count = |verdict: &str| rows("findings").iter().filter(|finding| finding["verdict"] == verdict).count();
    out!("\n{} findings handled, {} harmless, {} unknown", count("handled"), count("harmless"), count("unknown"));
    let unknown: Vec<Value> = rows("findings").into_iter().filter(|finding| finding["verdict"] == "unknown").collect();
    if !unknown.is_empty() {
        let columns = [("to look at", "/place"), ("kind", "/kind"), ("module", "/module"), ("rows", "/rows"), ("", "/reason")];
        output.list(report, &unknown, &columns, "");
    }
    let sampled = rows("sampled");
    if !sampled.is_empty() {
        let names: Vec<&str> = sampled.iter().filter_map(Value::as_str).collect();
        out!("\nToo large to be searched whole, so a sample was: {}", names.join(", "));
    }
    let changes = rows("changes");
    if !changes.is_empty() {
        out!("\nSince the copy before:");
        output.list(report, &changes, &[("place", "/place"), ("change", "/change"), ("before", "/before"), ("now", "/after")], "");
    }
}

#[derive(Debug, Args)]
pub struct Open {
    environment: String,
    /// Print the address only
    #[arg(long)]
    print: bool,
}

impl Open {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let environment = select::environment(&api, &self.environment).await?;
        let url = environment["url"].as_str().context("the environment has no address")?;
        if self.print || output.json {
            out!("{url}");
            return Ok(());
        }
        for program in ["xdg-open", "open"] {
            if std::process::Command::new(program).arg(url).status().is_ok_and(|status| status.success()) {
                return Ok(());
            }
        }
        out!("{url}");
        Ok(())
    }
}

/// What a person wants to know of an environment's sleep.
fn sleep_in_words(sleep: &Value) -> Value {
    let rule = match sleep["afterMinutes"].as_u64() {
        Some(minutes) => format!("after {minutes} minutes without a request"),
        None => "never".to_owned(),
    };
    let wakes = sleep["wakesForScheduledActions"] == true;
    let next =
        sleep["nextScheduledActionAt"].as_str().map(|at| format!("{at}, {} it", if wakes { "which wakes" } else { "which does not wake" }));
    json!({ "rule": rule, "since": sleep["asleepSince"], "next": next, "freed": sleep["freedBytes"].as_u64().map(output::bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_s_sleep_is_told_in_words() {
        let asleep = json!({ "afterMinutes": 30, "wakesForScheduledActions": true, "nextScheduledActionAt": "2026-11-25T03:00:00Z",
            "asleepSince": "2026-11-24T15:40:45Z", "freedBytes": 100 << 20 });
        let words = json!({ "rule": "after 30 minutes without a request", "since": "2026-11-24T15:40:45Z",
            "next": "2026-11-25T03:00:00Z, which wakes it", "freed": "100 MiB" });
        assert_eq!(sleep_in_words(&asleep), words);
        assert_eq!(sleep_in_words(&json!({ "afterMinutes": null }))["rule"], "never");
    }
}
