//! Restores a checked backup into a data set that nobody can reach yet.
//!
//! All of it happens in the data set's work directory: an empty cluster is started there without the safety that it will have later (what is
//! half-made is thrown away after a crash, and the whole file system is synced before the directory gets its name), the database is restored
//! as the instance's own role, and the file store is unpacked beside it. No superuser ever runs a statement in the new database: its tables
//! may be views and have triggers, whose functions would run with the superuser's rights.
//!
//! An Odoo of the instance may serve meanwhile, and it runs what its tenant has written. So its user reaches nothing of this until it is whole: not
//! the directory, not the socket, and no process, since what restores is a user of a build, that has no other process. What is read of the upload stays
//! root's own, and that user's group may read it.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, BufReader, PipeWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::ids::{DataSetId, ImportId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    check, missing_files,
    sql::{self, Findings},
    survey::{self, Database, Survey},
    unpack, uploads,
};
use crate::{
    api::Progress,
    error::{HostError, Result},
    local::{
        LocalHost,
        below::{self, Directory},
        build_users::BuildUser,
        cluster::Cluster,
        copy::{self, WorkDirectory},
        data_sets::{ODOO_ROLE, open_to_group},
        durable::{self, blocking},
        exec::{Finished, Program, RunAs},
        fence::Claim,
        layout::{CLUSTER_PORT, Layout, Unit},
        ledger::Allocation,
        process::run_recorded,
    },
};

const DATABASE: &str = ODOO_ROLE;
/// How many connections restore tables and build indexes at once.
const JOBS: usize = 2;
const RESTORE_TIME: Duration = Duration::from_hours(24);
/// A hostile view may never end.
const CHECK_TIME: Duration = Duration::from_mins(1);
/// Millions of rows take minutes.
const FILES_TIME: Duration = Duration::from_hours(1);
/// Of what is in a dump, in bytes.
const LIST_LIMIT: usize = 64 << 20;
/// Read after PostgreSQL's own configuration. Nothing that a crash leaves is used, so nothing is synced on the way.
const AUTO_CONF: &str = "postgresql.auto.conf";
const HASTE: &str = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nwal_level = minimal\nautovacuum = off\n\
    max_wal_size = '8GB'\ncheckpoint_timeout = '1h'\nmaintenance_work_mem = '256MB'\n";

/// The work directory with its running cluster. Whatever way it is left, the cluster is ended before the directory goes.
struct Quarters {
    work: Option<WorkDirectory>,
    cluster: Cluster,
    /// Whoever restores.
    user: Option<BuildUser>,
    /// What that user may read of the upload.
    shared: Vec<PathBuf>,
    /// What reads and writes on threads of its own.
    threads: TaskTracker,
    end: CancellationToken,
    turns: Option<[tokio::sync::OwnedMutexGuard<()>; 2]>,
}

impl Quarters {
    /// What has to go goes, in order.
    fn clear(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let (work, turns, cluster, threads) = (self.work.take(), self.turns.take(), self.cluster.clone(), self.threads.clone());
        let (user, shared) = (self.user.take(), std::mem::take(&mut self.shared));
        self.end.cancel();
        threads.close();
        async move {
            if work.is_none() {
                return;
            }
            if let Err(error) = cluster.abandon().await {
                tracing::warn!(%error, "the cluster of a broken-off import still runs");
            }
            threads.wait().await;
            if let Err(error) = end_sharing(user, shared).await {
                tracing::warn!(%error, "what a broken-off import has read stays readable for a user of builds until the next start");
            }
            drop(work);
            drop(turns);
        }
    }
}

/// The user's processes end, and then it reads nothing any more.
async fn end_sharing(user: Option<BuildUser>, shared: Vec<PathBuf>) -> Result<()> {
    if let Some(user) = user {
        user.release().await?;
    }
    blocking(move || {
        for path in shared {
            below::share_no_more(&path).map_err(|error| cannot_share(&path, error))?;
        }
        Ok(())
    })
    .await
}

impl Drop for Quarters {
    fn drop(&mut self) {
        if self.work.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(self.clear());
        }
    }
}

