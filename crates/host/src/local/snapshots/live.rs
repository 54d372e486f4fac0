//! The database of a cluster that serves, copied under backup mode.
//!
//! Between `pg_backup_start` and `pg_backup_stop` every page that changes is written whole to the write-ahead log, so it does not matter when
//! each file is copied, nor whether a page is torn: recovery from the label's checkpoint to the end of the backup makes all of it the state at the
//! moment of the stop (PostgreSQL manual, "Making a Base Backup Using the Low Level API").

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    error::{HostError, Result},
    local::{
        below::Directory,
        cluster::Cluster,
        copy::{Hold, Take, TreeCopy, read_steadily},
        durable::blocking,
        unlogged,
    },
};

/// The checkpoint at the start writes what is dirty; more than this means that the disk hardly answers.
const CHECKPOINT_PATIENCE: Duration = Duration::from_mins(10);
/// With more log than this in segments, their blocks are shared. Otherwise they are copied: the source writes them again soon, and writing shared
/// blocks makes each of its commits slower.
const PLAIN_SEGMENTS: usize = 8;
const PAGE: u64 = 8192;
const CONTROL: &str = "global/pg_control";
const LOG: &str = "pg_wal";
/// In bytes; PostgreSQL makes no larger ones (`initdb --wal-segsize`).
const LARGEST_SEGMENT: u64 = 1 << 30;

/// A cluster in backup mode. Dropped, the session ends, and backup mode with it.
pub(super) struct Backup {
    connection: PgConnection,
    functions: Functions,
}

/// What the end of a backup says.
pub(super) struct End {
    label: String,
    /// The segments of the log that recovery needs.
    first_segment: String,
    last_segment: String,
    /// How much of the last one is needed, in bytes; 0 for all.
    last_offset: u64,
}

/// PostgreSQL renamed them in version 15.
struct Functions {
    start: &'static str,
    stop: &'static str,
}

impl Functions {
    fn of(version: i32) -> Self {
        if version >= 150_000 {
            Self {
                start: "select pg_catalog.pg_backup_start($1, fast => true)::pg_catalog.text",
                stop: "pg_catalog.pg_backup_stop(wait_for_archive => false)",
            }
        } else {
            Self {
                start: "select pg_catalog.pg_start_backup($1, true, false)::pg_catalog.text",
                stop: "pg_catalog.pg_stop_backup(false, false)",
            }
        }
    }
}

impl Backup {
    /// Waits for a checkpoint. `label` is any name.
    pub(super) async fn begin(cluster: &Cluster, label: &str) -> Result<Self> {
        let lost = |error| lost("did not go into backup mode", error);
        let mut connection = cluster.connect_as_superuser().await.map_err(lost)?;
        let version: i32 = sqlx::query_scalar("select pg_catalog.current_setting('server_version_num')::pg_catalog.int4")
            .fetch_one(&mut connection)
            .await
            .map_err(lost)?;
        let spaces: i64 =
            sqlx::query_scalar("select pg_catalog.count(*) from pg_catalog.pg_tablespace where spcname not in ('pg_default', 'pg_global')")
                .fetch_one(&mut connection)
                .await
                .map_err(lost)?;
        if spaces > 0 {
            return Err(HostError::rejected(
                "the database has tablespaces outside its directory, and a copy would share them with its source; move their tables to `pg_default` and drop them",
            ));
        }
        // Without it, a checkpoint in the middle removes the log that recovery needs.
        sqlx::query("select pg_catalog.pg_create_physical_replication_slot($1, true, true)")
            .bind(format!("ocore_{}", Uuid::new_v4().simple()))
            .execute(&mut connection)
            .await
            .map_err(lost)?;
        let functions = Functions::of(version);
        let start = sqlx::query(functions.start).bind(label).execute(&mut connection);
        match tokio::time::timeout(CHECKPOINT_PATIENCE, start).await {
            Ok(started) => started.map_err(lost)?,
            Err(_) => {
                return Err(HostError::machine(format!(
                    "the source's database did not finish a checkpoint within {} minutes; the disk does not keep up with what it writes",
                    CHECKPOINT_PATIENCE.as_secs() / 60
                )));
            }
        };
        Ok(Self { connection, functions })
    }

