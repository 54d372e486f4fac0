//! Unlogged tables in copies of a cluster that serves.
//!
//! What changes in them is not in the write-ahead log, so recovery begins by emptying them (`ResetUnloggedRelations`, reinit.c), and a copy of a
//! cluster that serves always begins with a recovery. So their files are copied beside it while nobody writes to them, and put into their place when
//! the recovery is over and before anybody comes. Sequences and indexes of such tables are unlogged too.
//!
//! Which relations are unlogged their files say: each has a fork that recovery begins it with, `16385_init`.

use std::{collections::BTreeSet, fs::File, io, path::Path, time::Duration};

use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgDatabaseError};

use super::{
    below::Directory,
    cluster::Cluster,
    copy::Hold,
    durable::{self, blocking},
};
use crate::error::{HostError, Result};

/// In the directory of a cluster, as `16384/16385`: what is put into its place after the first recovery.
const KEPT: &str = "ocore_unlogged";
/// One file of a segment of a relation has at most so many bytes.
const LARGEST: u64 = 1 << 30;
/// Whoever writes to the tables is waited for so long, and lets others in between.
const LOCK_TRIES: u32 = 3;
const LOCK_TIME: &str = "3s";
const PAUSE: Duration = Duration::from_millis(500);
/// A file that is written to by nobody but who cleans up is read until it stands still.
const READ_TRIES: u32 = 5;
/// Who else lets PostgreSQL write its buffers.
const TURN: i64 = 0x6f63_6f72_6501;

/// As long as it lives, nobody writes to the unlogged tables of a database.
pub(super) struct Still {
    connection: PgConnection,
    kept: BTreeSet<String>,
}

impl Still {
    /// An error when somebody has ended it before.
    pub(super) async fn end(mut self) -> Result<()> {
        let ended = sqlx::raw_sql("commit").execute(&mut self.connection).await;
        ended.map_err(|error| {
            HostError::machine_from("the database let go of its unlogged tables while they were copied; take the copy again", error)
        })?;
        // The server ends the session too when the connection just ends.
        let _ = self.connection.close().await;
        Ok(())
    }
}

/// Copies the files of the unlogged relations into a copy of the cluster that will recover; nothing when there are none. `session` is the superuser's.
/// What it answers with must live until the moment that the copy is of, and be shown to [`is_complete`] then.
pub(super) async fn keep(cluster: &Cluster, session: &mut PgConnection, copy: &Path, share: bool, hold: Hold) -> Result<Option<Still>> {
    if relations(&cluster.pgdata).await?.is_empty() {
        return Ok(None);
    }
    let connection = stand_still(cluster).await?;
    let kept = relations(&cluster.pgdata).await?;
    write_buffers(session).await?;
    let (source, copy, wanted) = (cluster.pgdata.clone(), copy.to_owned(), kept.clone());
    blocking(move || {
        let _hold = hold;
        copy_files(&source, &copy, &wanted, share).map_err(|error| {
            HostError::machine_from(format!("the unlogged tables of {} could not be copied: {error}", source.display()), error)
        })
    })
    .await?;
    Ok(Some(Still { connection, kept }))
}

/// Whether the copy has all: somebody may have made another unlogged table meanwhile.
pub(super) async fn is_complete(cluster: &Cluster, still: Option<&Still>) -> Result<()> {
    let nothing = BTreeSet::new();
    let kept = still.map_or(&nothing, |still| &still.kept);
    if relations(&cluster.pgdata).await?.is_subset(kept) {
        return Ok(());
    }
    Err(HostError::rejected("an unlogged table was made in the database while it was copied, and would be empty in the copy; try again"))
}