/// Everything that a restore needs to know.
struct Restore<'a> {
    survey: &'a Survey,
    /// That are there already.
    schemas: &'a BTreeSet<String>,
    /// Of the upload.
    directory: PathBuf,
    /// What `pg_restore` reads; `None` for SQL.
    dump: Option<PathBuf>,
    /// What of the dump it restores.
    list: PathBuf,
    cluster: &'a Cluster,
    bin: PathBuf,
    run_as: RunAs,
    record: PathBuf,
    mark: String,
    data_set: DataSetId,
    host: &'a LocalHost,
    claim: &'a Claim,
    progress: &'a Progress,
    threads: &'a TaskTracker,
    end: &'a CancellationToken,
}

impl LocalHost {
    /// Fills a work directory from an import. The caller has written nothing into it, and gives it its name.
    pub(in crate::local) async fn restore_import(
        &self,
        claim: &Claim,
        data_set: DataSetId,
        import: ImportId,
        allocation: &Allocation,
        progress: &Progress,
    ) -> Result<WorkDirectory> {
        let instance = claim.instance;
        let survey = self.survey_upload(import, progress).await?;
        if survey.series().is_none() || !survey.is_whole {
            return Err(HostError::rejected("the backup was not found fit to be imported; check it again, and see why"));
        }
        self.pool.require(check::needed_bytes(&survey), "this import").await?;
        let target = self.layout.data_set(instance, data_set);
        let directory = self.layout.upload(import);
        // An earlier attempt may still be clearing up.
        self.confine(instance).await?;
        let turn = self.builds.take(&target.display().to_string()).await;
        // Each who reads it is of another group.
        let turns = [turn, self.builds.take(&directory.display().to_string()).await];
        let cluster = self.cluster(allocation, instance, data_set)?;
        // Of an attempt that was cut off.
        cluster.abandon().await?;
        let work = WorkDirectory::create(&target).await?;
        self.fill_fresh_cluster(&work, allocation, std::slice::from_ref(&progress.cancel)).await?;
        open_to_group(work.path(), allocation.postgres.uid)?;
        let (pgdata, data_dir) = (work.path().join("pgdata"), work.path().join("data_dir"));
        durable::make_directory(&data_dir, 0o700)?;
        let bin = self.config.postgres_bin()?;
        let (statements, schemas) = check::statements_for(&survey.extensions, cluster.tenant.extensions, cluster.tenant.name);
        Cluster { pgdata: pgdata.clone(), ..cluster.clone() }.furnish(&bin, &statements).await?;
        write_haste(&pgdata, allocation.postgres.uid)?;
        let user = self.claim_build_user().await?;
        let run_as = RunAs { uid: user.uid, gid: user.uid, groups: Vec::new() };
        let cluster = Cluster { pgdata: pgdata.clone(), socket_gid: user.uid, trusts_its_group: true, ..cluster };
        let dump = survey::dump_of(&directory, &survey.database);
        let list = directory.join(format!("{data_set}.list"));
        let mut quarters = Quarters {
            work: Some(work),
            cluster,
            user: Some(user),
            shared: dump.iter().chain([&list]).cloned().collect(),
            threads: TaskTracker::new(),
            end: CancellationToken::new(),
            turns: Some(turns),
        };
        let restored = {
            let restore = Restore {
                survey: &survey,
                schemas: &schemas,
                directory,
                dump,
                list: list.clone(),
                cluster: &quarters.cluster,
                bin,
                run_as,
                record: self.layout.record(instance, Unit::Run(claim.fence.operation)),
                mark: Layout::mark(instance, Unit::Run(claim.fence.operation)),
                data_set,
                host: self,
                claim,
                progress,
                threads: &quarters.threads,
                end: &quarters.end,
            };
            restore.run(&data_dir).await
        };
        if let Err(error) = restored {
            quarters.clear().await;
            return Err(error);
        }
        quarters.cluster.stop().await?;
        end_sharing(quarters.user.take(), std::mem::take(&mut quarters.shared)).await?;
        remove(&list)?;
        remove_haste(&pgdata)?;
        copy::change_owner(&data_dir, allocation.odoo.uid, allocation.odoo.uid).await?;
        quarters.work.take().ok_or_else(|| HostError::machine("the import's directory is gone"))
    }
}

