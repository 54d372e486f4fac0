//! A whole oCore in a temporary directory: the real binary with its own PostgreSQL, pool, edge and users; gone without a trace on drop.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{client::ApiClient, wait::eventually};

/// What a test may want different from the defaults.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// More settings, as environment variables (`OCORE__…`, `FAILPOINTS`).
    pub environment: Vec<(String, String)>,
    /// Of the pool's XFS image; 8 GiB when `None` (it is sparse).
    pub image_bytes: Option<u64>,
}

/// A running oCore.
pub struct Installation {
    pub binary: PathBuf,
    pub home: PathBuf,
    pub api_address: SocketAddr,
    pub edge_address: SocketAddr,
    environment: Vec<(String, String)>,
    slice_number: u32,
    server: Option<Child>,
    /// Keeps this installation's users and ports apart from those of others that run at the same time.
    _slice: Flock<fs::File>,
    _directory: TempDir,
}

impl Installation {
    /// Starts one with the binary that is being tested and waits until it is ready.
    pub async fn start(binary: impl Into<PathBuf>, options: Options) -> Result<Self> {
        // Found by whoever needs TLS; a second installation of the provider is refused and harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (slice, number) = take_slice()?;
        let directory = tempfile::Builder::new().prefix("oc-").rand_bytes(5).tempdir_in("/srv")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let home = directory.path().join("home");
        let api_address = free_address()?;
        let edge_address = free_address()?;
        let image_bytes = options.image_bytes.unwrap_or(8 << 30);
        let mut environment: Vec<(String, String)> = [
            ("OCORE__HOME", home.display().to_string()),
            ("OCORE__LISTEN", api_address.to_string()),
            ("OCORE__EDGE__LISTEN", edge_address.to_string()),
            ("OCORE__POOL__IMAGE_BYTES", image_bytes.to_string()),
            ("OCORE__POOL__IMAGE_LIMIT_BYTES", image_bytes.to_string()),
            ("OCORE__GIT__ALLOW_LOCAL_REPOSITORIES", "true".to_owned()),
            ("OCORE__GIT__ALLOW_FILE_REPOSITORIES", "true".to_owned()),
            // Users of other organizations sign up by themselves; the first account takes its token all the same.
            ("OCORE__AUTH__OPEN_SIGNUP", "true".to_owned()),
            // All that a test or a bench wakes, one client wakes.
            ("OCORE__EDGE__WAKES_PER_MINUTE", "1000".to_owned()),
            ("OCORE__EDGE__WAKES_PER_MINUTE_AND_CLIENT", "1000".to_owned()),
            ("OCORE__LIMITS__FIRST_UID", first_uid(number).to_string()),
            ("OCORE__LIMITS__LAST_UID", (first_uid(number) + 999).to_string()),
            ("OCORE__LIMITS__FIRST_PORT", first_port(number).to_string()),
            ("OCORE__LIMITS__LAST_PORT", (first_port(number) + 399).to_string()),
            ("OCORE__LOG__FILTER", std::env::var("OCORE_TEST_LOG").unwrap_or_else(|_| "info".to_owned())),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        environment.extend(options.environment);
        let mut installation = Self {
            binary: binary.into(),
            home,
            api_address,
            edge_address,
            environment,
            slice_number: number,
            server: None,
            _slice: slice,
            _directory: directory,
        };
        installation.serve(&[]).await?;
        Ok(installation)
    }

    /// The first of its 1000 user and group numbers.
    pub fn first_uid(&self) -> u32 {
        first_uid(self.slice_number)
    }

    /// The first of its 400 ports.
    pub fn first_port(&self) -> u16 {
        first_port(self.slice_number)
    }

    pub fn api_url(&self) -> String {
        format!("http://{}", self.api_address)
    }

    /// A command of the binary with this installation's settings and no other.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env_remove("DATABASE_URL").env("OCORE_PROFILE", self.home.join("test-profile.json")).env("OCORE_URL", self.api_url());
        command
    }

    /// Starts `ocore serve` (again), with more environment, and waits until it is ready.
    pub async fn serve(&mut self, more: &[(&str, &str)]) -> Result<()> {
        ensure!(self.server.is_none(), "it runs already");
        fs::create_dir_all(&self.home)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let child = self
            .command(&["serve"])
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.server = Some(child);
        let url = format!("{}/readyz", self.api_url());
        let ready = eventually(Duration::from_secs(90), async || match reqwest::get(&url).await {
            Ok(answer) if answer.status() == StatusCode::OK => Some(()),
            _ => None,
        })
        .await;
        if ready.is_none() {
            bail!("ocore serve did not become ready; its log ends with:\n{}", self.log_tail(40));
        }
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.home.join("ocore.log")
    }

