//! Writes a data set down so that another Odoo, or another oCore, can take it in.
//!
//! The files that are packed belong to the instance's own user, who may have put a link in their place, or in the place of a directory above them:
//! they are reached below the data set's directories, through no link ([`Directory`]). How long they are is what they were when they were looked for.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ocore_model::{
    export::ExportFormat,
    ids::{DataSetId, ExportId},
};
use rustix::{fs::FileType, io::Errno};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncSeekExt;
use tokio_util::sync::CancellationToken;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{
    LocalHost,
    below::{self, Directory},
    cgroups::Group,
    cluster::Cluster,
    copy::{self, WorkDirectory},
    data_sets::ODOO_ROLE,
    database,
    durable::{self, blocking},
    exec::{Program, RunAs},
    fence::Claim,
    layout::{CLUSTER_PORT, Layout, Unit},
    pool::human,
    process::run_recorded,
};
use crate::{
    api::{ByteStream, ExportedFile, Progress, WriteExport},
    error::{HostError, Result},
};

const DATABASE: &str = ODOO_ROLE;
const MANIFEST: &str = "manifest.json";
const CONTENT: &str = "content";
const DUMP_TIME: Duration = Duration::from_hours(24);
/// Exports wait for each other.
const PACK_TIME: Duration = Duration::from_hours(24);
/// Files of one export; the largest file stores have some millions.
const MOST_FILES: usize = 20_000_000;
/// How many connections dump tables at once, where the format allows it.
const JOBS: usize = 2;
/// Most of a file store is packed already; a fast level finds what is left.
const LEVEL: i64 = 3;

impl LocalHost {
    pub(super) async fn export(&self, claim: &Claim, request: &WriteExport, progress: &Progress) -> Result<ExportedFile> {
        let target = self.layout.export(request.export);
        if let Some(written) = durable::read_json(&target.join(MANIFEST))? {
            return Ok(written);
        }
        let instance = claim.instance;
        let allocation = self.allocation(instance).await?;
        let (pgdata, data_dir) = (self.layout.pgdata(instance, request.data_set), self.layout.data_dir(instance, request.data_set));
        let needed = {
            let (pgdata, data_dir) = (pgdata.clone(), data_dir.clone());
            blocking(move || Ok(copy::measure(&pgdata)?.0 + 2 * copy::measure(&data_dir)?.0)).await?
        };
        self.pool.require(needed, "this export").await?;
        durable::make_directory(&self.layout.exports(), 0o711)?;
        let work = WorkDirectory::create(&target).await?;
        durable::make_directory(work.path(), 0o711)?;
        let cluster = self.run_cluster(instance, request.data_set).await?;
        let about = manifest(&cluster).await?;
        let dump = Dump {
            cluster: &cluster,
            bin: self.config.postgres_bin()?,
            run_as: RunAs { uid: allocation.odoo.uid, gid: allocation.odoo.uid, groups: Vec::new() },
            record: self.layout.record(instance, Unit::Run(claim.fence.operation)),
            mark: Layout::mark(instance, Unit::Run(claim.fence.operation)),
            data_set: request.data_set,
            group: self.prepare_run(instance, claim.fence.operation)?,
        };
        progress.log.line("Dumping the database.");
        let dumped = dump.write(request.format, work.path(), progress).await?;
        claim.check()?;
        progress.log.line("Packing.");
        let end = progress.cancel.child_token();
        // Whoever could write to the dump comes here no more.
        std::fs::set_permissions(work.path(), std::fs::Permissions::from_mode(0o700))
            .map_err(|error| HostError::machine_from("an export could not be closed", error))?;
        let store = request.with_file_store.then(|| file_store_of(&data_dir)).transpose()?.flatten();
        let packing = Packing {
            format: request.format,
            dumped,
            store,
            about: serde_json::to_vec_pretty(&about).map_err(|error| HostError::machine_from("a manifest could not be written", error))?,
            content: work.path().join(CONTENT),
            bare: request.format == ExportFormat::Custom && !request.with_file_store,
            end: end.clone(),
            deadline: Instant::now() + PACK_TIME,
        };
        // Whoever stops waiting for it ends it too.
        let _end_with_us = end.drop_guard();
        let (written, passed_over) = blocking(move || packing.pack()).await?;
        if let Some(example) = passed_over.first() {
            progress.log.line(&format!(
                "{} entries of the file store are no regular files and are not in the export, such as {}.",
                passed_over.len(),
                example.escape_debug()
            ));
        }
        durable::write_fleeting_json(&work.path().join(MANIFEST), &written)?;
        std::fs::set_permissions(work.path(), std::fs::Permissions::from_mode(0o711))
            .map_err(|error| HostError::machine_from("an export could not be opened", error))?;
        claim.check()?;
        work.keep().await?;
        Ok(written)
    }