    /// Leaves backup mode, which is the moment that `copy` is of; what no log tells is copied before. The log that recovery needs is kept until
    /// [`Backup::close`].
    pub(super) async fn end(&mut self, cluster: &Cluster, copy: &Path, share: bool, hold: Hold) -> Result<End> {
        let still = unlogged::keep(cluster, &mut self.connection, copy, share, hold).await?;
        let end = self.stop().await?;
        unlogged::is_complete(cluster, still.as_ref()).await?;
        if let Some(still) = still {
            still.end().await?;
        }
        Ok(end)
    }

    async fn stop(&mut self) -> Result<End> {
        let query = format!(
            "select stop.labelfile, coalesce(stop.spcmapfile, ''), place.file_name, place.file_offset
             from {} as stop, pg_catalog.pg_walfile_name_offset(stop.lsn) as place",
            self.functions.stop
        );
        let (label, spaces, last_segment, last_offset): (String, String, String, i32) = sqlx::query_as(sqlx::AssertSqlSafe(query))
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| lost("did not finish its backup", error))?;
        if !spaces.trim().is_empty() {
            return Err(HostError::rejected(
                "the database got a tablespace outside its directory while it was copied; drop it and try again",
            ));
        }
        let first_segment =
            first_segment(&label).ok_or_else(|| HostError::machine("PostgreSQL's backup label does not name where it starts"))?;
        Ok(End {
            first_segment: first_segment.to_owned(),
            label,
            last_segment,
            last_offset: u64::try_from(last_offset).unwrap_or_default(),
        })
    }

    /// Lets the log go.
    pub(super) async fn close(self) {
        // The server lets go of it too when the connection just ends.
        let _ = self.connection.close().await;
    }
}

impl End {
    /// Completes a copy of the cluster that was made in backup mode: label and log. Answers with how many bytes it wrote.
    pub(super) async fn complete(self, source: &Path, copy: &Path, share: bool, hold: Hold) -> Result<u64> {
        let (source, copy) = (source.to_owned(), copy.to_owned());
        blocking(move || {
            let _hold = hold;
            self.write(&source, &copy, share)
                .map_err(|error| HostError::machine_from(format!("the log of {} could not be copied: {error}", source.display()), error))
        })
        .await
    }

    fn write(&self, source: &Path, copy: &Path, share: bool) -> io::Result<u64> {
        let (log, copy) = (Directory::open(source)?.inside(LOG)?, Directory::open(copy)?);
        let made = copy.inside(LOG)?;
        made.make("archive_status", 0o700)?;
        let mut segments = log.names()?;
        segments.retain(|name| name.to_str().is_some_and(|name| self.is_needed(name)));
        let mut bytes = 0;
        let is_long = segments.len() > PLAIN_SEGMENTS;
        for name in segments {
            let from = log.file(&name)?;
            let length = from.metadata()?.len();
            if length > LARGEST_SEGMENT {
                return Err(io::Error::other(format!("{} is longer than any segment of a log", name.display())));
            }
            let made = made.create(&name, 0o600)?;
            bytes += length;
            if share && is_long && rustix::fs::ioctl_ficlone(&made, &from).is_ok() {
                continue;
            }
            let is_last = name.to_str() == Some(&self.last_segment);
            let needed = if is_last && self.last_offset > 0 { self.last_offset.next_multiple_of(PAGE).min(length) } else { length };
            copy_plainly(&from, &made, needed)?;
            made.set_len(length)?;
        }
        copy.create("backup_label", 0o600)?.write_all(self.label.as_bytes())?;
        Ok(bytes)
    }

    /// Of the files of the log by their names.
    fn is_needed(&self, name: &str) -> bool {
        let is_between =
            name.len() == self.first_segment.len() && (self.first_segment.as_str()..=self.last_segment.as_str()).contains(&name);
        is_between || name.ends_with(".history")
    }
}

