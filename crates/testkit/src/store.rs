//! A real PostgreSQL for tests of the store, the control plane and the API: one private cluster a test binary, one database a test, made
//! from a migrated template. It goes with the process, however that ends.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use nix::unistd::{Uid, User, chown};
use ocore_control::{
    Control, Settings, SleepSettings, TenantLimits,
    accounts::{self, Client, LoggedIn, NewUser, Person},
    authorization::{Scope, System},
    organizations::{self, NewOrganization},
    secrets::Secret,
    signals::Signals,
    store::pool_options,
};
use ocore_host::Host;
use ocore_model::{clock::Clock, ids::ServerId};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::host::NoHost;

const SUPERUSER: &str = "postgres";
const TEMPLATE: &str = "ocore_template";
/// What opens the metrics of a store's API.
pub const METRICS_TOKEN: &str = "a metrics token of tests";
/// The password of every user of [`Store::user`].
pub const PASSWORD: &str = "correct horse 1";

/// The cluster of this test binary.
struct Cluster {
    socket_directory: PathBuf,
}

/// Waits for the end of its standard input, which comes when the test process is gone, then stops the cluster and removes its directory.
const GUARDIAN: &str = r#"read -r _; kill -QUIT "$1" 2>/dev/null; while kill -0 "$1" 2>/dev/null; do sleep 0.05; done; rm -rf -- "$2""#;

impl Cluster {
    fn get() -> Result<&'static Self> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        CLUSTER.get_or_init(|| Self::start().map_err(|error| format!("{error:#}"))).as_ref().map_err(|error| anyhow!("{error}"))
    }

    fn start() -> Result<Self> {
        let programs = newest_programs()?;
        let root = tempfile::Builder::new().prefix("ocore-test-pg-").tempdir()?.keep();
        let data = root.join("data");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        if Uid::effective().is_root() {
            let user = User::from_name(SUPERUSER)?.context("there is no system user postgres; install PostgreSQL")?;
            chown(&root, Some(user.uid), Some(user.gid))?;
        }
        let made = unprivileged(&programs.join("initdb"))
            .args(["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync", "--pgdata"])
            .arg(&data)
            .output()?;
        if !made.status.success() {
            fs::remove_dir_all(&root)?;
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        let log = fs::File::create(root.join("log"))?;
        let mut server = unprivileged(&programs.join("postgres"));
        server.arg("-D").arg(&data).arg("-k").arg(&root).args(["-c", "listen_addresses=", "-c", "max_connections=300"]).args([
            "-c",
            "fsync=off",
            "-c",
            "synchronous_commit=off",
            "-c",
            "full_page_writes=off",
        ]);
        // In process groups of their own: what ends the tests' group (a time limit, Ctrl-C) must leave the guardian to clean up.
        let server =
            server.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("cannot start postgres")?;
        let mut guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "ocore-test-guardian", &server.id().to_string()])
            .arg(&root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the guardian of the test cluster")?;
        // Open until this process ends.
        std::mem::forget(guardian.stdin.take());
        let cluster = Self { socket_directory: root };
        cluster.prepare()?;
        Ok(cluster)
    }

    /// Waits until the cluster answers and makes the template, on a runtime of its own: the caller's may be inside another.
    fn prepare(&self) -> Result<()> {
        let admin = self.options(SUPERUSER);
        let template = self.options(TEMPLATE);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let end = std::time::Instant::now() + Duration::from_mins(1);
                let admin = loop {
                    match PgPoolOptions::new().max_connections(1).connect_with(admin.clone()).await {
                        Ok(pool) => break pool,
                        Err(error) if std::time::Instant::now() > end => return Err(error).context("the test cluster does not answer"),
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                };
                sqlx::raw_sql("create database ocore_template").execute(&admin).await?;
                let pool = PgPoolOptions::new().max_connections(1).connect_with(template).await?;
                ocore_control::migrate(&pool).await?;
                pool.close().await;
                admin.close().await;
                Ok(())
            })
        })
        .join()
        .map_err(|_| anyhow!("preparing the test cluster panicked"))?
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.socket_directory).username(SUPERUSER).database(database)
    }
}

fn newest_programs() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not installed (/usr/lib/postgresql)")?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .collect();
    versions.sort();
    versions.pop().map(|(_, path)| path).context("PostgreSQL is not installed (/usr/lib/postgresql)")
}

/// PostgreSQL refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    if !Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", SUPERUSER, "--regid", SUPERUSER, "--clear-groups"]).arg(program);
    command
}

/// A clock that stands until a test moves it. Whole microseconds, as PostgreSQL keeps them.
pub struct TestClock(Mutex<DateTime<Utc>>);

impl TestClock {
    pub fn advance(&self, delta: TimeDelta) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now += delta;
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self(Mutex::new(Utc::now().trunc_subsecs(6)))
    }
}

impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A control plane on a database of its own.
pub struct Store {
    pub control: Control,
    pub clock: Arc<TestClock>,
    /// Holds what the settings point to.
    pub directory: tempfile::TempDir,
}

impl Store {
    /// With a host that refuses every call.
    pub async fn new() -> Result<Self> {
        Self::with_host(Arc::new(NoHost::default())).await
    }