    pub(super) async fn open_export(&self, export: ExportId, offset: u64) -> Result<ByteStream> {
        let path = self.layout.export(export).join(CONTENT);
        let absent = || HostError::NotFound { what: "export", id: export.to_string() };
        let mut file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
            Err(error) => return Err(HostError::machine_from(format!("{} could not be opened", path.display()), error)),
        };
        let found = file.seek(io::SeekFrom::Start(offset)).await;
        found.map_err(|error| HostError::machine_from(format!("{} could not be read", path.display()), error))?;
        Ok(Box::new(file))
    }
}

/// What Odoo's own database manager puts into its zips (`odoo.service.db.dump_db_manifest`).
async fn manifest(cluster: &Cluster) -> Result<serde_json::Value> {
    let mut connection = cluster.connect_as_owner().await?;
    let failed = |error| HostError::machine_from("the database could not say what it is", error);
    let modules: Vec<(String, Option<String>)> = database::modules(&mut connection)
        .await?
        .into_iter()
        .filter(|module| module.state == "installed")
        .map(|module| (module.name, module.version))
        .collect();
    let version: String = sqlx::query_scalar("show server_version_num").fetch_one(&mut connection).await.map_err(failed)?;
    let number: u32 = version.parse().unwrap_or_default();
    let base = modules.iter().find(|(name, _)| name == "base").and_then(|(_, version)| version.clone()).unwrap_or_default();
    let mut parts = base.split('.');
    let series = format!("{}.{}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let numbers: Vec<u32> = series.split('.').filter_map(|part| part.parse().ok()).collect();
    let modules: serde_json::Map<String, serde_json::Value> =
        modules.into_iter().map(|(name, version)| (name, version.map_or(serde_json::Value::Null, Into::into))).collect();
    Ok(json!({
        "odoo_dump": "1",
        "db_name": DATABASE,
        "version": series,
        "version_info": [numbers.first().copied().unwrap_or_default(), numbers.get(1).copied().unwrap_or_default(), 0, "final", 0, ""],
        "major_version": series,
        "pg_version": format!("{}.{}", number / 10_000, number % 10_000),
        "modules": modules,
    }))
}

/// What is needed to run `pg_dump`.
struct Dump<'a> {
    cluster: &'a Cluster,
    bin: PathBuf,
    run_as: RunAs,
    record: PathBuf,
    mark: String,
    data_set: DataSetId,
    group: Group,
}

impl Dump<'_> {
    /// The file, or the directory, that it wrote.
    async fn write(&self, format: ExportFormat, directory: &Path, progress: &Progress) -> Result<PathBuf> {
        let mut program = Program::new(self.bin.join("pg_dump"))
            .arg("--no-owner")
            .run_as(self.run_as.clone())
            .without_network()
            .env("PGHOST", &self.cluster.socket_directory)
            .env("PGPORT", CLUSTER_PORT.to_string())
            .env("PGUSER", self.cluster.tenant.name)
            .env("PGDATABASE", DATABASE)
            .group(self.group.clone())
            .time_limit(DUMP_TIME)
            .progress(progress);
        let path = directory.join(match format {
            ExportFormat::Zip => "dump.sql",
            ExportFormat::Custom => "database.dump",
            ExportFormat::Directory => "database",
        });
        match format {
            ExportFormat::Zip => program = program.stdout_to(new_file(&path)?),
            ExportFormat::Custom => program = program.arg("--format=custom").stdout_to(new_file(&path)?),
            ExportFormat::Directory => {
                durable::make_directory(&path, 0o700)?;
                chown(&path, Some(self.run_as.uid), Some(self.run_as.gid))
                    .map_err(|error| HostError::machine_from("the dump's directory has no owner", error))?;
                program = program.arg("--format=directory").arg(format!("--jobs={JOBS}")).arg("--file").arg(&path);
            }
        }
        let finished = run_recorded(program, &self.record, &self.mark, Some(self.data_set)).await?;
        finished.expect_success("the database could not be dumped")?;
        Ok(path)
    }
}

