//! PostgreSQL clusters: one a data set, and one for the control plane itself, made and run by the same code.
//!
//! A cluster listens on no TCP port. Its socket lies in a directory that only its own user and the users of one group can enter, and who
//! connects is known by the kernel (peer authentication): root and the cluster's own user as the superuser, root and the named users as the
//! one role that owns the one database. All configuration is written anew at each start, so a copied cluster starts with its own socket and users.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write as _},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use nix::unistd::{User, geteuid};
use ocore_model::ids::DataSetId;
use rustix::process::Signal;
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::time::Instant;

use super::{
    below::Directory,
    cgroups::Place,
    config,
    durable::{self, blocking},
    exec::{Program, RunAs},
    layout::CLUSTER_PORT,
    ledger::OsUser,
    process::{self, NewProcess, Process},
};
use crate::error::{HostError, Result};

/// The superuser's role.
pub const SUPERUSER: &str = "postgres";
/// Crash recovery of a large cluster takes minutes; a process that lives is waited for.
const START_DEADLINE: Duration = Duration::from_mins(10);
/// How long a fast stop may take before an immediate one, which needs recovery at the next start.
const FAST_STOP: Duration = Duration::from_mins(1);
const IMMEDIATE_STOP: Duration = Duration::from_secs(10);
/// Of a copy that has nobody to serve yet.
const RECOVERY_TIME: Duration = Duration::from_hours(1);
const INIT_TIME_LIMIT: Duration = Duration::from_mins(5);
const FIRST_NORMAL_OBJECT_ID: &str = "16384";
const NOT_MADE: &str = "the database of a new PostgreSQL cluster could not be made";
/// Of the server's log, in bytes.
const LOG_TAIL: u64 = 8192;
/// `15`, or `9.6` of long ago, in bytes.
const VERSION_LIMIT: u64 = 16;
const PID_FILE_LIMIT: u64 = 16 * 1024;
const MIB: u64 = 1024 * 1024;
/// Raised when [`initialise`] makes something else, so that templates of the old kind are not used any more.
pub const SHAPE: u32 = 2;

/// The one role and the one database of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// A plain name; the role's and the database's.
    pub name: &'static str,
    /// The operating system's users that connect as this role.
    pub os_users: Vec<String>,
    /// Extensions that its database starts with.
    pub extensions: &'static [&'static str],
}

/// What a cluster may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterMemory {
    pub shared_buffers: u64,
    pub effective_cache_size: u64,
    pub work_mem: u64,
    pub maintenance_work_mem: u64,
    /// What a statement may write beside the data; `None` for as much as it likes. Only a superuser can raise it.
    pub temporary_files: Option<u64>,
}

impl ClusterMemory {
    /// For one of many clusters on a machine with that much memory, in bytes. Pages of shared buffers are taken only when they are used.
    pub fn for_machine(total: u64) -> Self {
        let budget = (total / 32).clamp(256 * MIB, 2048 * MIB);
        Self {
            shared_buffers: budget / 4,
            effective_cache_size: (total / 8).max(256 * MIB),
            work_mem: (budget / 96).clamp(4 * MIB, 16 * MIB),
            maintenance_work_mem: budget / 8,
            temporary_files: None,
        }
    }
}

/// One cluster: where it is and whose.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub pgdata: PathBuf,
    pub socket_directory: PathBuf,
    pub log: PathBuf,
    /// The record of its server process.
    pub record: PathBuf,
    pub mark: String,
    pub data_set: Option<DataSetId>,
    pub user: OsUser,
    /// The group whose members may reach the socket; the server process is one of them.
    pub socket_gid: u32,
    /// The group that may pass through the directories above `pgdata`.
    pub passage_gid: u32,
    /// Whoever is of the socket's group is the tenant, without being asked who it is: users of builds have no names that PostgreSQL could ask for.
    pub trusts_its_group: bool,
    pub tenant: Tenant,
    pub memory: ClusterMemory,
    pub max_connections: u32,
    /// Where its processes belong; `None` for one that is no instance's.
    pub place: Option<Place>,
}