impl Restore<'_> {
    async fn run(&self, data_dir: &Path) -> Result<()> {
        self.cluster.start().await?;
        let database = async {
            match &self.dump {
                Some(dump) => self.restore_dump(dump).await,
                None => self.restore_sql().await,
            }
        };
        let (damaged, ()) = tokio::try_join!(self.unpack_file_store(data_dir), database)?;
        self.look_for_files(data_dir, &damaged).await?;
        self.progress.log.line("Gathering the planner's statistics.");
        self.analyze().await?;
        self.look_again().await
    }

    async fn look_for_files(&self, data_dir: &Path, damaged: &BTreeSet<String>) -> Result<()> {
        let mut connection = self.cluster.connect_as_owner().await?;
        let look = missing_files::look(&mut connection, data_dir, damaged);
        let missing = tokio::select! {
            biased;
            () = self.progress.cancel.cancelled() => return Err(HostError::Cancelled),
            looked = tokio::time::timeout(FILES_TIME, look) => {
                looked.map_err(|_| HostError::rejected("the restored database does not answer what files it names"))??
            }
        };
        if let Some(said) = missing.tell() {
            self.progress.log.line(&said);
        }
        Ok(())
    }

    /// Each has a control group of its own, which goes with it.
    fn program(&self, name: &str) -> Result<Program> {
        let group = self.host.prepare_run(self.claim.instance, self.claim.fence.operation)?;
        Ok(Program::new(self.bin.join(name))
            .run_as(self.run_as.clone())
            .without_network()
            .env("PGHOST", &self.cluster.socket_directory)
            .env("PGPORT", CLUSTER_PORT.to_string())
            .env("PGUSER", self.cluster.tenant.name)
            .env("PGDATABASE", DATABASE)
            .group(group)
            .time_limit(RESTORE_TIME)
            .progress(self.progress))
    }

    async fn run_recorded(&self, program: Program) -> Result<Finished> {
        run_recorded(program, &self.record, &self.mark, Some(self.data_set)).await
    }

    /// `psql` gets no line of the dump that this process has not read, and takes no command but the one that ends its restriction.
    async fn restore_sql(&self) -> Result<()> {
        self.progress.log.line("Restoring the database from SQL.");
        let (reader, writer) = io::pipe().map_err(|error| HostError::machine_from("no pipe could be made", error))?;
        let program = self
            .program("psql")?
            .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", "-"])
            .stdin_from(reader)
            .stdout_to(null()?);
        let (directory, database, end) = (self.directory.clone(), self.survey.database.clone(), self.end.clone());
        let schemas = self.schemas.clone();
        let feed = self.threads.spawn_blocking(move || feed(&directory, &database, &schemas, writer, end));
        let (finished, fed) = tokio::join!(self.run_recorded(program), feed);
        let fed = fed.map_err(|error| HostError::machine_from("reading the backup was broken off", error))?;
        let finished = match (finished, fed) {
            // What could not be read is the reason, whatever psql made of the rest.
            (Ok(finished), Err(error @ HostError::Rejected { .. })) if finished.status.success() => return Err(error),
            (Err(error), _) => return Err(error),
            (Ok(finished), Err(error)) if finished.status.success() => return Err(error),
            (Ok(finished), _) => finished,
        };
        judge(&finished)
    }

    async fn restore_dump(&self, dump: &Path) -> Result<()> {
        self.progress.log.line("Restoring the database.");
        let share = |path: &Path| below::share(path, self.run_as.gid).map_err(|error| cannot_share(path, error));
        share(dump)?;
        let contents = self.run_recorded(self.program("pg_restore")?.arg("--list").arg(dump).output_limit(LIST_LIMIT)).await?;
        let contents = contents.expect_success("the dump's list could not be read")?;
        if contents.stdout.len() == LIST_LIMIT {
            return Err(HostError::rejected(format!("the list of what is in the dump is longer than {} MiB", LIST_LIMIT >> 20)));
        }
        write_list(&self.list, &wanted_entries(&contents.stdout_text(), self.schemas))?;
        share(&self.list)?;
        let program = self
            .program("pg_restore")?
            .args(["--exit-on-error", "--no-owner", "--no-acl", "--no-publications", "--no-subscriptions", "--no-security-labels"])
            .args(["--no-tablespaces", "--dbname", DATABASE])
            .arg(format!("--jobs={JOBS}"))
            .arg("--use-list")
            .arg(&self.list)
            .arg(dump);
        judge(&self.run_recorded(program).await?)
    }

    /// Paths in the store of files whose content is another one than their names say.
    async fn unpack_file_store(&self, data_dir: &Path) -> Result<BTreeSet<String>> {
        let Some(store) = self.survey.file_store else { return Ok(BTreeSet::new()) };
        self.progress.log.line(&format!("Unpacking {} files of the file store.", store.files));
        let source = uploads::file_of(&self.directory, store.part);
        let target = data_dir.to_owned();
        let tokens = [self.end.clone(), self.progress.cancel.clone()];
        let unpack = self.threads.spawn_blocking(move || unpack::unpack(&source, &target, &tokens));
        let damaged = unpack.await.map_err(|error| HostError::machine_from("unpacking the file store was broken off", error))??;
        if !damaged.is_empty() {
            let shown: Vec<&str> = damaged.iter().take(10).map(String::as_str).collect();
            self.progress.log.line(&format!(
                "{} files of the file store are not what their names say (they were damaged in the source, and are kept as they are): {}{}",
                damaged.len(),
                shown.join(", "),
                if damaged.len() > shown.len() { " …" } else { "" }
            ));
        }
        Ok(damaged)
    }

    async fn analyze(&self) -> Result<()> {
        let program = self.program("vacuumdb")?.args(["--analyze-only", "--quiet", "--dbname", DATABASE]).arg(format!("--jobs={JOBS}"));
        self.run_recorded(program).await?.expect_success("the statistics of the new database could not be gathered")?;
        Ok(())
    }

    /// What was checked before is what is there now.
    async fn look_again(&self) -> Result<()> {
        let mut connection = self.cluster.connect_as_owner().await?;
        let query = sqlx::query_scalar::<_, Option<String>>(
            "select pg_catalog.left(latest_version::pg_catalog.text, 40) from public.ir_module_module where name = 'base'",
        );
        let answer = tokio::time::timeout(CHECK_TIME, query.fetch_optional(&mut connection)).await;
        let version = match answer {
            Ok(Ok(version)) => version.flatten().unwrap_or_default(),
            Ok(Err(error)) => return Err(HostError::rejected(format!("the restored database is not Odoo's: {error}"))),
            Err(_) => return Err(HostError::rejected("the restored database does not answer what modules it has")),
        };
        let expected = self.survey.series().unwrap_or_default();
        if version.starts_with(&format!("{expected}.")) {
            return Ok(());
        }
        Err(HostError::rejected(format!("the restored database says that its Odoo is {version}, and the backup said {expected}")))
    }
}

