//! A production that serves: an Odoo with a database and a file store of a chosen size, and clients that read and write while something is
//! measured.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use ocore_testkit::{ApiClient, Installation, Options, Repository, module::write_module, wait::eventually};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const MODULE: &str = "changed";
/// One row of the filler table with its header and index, in bytes.
const ROW_BYTES: u64 = 2048;
const FILE_BYTES: usize = 50 * 1024;
/// Half of them read a page, half of them write through JSON-RPC.
const CLIENTS: usize = 4;

/// A running installation whose production has been filled.
pub struct Source {
    pub installation: Installation,
    pub owner: ApiClient,
    pub environment: Value,
    pub repository: Repository,
    pub remote: String,
    pub key: String,
    login: String,
    password: String,
}

impl Source {
    pub async fn start(binary: &Path, modules: &[&str], image_bytes: u64) -> Result<Self> {
        let installation = Installation::start(binary, Options { image_bytes: Some(image_bytes), ..Options::default() }).await?;
        let owner = installation.owner("bench@example.com", "Bench").await?;
        let key = owner.api_key().await?;
        let modules: Vec<&str> = modules.iter().copied().chain([MODULE]).collect();
        let project = owner.project("Bench", json!({ "moduleSelection": { "kind": "list", "modules": modules } })).await?;
        let remote = project["repository"]["gitRemote"].as_str().context("no remote")?.to_owned();
        let repository = Repository::new()?;
        write_module(&repository, MODULE, "before")?;
        repository.commit("The module that changes")?;
        let push = repository.push(&remote, &key, "HEAD:refs/heads/main", &[])?;
        ensure!(push.success && push.output.contains("live at"), "{}", push.output);
        let environment = owner.environment(&project, "main").await?;
        let instance = environment["instanceId"].as_str().context("no instance")?;
        let credentials = owner.get(&format!("/instances/{instance}/credentials")).await?;
        let text = |name: &str| credentials[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        let (login, password) = (text("login")?, text("password")?);
        Ok(Self { installation, owner, environment, repository, remote, key, login, password })
    }

    /// Of Odoo's administrator, whose id is 2.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// What a query counts in the live database.
    pub fn count(&self, query: &str) -> Result<i64> {
        let output = self.postgres_program("psql")?.args(["-X", "-A", "-t", "-c", query]).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    }

    pub fn pool(&self) -> PathBuf {
        self.installation.home.join("pool")
    }

    /// The directory of the live data set: the one whose cluster runs.
    pub fn data_set(&self) -> Result<PathBuf> {
        let instance = self.environment["instanceId"].as_str().context("no instance")?;
        let data = self.pool().join("instances").join(instance).join("data");
        for entry in fs::read_dir(&data).with_context(|| format!("{} cannot be read", data.display()))? {
            let directory = entry?.path();
            if directory.join("pgdata/postmaster.pid").exists() {
                return Ok(directory);
            }
        }
        bail!("no cluster runs below {}", data.display())
    }

    /// A PostgreSQL program, as the instance's own Odoo would run it.
    pub fn postgres_program(&self, program: &str) -> Result<Command> {
        let uid = fs::metadata(self.data_set()?.join("data_dir"))?.uid();
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--", program]);
        command.args(["-h", &self.socket()?, "-U", "odoo", "-d", "odoo"]);
        Ok(command)
    }

    /// What Odoo's own role may not do, as the cluster's superuser.
    pub fn administer(&self, statement: &str) -> Result<()> {
        let mut command = Command::new("psql");
        command.args(["-h", &self.socket()?, "-U", "postgres", "-d", "postgres", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn socket(&self) -> Result<String> {
        // `postmaster.pid`: the fifth line is the directory of the socket.
        let lock = fs::read_to_string(self.data_set()?.join("pgdata/postmaster.pid"))?;
        Ok(lock.lines().nth(4).context("the cluster has no socket")?.to_owned())
    }

    fn sql(&self, statement: &str) -> Result<()> {
        let output =
            self.postgres_program("psql")?.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Brings database and file store to about these sizes, with content that does not compress away.
    pub fn fill(&self, database_bytes: u64, file_store_bytes: u64) -> Result<()> {
        self.sql("create table if not exists bench_filler (id bigserial primary key, part int, body text)")?;
        let rows = database_bytes / ROW_BYTES;
        for part in 0..8 {
            self.sql(&format!(
                "insert into bench_filler (part, body)
                 select {part}, (select string_agg(md5(random()::text || g || k), '') from generate_series(1, 60) k)
                 from generate_series(1, {}) g",
                rows / 8
            ))?;
        }
        // A production that has its data for a while: neither their vacuum nor their checkpoint is measured.
        self.sql("vacuum (freeze, analyze) bench_filler")?;
        self.administer("checkpoint")?;
        let store = self.data_set()?.join("data_dir/filestore/odoo");
        let owner = fs::metadata(self.data_set()?.join("data_dir"))?.uid();
        let mut state = fs::read_dir(&store).map_or(0, Iterator::count) as u64 + 0x9e37_79b9_7f4a_7c15;
        for _ in 0..file_store_bytes / FILE_BYTES as u64 {
            let mut content = Vec::with_capacity(FILE_BYTES);
            while content.len() < FILE_BYTES {
                // xorshift64: fast, and nothing can compress it.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                content.extend_from_slice(&state.to_le_bytes());
            }
            let name = sha1(&content);
            let directory = store.join(&name[..2]);
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(&name), &content)?;
        }
        let status = Command::new("chown").args(["-R", &format!("{owner}:{owner}")]).arg(&store).status()?;
        ensure!(status.success(), "the file store keeps another owner");
        Ok(())
    }

    /// Waits until oCore has gone over the file store, as it has in a production that is copied some minutes after the last time.
    pub async fn has_warm_copy(&self) -> Result<()> {
        let instance = self.environment["instanceId"].as_str().context("no instance")?;
        let mark = self.pool().join("instances").join(instance).join("warm/boot");
        let now = SystemTime::now();
        if let Ok(mark) = fs::File::options().write(true).open(&mark) {
            mark.set_modified(now - Duration::from_mins(6))?;
        }
        let passed = async || fs::metadata(&mark).ok()?.modified().is_ok_and(|at| at >= now).then_some(());
        ensure!(eventually(Duration::from_secs(180), passed).await.is_some(), "no warm copy is made; {}", self.installation.log_tail(30));
        Ok(())
    }

    /// Clients that work until the load is stopped.
    pub fn load(&self) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let host = self.environment["autoSubdomain"].as_str().context("no address")?.to_owned();
        let edge = format!("http://{}", self.installation.edge_address);
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let client = Client {
                http: reqwest::Client::new(),
                edge: edge.clone(),
                host: host.clone(),
                login: self.login.clone(),
                password: self.password.clone(),
                writes: number % 2 == 1,
            };
            tasks.push(tokio::spawn(client.work(stop.clone(), answers.clone())));
        }
        Ok(Load { stop, answers, tasks })
    }
}

struct Client {
    http: reqwest::Client,
    edge: String,
    host: String,
    login: String,
    password: String,
    writes: bool,
}

impl Client {
    async fn work(self, stop: Arc<AtomicBool>, answers: Arc<Mutex<Vec<Answer>>>) {
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let good = if self.writes { self.write().await } else { self.read().await }.is_ok();
            let answer = Answer { began, milliseconds: began.elapsed().as_secs_f64() * 1000.0, good };
            answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn read(&self) -> Result<()> {
        let answer = self.http.get(format!("{}/{MODULE}", self.edge)).header("host", &self.host).send().await?;
        answer.error_for_status()?.bytes().await?;
        Ok(())
    }

    async fn write(&self) -> Result<()> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "call", "params": { "service": "object", "method": "execute_kw", "args":
            ["odoo", 2, self.password, format!("{MODULE}.thing"), "create", [[{ "name": self.login }]]] } });
        let answer = self.http.post(format!("{}/jsonrpc", self.edge)).header("host", &self.host).json(&body).send().await?;
        let answer: Value = answer.error_for_status()?.json().await?;
        ensure!(answer.get("error").is_none(), "{answer}");
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    began: Instant,
    milliseconds: f64,
    good: bool,
}

/// What the clients of a source saw.
pub struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Requests that began in one span of time.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub failed: usize,
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub longest: f64,
}

impl Load {
    /// What was answered to the requests of that span. Milliseconds.
    pub fn between(&self, from: Instant, to: Instant) -> Seen {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let inside: Vec<Answer> = answers.iter().copied().filter(|answer| (from..to).contains(&answer.began)).collect();
        drop(answers);
        let mut times: Vec<f64> = inside.iter().map(|answer| answer.milliseconds).collect();
        times.sort_by(f64::total_cmp);
        Seen {
            failed: inside.iter().filter(|answer| !answer.good).count(),
            per_second: inside.len() as f64 / (to - from).as_secs_f64(),
            p50: crate::report::quantile(&times, 0.5),
            p99: crate::report::quantile(&times, 0.99),
            longest: times.last().copied().unwrap_or(f64::NAN),
        }
    }

    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

fn sha1(content: &[u8]) -> String {
    use sha1::{Digest, Sha1};
    let digits: Vec<String> = Sha1::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}