impl Cluster {
    /// Its server process, when it runs: also one that an earlier run of ours started.
    pub fn find(&self) -> Result<Option<Process>> {
        Process::find(&self.record)
    }

    /// Starts it and waits until it accepts connections, crash recovery included. Running already is done.
    pub async fn start(&self) -> Result<()> {
        if let Some(process) = self.find()? {
            match self.wait_until_ready(&process, u64::MAX).await {
                // It was on its way down, stopped by a call that was broken off.
                Err(_) if !process.is_alive() => {}
                outcome => return outcome,
            }
        }
        self.end_leftovers().await?;
        let bin = postgres_bin(&self.pgdata)?;
        self.find_backup_label_again(&bin).await?;
        self.prepare().await?;
        self.bring_unlogged_back(&bin).await?;
        let log_start = fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        let program = Program::new(bin.join("postgres"))
            .arg("-D")
            .arg(&self.pgdata)
            .cwd(&self.pgdata)
            .env("PGTZ", "UTC")
            .run_as(self.run_as())
            .group(self.place.as_ref().map(Place::prepare).unwrap_or_default());
        let new = NewProcess {
            program,
            record: self.record.clone(),
            mark: self.mark.clone(),
            data_set: self.data_set,
            details: serde_json::Value::Null,
        };
        let process = Process::start(new, &self.log).await?;
        let ready = self.wait_until_ready(&process, log_start).await;
        if ready.is_err() {
            self.stop().await?;
        }
        ready
    }

    /// Stops it: fast (open transactions are rolled back), then immediately, then by force. Not running is done.
    pub async fn stop(&self) -> Result<()> {
        if let Some(process) = self.find()? {
            let gracefully = process.stop(&[(Signal::INT, FAST_STOP), (Signal::QUIT, IMMEDIATE_STOP)]).await?;
            if !gracefully {
                tracing::warn!(pgdata = %self.pgdata.display(), "a PostgreSQL cluster had to be stopped by force; it recovers at its next start");
            }
        }
        self.end_leftovers().await?;
        self.leave_place();
        durable::remove_fleeting(&self.record)
            .map_err(|error| HostError::machine_from("the record of a cluster could not be removed", error))
    }

    /// Ends it at once: what it has written is worth nothing any more. Not running is done.
    pub async fn abandon(&self) -> Result<()> {
        if let Some(process) = self.find()? {
            process.stop(&[(Signal::QUIT, IMMEDIATE_STOP)]).await?;
        }
        self.end_leftovers().await?;
        self.leave_place();
        durable::remove_fleeting(&self.record)
            .map_err(|error| HostError::machine_from("the record of a cluster could not be removed", error))
    }