/// The database of a cluster that runs and that nobody writes to, as it is at the end of the call. Root owns what is made.
pub(in crate::local) async fn copy_database(
    cluster: &Cluster,
    copy: &Path,
    share: bool,
    hold: Hold,
    cancel: &[CancellationToken],
) -> Result<()> {
    let mut backup = Backup::begin(cluster, "a deployment").await?;
    copy_files(&cluster.pgdata, copy, share, hold.clone(), cancel).await?;
    backup.end(cluster, copy, share, hold.clone()).await?.complete(&cluster.pgdata, copy, share, hold).await?;
    backup.close().await;
    Ok(())
}

/// Copies what matters of a cluster in backup mode; [`End::complete`] makes it a whole one. Answers with how many bytes.
pub(super) async fn copy_files(pgdata: &Path, copy: &Path, share: bool, hold: Hold, cancel: &[CancellationToken]) -> Result<u64> {
    let how = TreeCopy { owner: Some((0, 0)), live: true, no_links: true, take, ..TreeCopy::exact(share) };
    let copied = how.run(pgdata, copy, hold.clone(), cancel, None).await?;
    let (pgdata, copy) = (pgdata.to_owned(), copy.to_owned());
    // Last, as PostgreSQL's own base backup does, and in one piece: a cluster with a torn one does not start.
    blocking(move || {
        let _hold = hold;
        let write = || -> io::Result<()> {
            let control = read_steadily(&Directory::open(&pgdata)?.file(CONTROL)?)?;
            Directory::open(&copy)?.create(CONTROL, 0o600)?.write_all(&control)
        };
        write().map_err(|error| HostError::machine_from(format!("{} could not be copied: {error}", pgdata.join(CONTROL).display()), error))
    })
    .await?;
    Ok(copied.bytes)
}

/// What PostgreSQL's own base backup leaves out (`basebackup.c`): what the server makes anew at its start.
fn take(path: &Path) -> Take {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.starts_with("pgsql_tmp") || name == "pg_internal.init" {
        return Take::Nothing;
    }
    match path.to_str() {
        Some("postmaster.pid" | "postmaster.opts" | "backup_label" | "backup_label.old" | "tablespace_map" | "global/pg_control") => {
            Take::Nothing
        }
        Some("pg_wal" | "pg_replslot" | "pg_stat_tmp" | "pg_notify" | "pg_serial" | "pg_snapshots" | "pg_subtrans" | "pg_dynshmem") => {
            Take::Empty
        }
        _ => Take::All,
    }
}

/// Bytes that are the copy's own, whatever the file system could share.
fn copy_plainly(from: &File, made: &File, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut piece = vec![0; 1024 * 1024];
    let mut offset = 0;
    while offset < length {
        let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX).min(piece.len());
        let count = from.read_at(&mut piece[..wanted], offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        made.write_all_at(&piece[..count], offset)?;
        offset += count as u64;
    }
    Ok(())
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`.
fn first_segment(label: &str) -> Option<&str> {
    let line = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION:"))?;
    line.split_once("(file ")?.1.strip_suffix(')')
}

fn lost(what: &str, error: sqlx::Error) -> HostError {
    match &error {
        sqlx::Error::Database(reason) if reason.code().as_deref() != Some("57P01") => {
            HostError::machine_from(format!("the source's database {what}: {}", reason.message()), error)
        }
        _ => HostError::machine_from(
            format!(
                "the source's database {what}: it was stopped or died meanwhile; nothing of the copy is kept, take it again when the source runs"
            ),
            error,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_names_the_first_segment() {
        let label =
            "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\n";
        assert_eq!(first_segment(label), Some("000000010000000000000002"));
        assert_eq!(first_segment("LABEL: x"), None);
    }

    #[test]
    fn what_the_server_makes_anew_is_left_out() {
        assert_eq!(take(Path::new("postmaster.pid")), Take::Nothing);
        assert_eq!(take(Path::new("base/5/pgsql_tmp")), Take::Nothing);
        assert_eq!(take(Path::new("base/5/pg_internal.init")), Take::Nothing);
        assert_eq!(take(Path::new("pg_wal")), Take::Empty);
        assert_eq!(take(Path::new("pg_xact")), Take::All);
        assert_eq!(take(Path::new("base/5/1259")), Take::All);
    }
}