/// Locks all unlogged tables against everybody who writes.
async fn stand_still(cluster: &Cluster) -> Result<PgConnection> {
    let failed = |error: sqlx::Error| HostError::machine_from(format!("the unlogged tables could not be locked: {error}"), error);
    let mut connection = cluster.connect_as_owner().await?;
    let mut tries = 0;
    loop {
        let tables: Vec<String> = sqlx::query_scalar(
            "select pg_catalog.format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c
             join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
             where c.relpersistence operator(pg_catalog.=) 'u' and c.relkind operator(pg_catalog.=) 'r' order by c.oid",
        )
        .fetch_all(&mut connection)
        .await
        .map_err(failed)?;
        let only: String = tables.iter().map(|table| format!("only {table}")).collect::<Vec<_>>().join(", ");
        let lock = if tables.is_empty() { String::new() } else { format!("lock table {only} in share row exclusive mode") };
        let locked = sqlx::raw_sql(AssertSqlSafe(format!(
            "begin read write; set local lock_timeout = '{LOCK_TIME}'; set local idle_in_transaction_session_timeout = 0; {lock}"
        )))
        .execute(&mut connection)
        .await;
        let Err(error) = locked else { return Ok(connection) };
        sqlx::raw_sql("rollback").execute(&mut connection).await.map_err(failed)?;
        tries += 1;
        let code =
            error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>()).map(|error| error.code().to_owned());
        match code.as_deref() {
            // Somebody holds it, is in each other's way with us, or has dropped it.
            Some("55P03" | "40P01" | "42P01" | "3F000") if tries < LOCK_TRIES => tokio::time::sleep(PAUSE).await,
            Some("55P03" | "40P01" | "42P01" | "3F000") => {
                return Err(HostError::rejected(format!(
                    "the database holds unlogged tables ({}), which no copy can hold while somebody writes to them, and somebody does without a pause; \
                     end what writes there, or make them ordinary ones with `alter table … set logged`, and try again",
                    tables.join(", ")
                )));
            }
            _ => return Err(failed(error)),
        }
    }
}

/// Has the server write everything that it holds of unlogged relations, which an ordinary checkpoint does not. A database that is made by copying files
/// begins with a checkpoint that does (`createdb`, dbcommands.c); before version 15 there was no other way to make one.
async fn write_buffers(session: &mut PgConnection) -> Result<()> {
    let failed =
        |error: sqlx::Error| HostError::machine_from(format!("the database could not write down its unlogged tables: {error}"), error);
    let version: i32 = sqlx::query_scalar("select pg_catalog.current_setting('server_version_num')::pg_catalog.int4")
        .fetch_one(&mut *session)
        .await
        .map_err(failed)?;
    let how = if version >= 150_000 { " strategy file_copy" } else { "" };
    sqlx::query("select pg_catalog.pg_advisory_lock($1)").bind(TURN).execute(&mut *session).await.map_err(failed)?;
    for statement in [
        "drop database if exists ocore_written".to_owned(),
        format!("create database ocore_written template template0{how}"),
        "drop database ocore_written".to_owned(),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *session).await.map_err(failed)?;
    }
    sqlx::query("select pg_catalog.pg_advisory_unlock($1)").bind(TURN).execute(&mut *session).await.map_err(failed)?;
    Ok(())
}

/// The unlogged relations of a cluster: `16384/16385`.
async fn relations(pgdata: &Path) -> Result<BTreeSet<String>> {
    let pgdata = pgdata.to_owned();
    blocking(move || {
        let find = || -> io::Result<BTreeSet<String>> {
            let base = Directory::open(&pgdata)?.inside("base")?;
            let mut found = BTreeSet::new();
            for database in numbers(&base)? {
                let directory = match base.inside(&database) {
                    Ok(directory) => directory,
                    // It was dropped.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                for name in directory.names()? {
                    if let Some(relation) = name.to_str().and_then(|name| name.strip_suffix("_init")).filter(|relation| is_number(relation))
                    {
                        found.insert(format!("{database}/{relation}"));
                    }
                }
            }
            Ok(found)
        };
        find().map_err(|error| HostError::machine_from(format!("the files of {} could not be listed: {error}", pgdata.display()), error))
    })
    .await
}