    fn options(&self, role: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.socket_directory)
            .port(CLUSTER_PORT)
            .username(role)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .application_name("ocore")
            .disable_statement_logging()
    }

    /// The one way to a session of the superuser, as root or as the cluster's own user. It never enters the tenant's database, whose owner could set
    /// where names are looked for there and put a function or a view before PostgreSQL's own; what it asks, PostgreSQL's own schema alone answers,
    /// whatever anybody has set. Its queries qualify their names all the same.
    pub async fn connect_as_superuser(&self) -> sqlx::Result<PgConnection> {
        self.check_socket().map_err(sqlx::Error::Io)?;
        PgConnection::connect_with(&self.options(SUPERUSER, SUPERUSER).options([("search_path", "pg_catalog")])).await
    }

    /// A connection as the role that owns the one database, which may do there what Odoo may, and nothing else.
    pub async fn connect_as_owner(&self) -> Result<PgConnection> {
        let connected = async {
            self.check_socket().map_err(sqlx::Error::Io)?;
            PgConnection::connect_with(&self.options(self.tenant.name, self.tenant.name)).await
        };
        connected.await.map_err(|error| {
            HostError::machine_from(format!("the database in {} could not be reached: {error}", self.pgdata.display()), error)
        })
    }

    /// The socket lies in a directory of the cluster's user, who must not lead us to another cluster's.
    fn check_socket(&self) -> io::Result<()> {
        let found = fs::symlink_metadata(self.socket_directory.join(format!(".s.PGSQL.{CLUSTER_PORT}")))?;
        if found.file_type().is_socket() && found.uid() == self.user.uid {
            return Ok(());
        }
        Err(io::Error::other("what is in the place of its socket is none of its own"))
    }

    /// Runs statements of our own, each one line, in the database of a new cluster that nobody has worked in yet and that does not run.
    pub(super) async fn furnish(&self, bin: &Path, statements: &[String]) -> Result<()> {
        if statements.is_empty() {
            return Ok(());
        }
        let attempt = "the PostgreSQL extensions of the database could not be made";
        single_user(bin, &self.pgdata, &self.run_as(), self.tenant.name, statements, attempt).await
    }

    /// Lets it recover and shuts it down again, without a server that anybody could come to. Nobody runs here, and the configuration is written.
    pub(super) async fn recover_alone(&self, bin: &Path) -> Result<()> {
        Program::new(bin.join("postgres"))
            .args(["--single", "-D"])
            .arg(&self.pgdata)
            .arg(SUPERUSER)
            .cwd(&self.pgdata)
            .run_as(self.run_as())
            .group(self.place.as_ref().map(Place::prepare).unwrap_or_default())
            .stdin(String::new())
            .time_limit(RECOVERY_TIME)
            .run()
            .await?
            .expect_success("a copy of a database could not recover")?;
        Ok(())
    }

    /// It runs and answers a query.
    pub async fn is_healthy(&self) -> bool {
        let answer = async {
            let mut connection = self.connect_as_superuser().await.ok()?;
            sqlx::query("select 1").execute(&mut connection).await.ok()
        };
        tokio::time::timeout(Duration::from_secs(5), answer).await.is_ok_and(|answer| answer.is_some())
    }

    pub(super) fn run_as(&self) -> RunAs {
        RunAs { uid: self.user.uid, gid: self.user.uid, groups: BTreeSet::from([self.socket_gid, self.passage_gid]).into_iter().collect() }
    }

    /// Server processes in this directory without a living record: children that a killed postmaster left, or a start that was never
    /// recorded. PostgreSQL overwrites its environment and gives each child its own session, but all work in the data directory.
    async fn end_leftovers(&self) -> Result<()> {
        if let Some(place) = &self.place {
            place.find().end().await?;
        }
        process::end_all(|entry| entry.uid() == Some(self.user.uid) && entry.cwd().is_some_and(|cwd| cwd.starts_with(&self.pgdata))).await
    }

    /// Nothing runs here any more.
    fn leave_place(&self) {
        if let Some(place) = &self.place {
            place.find().remove();
        }
    }

    async fn prepare(&self) -> Result<()> {
        let cluster = self.clone();
        blocking(move || {
            let has_sync_method = major_version(&cluster.pgdata)? >= 14;
            let written = || -> io::Result<()> {
                // We are root, and the directory is not ours: nothing in it may lead us elsewhere.
                let pgdata = Directory::open(&cluster.pgdata)?;
                // Nobody runs here any more, so what it says is not true; its pid may be another cluster's of the same user by now.
                for stale in ["postmaster.pid", "postmaster.opts"] {
                    pgdata.remove(stale)?;
                }
                // The same of its socket, of which PostgreSQL also takes a process that was killed and is not reaped yet for alive.
                for stale in [format!(".s.PGSQL.{CLUSTER_PORT}.lock"), format!(".s.PGSQL.{CLUSTER_PORT}")] {
                    durable::remove_fleeting(&cluster.socket_directory.join(stale))?;
                }
                for (name, content) in [
                    ("postgresql.conf", cluster.settings(has_sync_method)),
                    ("pg_hba.conf", cluster.host_based_access()),
                    ("pg_ident.conf", cluster.ident()?),
                ] {
                    // Not synced: they are written anew at the next start.
                    pgdata.remove(name)?;
                    let mut file = pgdata.create(name, 0o600)?;
                    file.write_all(content.as_bytes())?;
                    std::os::unix::fs::fchown(&file, Some(cluster.user.uid), Some(cluster.user.uid))?;
                }
                Ok(())
            };
            written().map_err(|error| {
                HostError::machine_from(format!("the configuration of {} could not be written: {error}", cluster.pgdata.display()), error)
            })?;
            durable::make_directory(&cluster.socket_directory, 0o750)?;
            std::os::unix::fs::chown(&cluster.socket_directory, Some(cluster.user.uid), Some(cluster.socket_gid))
                .map_err(|error| HostError::machine_from("the owner of a socket's directory could not be set", error))
        })
        .await
    }

    fn settings(&self, has_sync_method: bool) -> String {
        let memory = self.memory;
        let mut text = String::from("# Written by oCore at each start. Changes are lost.\n");
        let mib = |bytes: u64| format!("{}MB", (bytes / MIB).max(1));
        let settings: [(&str, String); 26] = [
            ("listen_addresses", String::new()),
            ("port", CLUSTER_PORT.to_string()),
            ("unix_socket_directories", self.socket_directory.display().to_string()),
            // The directory decides who gets here.
            ("unix_socket_permissions", "0777".to_owned()),
            ("max_connections", self.max_connections.to_string()),
            ("shared_buffers", mib(memory.shared_buffers)),
            ("effective_cache_size", mib(memory.effective_cache_size)),
            ("work_mem", mib(memory.work_mem)),
            ("maintenance_work_mem", mib(memory.maintenance_work_mem)),
            // What a copy under pg_backup_start needs.
            ("wal_level", "replica".to_owned()),
            ("max_wal_senders", "0".to_owned()),
            // Its launcher would wait for subscriptions, which only a superuser can make.
            ("max_logical_replication_workers", "0".to_owned()),
            // All of them are written to when the server starts. By default they are a part of the shared buffers, up to 16 MB.
            ("wal_buffers", "2MB".to_owned()),
            ("max_wal_size", "1GB".to_owned()),
            ("min_wal_size", "80MB".to_owned()),
            ("wal_compression", "on".to_owned()),
            ("checkpoint_timeout", "15min".to_owned()),
            ("checkpoint_completion_target", "0.9".to_owned()),
            ("random_page_cost", "1.1".to_owned()),
            // Odoo's many small queries lose more by compiling than they win.
            ("jit", "off".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
            ("log_line_prefix", "%m [%p] %u@%d ".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("timezone", "UTC".to_owned()),
            ("default_text_search_config", "pg_catalog.english".to_owned()),
        ];
        for (name, value) in settings {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"));
        }
        if let Some(bytes) = memory.temporary_files {
            let _ = writeln!(text, "temp_file_limit = '{}'", mib(bytes));
        }
        if has_sync_method {
            // Before it recovers, a cluster syncs all of its files. One by one that takes a copy, whose files have just been synced, a second.
            text.push_str("recovery_init_sync_method = 'syncfs'\n");
        }
        text
    }

    fn host_based_access(&self) -> String {
        if self.trusts_its_group { trusted_hba(self.tenant.name) } else { HBA.to_owned() }
    }

    /// Who may be whom: the map that `pg_hba.conf` names.
    fn ident(&self) -> io::Result<String> {
        let ourselves = User::from_uid(geteuid())?.map_or_else(|| "root".to_owned(), |user| user.name);
        let mut text = String::from("# Written by oCore at each start. Changes are lost.\n");
        for administrator in [&ourselves, &self.user.name] {
            let _ = writeln!(text, "ocore {administrator} {SUPERUSER}");
        }
        let _ = writeln!(text, "ocore {ourselves} {}", self.tenant.name);
        for os_user in &self.tenant.os_users {
            let _ = writeln!(text, "ocore {os_user} {}", self.tenant.name);
        }
        Ok(text)
    }

    async fn wait_until_ready(&self, process: &Process, log_start: u64) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(5))
            .with_max_delay(Duration::from_millis(200))
            .with_factor(1.3)
            .without_max_times()
            .build();
        loop {
            if !process.is_alive() {
                return Err(self.start_failure("ended while it started", log_start));
            }
            if self.says_ready() && self.connect_as_superuser().await.is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.start_failure("does not accept connections", log_start));
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_millis(200))).await;
        }
    }

    /// The server's own word, the eighth line of `postmaster.pid` (PostgreSQL's `pidfile.h`).
    fn says_ready(&self) -> bool {
        Directory::open(&self.pgdata)
            .and_then(|pgdata| pgdata.read_text("postmaster.pid", PID_FILE_LIMIT))
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim_end() == "ready"))
    }

    fn start_failure(&self, what: &str, log_start: u64) -> HostError {
        let tail = log_tail(&self.log, log_start).unwrap_or_default();
        let telling = tail.lines().rev().find(|line| line.contains("FATAL:") || line.contains("PANIC:")).or(tail.lines().last());
        let reason = telling.map(|line| format!(": {}", line.trim())).unwrap_or_default();
        HostError::machine(format!("the PostgreSQL cluster in {} {what}{reason}; its log is {}", self.pgdata.display(), self.log.display()))
    }
}

