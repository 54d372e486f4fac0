//! What most journeys begin with: an installation, an owner, a project, a key, a repository, and the questions that all of them ask.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{ApiClient, Installation, Options, Push, Repository, wait::eventually};
use serde_json::{Value, json};

use crate::hold::{User, under_load};

/// Long enough for a first deployment (Odoo's base alone takes some 12 s) on a busy machine.
pub const DEPLOYMENT_LIMIT: Duration = Duration::from_secs(240);

pub struct Scene {
    pub installation: Installation,
    pub owner: ApiClient,
    pub key: String,
    pub project: Value,
    pub repository: Repository,
}

impl Scene {
    pub async fn new(options: Options) -> Result<Self> {
        Self::with_project(options, json!({})).await
    }

    /// `project` overrides fields of the project's body.
    pub async fn with_project(options: Options, project: Value) -> Result<Self> {
        let installation = Installation::start(env!("CARGO_BIN_EXE_ocore"), options).await?;
        let owner = installation.owner("ada@example.com", "Analytical Engines").await?;
        let key = owner.api_key().await?;
        let project = owner.project("Shop", project).await?;
        Ok(Self { installation, owner, key, project, repository: Repository::new()? })
    }

    pub fn remote(&self) -> &str {
        self.project["repository"]["gitRemote"].as_str().unwrap_or_default()
    }

    /// Pushes the current commit to a branch and waits as a terminal does.
    pub fn push(&self, branch: &str) -> Result<Push> {
        self.repository.push(self.remote(), &self.key, &format!("HEAD:refs/heads/{branch}"), &[])
    }

    /// Pushes without waiting; the deployment that it queued.
    pub async fn push_and_go(&self, branch: &str) -> Result<Value> {
        let push = self.repository.push(self.remote(), &self.key, &format!("HEAD:refs/heads/{branch}"), &["-o", "no-wait"])?;
        ensure!(push.success, "the push was refused: {}", push.output);
        let sha = self.repository.git(&["rev-parse", "HEAD"])?;
        let environment = self.environment(branch).await?;
        let deployments = self.owner.deployments(&environment).await?;
        deployments
            .into_iter()
            .find(|deployment| deployment["commitSha"].as_str() == Some(&sha))
            .with_context(|| format!("no deployment for {sha}: {}", push.output))
    }

    pub async fn environment(&self, branch: &str) -> Result<Value> {
        self.owner.environment(&self.project, branch).await
    }

    /// The newest deployment of a branch's environment.
    pub async fn last_deployment(&self, branch: &str) -> Result<Value> {
        let environment = self.environment(branch).await?;
        let id = self.owner.deployments(&environment).await?.first().context("no deployment")?["id"].clone();
        self.owner.get(&format!("/deployments/{}", id.as_str().unwrap_or_default())).await
    }

    /// The slot that the newest deployment of `main` that went well has made live.
    pub async fn last_live_color(&self) -> Result<String> {
        let environment = self.environment("main").await?;
        let deployments = self.owner.deployments(&environment).await?;
        let live = deployments.iter().find(|deployment| deployment["status"] == "succeeded").context("nothing is live")?;
        Ok(live["activeColor"].as_str().context("no colour")?.to_owned())
    }

