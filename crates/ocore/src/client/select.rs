//! From what a person types to one thing of the API: an id, a slug, a name, `project/branch`.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{failure::Failure, http::Api};

pub fn one(what: &str, wanted: &str, found: Vec<Value>) -> Result<Value> {
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Failure::Selection(format!("there is no {what} `{wanted}`; `ocore {what} list` shows all")).into()),
        (Some(_), Some(_)) => Err(Failure::Selection(format!("`{wanted}` is more than one {what}; give its id")).into()),
    }
}

fn rows(answer: &Value, key: &str) -> Vec<Value> {
    answer[key].as_array().cloned().unwrap_or_default()
}

fn is(value: &Value, key: &str, wanted: &str) -> bool {
    value[key].as_str() == Some(wanted)
}

/// What is to go live, and where.
#[derive(Debug, Args)]
pub struct Target {
    #[arg(long)]
    project: Option<String>,
    /// The branch whose newest commit is to go live
    #[arg(long)]
    branch: Option<String>,
    /// A commit instead
    #[arg(long)]
    commit: Option<String>,
    /// A tag instead
    #[arg(long)]
    tag: Option<String>,
}

impl Target {
    /// Asks for something to be done with it: `deploy`, `plan`.
    pub async fn post(&self, api: &Api, action: &str) -> Result<Value> {
        let project = project(api, self.project.as_deref()).await?;
        let body = json!({ "branch": self.branch, "commitSha": self.commit, "tag": self.tag });
        api.post(&format!("/projects/{}/{action}", id(&project)), body).await
    }
}

/// A project by id, slug or name; without a word, the only one.
pub async fn project(api: &Api, wanted: Option<&str>) -> Result<Value> {
    let projects = rows(&api.get("/projects").await?, "projects");
    match wanted {
        Some(wanted) => {
            let found = projects
                .into_iter()
                .filter(|project| is(project, "id", wanted) || is(project, "slug", wanted) || is(project, "name", wanted));
            one("project", wanted, found.collect())
        }
        None if projects.len() == 1 => Ok(projects[0].clone()),
        None if projects.is_empty() => {
            Err(Failure::Selection("there is no project yet; make one with `ocore project create`".to_owned()).into())
        }
        None => Err(Failure::Selection("there are several projects; name one with --project".to_owned()).into()),
    }
}

/// An environment by id, instance slug, name, `project/branch`, or branch when only one project has it.
pub async fn environment(api: &Api, wanted: &str) -> Result<Value> {
    let environments = rows(&api.get("/environments").await?, "environments");
    let exact: Vec<Value> = environments
        .iter()
        .filter(|environment| {
            is(environment, "id", wanted) || is(environment, "instanceSlug", wanted) || is(environment, "instanceId", wanted)
        })
        .cloned()
        .collect();
    if !exact.is_empty() {
        return one("env", wanted, exact);
    }
    let named: Vec<Value> =
        environments.iter().filter(|environment| is(environment, "branch", wanted) || is(environment, "name", wanted)).cloned().collect();
    if !named.is_empty() {
        return one("env", wanted, named);
    }
    if let Some((project_word, branch)) = wanted.split_once('/')
        && let Ok(project) = project(api, Some(project_word)).await
    {
        let found =
            environments.into_iter().filter(|environment| environment["projectId"] == project["id"] && is(environment, "branch", branch));
        return one("env", wanted, found.collect());
    }
    one("env", wanted, Vec::new())
}

/// The path segment of a thing's id.
pub fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap_or_default()
}
