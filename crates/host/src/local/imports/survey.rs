//! Reads all of a backup, and writes down what is in it. Programs that parse it run as a user that owns nothing but what it is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{DirBuilder, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use flate2::read::MultiGzDecoder;
use ocore_model::ids::ImportId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    archive::{self, Kind, Limits},
    member::{LeftOut, Member, Stores},
    sql::{self, Findings},
    uploads,
};
use crate::{
    api::{BackupFormat, InstalledModule, Progress, UploadPart, UploadedPart},
    error::{HostError, Result},
    local::{
        LocalHost, below,
        durable::{self, blocking},
        exec::Program,
    },
};

/// Earlier versions of oCore have read other things in an archive, under another name.
const SURVEY: &str = "survey-2.json";
/// Odoo's manifest names its modules and their versions.
const MANIFEST_LIMIT: u64 = 16 * 1024 * 1024;
/// A terabyte takes a slow disk that long.
const SCAN_TIME: Duration = Duration::from_hours(12);

/// Where the database of a backup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Database {
    /// The upload itself is SQL, packed with gzip or not.
    Sql { gzip: bool },
    /// In the archive, by its path there, from where it is read.
    SqlInArchive { path: String, gzip: bool },
    /// The upload itself.
    Custom,
    /// Taken out of the archive, beside it.
    CustomBeside,
    /// The same, as a directory.
    DirectoryBeside,
}

impl Database {
    pub(super) fn format(&self) -> BackupFormat {
        match self {
            Self::Sql { .. } | Self::SqlInArchive { .. } => BackupFormat::Sql,
            Self::Custom | Self::CustomBeside => BackupFormat::Custom,
            Self::DirectoryBeside => BackupFormat::Directory,
        }
    }
}

/// Files of a file store in one of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStore {
    pub(super) part: UploadPart,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// All that is known of a backup before it is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Survey {
    pub(super) database: Database,
    pub(super) file_store: Option<FileStore>,
    pub(super) is_dump: bool,
    pub(super) is_whole: bool,
    pub(super) has_modules: bool,
    pub(super) modules: Vec<InstalledModule>,
    pub(super) postgres_version: Option<String>,
    /// With the schemas that they are to be in.
    pub(super) extensions: BTreeMap<String, String>,
    /// What only a superuser may make, by kind and name.
    pub(super) of_superusers: Vec<String>,
    pub(super) database_bytes: u64,
    /// `major_version` of Odoo's own manifest.
    pub(super) manifest_series: Option<String>,
    /// Members of archives that are neither a database nor a file of a store.
    pub(super) left_out: LeftOut,
}

impl Survey {
    /// `17.0` or `saas~18.4`, from the version of the module `base` that is installed, e.g. `17.0.1.3`.
    pub(super) fn series(&self) -> Option<String> {
        let base = self.modules.iter().find(|module| module.name == "base")?;
        series_of(base.version.as_deref()?)
    }
}

/// The first two parts of a module's version. Odoo Online runs series between the others: `saas~18.4.1.3`.
pub(super) fn series_of(version: &str) -> Option<String> {
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next()?, numbers.next()?);
    let year = major.strip_prefix("saas~").or_else(|| major.strip_prefix("saas-")).unwrap_or(major);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(year) && is_number(minor)).then(|| format!("{major}.{minor}"))
}

/// What `manifest.json` of Odoo's database manager says, as far as we believe it.
#[derive(Deserialize)]
struct OdooManifest {
    major_version: Option<String>,
}

/// What lies in an archive.
#[derive(Default)]
struct Contents {
    database: Option<(Database, Option<Findings>)>,
    /// Where it lies.
    path: String,
    /// The directory of a directory dump, and whether its list is there.
    directory: Option<(String, bool)>,
    stores: Stores,
    manifest: Option<OdooManifest>,
    left_out: LeftOut,
}

