//! `ocore rollback` and `ocore rollbacks`: back to a snapshot, and what was gone back to.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{
    ClientOptions,
    failure::Failure,
    http::Api,
    output::{Output, confirm},
    select,
};

#[derive(Debug, Args)]
pub struct Rollback {
    /// By id, slug, branch or project/branch
    environment: String,
    /// The snapshot's id or name; the newest of the environment when it is not given
    snapshot: Option<String>,
    /// Another environment of the project gets the data, neutralized unless it is production
    #[arg(long)]
    into: Option<String>,
    /// Do not keep what is live until then
    #[arg(long)]
    no_safety_snapshot: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

impl Rollback {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let environment = select::environment(&api, &self.environment).await?;
        let target = match &self.into {
            Some(target) => Some(select::environment(&api, target).await?),
            None => None,
        };
        let snapshot = snapshot(&api, &environment, self.snapshot.as_deref()).await?;
        let name = |environment: &Value| environment["name"].as_str().unwrap_or_default().to_owned();
        let question =
            format!("Put {} back to `{}`?", name(target.as_ref().unwrap_or(&environment)), snapshot["name"].as_str().unwrap_or_default());
        if !self.yes && !confirm(&question)? {
            return Err(Failure::Usage("nothing was changed".to_owned()).into());
        }
        let body = json!({
            "snapshotId": snapshot["id"],
            "createSafetySnapshot": !self.no_safety_snapshot,
            "targetEnvironmentId": target.as_ref().map(|target| select::id(target).to_owned()),
        });
        let answer = api.post(&format!("/environments/{}/rollback", select::id(&environment)), body).await?;
        let deployment = answer["deploymentId"].as_str().unwrap_or_default();
        if self.no_wait {
            output.done(&answer, &format!("{}; deployment {deployment}.", answer["message"].as_str().unwrap_or("It is on its way")));
            return Ok(());
        }
        super::deployment::follow(&api, output, &json!({ "id": deployment })).await
    }
}

/// The environment's snapshot by id or name, or else one of its project's, also of an environment that is gone; without a word, its newest that is ready.
async fn snapshot(api: &Api, environment: &Value, wanted: Option<&str>) -> Result<Value> {
    let answer = api.get(&format!("/environments/{}/snapshots?limit=100", select::id(environment))).await?;
    let snapshots = answer["snapshots"].as_array().cloned().unwrap_or_default();
    let found = match wanted {
        Some(wanted) => {
            let project = environment["projectId"].as_str().unwrap_or_default();
            let others = api.get(&format!("/projects/{project}/snapshots?limit=100")).await?;
            let others = others["snapshots"].as_array().cloned().unwrap_or_default();
            snapshots.into_iter().chain(others).find(|snapshot| snapshot["id"] == wanted || snapshot["name"] == wanted)
        }
        None => snapshots.into_iter().find(|snapshot| snapshot["status"] == "ready"),
    };
    found.ok_or_else(|| {
        let what = wanted.map_or_else(|| "it has no snapshot that is ready".to_owned(), |wanted| format!("it has no snapshot `{wanted}`"));
        Failure::Selection(what).into()
    })
}

#[derive(Debug, Args)]
pub struct Rollbacks {
    environment: String,
}

impl Rollbacks {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let environment = select::environment(&api, &self.environment).await?;
        let answer = api.get(&format!("/environments/{}/rollback-logs", select::id(&environment))).await?;
        let rows = answer["rollbackLogs"].as_array().cloned().unwrap_or_default();
        let columns = [
            ("when", "/createdAt"),
            ("status", "/status"),
            ("back to", "/snapshotName"),
            ("by", "/triggeredBy"),
            ("kept as", "/safetySnapshotId"),
            ("deployment", "/deploymentId"),
        ];
        output.list(&answer, &rows, &columns, "Nothing was rolled back yet.");
        Ok(())
    }
}