/// Writes the SQL to `psql`, between the words that restrict it and those that end that.
fn feed(directory: &Path, database: &Database, schemas: &BTreeSet<String>, writer: PipeWriter, end: CancellationToken) -> Result<()> {
    let key = Uuid::new_v4().simple().to_string();
    let mut writer = io::BufWriter::with_capacity(1 << 16, writer);
    let lost = |error| HostError::machine_from("the SQL could not be passed on to psql", error);
    writeln!(writer, "\\restrict {key}").map_err(lost)?;
    let mut findings = Findings::default();
    survey::read_sql(directory, database, |reader| {
        let reader = Interruptible { inner: reader, tokens: [end] };
        findings = sql::filter(BufReader::with_capacity(1 << 18, reader), &mut writer, schemas)?;
        Ok(())
    })?;
    if !findings.is_whole {
        return Err(HostError::rejected("the dump is cut off: its end is missing"));
    }
    writeln!(writer, "\n\\unrestrict {key}").and_then(|()| writer.flush()).map_err(lost)
}

/// A reader that ends with an error when somebody wants it to.
struct Interruptible<'a> {
    inner: &'a mut dyn Read,
    tokens: [CancellationToken; 1],
}

impl Read for Interruptible<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tokens.iter().any(CancellationToken::is_cancelled) {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}

/// What of a dump's list is restored: extensions, the schema `public` and those of extensions are there already, and what only a superuser may make is
/// left out.
fn wanted_entries(list: &str, schemas: &BTreeSet<String>) -> String {
    let is_wanted = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().skip(3).collect();
        // A comment is on something of the same words.
        match words.strip_prefix(&["COMMENT", "-"]).unwrap_or(&words) {
            ["EXTENSION" | "PUBLICATION" | "SUBSCRIPTION", ..] | ["EVENT", "TRIGGER", ..] => false,
            ["SCHEMA", "-", name, ..] | ["SCHEMA", name, ..] => *name != "public" && !schemas.contains(*name),
            _ => true,
        }
    };
    let wanted: Vec<&str> = list.lines().filter(|line| !line.starts_with(';')).filter(is_wanted).collect();
    wanted.join("\n") + "\n"
}