fn numbers(directory: &Directory) -> io::Result<Vec<String>> {
    let names = directory.names()?.into_iter().filter_map(|name| name.to_str().map(ToOwned::to_owned));
    Ok(names.filter(|name| is_number(name)).collect())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The relation that a file belongs to, but for the fork that recovery begins with: `16385`, `16385.1`, `16385_fsm`, `16385_vm.1`.
fn relation_of(file: &str) -> Option<&str> {
    let (fork, segment) = file.split_once('.').map_or((file, None), |(fork, segment)| (fork, Some(segment)));
    let relation = fork.strip_suffix("_fsm").or_else(|| fork.strip_suffix("_vm")).unwrap_or(fork);
    (is_number(relation) && segment.is_none_or(is_number)).then_some(relation)
}

fn copy_files(source: &Path, copy: &Path, wanted: &BTreeSet<String>, share: bool) -> io::Result<()> {
    let (base, kept) = (Directory::open(source)?.inside("base")?, Directory::open(copy)?.make(KEPT, 0o700)?);
    let databases: BTreeSet<&str> = wanted.iter().filter_map(|relation| Some(relation.split_once('/')?.0)).collect();
    for database in databases {
        let (from, to) = (base.inside(database)?, kept.make(database, 0o700)?);
        for name in from.names()? {
            let Some(name) = name.to_str() else { continue };
            if relation_of(name).is_some_and(|relation| wanted.contains(&format!("{database}/{relation}"))) {
                copy_file(&from.file(name)?, &to.create(name, 0o600)?, share)?;
            }
        }
    }
    Ok(())
}

/// The file as it is at one moment: whoever reads a table writes small hints into its pages, also while nobody writes rows.
fn copy_file(from: &File, to: &File, share: bool) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let length = from.metadata()?.len();
    if length > LARGEST {
        return Err(io::Error::other("a file is longer than any segment of a relation"));
    }
    if share && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let (mut piece, mut again) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < length {
        let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX).min(piece.len());
        from.read_exact_at(&mut piece[..wanted], offset)?;
        for attempt in 0.. {
            from.read_exact_at(&mut again[..wanted], offset)?;
            if piece[..wanted] == again[..wanted] {
                break;
            }
            if attempt == READ_TRIES {
                return Err(io::Error::other("a file does not stand still"));
            }
            std::mem::swap(&mut piece, &mut again);
        }
        to.write_all_at(&piece[..wanted], offset)?;
        offset += wanted as u64;
    }
    Ok(())
}

impl Cluster {
    /// Before a start; nobody runs here, and the configuration is written. Lets a copy recover, without a server, and puts the files of its unlogged
    /// relations into their places. Cut off, it begins again. `bin` is where the programs of its version are.
    pub(super) async fn bring_unlogged_back(&self, bin: &Path) -> Result<()> {
        let place = self.pgdata.clone();
        let failed = move |error: io::Error| {
            let what = format!("the unlogged tables of {} could not be put into their place: {error}", place.display());
            HostError::machine_from(what, error)
        };
        let pgdata = Directory::open(&self.pgdata).map_err(&failed)?;
        if pgdata.status(KEPT).map_err(&failed)?.is_none() {
            return Ok(());
        }
        self.recover_alone(bin).await?;
        let kept = self.pgdata.join(KEPT);
        blocking(move || {
            put_back(&pgdata).map_err(failed)?;
            durable::remove_tree(&kept)
        })
        .await
    }
}

/// A relation that the recovery has found dropped has no place any more.
fn put_back(pgdata: &Directory) -> io::Result<()> {
    let (base, kept) = (pgdata.inside("base")?, pgdata.inside(KEPT)?);
    for database in numbers(&kept)? {
        let (from, to) = (kept.inside(&database)?, base.inside(&database)?);
        for name in from.names()? {
            let Some(name) = name.to_str() else { continue };
            let Some(relation) = relation_of(name) else { continue };
            if to.status(format!("{relation}_init"))?.is_some() {
                from.rename_into(name, &to)?;
            }
        }
        to.sync()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_file_of_a_relation_is_known_by_its_name() {
        for file in ["16385", "16385.1", "16385_fsm", "16385_vm", "16385_vm.2"] {
            assert_eq!(relation_of(file), Some("16385"), "{file}");
        }
        for file in ["16385_init", "PG_VERSION", "pg_filenode.map", "t3_16385", "16385.x", "", "_fsm", "16385_old"] {
            assert_eq!(relation_of(file), None, "{file}");
        }
    }

    #[test]
    fn a_file_is_copied_whole_with_and_without_shared_blocks() {
        for share in [true, false] {
            let mut from = tempfile::tempfile().unwrap();
            let content: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
            from.write_all(&content).unwrap();
            let to = tempfile::NamedTempFile::new().unwrap();
            copy_file(&from, to.as_file(), share).unwrap();
            let mut found = Vec::new();
            to.reopen().unwrap().read_to_end(&mut found).unwrap();
            assert!(found == content);
        }
    }
}