/// Everything that goes into one file.
struct Packing {
    format: ExportFormat,
    /// A file, or a directory.
    dumped: PathBuf,
    store: Option<Directory>,
    about: Vec<u8>,
    content: PathBuf,
    /// The dump alone is the export.
    bare: bool,
    end: CancellationToken,
    deadline: Instant,
}

impl Packing {
    /// Also what of the file store is no regular file.
    fn pack(self) -> Result<(ExportedFile, Vec<String>)> {
        let mut passed_over = Vec::new();
        match self.format {
            ExportFormat::Custom if self.bare => {
                std::fs::rename(&self.dumped, &self.content).map_err(|error| cannot_write(&self.content, error))?;
            }
            ExportFormat::Zip => self.zip(&mut passed_over)?,
            ExportFormat::Custom | ExportFormat::Directory => self.tar(&mut passed_over)?,
        }
        durable::remove_tree(&self.dumped)?;
        Ok((self.digest()?, passed_over))
    }

    fn zip(&self, passed_over: &mut Vec<String>) -> Result<()> {
        let failed = |error: zip::result::ZipError| match error {
            zip::result::ZipError::Io(error) => cannot_write(&self.content, error),
            error => HostError::machine_from("the zip could not be written", error),
        };
        let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 18, new_file(&self.content)?));
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(LEVEL))
            .large_file(true)
            .unix_permissions(0o644);
        self.each(passed_over, |name, size, reader| {
            zip.start_file(name, options).map_err(failed)?;
            self.copy(size, reader, &mut zip)
        })?;
        let mut inner = zip.finish().map_err(failed)?;
        inner.flush().map_err(|error| cannot_write(&self.content, error))
    }

    fn tar(&self, passed_over: &mut Vec<String>) -> Result<()> {
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 18, new_file(&self.content)?));
        let failed = |error| cannot_write(&self.content, error);
        self.each(passed_over, |name, size, reader| {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, Ending { inner: reader, packing: self, left: size }).map_err(|error| self.why(error, failed))
        })?;
        tar.into_inner().and_then(|mut inner| inner.flush()).map_err(failed)
    }

    /// Every member: its name, its size, its bytes. The database first, as Odoo's own zips have it.
    fn each(&self, passed_over: &mut Vec<String>, mut take: impl FnMut(&str, u64, &mut dyn Read) -> Result<()>) -> Result<()> {
        let parent = self.dumped.parent().unwrap_or(Path::new("/"));
        let name = self.dumped.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let dumped = Directory::open(parent).map_err(|error| unreadable(name, error))?;
        if self.format == ExportFormat::Directory {
            let tables = dumped.inside(name).map_err(|error| unreadable(name, error))?;
            for file in files_below(&tables, |_| true, passed_over)? {
                let (mut open, size) = open_below(&tables, &file)?;
                take(&format!("{name}/{file}"), size, &mut open)?;
            }
        } else {
            let (mut open, size) = open_below(&dumped, name)?;
            take(name, size, &mut open)?;
        }
        take(MANIFEST, self.about.len() as u64, &mut self.about.as_slice())?;
        let Some(store) = &self.store else { return Ok(()) };
        // Odoo's collector marks new files by empty ones of the same name, which are nothing to anybody else.
        let is_wanted = |path: &Path| !path.starts_with("checklist");
        for file in files_below(store, is_wanted, passed_over)? {
            let (mut open, size) = open_below(store, &file)?;
            take(&format!("filestore/{file}"), size, &mut open)?;
        }
        Ok(())
    }

    fn copy(&self, size: u64, reader: &mut dyn Read, writer: &mut impl Write) -> Result<()> {
        let mut reader = Ending { inner: reader, packing: self, left: size };
        let mut buffer = vec![0; 1 << 17];
        loop {
            let unreadable = |error| HostError::machine_from("a file could not be read", error);
            let count = reader.read(&mut buffer).map_err(|error| self.why(error, unreadable))?;
            if count == 0 {
                return Ok(());
            }
            writer.write_all(&buffer[..count]).map_err(|error| cannot_write(&self.content, error))?;
        }
    }

    /// What ended it, when it was not the error itself.
    fn why(&self, error: io::Error, otherwise: impl FnOnce(io::Error) -> HostError) -> HostError {
        if self.end.is_cancelled() {
            return HostError::Cancelled;
        }
        if Instant::now() >= self.deadline {
            return HostError::rejected(format!(
                "the export took longer than {} hours to pack; export the database without the file store, and look what large files the file store holds",
                PACK_TIME.as_secs() / 3600
            ));
        }
        otherwise(error)
    }

    fn digest(&self) -> Result<ExportedFile> {
        let failed = |error| HostError::machine_from("the export could not be read", error);
        let mut file = File::open(&self.content).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let mut digest = Sha256::new();
        let bytes = io::copy(&mut file, &mut HashWriter(&mut digest)).map_err(failed)?;
        Ok(ExportedFile { bytes, sha256: hex::encode(digest.finalize()) })
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a file to the length that it had, as long as somebody waits for it.
struct Ending<'a> {
    inner: &'a mut dyn Read,
    packing: &'a Packing,
    left: u64,
}