    pub async fn with_host(host: Arc<dyn Host>) -> Result<Self> {
        let cluster = tokio::task::spawn_blocking(Cluster::get).await??;
        let pool = new_database(cluster).await?;
        let directory = tempfile::tempdir()?;
        let server_id = insert_server(&pool).await?;
        let clock = Arc::new(TestClock::default());
        let settings = settings(directory.path());
        fs::create_dir(&settings.repositories)?;
        let control = Control { pool, host, server_id, clock: clock.clone(), settings: Arc::new(settings), signals: Signals::default() };
        Ok(Self { control, clock, directory })
    }

    /// The same store with other settings.
    #[must_use]
    pub fn with_settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = (*self.control.settings).clone();
        change(&mut settings);
        self.control.settings = Arc::new(settings);
        self
    }

    /// Where this store's database is, for what opens its own connections.
    pub fn connect_options(&self) -> PgConnectOptions {
        (*self.control.pool.connect_options()).clone()
    }

    /// A user of that e-mail address, signed up, with the password [`PASSWORD`].
    pub async fn user(&self, email: &str) -> Result<LoggedIn> {
        // The first one needs the token that an installation prints.
        let first_account_token = accounts::keep_first_account_file(System, &self.control).await?;
        let (email, name, password) = (email.to_owned(), email.to_owned(), PASSWORD.to_owned());
        let new = NewUser { email, name, password, invitation: None, first_account_token };
        Ok(accounts::sign_up(&self.control, new, &Client::default()).await?)
    }

    /// The person of a log-in.
    pub async fn person(&self, login: &LoggedIn) -> Result<Person> {
        Ok(accounts::identify(&self.control, &login.tokens.access_token).await?.person()?)
    }

    /// An organization of that slug and its owner.
    pub async fn organization(&self, slug: &str) -> Result<Owned> {
        let login = self.user(&format!("owner@{slug}.example")).await?;
        let person = self.person(&login).await?;
        let new = NewOrganization { name: slug.to_owned(), slug: Some(slug.to_owned()) };
        organizations::create(&self.control, &person, new).await?;
        let scope = accounts::authenticate(&self.control, &login.tokens.access_token, Some(slug)).await?;
        Ok(Owned { login, person, scope })
    }

    /// A user who joins the organization with one of its roles, by name.
    pub async fn member(&self, owner: &Scope, email: &str, role: &str) -> Result<Owned> {
        use ocore_control::{members, roles};
        let roles = roles::list(&self.control, &owner.grant()?).await?;
        let role = roles.into_iter().find(|candidate| candidate.name == role).with_context(|| format!("there is no role {role}"))?;
        let invitation = members::invite(&self.control, &owner.grant()?, email, role.id).await?;
        let login = self.user(email).await?;
        let person = self.person(&login).await?;
        members::accept(&self.control, &person, &invitation.token, &Client::default()).await?;
        let scope = accounts::authenticate(&self.control, &login.tokens.access_token, Some(&owner.organization_slug)).await?;
        ensure!(scope.user_id == login.user.id, "another user");
        Ok(Owned { login, person, scope })
    }
}

/// A user in an organization.
pub struct Owned {
    pub login: LoggedIn,
    pub person: Person,
    pub scope: Scope,
}

impl Owned {
    /// Their access token.
    pub fn token(&self) -> &str {
        &self.login.tokens.access_token
    }
}

async fn new_database(cluster: &Cluster) -> Result<PgPool> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    // A template can be copied by one session at a time.
    static COPYING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let name = format!("ocore_test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let copying = COPYING.lock().await;
    let admin = PgPoolOptions::new().max_connections(1).connect_with(cluster.options(SUPERUSER)).await?;
    // The name is ours: letters, digits, underscores.
    let statement = format!("create database {name} template {TEMPLATE}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&admin).await.context("cannot make a test's database")?;
    admin.close().await;
    drop(copying);
    Ok(pool_options().max_connections(8).connect_with(cluster.options(&name)).await?)
}

/// A row for the machine, which no host has told about itself.
async fn insert_server(pool: &PgPool) -> Result<ServerId> {
    let id = ServerId::new();
    let statement = "insert into servers (id, name, host, status) values ($1, 'test', 'test', 'active')";
    sqlx::query(statement).bind(id.as_uuid()).execute(pool).await?;
    Ok(id)
}

/// Settings whose paths lie in a directory of the test.
pub fn settings(directory: &Path) -> Settings {
    Settings {
        secret: Secret::new("a secret of tests, thirty-two bytes"),
        access_token_lifetime: Duration::from_hours(1),
        refresh_token_lifetime: Duration::from_hours(30 * 24),
        open_signup: true,
        limits: TenantLimits { signups_per_hour: 0, organizations_per_user: 0, projects_per_organization: 0 },
        first_account_file: directory.join("first-account-token"),
        trusted_proxies: Vec::new(),
        metrics_token: Secret::new(METRICS_TOKEN),
        base_domain: "localhost".to_owned(),
        edge_scheme: "http".to_owned(),
        edge_port: 8080,
        public_url: "http://127.0.0.1:8700".to_owned(),
        repositories: directory.join("repositories"),
        push_limit: 64 << 20,
        allow_file_repositories: false,
        allow_local_repositories: false,
        repository_networks: Vec::new(),
        repository_ports: Vec::new(),
        fetch_limit: 1 << 30,
        parallel_operations: 2,
        sleep: SleepSettings::default(),
        shared_templates: true,
        edge_socket: directory.join("edge.sock"),
        mail_relay: None,
    }
}