/// The files that a survey takes out of an archive.
pub(super) fn custom_beside(directory: &Path) -> PathBuf {
    directory.join("database.dump")
}

pub(super) fn directory_beside(directory: &Path) -> PathBuf {
    directory.join("database")
}

/// What `pg_restore` reads of an upload; `None` when its database is SQL.
pub(super) fn dump_of(directory: &Path, database: &Database) -> Option<PathBuf> {
    match database {
        Database::Sql { .. } | Database::SqlInArchive { .. } => None,
        Database::Custom => Some(uploads::file_of(directory, UploadPart::Backup)),
        Database::CustomBeside => Some(custom_beside(directory)),
        Database::DirectoryBeside => Some(directory_beside(directory)),
    }
}

/// What a crash has left readable for a user of builds is root's alone again.
pub(super) fn share_no_more(directory: &Path) -> io::Result<()> {
    for place in [uploads::file_of(directory, UploadPart::Backup), custom_beside(directory), directory_beside(directory)] {
        below::share_no_more(&place)?;
    }
    Ok(())
}

impl LocalHost {
    /// The survey of an import whose parts are whole; made once.
    pub(super) async fn survey_upload(&self, import: ImportId, progress: &Progress) -> Result<Survey> {
        let parts = self.uploaded_parts(import).await?;
        if parts.is_empty() {
            return Err(HostError::NotFound { what: "upload", id: import.to_string() });
        }
        let Some(backup) = parts.iter().find(|part| part.part == UploadPart::Backup) else {
            return Err(HostError::rejected("the file store is there, but no database; upload the backup too"));
        };
        if let Some(part) = parts.iter().find(|part| !part.is_whole()) {
            return Err(HostError::rejected(format!(
                "the upload is not whole: {} of {} bytes have arrived; go on with it",
                part.received, part.size
            )));
        }
        let directory = self.layout.upload(import);
        let _turn = self.builds.take(&directory.display().to_string()).await;
        let stored = directory.join(SURVEY);
        if let Some(survey) = durable::read_json::<Survey>(&stored)?.filter(|survey| covers(survey, &parts)) {
            return Ok(survey);
        }
        for part in &parts {
            if let Some(expected) = part.sha256.clone() {
                progress.log.line("Checking that the upload arrived as it was sent.");
                compare_digest(uploads::file_of(&directory, part.part), expected).await?;
            }
        }
        progress.log.line("Reading the backup.");
        let mut survey = self.survey_backup(&directory, backup, progress).await?;
        if parts.iter().any(|part| part.part == UploadPart::FileStore) {
            if survey.file_store.is_some() {
                return Err(HostError::rejected("the backup holds a file store already; leave the separate one out"));
            }
            progress.log.line("Reading the archive of the file store.");
            let (store, left_out) = survey_file_store(directory).await?;
            survey.file_store = Some(store);
            survey.left_out.add(left_out);
        }
        durable::write_json(&stored, &survey)?;
        Ok(survey)
    }