const HBA: &str = "\
# Written by oCore at each start. Changes are lost.
# Nobody comes but through the socket, and the kernel says who it is.
local all all peer map=ocore
";

/// Before the line that asks who it is.
fn trusted_hba(tenant: &str) -> String {
    format!("# Only one user, who has no name, is let to the socket.\nlocal {tenant} {tenant} trust\n{HBA}")
}

/// Makes a cluster in an empty directory that belongs to `user`: with data checksums, UTF-8, the role and its database. Not running
/// afterwards. On failure the directory's contents are worth nothing.
pub async fn initialise(bin: &Path, pgdata: &Path, user: &OsUser, tenant: &Tenant) -> Result<()> {
    let run_as = RunAs { uid: user.uid, gid: user.uid, groups: Vec::new() };
    Program::new(bin.join("initdb"))
        .args(["--username", SUPERUSER, "--encoding=UTF8", "--locale=C.UTF-8", "--lc-collate=C", "--auth=peer"])
        .args(["--data-checksums", "--no-sync", "--no-instructions", "-D"])
        .arg(pgdata)
        .run_as(run_as.clone())
        .time_limit(INIT_TIME_LIMIT)
        .run()
        .await?
        .expect_success("a PostgreSQL cluster could not be made")?;
    // Without a server, PostgreSQL gives objects numbers of its own range, and `pg_dump` leaves out an extension whose number is of that range
    // (PostgreSQL's `transam.h`, FirstNormalObjectId; `varsup.c`, GetNewObjectId).
    Program::new(bin.join("pg_resetwal"))
        .args(["--next-oid", FIRST_NORMAL_OBJECT_ID, "-D"])
        .arg(pgdata)
        .run_as(run_as.clone())
        .time_limit(INIT_TIME_LIMIT)
        .run()
        .await?
        .expect_success("a PostgreSQL cluster could not be made")?;
    let name = tenant.name;
    single_user(
        bin,
        pgdata,
        &run_as,
        SUPERUSER,
        // Nobody but the owner, and whoever it lets in, connects to the database.
        &[
            format!("create role {name} login"),
            format!("create database {name} owner {name} template template0"),
            format!("revoke all on database {name} from public"),
        ],
        NOT_MADE,
    )
    .await?;
    if !tenant.extensions.is_empty() {
        let mut statements = vec![format!("set role {name}")];
        statements.extend(tenant.extensions.iter().map(|extension| format!("create extension {extension}")));
        single_user(bin, pgdata, &run_as, name, &statements, NOT_MADE).await?;
    }
    Ok(())
}