    /// The body of a page of a branch's Odoo through the edge; an error when the answer is not 200.
    pub async fn page(&self, branch: &str, path: &str) -> Result<String> {
        let environment = self.environment(branch).await?;
        let answer = self.installation.through_edge(&environment, path).await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status == 200, "{path} answered {status}: {}", text.chars().take(300).collect::<String>());
        Ok(text)
    }

    /// Waits until a page says what it should.
    pub async fn page_says(&self, branch: &str, path: &str, wanted: &str, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let said = eventually(limit, async || match self.page(branch, path).await {
            Ok(text) if text.contains(wanted) => Some(()),
            Ok(text) => {
                last = text;
                None
            }
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        })
        .await;
        said.with_context(|| format!("{path} never said {wanted:?}; last: {last}"))
    }

    /// Odoo master processes and PostgreSQL masters that run for this installation's instances.
    pub fn instance_processes(&self) -> (usize, usize) {
        let instances = self.installation.home.join("pool/instances").display().to_string();
        let mut odoos = 0;
        let mut clusters = 0;
        for (pid, command) in self.installation.processes() {
            // Children of PostgreSQL rename themselves; workers of Odoo have a parent that is an Odoo too.
            if !command.contains(&instances) || has_parent_like(pid, &command) {
                continue;
            }
            if command.contains("odoo") && command.contains("python") {
                odoos += 1;
            } else if command.contains("postgres") {
                clusters += 1;
            }
        }
        (odoos, clusters)
    }

    /// Odoo's master processes, as [`Scene::instance_processes`] counts them.
    fn odoos(&self) -> Vec<i32> {
        let instances = self.installation.home.join("pool/instances").display().to_string();
        let is_odoo = |command: &str| command.contains(&instances) && command.contains("odoo") && command.contains("python");
        let running = self.installation.processes().into_iter();
        running.filter(|(pid, command)| is_odoo(command) && !has_parent_like(*pid, command)).map(|(pid, _)| pid).collect()
    }

    /// Waits until of one live instance nothing is left but its Odoo, its cluster and its data set.
    pub async fn nothing_is_left_but_what_serves(&self) -> Result<()> {
        self.settles_to_one_of_each().await?;
        let environment = self.environment("main").await?;
        let data = self.installation.home.join("pool/instances").join(environment["instanceId"].as_str().unwrap_or_default()).join("data");
        let alone = eventually(Duration::from_secs(30), async || (std::fs::read_dir(&data).ok()?.count() == 1).then_some(())).await;
        alone.with_context(|| format!("more than one data set is left in {}", data.display()))
    }

    /// A commit that must not go live, while some people use the instance: no request of theirs fails and no write is lost, what was live serves on,
    /// by the same process, nothing is left over, and one sentence with these words says why. The work tree is as before afterwards.
    pub async fn comes_to_nothing(self: &Arc<Self>, user: &User, what: &str, words: &[&str]) -> Result<Value> {
        let (live, serves, odoos) = (self.environment("main").await?, self.page("main", "/shop").await?, self.odoos());
        under_load(user, what, async || {
            let push = self.force_push(what).await?;
            ensure!(!push.output.contains("live at"), "{what}: {}", push.output);
            Ok(())
        })
        .await?;
        let failed = self.has_come_to_nothing(&live, &serves, what, words).await?;
        ensure!(self.odoos() == odoos, "{what}: the Odoo that serves was started again: {:#?}", self.installation.processes());
        Ok(failed)
    }

    pub async fn has_come_to_nothing(&self, live: &Value, serves: &str, what: &str, words: &[&str]) -> Result<Value> {
        let failed = self.last_deployment("main").await?;
        let message = failed["errorMessage"].as_str().unwrap_or_default();
        eprintln!("{what}: {message}");
        ensure!(failed["status"] == "failed" && message.lines().count() == 1, "{what}: {failed}");
        for word in words {
            ensure!(message.contains(word), "{what}: the sentence lacks {word:?}: {message}");
        }
        ensure!(self.environment("main").await?["activeDeploymentId"] == live["activeDeploymentId"], "{what}: another one is live");
        ensure!(self.page("main", "/shop").await? == serves, "{what}: the page is another one");
        self.nothing_is_left_but_what_serves().await.with_context(|| what.to_owned())?;
        self.repository.git(&["reset", "--quiet", "--hard", "HEAD^"])?;
        Ok(failed)
    }

    /// Commits all that has changed and pushes it over whatever the branch holds; waits as a terminal does.
    pub async fn force_push(self: &Arc<Self>, message: &str) -> Result<Push> {
        self.repository.commit(message)?;
        let scene = Arc::clone(self);
        let push =
            tokio::task::spawn_blocking(move || scene.repository.push(scene.remote(), &scene.key, "HEAD:refs/heads/main", &["--force"]));
        push.await?
    }

    /// Waits until exactly one Odoo and one cluster are left for one live instance.
    pub async fn settles_to_one_of_each(&self) -> Result<()> {
        let settled = eventually(Duration::from_secs(60), async || (self.instance_processes() == (1, 1)).then_some(())).await;
        settled.with_context(|| {
            format!("expected one Odoo and one cluster, found {:?}: {:#?}", self.instance_processes(), self.installation.processes())
        })
    }
}

fn has_parent_like(pid: i32, command: &str) -> bool {
    let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| {
        let after_name = stat.rsplit(')').next()?.to_owned();
        after_name.split_whitespace().nth(1)?.parse::<i32>().ok()
    });
    let Some(parent) = parent else { return false };
    // Odoo's process for websockets is its own program with one word more, and without the modules that its parent has updated before it served.
    let like = without_updates(&command.replacen(" gevent ", " ", 1));
    std::fs::read(format!("/proc/{parent}/cmdline"))
        .is_ok_and(|parent| without_updates(&String::from_utf8_lossy(&parent).replace('\0', " ")) == like)
}

fn without_updates(command: &str) -> String {
    let mut words = command.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if matches!(word, "--init" | "--update") {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// The example repository of this project.
pub fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}
