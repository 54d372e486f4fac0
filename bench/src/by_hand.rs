//! The alternative: an Odoo with its own cluster, kept by hand, updated as one does without oCore.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ocore_testkit::wait::eventually;

/// The user that runs both, as a Debian server would have it.
const USER: &str = "postgres";

/// The role of its Odoo in its cluster.
const ROLE: &str = "hand";

pub struct ByHand {
    directory: PathBuf,
    binaries: PathBuf,
    python: PathBuf,
    odoo: PathBuf,
    core_addons: PathBuf,
    repository: PathBuf,
    workers: u16,
    port: u16,
    server: Option<Child>,
}

impl ByHand {
    /// A cluster in `directory` with a database that has `modules` and the repository's own ones.
    pub fn new(directory: PathBuf, repository: &Path, modules: &str, workers: u16) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        own(&directory)?;
        let distribution = Path::new("/var/cache/ocore/odoo/19.0");
        let binaries = newest_postgresql()?;
        let hand = Self {
            python: distribution.join("venv/bin/python"),
            odoo: distribution.join("root/usr/bin/odoo"),
            core_addons: distribution.join("root/usr/lib/python3/dist-packages/odoo/addons"),
            repository: repository.to_owned(),
            workers,
            port: TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
            server: None,
            binaries,
            directory,
        };
        hand.run("initdb", &["--no-locale", "--encoding=UTF8", "--auth=trust", "--data-checksums", "-D", &hand.path("pgdata")])?;
        let options = format!("-c listen_addresses='' -c unix_socket_directories={} -c shared_buffers=128MB", hand.directory.display());
        hand.run("pg_ctl", &["-D", &hand.path("pgdata"), "-l", &hand.path("postgresql.log"), "-o", &options, "-w", "start"])?;
        let socket = hand.directory.display().to_string();
        // Odoo refuses to work as `postgres`.
        hand.run("createuser", &["-h", &socket, "--createdb", ROLE])?;
        hand.run("createdb", &["-h", &socket, "--owner", ROLE, "hand"])?;
        hand.odoo(&["-i", modules, "--stop-after-init"])?;
        Ok(hand)
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let output = as_user(&self.binaries.join(program))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn odoo_command(&self, arguments: &[&str]) -> Result<Command> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("odoo.log"))?;
        let mut command = as_user(&self.python);
        command.arg(&self.odoo).args([
            "--db_host",
            &self.directory.display().to_string(),
            "--db_user",
            ROLE,
            "-d",
            "hand",
            "--db-filter",
            "^hand$",
        ]);
        command.args(["--addons-path", &format!("{},{}", self.core_addons.display(), self.repository.display())]);
        command.args(["--data-dir", &self.path("data"), "--http-interface", "127.0.0.1", "--http-port", &self.port.to_string()]);
        command.args(["--workers", &self.workers.to_string()]).args(arguments);
        command.env("PATH", format!("{}:/usr/bin:/bin", self.python.parent().context("no directory")?.display()));
        command.current_dir(&self.directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn odoo(&self, arguments: &[&str]) -> Result<()> {
        let status = self.odoo_command(arguments)?.status()?;
        let log = fs::read_to_string(self.directory.join("odoo.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        ensure!(status.success(), "odoo {arguments:?} failed ({status}):\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        Ok(())
    }

    /// Starts the server and waits until a page says what it should.
    pub async fn start(&mut self, page: &str, wanted: &str) -> Result<()> {
        let gevent = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        self.server = Some(self.odoo_command(&["--gevent-port", &gevent])?.spawn()?);
        let url = format!("http://127.0.0.1:{}{page}", self.port);
        let answered = eventually(Duration::from_secs(60), async || {
            let text = reqwest::get(&url).await.ok()?.error_for_status().ok()?.text().await.ok()?;
            text.contains(wanted).then_some(())
        })
        .await;
        if answered.is_none() {
            bail!("{url} never said {wanted:?}");
        }
        Ok(())
    }

    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").args(["-TERM", &server.id().to_string()]).status()?;
            server.wait()?;
        }
        Ok(())
    }

    /// Where its server listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Stop, `-u`, start, as one does; until a page says what it should.
    pub async fn deploy(&mut self, module: &str, page: &str, wanted: &str) -> Result<f64> {
        let begin = Instant::now();
        self.stop()?;
        self.odoo(&["-u", module, "--stop-after-init", "--no-http"])?;
        self.start(page, wanted).await?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// `odoo -u module --stop-after-init`, start, first 200 with the new content. The old server is stopped before the clock starts.
    pub async fn update(&mut self, module: &str, page: &str, wanted: &str) -> Result<f64> {
        self.stop()?;
        let begin = Instant::now();
        self.odoo(&["-u", module, "--stop-after-init", "--no-http"])?;
        self.start(page, wanted).await?;
        Ok(begin.elapsed().as_secs_f64())
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = self.run("pg_ctl", &["-D", &self.path("pgdata"), "-m", "immediate", "stop"]);
    }
}

fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", "--"]).arg(program);
    command
}

fn own(directory: &Path) -> Result<()> {
    let status = Command::new("chown").arg(format!("{USER}:{USER}")).arg(directory).status()?;
    ensure!(status.success(), "cannot give {} to {USER}", directory.display());
    Ok(())
}

fn newest_postgresql() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    Ok(versions.pop().context("PostgreSQL is not installed")?.1)
}