impl Read for Ending<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.packing.end.is_cancelled() || Instant::now() >= self.packing.deadline {
            return Err(io::Error::other("packing has ended"));
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..wanted])?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// `None` when the instance has none, or something else in its place.
fn file_store_of(data_dir: &Path) -> Result<Option<Directory>> {
    let found = Directory::open(data_dir).and_then(|directory| directory.inside(Path::new("filestore").join(DATABASE)));
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if [Errno::LOOP, Errno::NOTDIR].map(|error| Some(error.raw_os_error())).contains(&error.raw_os_error()) => {
            Err(HostError::rejected(
                "the file store of this environment is no directory of its own but leads elsewhere; put the files where Odoo expects them and export again",
            ))
        }
        Err(error) => Err(HostError::machine_from(format!("the file store in {} could not be opened: {error}", data_dir.display()), error)),
    }
}

/// Regular files of a directory, sorted. What else there is, but for directories, is passed over.
fn files_below(directory: &Directory, is_wanted: impl Fn(&Path) -> bool, passed_over: &mut Vec<String>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let walked = directory.walk(|entry| {
        if names.len() + passed_over.len() >= MOST_FILES {
            return Err(io::Error::other(format!("there are more than {MOST_FILES} files")));
        }
        if entry.kind() == FileType::Directory || !is_wanted(entry.path) {
            return Ok(());
        }
        match entry.path.to_str() {
            Some(name) if entry.is_file() => names.push(name.to_owned()),
            _ => passed_over.push(entry.path.display().to_string()),
        }
        Ok(())
    });
    walked.map_err(|error| HostError::machine_from(format!("the files of the export could not be listed: {error}"), error))?;
    names.sort_unstable();
    Ok(names)
}

fn open_below(base: &Directory, name: &str) -> Result<(File, u64)> {
    let file = base.file(name).map_err(|error| unreadable(name, error))?;
    let metadata = file.metadata().map_err(|error| unreadable(name, error))?;
    if below::is_hollow(metadata.len(), metadata.blocks()) {
        return Err(HostError::rejected(format!(
            "the file {name} claims {} and holds {}; Odoo writes no such files, and packing it would take days: remove it and export again",
            human(metadata.len()),
            human(metadata.blocks() * 512)
        )));
    }
    Ok((file, metadata.len()))
}

fn unreadable(name: &str, error: io::Error) -> HostError {
    HostError::machine_from(format!("{name} of the export could not be opened: {error}"), error)
}

fn new_file(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(|error| cannot_write(path, error))
}

fn cannot_write(path: &Path, error: io::Error) -> HostError {
    if error.kind() == io::ErrorKind::StorageFull {
        return HostError::machine(
            "the storage pool became full while an export was written; make it larger, or remove what is not needed",
        );
    }
    HostError::machine_from(format!("{} could not be written: {error}", path.display()), error)
}