fn judge(finished: &Finished) -> Result<()> {
    if finished.status.success() {
        return Ok(());
    }
    let said = finished.stderr_text();
    if said.contains("No space left on device") {
        return Err(HostError::machine(
            "the storage pool became full while the database was restored; make it larger, or remove what is not needed",
        ));
    }
    let telling = said.lines().find(|line| line.contains("ERROR:") || line.contains("error:") || line.contains("FATAL:"));
    let telling = telling.or(said.lines().last()).unwrap_or("the program ended without a word");
    let reason = ["ERROR:", "FATAL:", "error:"].iter().find_map(|mark| telling.split_once(mark)).map_or(telling, |(_, reason)| reason);
    let excerpt: Vec<&str> = said.lines().take(40).collect();
    Err(HostError::Rejected { summary: format!("the database could not be restored: {}", reason.trim()), excerpt: excerpt.join("\n") })
}

fn null() -> Result<File> {
    OpenOptions::new().write(true).open("/dev/null").map_err(|error| HostError::machine_from("/dev/null could not be opened", error))
}

fn write_list(path: &Path, content: &str) -> Result<()> {
    remove(path)?;
    let write = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content.as_bytes());
    write().map_err(|error: io::Error| cannot_write(path, error))
}

fn write_haste(pgdata: &Path, reader: u32) -> Result<()> {
    let write = || -> io::Result<()> {
        let pgdata = Directory::open(pgdata)?;
        pgdata.remove(AUTO_CONF)?;
        let mut file = pgdata.create(AUTO_CONF, 0o640)?;
        file.write_all(HASTE.as_bytes())?;
        std::os::unix::fs::fchown(&file, Some(0), Some(reader))
    };
    write().map_err(|error| cannot_write(&pgdata.join(AUTO_CONF), error))
}

fn remove_haste(pgdata: &Path) -> Result<()> {
    let removed = Directory::open(pgdata).and_then(|pgdata| pgdata.remove(AUTO_CONF));
    removed.map_err(|error| HostError::machine_from(format!("{} could not be tidied up: {error}", pgdata.display()), error))
}

fn remove(path: &Path) -> Result<()> {
    durable::remove_fleeting(path).map_err(|error| HostError::machine_from(format!("{} could not be removed", path.display()), error))
}

fn cannot_share(path: &Path, error: io::Error) -> HostError {
    HostError::machine_from(format!("the rights of {} could not be set: {error}", path.display()), error)
}

pub(super) fn cannot_read_rows(error: sqlx::Error) -> HostError {
    if error.as_database_error().is_some() {
        return HostError::rejected(format!("the restored database is not Odoo's: {error}"));
    }
    HostError::machine_from("the restored database could not be read", error)
}

pub(super) fn cannot_write(path: &Path, error: io::Error) -> HostError {
    if error.kind() == io::ErrorKind::StorageFull {
        return HostError::machine(
            "the storage pool became full while the file store was unpacked; make it larger, or remove what is not needed",
        );
    }
    HostError::machine_from(format!("{} could not be written: {error}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_and_what_only_a_superuser_makes_is_not_restored() {
        let list = ";\n; Archive created at 2026\n;\n2; 3079 16385 EXTENSION - pg_trgm \n4016; 0 0 COMMENT - EXTENSION pg_trgm \n\
            5; 2615 2200 SCHEMA - public postgres\n6; 0 0 COMMENT - SCHEMA public postgres\n310; 1259 17000 TABLE public res_partner odoo\n\
            7; 2615 2201 SCHEMA - other odoo\n8; 2615 2202 SCHEMA - extensions odoo\n9; 6104 17001 PUBLICATION - shop odoo\n\
            10; 6106 17002 PUBLICATION TABLE public shop res_partner odoo\n11; 3466 17003 EVENT TRIGGER - e odoo\n12; 0 0 COMMENT - EVENT TRIGGER e odoo\n\
            13; 0 0 COMMENT - SCHEMA other odoo\n14; 2620 17004 TRIGGER public res_partner t odoo\n";
        assert_eq!(
            wanted_entries(list, &BTreeSet::from(["extensions".to_owned()])),
            "310; 1259 17000 TABLE public res_partner odoo\n7; 2615 2201 SCHEMA - other odoo\n13; 0 0 COMMENT - SCHEMA other odoo\n\
             14; 2620 17004 TRIGGER public res_partner t odoo\n"
        );
    }
}
