//! Restores a checked backup into a data set that nobody can reach yet.
//!
//! All of it happens in the data set's work directory: an empty cluster is started there without the safety that it will have later (what is
//! half-made is thrown away after a crash, and the whole file system is synced before the directory gets its name), the database is restored
//! as the instance's own role, and the file store is unpacked beside it. No superuser ever runs a statement in the new database: its tables
//! may be views and have triggers, whose functions would run with the superuser's rights.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, PipeWriter, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::ids::{DataSetId, ImportId};
use sha1::{Digest, Sha1};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    archive::{self, Kind, Limits, Member},
    check,
    sql::{self, Findings},
    survey::{self, Database, Survey},
    uploads,
};
use crate::{
    api::{Progress, UploadPart},
    error::{HostError, Result},
    local::{
        LocalHost,
        cgroups::Group,
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
/// Read after PostgreSQL's own configuration. Nothing that a crash leaves is used, so nothing is synced on the way.
const HASTE: &str = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nwal_level = minimal\nautovacuum = off\n\
    max_wal_size = '8GB'\ncheckpoint_timeout = '1h'\nmaintenance_work_mem = '256MB'\n";

/// The work directory with its running cluster. Whatever way it is left, the cluster is ended before the directory goes.
struct Quarters {
    work: Option<WorkDirectory>,
    cluster: Cluster,
    /// What reads and writes on threads of its own.
    threads: TaskTracker,
    end: CancellationToken,
    turn: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Quarters {
    /// What has to go goes, in order.
    fn clear(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let (work, turn, cluster, threads) = (self.work.take(), self.turn.take(), self.cluster.clone(), self.threads.clone());
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
            drop(work);
            drop(turn);
        }
    }
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
    /// Of the upload.
    directory: PathBuf,
    cluster: &'a Cluster,
    bin: PathBuf,
    run_as: RunAs,
    record: PathBuf,
    mark: String,
    data_set: DataSetId,
    group: Group,
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
        // An earlier attempt may still be clearing up.
        self.confine(instance).await?;
        let turn = self.builds.take(&target.display().to_string()).await;
        let work = WorkDirectory::create(&target).await?;
        self.fill_fresh(&work, allocation, std::slice::from_ref(&progress.cancel)).await?;
        open_to_group(work.path(), allocation.odoo.uid)?;
        let pgdata = work.path().join("pgdata");
        let haste = pgdata.join("postgresql.auto.conf");
        write_for(&haste, HASTE.as_bytes(), allocation.postgres.uid)?;
        let cluster = Cluster { pgdata, ..self.cluster(allocation, instance, data_set)? };
        let data_dir = work.path().join("data_dir");
        let list = work.path().join("restore.list");
        let mut quarters =
            Quarters { work: Some(work), cluster, threads: TaskTracker::new(), end: CancellationToken::new(), turn: Some(turn) };
        let restored = {
            let restore = Restore {
                survey: &survey,
                directory: self.layout.upload(import),
                cluster: &quarters.cluster,
                bin: self.config.postgres_bin()?,
                run_as: RunAs { uid: allocation.odoo.uid, gid: allocation.odoo.uid, groups: Vec::new() },
                record: self.layout.record(instance, Unit::Run(claim.fence.operation)),
                mark: Layout::mark(instance, Unit::Run(claim.fence.operation)),
                data_set,
                group: self.prepare_run(instance, claim.fence.operation)?,
                progress,
                threads: &quarters.threads,
                end: &quarters.end,
            };
            restore.run(&data_dir, &list).await
        };
        if let Err(error) = restored {
            quarters.clear().await;
            return Err(error);
        }
        quarters.cluster.stop().await?;
        remove(&haste)?;
        remove(&list)?;
        copy::change_owner(&data_dir, allocation.odoo.uid, allocation.odoo.uid).await?;
        quarters.work.take().ok_or_else(|| HostError::machine("the import's directory is gone"))
    }
}

impl Restore<'_> {
    async fn run(&self, data_dir: &Path, list: &Path) -> Result<()> {
        self.cluster.start().await?;
        self.make_extensions().await?;
        let database = async {
            match self.survey.database {
                Database::Sql { .. } | Database::SqlInArchive => self.restore_sql().await,
                _ => self.restore_dump(list).await,
            }
        };
        tokio::try_join!(self.unpack_file_store(data_dir), database)?;
        self.progress.log.line("Gathering the planner's statistics.");
        self.analyze().await?;
        self.look_again().await
    }

    /// The database is still empty, so nothing of the backup runs with the superuser's rights.
    async fn make_extensions(&self) -> Result<()> {
        let wanted: BTreeSet<&str> = self.survey.extensions.iter().map(String::as_str).collect();
        let mut connection = self.cluster.connect().await?;
        for extension in check::EXTENSIONS.iter().filter(|name| wanted.contains(**name)) {
            // The name is one of our list.
            let statement = format!("create extension if not exists \"{extension}\" schema public");
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.map_err(|error| {
                HostError::machine_from(format!("the PostgreSQL extension {extension} could not be made: {error}"), error)
            })?;
        }
        Ok(())
    }

    fn program(&self, name: &str) -> Program {
        Program::new(self.bin.join(name))
            .run_as(self.run_as.clone())
            .without_network()
            .env("PGHOST", &self.cluster.socket_directory)
            .env("PGPORT", CLUSTER_PORT.to_string())
            .env("PGUSER", self.cluster.tenant.name)
            .env("PGDATABASE", DATABASE)
            .group(self.group.clone())
            .time_limit(RESTORE_TIME)
            .progress(self.progress)
    }

    async fn run_recorded(&self, program: Program) -> Result<Finished> {
        run_recorded(program, &self.record, &self.mark, Some(self.data_set)).await
    }

    /// `psql` gets no line of the dump that this process has not read, and takes no command but the one that ends its restriction.
    async fn restore_sql(&self) -> Result<()> {
        self.progress.log.line("Restoring the database from SQL.");
        let (reader, writer) = io::pipe().map_err(|error| HostError::machine_from("no pipe could be made", error))?;
        let program = self
            .program("psql")
            .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", "-"])
            .stdin_from(reader)
            .stdout_to(null()?);
        let (directory, database, end) = (self.directory.clone(), self.survey.database.clone(), self.end.clone());
        let feed = self.threads.spawn_blocking(move || feed(&directory, &database, writer, end));
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

    async fn restore_dump(&self, list: &Path) -> Result<()> {
        self.progress.log.line("Restoring the database.");
        let dump = match self.survey.database {
            Database::Custom => uploads::file_of(&self.directory, UploadPart::Backup),
            Database::CustomBeside => survey::custom_beside(&self.directory),
            _ => survey::directory_beside(&self.directory),
        };
        self.lend(&dump).await?;
        let restored = async {
            let contents = self.run_recorded(self.program("pg_restore").arg("--list").arg(&dump).output_limit(256 << 20)).await?;
            let contents = contents.expect_success("the dump's list could not be read")?.stdout_text();
            write_for(list, wanted_entries(&contents).as_bytes(), self.run_as.uid)?;
            let program = self
                .program("pg_restore")
                .args(["--exit-on-error", "--no-owner", "--no-acl", "--no-publications", "--no-subscriptions", "--no-security-labels"])
                .args(["--no-tablespaces", "--dbname", DATABASE])
                .arg(format!("--jobs={JOBS}"))
                .arg("--use-list")
                .arg(list)
                .arg(&dump);
            judge(&self.run_recorded(program).await?)
        };
        let outcome = restored.await;
        take_back(&dump).await?;
        outcome
    }

    /// The instance's user may read the dump, for as long as it restores it.
    async fn lend(&self, dump: &Path) -> Result<()> {
        let (dump, uid) = (dump.to_owned(), self.run_as.uid);
        if dump.is_dir() {
            return copy::change_owner(&dump, uid, uid).await;
        }
        blocking(move || set_rights(&dump, uid, 0o640)).await
    }

    async fn unpack_file_store(&self, data_dir: &Path) -> Result<()> {
        let Some(store) = self.survey.file_store else { return Ok(()) };
        self.progress.log.line(&format!("Unpacking {} files of the file store.", store.files));
        let source = uploads::file_of(&self.directory, store.part);
        let target = data_dir.join("filestore").join(DATABASE);
        let tokens = [self.end.clone(), self.progress.cancel.clone()];
        let unpack = self.threads.spawn_blocking(move || unpack(&source, &target, &tokens));
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
        Ok(())
    }

    async fn analyze(&self) -> Result<()> {
        let program = self.program("vacuumdb").args(["--analyze-only", "--quiet", "--dbname", DATABASE]).arg(format!("--jobs={JOBS}"));
        self.run_recorded(program).await?.expect_success("the statistics of the new database could not be gathered")?;
        Ok(())
    }

    /// What was checked before is what is there now.
    async fn look_again(&self) -> Result<()> {
        let mut connection = self.cluster.connect_as_owner().await?;
        let query = sqlx::query_scalar::<_, Option<String>>("select latest_version::text from public.ir_module_module where name = 'base'");
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
fn feed(directory: &Path, database: &Database, writer: PipeWriter, end: CancellationToken) -> Result<()> {
    let key = Uuid::new_v4().simple().to_string();
    let mut writer = io::BufWriter::with_capacity(1 << 16, writer);
    let lost = |error| HostError::machine_from("the SQL could not be passed on to psql", error);
    writeln!(writer, "\\restrict {key}").map_err(lost)?;
    let mut findings = Findings::default();
    survey::read_sql(directory, database, |reader| {
        let reader = Interruptible { inner: reader, tokens: [end] };
        findings = sql::filter(BufReader::with_capacity(1 << 18, reader), &mut writer)?;
        Ok(())
    })?;
    if !findings.is_whole {
        return Err(HostError::rejected("the dump is cut off: its end is missing"));
    }
    writeln!(writer, "\n\\unrestrict {key}").and_then(|()| writer.flush()).map_err(lost)
}

/// The answer is the names of files whose content is another one than their names say. They stay: an import changes nothing, and Odoo serves
/// them as the source did.
fn unpack(source: &Path, target: &Path, tokens: &[CancellationToken]) -> Result<Vec<String>> {
    let mut damaged = Vec::new();
    let mut made = BTreeSet::new();
    let mut buffer = vec![0; 1 << 17];
    archive::read(source, Kind::of(source)?, Limits::default(), |member, _, reader| {
        let Member::Stored(name) = member else { return Ok(()) };
        let directory = target.join(&name[..2]);
        if made.insert(name[..2].to_owned()) {
            durable::make_directory(&directory, 0o700)?;
        }
        let path = directory.join(&name);
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            // Two names for the same content.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(cannot_write(&path, error)),
        };
        let mut digest = Sha1::new();
        loop {
            if tokens.iter().any(CancellationToken::is_cancelled) {
                return Err(HostError::Cancelled);
            }
            let count = reader.read(&mut buffer).map_err(archive::damaged)?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(|error| cannot_write(&path, error))?;
        }
        if hex::encode(digest.finalize()) != name {
            damaged.push(format!("{}/{name}", &name[..2]));
        }
        Ok(())
    })?;
    Ok(damaged)
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

/// What of a dump's list is restored: extensions and the schema `public` are there already.
fn wanted_entries(list: &str) -> String {
    let is_wanted = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().skip(3).take(4).collect();
        !matches!(
            words.as_slice(),
            ["EXTENSION", ..] | ["COMMENT", "-", "EXTENSION", ..] | ["SCHEMA", "-", "public", ..] | ["COMMENT", "-", "SCHEMA", "public"]
        )
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

/// A new file that its reader cannot change.
fn write_for(path: &Path, content: &[u8], reader: u32) -> Result<()> {
    remove(path)?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
        file.write_all(content)?;
        std::os::unix::fs::fchown(&file, Some(0), Some(reader))
    };
    write().map_err(|error| cannot_write(path, error))
}

fn remove(path: &Path) -> Result<()> {
    durable::remove_fleeting(path).map_err(|error| HostError::machine_from(format!("{} could not be removed", path.display()), error))
}

async fn take_back(dump: &Path) -> Result<()> {
    let dump = dump.to_owned();
    if dump.is_dir() {
        return copy::change_owner(&dump, 0, 0).await;
    }
    blocking(move || set_rights(&dump, 0, 0o600)).await
}

fn set_rights(path: &Path, gid: u32, mode: u32) -> Result<()> {
    chown(path, Some(0), Some(gid))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|error| HostError::machine_from(format!("the rights of {} could not be set", path.display()), error))
}

fn cannot_write(path: &Path, error: io::Error) -> HostError {
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
    fn extensions_and_the_public_schema_are_not_restored() {
        let list = ";\n; Archive created at 2026\n;\n2; 3079 16385 EXTENSION - pg_trgm \n4016; 0 0 COMMENT - EXTENSION pg_trgm \n\
            5; 2615 2200 SCHEMA - public postgres\n6; 0 0 COMMENT - SCHEMA public postgres\n310; 1259 17000 TABLE public res_partner odoo\n\
            7; 2615 2201 SCHEMA - other odoo\n";
        assert_eq!(wanted_entries(list), "310; 1259 17000 TABLE public res_partner odoo\n7; 2615 2201 SCHEMA - other odoo\n");
    }
}