/// Runs statements without a server, so that a crash leaves none. Each must be one line.
async fn single_user(bin: &Path, pgdata: &Path, run_as: &RunAs, database: &str, statements: &[String], attempt: &str) -> Result<()> {
    Program::new(bin.join("postgres"))
        .args(["--single", "-D"])
        .arg(pgdata)
        .args(["-c", "exit_on_error=on", "-c", "fsync=off", "-c", "log_checkpoints=off", database])
        .cwd(pgdata)
        .run_as(run_as.clone())
        .stdin(statements.join("\n") + "\n")
        .time_limit(INIT_TIME_LIMIT)
        .run()
        .await?
        .expect_success(attempt)?;
    Ok(())
}

/// The major version of PostgreSQL that can read a cluster. Its own users may have written anything there.
pub(super) fn major_version(pgdata: &Path) -> Result<u32> {
    let text = Directory::open(pgdata).and_then(|pgdata| pgdata.read_text("PG_VERSION", VERSION_LIMIT));
    let text =
        text.map_err(|error| HostError::machine_from(format!("{} holds no PostgreSQL cluster: {error}", pgdata.display()), error))?;
    text.trim().parse().map_err(|_| {
        HostError::machine(format!(
            "the data in {} are damaged: PG_VERSION names no version of PostgreSQL; go on with a snapshot of them",
            pgdata.display()
        ))
    })
}