    async fn survey_backup(&self, directory: &Path, backup: &UploadedPart, progress: &Progress) -> Result<Survey> {
        let path = uploads::file_of(directory, UploadPart::Backup);
        let kind = {
            let path = path.clone();
            blocking(move || Kind::of(&path)).await?
        };
        let gzip = matches!(kind, Kind::SqlGz | Kind::CustomGz);
        let (database, findings, contents) = match kind {
            Kind::Sql | Kind::SqlGz => {
                let packed = backup.size;
                let findings = blocking(move || filter_packed(&mut archive::open(&path)?, packed, gzip)).await?;
                (Database::Sql { gzip }, findings, Contents::default())
            }
            Kind::Custom => (Database::Custom, self.scan_dump(&path, false, progress).await?, Contents::default()),
            Kind::CustomGz => {
                let (packed, target) = (backup.size, custom_beside(directory));
                blocking(move || {
                    durable::remove_tree(&target)?;
                    take_out_packed(&mut archive::open(&path)?, packed, true, &target)
                })
                .await?;
                (Database::CustomBeside, self.scan_dump(&custom_beside(directory), false, progress).await?, Contents::default())
            }
            Kind::Zip | Kind::Tar | Kind::TarGz => {
                let owned = directory.to_owned();
                let mut contents = blocking(move || take_stock(&path, kind, &owned)).await?;
                match contents.database.take() {
                    Some((database, Some(findings))) => (database, findings, contents),
                    Some((database, None)) => {
                        let is_directory = database == Database::DirectoryBeside;
                        let dump = if is_directory { directory_beside(directory) } else { custom_beside(directory) };
                        (database, self.scan_dump(&dump, is_directory, progress).await?, contents)
                    }
                    None => return Err(no_database(&contents)),
                }
            }
        };
        let (files, bytes) = contents.stores.only()?;
        Ok(Survey {
            database,
            file_store: (files > 0).then_some(FileStore { part: UploadPart::Backup, files, bytes }),
            is_dump: findings.is_dump,
            is_whole: findings.is_whole,
            has_modules: findings.has_modules,
            modules: findings.modules,
            postgres_version: findings.server_version,
            extensions: findings.extensions,
            of_superusers: findings.of_superusers.into_iter().collect(),
            database_bytes: findings.bytes,
            manifest_series: contents.manifest.and_then(|manifest| manifest.major_version),
            left_out: contents.left_out,
        })
    }

    /// Lets `pg_restore` write all of a dump as SQL, which shows whether it can be read to its end, and what is in it.
    async fn scan_dump(&self, dump: &Path, is_directory: bool, progress: &Progress) -> Result<Findings> {
        let user = self.claim_build_user().await?;
        let (reader, writer) = io::pipe().map_err(|error| HostError::machine_from("no pipe could be made", error))?;
        let mut program = Program::new(self.config.postgres_bin()?.join("pg_restore"))
            .args(["--file", "-", "--no-owner", "--no-acl"])
            .of_build(&user, Vec::new())
            .without_network()
            .stdout_to(writer)
            .time_limit(SCAN_TIME)
            .cancel(progress.cancel.clone());
        if is_directory {
            // It stays ours, so that nobody else can change a name or a file in it.
            below::share(dump, user.uid).map_err(|error| cannot_take_out(dump, error))?;
            program = program.arg("--format=directory").arg(dump);
        } else {
            // By its descriptor, so that the file may stay ours.
            program = program.arg("--format=custom").stdin_from(archive::open(dump)?);
        }
        let read = blocking(move || sql::filter(BufReader::with_capacity(1 << 18, reader), io::sink(), &BTreeSet::new()));
        let (finished, findings) = tokio::join!(program.run(), read);
        user.release().await?;
        if is_directory {
            below::share_no_more(dump).map_err(|error| cannot_take_out(dump, error))?;
        }
        let (finished, findings) = (finished?, findings?);
        if finished.status.success() {
            return Ok(findings);
        }
        let said = finished.stderr_text();
        let last = said.lines().rev().find(|line| line.contains("error:")).or(said.lines().last()).unwrap_or_default();
        let reason = last.rsplit_once("error: ").map_or(last, |(_, reason)| reason);
        let advice = if reason.contains("unsupported version") {
            "; it was written by a newer PostgreSQL than this server has: dump it as plain SQL, or install that version"
        } else {
            "; it is damaged, or was not received whole"
        };
        Err(HostError::Rejected { summary: format!("the dump cannot be read to its end: {reason}{advice}"), excerpt: said })
    }
}

/// A survey that was made before a part was added is not the whole truth.
fn covers(survey: &Survey, parts: &[UploadedPart]) -> bool {
    let has_part = parts.iter().any(|part| part.part == UploadPart::FileStore);
    has_part == survey.file_store.is_some_and(|store| store.part == UploadPart::FileStore)
}

