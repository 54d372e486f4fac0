//! Writes a data set down so that another Odoo, or another oCore, can take it in.
//!
//! The files that are packed belong to the instance's own user, who may have put a link in their place: they are opened from their directory
//! on, and nothing on the way may be a link (openat2(2), `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`).

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, chown},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::{
    export::ExportFormat,
    ids::{DataSetId, ExportId},
};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncSeekExt;
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{
    LocalHost,
    cgroups::Group,
    cluster::Cluster,
    copy::{self, WorkDirectory},
    data_sets::ODOO_ROLE,
    durable::{self, blocking},
    exec::{Program, RunAs},
    fence::Claim,
    layout::{CLUSTER_PORT, Layout, Unit},
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
        let store = data_dir.join("filestore").join(DATABASE);
        let packing = Packing {
            format: request.format,
            dumped,
            store: (request.with_file_store && store.is_dir()).then_some(store),
            about: serde_json::to_vec_pretty(&about).map_err(|error| HostError::machine_from("a manifest could not be written", error))?,
            content: work.path().join(CONTENT),
            bare: request.format == ExportFormat::Custom && !request.with_file_store,
            end: end.clone(),
        };
        // Whoever stops waiting for it ends it too.
        let _end_with_us = end.drop_guard();
        let written = blocking(move || packing.pack()).await?;
        durable::write_fleeting_json(&work.path().join(MANIFEST), &written)?;
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
    let modules: Vec<(String, Option<String>)> =
        sqlx::query_as("select name::text, latest_version::text from public.ir_module_module where state = 'installed' order by name")
            .fetch_all(&mut connection)
            .await
            .map_err(failed)?;
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
    store: Option<PathBuf>,
    about: Vec<u8>,
    content: PathBuf,
    /// The dump alone is the export.
    bare: bool,
    end: CancellationToken,
}

impl Packing {
    fn pack(self) -> Result<ExportedFile> {
        match self.format {
            ExportFormat::Custom if self.bare => {
                std::fs::rename(&self.dumped, &self.content).map_err(|error| cannot_write(&self.content, error))?;
            }
            ExportFormat::Zip => self.zip()?,
            ExportFormat::Custom | ExportFormat::Directory => self.tar()?,
        }
        let removed = if self.dumped.is_dir() { std::fs::remove_dir_all(&self.dumped) } else { durable::remove_fleeting(&self.dumped) };
        removed.map_err(|error| cannot_write(&self.dumped, error))?;
        self.digest()
    }

    fn zip(&self) -> Result<()> {
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
        self.each(|name, _, reader| {
            zip.start_file(name, options).map_err(failed)?;
            self.copy(reader, &mut zip)
        })?;
        let mut inner = zip.finish().map_err(failed)?;
        inner.flush().map_err(|error| cannot_write(&self.content, error))
    }

    fn tar(&self) -> Result<()> {
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 18, new_file(&self.content)?));
        let failed = |error| cannot_write(&self.content, error);
        self.each(|name, size, reader| {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            if self.end.is_cancelled() {
                return Err(HostError::Cancelled);
            }
            tar.append_data(&mut header, name, reader.take(size)).map_err(failed)
        })?;
        tar.into_inner().and_then(|mut inner| inner.flush()).map_err(failed)
    }

    /// Every member: its name, its size, its bytes. The database first, as Odoo's own zips have it.
    fn each(&self, mut take: impl FnMut(&str, u64, &mut dyn Read) -> Result<()>) -> Result<()> {
        let parent = self.dumped.parent().unwrap_or(Path::new("/"));
        for name in files_below(&self.dumped, parent)? {
            let (mut file, size) = open_below(parent, &name)?;
            take(&name, size, &mut file)?;
        }
        take(MANIFEST, self.about.len() as u64, &mut self.about.as_slice())?;
        let Some(store) = &self.store else { return Ok(()) };
        for name in files_below(store, store)? {
            let (mut file, size) = open_below(store, &name)?;
            take(&format!("filestore/{name}"), size, &mut file)?;
        }
        Ok(())
    }

    fn copy(&self, reader: &mut dyn Read, writer: &mut impl Write) -> Result<()> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            if self.end.is_cancelled() {
                return Err(HostError::Cancelled);
            }
            let count = reader.read(&mut buffer).map_err(|error| HostError::machine_from("a file could not be read", error))?;
            if count == 0 {
                return Ok(());
            }
            writer.write_all(&buffer[..count]).map_err(|error| cannot_write(&self.content, error))?;
        }
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

/// Regular files of a tree (or the file itself), as paths relative to `base`, sorted. Links are passed over.
fn files_below(tree: &Path, base: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in WalkDir::new(tree).sort_by_file_name() {
        let entry = entry.map_err(|error| HostError::machine_from(format!("{} could not be read", tree.display()), error))?;
        if entry.file_type().is_file()
            && let Ok(name) = entry.path().strip_prefix(base)
            && let Some(name) = name.to_str()
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn open_below(base: &Path, name: &str) -> Result<(File, u64)> {
    let open = || -> io::Result<(File, u64)> {
        let directory: OwnedFd = rustix::fs::openat(CWD, base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Not blocking, since it may have become a named pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat2(&directory, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file any more"));
        }
        Ok((file, metadata.len()))
    };
    open().map_err(|error| HostError::machine_from(format!("{name} of the export could not be opened: {error}"), error))
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
