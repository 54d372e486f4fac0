//! The built-in remote, served on a port of its own, and what the real git client does with it.

use std::{net::SocketAddr, process::Output};

use anyhow::{Context, Result, ensure};
use ocore_api::{AppState, router};
use ocore_control::{
    Settings,
    api_keys::{self, NewApiKey},
    projects::{self, NewProject, Project},
};
use ocore_model::project::ModuleSelection;
use ocore_testkit::{Push, Repository, Store, store::Owned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// An organization with a project, served on a port of its own.
pub(crate) struct Remote {
    pub(crate) store: Store,
    pub(crate) owner: Owned,
    pub(crate) project: Project,
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    server: JoinHandle<()>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Remote {
    pub(crate) async fn start() -> Result<Self> {
        Self::with_settings(|_| {}).await
    }

    pub(crate) async fn with_settings(change: impl FnOnce(&mut Settings)) -> Result<Self> {
        Self::on(Store::new().await?, change).await
    }

    pub(crate) async fn on(store: Store, change: impl FnOnce(&mut Settings)) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let store = store.with_settings(|settings| {
            settings.public_url = format!("http://{address}");
            change(settings);
        });
        let owner = store.organization("acme").await?;
        let project = new_project(&store, &owner, "shop", true).await?;
        let key = new_key(&store, &owner, &["view:projects", "manage:deployments", "manage:environments"]).await?;
        let service = router(AppState { control: store.control.clone() }).into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, service).await;
        });
        Ok(Self { store, owner, project, address, key, server })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/git/acme/shop.git", self.address)
    }

    pub(crate) fn url_with(&self, key: &str) -> String {
        format!("http://git:{key}@{}/git/acme/shop.git", self.address)
    }

    /// A branch's head as the mirror has it.
    pub(crate) fn head(&self, name: &str) -> Result<Option<String>> {
        let mirror = self.store.control.settings.repositories.join(format!("{}.git", self.project.id));
        let output = std::process::Command::new("git")
            .arg("--git-dir")
            .arg(mirror)
            .args(["rev-parse", "--verify", "--quiet", "--end-of-options", name])
            .output()?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }

    pub(crate) async fn recorded(&self, branch: &str) -> Result<Option<(String, bool)>> {
        let statement = "select head_sha, deleted_at is not null from branches where project_id = $1 and name = $2";
        let query = sqlx::query_as(statement).bind(self.project.id.as_uuid()).bind(branch);
        Ok(query.fetch_optional(&self.store.control.pool).await?)
    }

    /// A request as it is written here; the status and the body.
    pub(crate) async fn raw(&self, path: &str, headers: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(self.address).await?;
        let method = if body.is_empty() { "GET" } else { "POST" };
        let authorization = format!("Authorization: Bearer {}\r\n", self.key);
        let head = format!("{method} {path} HTTP/1.0\r\nHost: x\r\n{authorization}{headers}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no answer")?;
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, answer.split_off(end + 4)))
    }

    /// A push request without its pack, for what no client would send.
    pub(crate) async fn raw_push(&self, commands: &[(&str, &str, &str)], capabilities: &str) -> Result<String> {
        let mut body = Vec::new();
        for (index, (old, new, name)) in commands.iter().enumerate() {
            let line = format!("{old} {new} {name}{}", if index == 0 { format!("\0{capabilities}") } else { String::new() });
            body.extend_from_slice(format!("{:04x}{line}", line.len() + 4).as_bytes());
        }
        body.extend_from_slice(b"0000");
        let (status, answer) =
            self.raw("/git/acme/shop.git/git-receive-pack", "Content-Type: application/x-git-receive-pack-request\r\n", &body).await?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&answer));
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

pub(crate) async fn new_project(store: &Store, owner: &Owned, slug: &str, create_environment_on_push: bool) -> Result<Project> {
    let new = NewProject {
        name: slug.to_owned(),
        slug: Some(slug.to_owned()),
        description: String::new(),
        odoo_version: Some("19.0".to_owned()),
        module_selection: ModuleSelection::Own,
        with_demo: false,
        create_environment_on_push,
        protects_production: false,
    };
    Ok(projects::create(&store.control, &owner.scope.grant()?, new).await?)
}

pub(crate) async fn new_key(store: &Store, owner: &Owned, permissions: &[&str]) -> Result<String> {
    let permissions = permissions.iter().map(|permission| (*permission).to_owned()).collect();
    let new = NewApiKey { name: "git".to_owned(), permissions, expires_at: None };
    Ok(api_keys::create(&store.control, &owner.scope.grant()?, new).await?.plaintext)
}

/// A work tree with one commit.
pub(crate) fn work_tree() -> Result<Repository> {
    let repository = Repository::new()?;
    repository.write("shop/__manifest__.py", "{'name': 'Shop'}\n")?;
    repository.write("shop/__init__.py", "")?;
    repository.commit("Begin")?;
    Ok(repository)
}

/// Runs git beside the runtime that serves it.
pub(crate) async fn run_git(repository: &Repository, arguments: &[&str]) -> Result<Output> {
    let mut command = repository.command(arguments);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// A push that does not wait for the deployment, which nobody carries out here.
pub(crate) async fn push(repository: &Repository, url: &str, arguments: &[&str]) -> Result<Push> {
    let mut all = vec!["push", "-o", "no-wait", url];
    all.extend_from_slice(arguments);
    let output = run_git(repository, &all).await?;
    let output_text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(Push { success: output.status.success(), output: output_text })
}