/// Where the programs for an existing cluster are: those of its own major version.
pub(super) fn postgres_bin(pgdata: &Path) -> Result<PathBuf> {
    let major = major_version(pgdata)?;
    config::postgres_bin_of(major).ok_or_else(|| {
        HostError::machine(format!("the data in {} needs PostgreSQL {major}; install the package `postgresql-{major}`", pgdata.display()))
    })
}

/// At most the end of a log, and nothing before `start`.
fn log_tail(log: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    let start = if start == u64::MAX { 0 } else { start };
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL)).min(length)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_the_machine_within_limits() {
        let small = ClusterMemory::for_machine(1024 * MIB);
        let large = ClusterMemory::for_machine(256 * 1024 * MIB);
        assert_eq!(small.shared_buffers, 64 * MIB);
        assert_eq!(large.shared_buffers, 512 * MIB);
        assert!(small.work_mem >= 4 * MIB && large.work_mem <= 16 * MIB);
    }

    /// Every source file of this crate with its text, but for this one.
    #[expect(clippy::disallowed_methods, reason = "the sources are nobody else's")]
    fn sources() -> Vec<(PathBuf, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = walkdir::WalkDir::new(&root).into_iter().map(|entry| entry.unwrap().into_path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("local/cluster.rs"));
        files.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
    }

    #[test]
    fn there_is_one_way_to_a_session_of_the_superuser() {
        let ours = include_str!("cluster.rs").split("#[cfg(test)]").next().unwrap_or_default();
        assert_eq!(ours.matches("self.options(SUPERUSER").count(), 1);
        assert_eq!(ours.matches("PgConnection::connect_with").count(), 2, "the superuser's and the owner's");
        for (path, text) in sources() {
            for word in
                ["PgConnectOptions", "connect_with(&", "PgConnection::connect", "PgPool", "SUPERUSER", "\"--username=postgres\"", "\"-U\""]
            {
                assert!(!text.contains(word), "{} has another way to a database: {word}", path.display());
            }
        }
    }

    #[test]
    fn the_superuser_names_its_objects_in_full() {
        let with_sessions = sources().into_iter().filter(|(_, text)| text.contains("connect_as_superuser()"));
        let mut seen = 0;
        for (path, text) in with_sessions {
            seen += 1;
            for word in text.split(|c: char| !(c.is_alphanumeric() || "_.".contains(c))) {
                let is_view = ["pg_stat_activity", "pg_tablespace", "pg_terminate_backend", "pg_locks", "pg_database"].contains(&word);
                assert!(!is_view, "{} says {word} without its schema", path.display());
            }
        }
        assert!(seen >= 4, "{seen}");
    }
}