async fn survey_file_store(directory: PathBuf) -> Result<(FileStore, LeftOut)> {
    blocking(move || {
        let path = uploads::file_of(&directory, UploadPart::FileStore);
        let kind = Kind::of(&path).ok().filter(|kind| matches!(kind, Kind::Zip | Kind::Tar | Kind::TarGz)).ok_or_else(|| {
            HostError::rejected("the archive of the file store is none: expected tar, tar.gz or zip of the directory that holds `filestore`")
        })?;
        let (mut stores, mut left_out) = (Stores::default(), LeftOut::default());
        archive::read(&path, kind, Limits::default(), |member, size, _| {
            match member {
                Member::Stored(file) | Member::Again { file, .. } => stores.note(&file, size)?,
                Member::Sql { path, .. } | Member::Custom { path, .. } | Member::Other(path) => left_out.note(path),
                Member::Directory { parent, name } => left_out.note(format!("{parent}/{name}")),
                Member::Manifest | Member::Needless => {}
            }
            Ok(())
        })?;
        let (files, bytes) = stores.only()?;
        if files == 0 {
            return Err(HostError::rejected(
                "the archive of the file store holds no file of one: their names are 40 hexadecimal digits, in directories of their first two",
            ));
        }
        Ok((FileStore { part: UploadPart::FileStore, files, bytes }, left_out))
    })
    .await
}

/// What is in an archive. Dumps that `pg_restore` reads are taken out of it.
fn take_stock(path: &Path, kind: Kind, directory: &Path) -> Result<Contents> {
    let mut contents = Contents::default();
    for leftover in [custom_beside(directory), directory_beside(directory)] {
        durable::remove_tree(&leftover)?;
    }
    archive::read(path, kind, Limits::default(), |member, size, reader| {
        match member {
            Member::Sql { path, gzip } => {
                contents.is_one(&path)?;
                let findings = filter_packed(reader, size, gzip)?;
                contents.database = Some((Database::SqlInArchive { path, gzip }, Some(findings)));
            }
            Member::Custom { path, gzip } => {
                contents.is_one(&path)?;
                take_out_packed(reader, size, gzip, &custom_beside(directory))?;
                contents.database = Some((Database::CustomBeside, None));
            }
            Member::Directory { parent, name } => {
                let (known, has_list) = contents.directory.get_or_insert((parent.clone(), false));
                if *known != parent {
                    return Err(several(&format!("{known}/"), &format!("{parent}/")));
                }
                *has_list |= name == "toc.dat";
                let target = directory_beside(directory);
                if !target.is_dir() {
                    DirBuilder::new().mode(0o700).create(&target).map_err(|error| cannot_take_out(&target, error))?;
                }
                take_out(reader, &target.join(name))?;
            }
            Member::Stored(file) | Member::Again { file, .. } => contents.stores.note(&file, size)?,
            Member::Manifest if contents.manifest.is_none() && size <= MANIFEST_LIMIT => {
                let mut text = Vec::new();
                reader.take(MANIFEST_LIMIT).read_to_end(&mut text).map_err(archive::damaged)?;
                // It only says again what the database says; one that cannot be read is none.
                contents.manifest = serde_json::from_slice(&text).ok();
            }
            Member::Manifest | Member::Needless => {}
            Member::Other(path) => contents.left_out.note(path),
        }
        Ok(())
    })?;
    if let Some((parent, true)) = contents.directory.clone() {
        contents.is_one(&format!("{parent}/toc.dat"))?;
        contents.database = Some((Database::DirectoryBeside, None));
    }
    Ok(contents)
}

impl Contents {
    /// A second database is one too many.
    fn is_one(&mut self, path: &str) -> Result<()> {
        if self.database.is_some() {
            return Err(several(&self.path, path));
        }
        path.clone_into(&mut self.path);
        Ok(())
    }
}

