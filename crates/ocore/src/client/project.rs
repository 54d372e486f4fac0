//! `ocore project`.

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    ClientOptions,
    http::Api,
    output::{self, Output},
    select,
};

#[derive(Debug, Subcommand)]
pub enum ProjectCommand {
    List {
        #[arg(long)]
        archived: bool,
    },
    Show {
        project: Option<String>,
    },
    /// Make a project; prints the address to push to
    Create {
        name: String,
        #[arg(long, default_value = "")]
        description: String,
        #[arg(long, default_value = "19.0")]
        odoo_version: String,
        /// Which modules a fresh database gets: own (the repository's), all (with submodules), or a list `sale,my_module`
        #[arg(long, default_value = "own")]
        modules: String,
        /// Load demo data into fresh databases
        #[arg(long)]
        with_demo: bool,
    },
    /// Take commits from another Git URL instead of pushes
    Connect {
        #[arg(long)]
        project: Option<String>,
        url: String,
        /// The branch that becomes an environment at once
        #[arg(long, default_value = "main")]
        branch: String,
    },
    /// Accept the new ssh key of the connected repository's host, by the fingerprint that the forge publishes
    AcceptHostKey {
        #[arg(long)]
        project: Option<String>,
        /// SHA256:…
        fingerprint: String,
        /// The address of a submodule, when its host has the new key
        #[arg(long)]
        url: Option<String>,
    },
    /// Say from where, beside the repository's own directory, submodules are fetched with the project's credentials
    Submodules {
        #[arg(long)]
        project: Option<String>,
        /// A directory on the repository's host: https://github.com/acme-shared; give it once for each, and none to allow no other
        #[arg(long = "from")]
        sources: Vec<String>,
    },
    /// Fetch from the connected repository now
    Fetch {
        project: Option<String>,
    },
    Archive {
        project: String,
    },
    /// Remove it with its environments and all their data; the last snapshot of its production stays for 30 days
    Delete {
        project: String,
        /// Its slug, instead of asking for it
        #[arg(long, value_name = "SLUG")]
        confirm: Option<String>,
    },
    /// Bring back one that is archived, or that is being removed
    Restore {
        project: String,
    },
    /// Have its production deployed only by those with manage:production; what others push then waits
    Protect {
        project: Option<String>,
        /// Everybody who may deploy deploys it again
        #[arg(long)]
        off: bool,
    },
}

const FIELDS: &[(&str, &str)] = &[
    ("Name", "/name"),
    ("Description", "/description"),
    ("Odoo", "/odooVersion"),
    ("Push to", "/repository/gitRemote"),
    ("Repository", "/repository/url"),
    ("Deploy key", "/repository/deployKey"),
    ("Webhook", "/repository/webhookUrl"),
    ("Webhook secret", "/repository/webhookSecret"),
    ("Id", "/id"),
];

impl ProjectCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        match self {
            Self::List { archived } => {
                let answer = api.get(if archived { "/projects?includeArchived=true" } else { "/projects" }).await?;
                let rows = answer["projects"].as_array().cloned().unwrap_or_default();
                let columns = [("name", "/name"), ("odoo", "/odooVersion"), ("push to", "/repository/gitRemote"), ("id", "/id")];
                output.list(&answer, &rows, &columns, "There is no project yet; make one with `ocore project create`.");
            }
            Self::Show { project } => output.show(&select::project(&api, project.as_deref()).await?, FIELDS),
            Self::Create { name, description, odoo_version, modules, with_demo } => {
                let body = json!({
                    "name": name, "description": description, "odooVersion": odoo_version,
                    "moduleSelection": module_selection(&modules), "withDemo": with_demo,
                });
                output.show(&api.post("/projects", body).await?, FIELDS);
            }
            Self::Connect { project, url, branch } => {
                let project = select::project(&api, project.as_deref()).await?;
                let path = format!("/projects/{}/repository", select::id(&project));
                let answer = api.post(&path, json!({ "repositoryUrl": url, "branch": branch })).await?;
                output.show(&json!({ "repository": answer }), FIELDS);
            }
            Self::AcceptHostKey { project, fingerprint, url } => {
                let project = select::project(&api, project.as_deref()).await?;
                let path = format!("/projects/{}/repository/host-key", select::id(&project));
                let answer = api.post(&path, json!({ "fingerprint": fingerprint, "repositoryUrl": url })).await?;
                output.done(&answer, "The key is accepted.");
            }
            Self::Submodules { project, sources } => {
                let project = select::project(&api, project.as_deref()).await?;
                let path = format!("/projects/{}/repository/submodule-sources", select::id(&project));
                let answer = api.put(&path, json!({ "sources": sources })).await?;
                output.done(&answer, "Set.");
            }
            Self::Fetch { project } => {
                let project = select::project(&api, project.as_deref()).await?;
                let answer = api.post(&format!("/projects/{}/repository/fetch", select::id(&project)), json!({})).await?;
                output.done(&answer, "Fetched.");
            }
            Self::Archive { project } => {
                let project = select::project(&api, Some(&project)).await?;
                let answer = api.delete(&format!("/projects/{}", select::id(&project))).await?;
                output.done(&answer, "The project is archived.");
            }
            Self::Delete { project, confirm } => {
                let project = select::project(&api, Some(&project)).await?;
                let question = format!("Remove {} with its environments and all their data?", project["name"].as_str().unwrap_or_default());
                let typed = output::typed(confirm, &question, project["slug"].as_str().unwrap_or_default())?;
                let answer = api.delete(&format!("/projects/{}?confirm={typed}", select::id(&project))).await?;
                output.done(
                    &answer,
                    "It is being removed. The last snapshot of its production stays for 30 days; `ocore project restore` brings it back.",
                );
            }
            Self::Restore { project } => {
                let all = api.get("/projects?includeArchived=true").await?;
                let found = all["projects"].as_array().and_then(|projects| {
                    projects.iter().find(|found| ["id", "slug", "name"].iter().any(|field| found[field].as_str() == Some(&project)))
                });
                let Some(found) = found else {
                    return Err(super::failure::Failure::Selection(format!("there is no project `{project}`")).into());
                };
                let answer = api.put(&format!("/projects/{}", select::id(found)), json!({ "archived": false })).await?;
                output.done(&answer, "The project is back; `ocore snapshot list --project` shows what can be brought live again.");
            }
            Self::Protect { project, off } => {
                let project = select::project(&api, project.as_deref()).await?;
                let answer = api.put(&format!("/projects/{}", select::id(&project)), json!({ "protectsProduction": !off })).await?;
                output.done(
                    &answer,
                    if off {
                        "Whoever deploys may deploy its production."
                    } else {
                        "Its production is deployed by those with manage:production."
                    },
                );
            }
        }
        Ok(())
    }
}

fn module_selection(words: &str) -> Value {
    match words {
        "own" | "all" => json!({ "kind": words }),
        list => json!({ "kind": "list", "modules": list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>() }),
    }
}