    /// The end of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    pub fn server_pid(&self) -> Option<i32> {
        self.server.as_ref().map(|child| child.id().cast_signed())
    }

    /// kill -9 of the control plane; everything else goes on.
    pub fn kill_server(&mut self) -> Result<()> {
        if let Some(mut child) = self.server.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Waits until the server ends by itself (a failpoint, say).
    pub async fn wait_for_server_exit(&mut self, limit: Duration) -> Result<()> {
        let mut child = self.server.take().context("it does not run")?;
        let ended = eventually(limit, async || child.try_wait().ok().flatten().map(|_| ())).await;
        if ended.is_none() {
            self.server = Some(child);
            bail!("the server did not end; its log ends with:\n{}", self.log_tail(40));
        }
        Ok(())
    }

    /// Ends the control plane as an operator does.
    pub async fn terminate_server(&mut self) -> Result<()> {
        if let Some(child) = &self.server {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
            self.wait_for_server_exit(Duration::from_secs(60)).await?;
        }
        Ok(())
    }

    /// The token of the first account, as long as there is none.
    pub fn first_account_token(&self) -> Option<String> {
        fs::read_to_string(self.home.join("first-account-token")).ok().map(|token| token.trim().to_owned())
    }

    /// Makes an account with an organization; the answer is a client that is logged in as its owner. Any number may, unless an option
    /// closes sign-up.
    pub async fn owner(&self, email: &str, organization: &str) -> Result<ApiClient> {
        let anonymous = ApiClient::new(&self.api_url(), None, None);
        let password = "correct horse 1";
        let body = json!({ "email": email, "name": "Test", "password": password, "firstAccountToken": self.first_account_token() });
        anonymous.post("/auth/signup", &body).await?;
        let login = anonymous.post("/auth/login", &json!({ "email": email, "password": password })).await?;
        let token = login["accessToken"].as_str().context("no access token")?.to_owned();
        let client = ApiClient::new(&self.api_url(), Some(token.clone()), None);
        let made = client.post("/user/orgs", &json!({ "name": organization })).await?;
        let slug = made["slug"].as_str().context("no slug")?.to_owned();
        Ok(ApiClient::new(&self.api_url(), Some(token), Some(slug)))
    }

    /// A request through the edge with the instance's host name. Redirects are not followed.
    pub async fn through_edge(&self, environment: &Value, path: &str) -> Result<reqwest::Response> {
        let host = environment["autoSubdomain"].as_str().context("the environment has no autoSubdomain")?;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(client.get(format!("http://{}{path}", self.edge_address)).header("host", host).send().await?)
    }

    /// Processes that belong to this installation by their command line, working directory or environment. The test itself does not.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let home = self.home.display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let directory = fs::read_link(entry.path().join("cwd")).map(|path| path.display().to_string()).unwrap_or_default();
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let ours = command.contains(&home) || directory.starts_with(&home) || String::from_utf8_lossy(&environment).contains(&home);
            if pid.unsigned_abs() != std::process::id() && ours {
                found.push((pid, command));
            }
        }
        found
    }

    /// Stops and removes everything, as `scripts/quickstart --purge` does, and says what is left.
    pub fn purge(&mut self) -> Result<()> {
        let output = self.command(&["purge", "--yes", "--keep-odoo"]).output()?;
        if let Some(mut child) = self.server.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ensure!(output.status.success(), "purge failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ends with:\n{}", self.log_tail(60));
        }
        if let Err(error) = self.purge() {
            eprintln!("an installation could not be removed: {error:#}");
        }
    }
}

fn first_uid(slice: u32) -> u32 {
    300_000 + slice * 1000
}

fn first_port(slice: u32) -> u16 {
    20_000 + slice as u16 * 400
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A number that no other installation on this machine has now, with the lock that keeps it.
fn take_slice() -> Result<(Flock<fs::File>, u32)> {
    let directory = Path::new("/tmp/ocore-testkit");
    fs::create_dir_all(directory)?;
    for number in 0..24 {
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(format!("slice-{number}.lock")))?;
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            return Ok((lock, number));
        }
    }
    bail!("24 installations run already on this machine")
}