fn several(one: &str, other: &str) -> HostError {
    HostError::rejected(format!(
        "the archive holds more than one database, in {} and in {}; leave one",
        one.escape_debug(),
        other.escape_debug()
    ))
}

fn no_database(contents: &Contents) -> HostError {
    let seen: Vec<String> = contents.left_out.examples.iter().map(|path| path.escape_debug().to_string()).collect();
    let instead =
        if seen.is_empty() { String::new() } else { format!("; what it holds instead is no dump of pg_dump: {}", seen.join(", ")) };
    HostError::rejected(format!(
        "the archive holds no database: expected SQL or a dump of pg_dump, such as dump.sql, database.dump, or toc.dat of a directory dump{instead}"
    ))
}

/// Reads SQL that may be packed, of so many packed bytes.
fn filter_packed(reader: &mut dyn Read, packed: u64, gzip: bool) -> Result<Findings> {
    if gzip {
        sql::filter(BufReader::with_capacity(1 << 18, unpacked(reader, packed)), io::sink(), &BTreeSet::new())
    } else {
        sql::filter(BufReader::with_capacity(1 << 18, reader), io::sink(), &BTreeSet::new())
    }
}

fn take_out_packed(reader: &mut dyn Read, packed: u64, gzip: bool, target: &Path) -> Result<()> {
    if gzip { take_out(&mut unpacked(reader, packed), target) } else { take_out(reader, target) }
}

fn unpacked(reader: &mut dyn Read, packed: u64) -> impl Read + '_ {
    let limits = Limits::default();
    Bounded::new(MultiGzDecoder::new(reader), packed.saturating_mul(limits.ratio).max(limits.harmless))
}

fn take_out(reader: &mut dyn Read, target: &Path) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(|error| cannot_take_out(target, error))?;
    io::copy(reader, &mut file).map_err(archive::damaged)?;
    file.flush().map_err(|error| cannot_take_out(target, error))
}

fn cannot_take_out(target: &Path, error: io::Error) -> HostError {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return HostError::rejected(format!("the archive holds {} twice", target.file_name().unwrap_or_default().display()));
    }
    HostError::machine_from(format!("{} could not be written: {error}", target.display()), error)
}

async fn compare_digest(path: PathBuf, expected: String) -> Result<()> {
    blocking(move || {
        let mut file = archive::open(&path)?;
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer).map_err(archive::damaged)?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
        }
        let found = hex::encode(digest.finalize());
        if found.eq_ignore_ascii_case(&expected) {
            return Ok(());
        }
        Err(HostError::rejected(format!("the upload is not what was sent: its SHA-256 is {found} and not {expected}; upload it again")))
    })
    .await
}

/// Ends a stream that grows beyond what can be meant well.
pub(super) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R> Bounded<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "it is a bomb: it becomes hundreds of times as large as it was sent")
        })?;
        Ok(count)
    }
}

/// The SQL of a backup whose database is SQL, as it is written in it. `take` is called once with its bytes.
pub(super) fn read_sql(directory: &Path, database: &Database, take: impl FnOnce(&mut dyn Read) -> Result<()>) -> Result<()> {
    let path = uploads::file_of(directory, UploadPart::Backup);
    match database {
        Database::Sql { gzip: false } => take(&mut archive::open(&path)?),
        Database::Sql { gzip: true } => take(&mut MultiGzDecoder::new(archive::open(&path)?)),
        database => {
            let mut take = Some(take);
            archive::read(&path, Kind::of(&path)?, Limits::default(), |member, size, reader| match (member, take.take()) {
                (Member::Sql { path, gzip }, Some(take)) if *database == (Database::SqlInArchive { path: path.clone(), gzip }) => {
                    if gzip {
                        take(&mut unpacked(reader, size))
                    } else {
                        take(reader)
                    }
                }
                (_, unused) => {
                    take = unused;
                    Ok(())
                }
            })
        }
    }
}
