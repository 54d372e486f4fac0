//! Snapshots: a data set at one moment, immutable, taken while it serves, while it rests, or by retiring it.
//!
//! A snapshot that has its name is whole: it is made beside its place, its `snapshot.json` is written last, all is synced, and the directory is
//! renamed. Nobody but root enters the directory that holds them. To be used, one is brought to life as a data set
//! ([`DataSource::Snapshot`](crate::DataSource::Snapshot)), which shares its blocks and changes nothing in it. One that was taken for a single data
//! set becomes it ([`DataSource::Taken`](crate::DataSource::Taken)).

mod adopt;
mod file_store;
mod live;
pub(super) mod prepared;
mod space;
mod verify;
pub(super) mod warm_copy;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use chrono::{DateTime, Utc};
use ocore_model::ids::{DataSetId, InstanceId, SnapshotId};

use self::live::Backup;
pub(super) use self::live::copy_database;
use super::{
    LocalHost,
    below::Directory,
    cluster::{self, Cluster},
    copy::{self, Take, TreeCopy, WorkDirectory},
    database,
    durable::{self, blocking},
    fence::Claim,
    layout::Layout,
};
use crate::{
    api::{InstalledModule, Progress, Snapshot, SnapshotEstimate, Standing, TakeSnapshot},
    error::{HostError, Result},
};

const MANIFEST: &str = "snapshot.json";
/// Files of the file store that changed in so many seconds before a snapshot may be half-written.
const RECENT: i64 = 600;
/// Odoo writes a file before it commits the row that names it. So a file that was still written within the last second before the database's
/// moment is named by no row of the copy.
const BEING_WRITTEN: i64 = 1;

impl LocalHost {
    /// Takes a snapshot of a data set, live when its cluster runs. Taken already is done.
    pub(super) async fn take(&self, request: &TakeSnapshot, progress: &Progress) -> Result<Snapshot> {
        let work = async {
            let _turn = self.data_locks.own(request.snapshot).await;
            if let Some(found) = self.taken(request)? {
                return Ok(found);
            }
            self.check_release_of(request)?;
            loop {
                {
                    let _stays = self.data_locks.share(request.data_set).await;
                    let cluster = self.cluster_of(request).await?;
                    if cluster.find()?.is_some() {
                        return self.take_live(request, &cluster, progress).await;
                    }
                }
                let _ours = self.data_locks.own(request.data_set).await;
                let cluster = self.cluster_of(request).await?;
                if cluster.find()?.is_none() {
                    return self.take_resting(request, &cluster, progress).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = progress.cancel.cancelled() => Err(HostError::Cancelled),
            taken = work => taken,
        }
    }

    /// Turns a data set that is not live any more into a snapshot. Done already is done.
    pub(super) async fn retire(&self, claim: &Claim, request: &TakeSnapshot, progress: &Progress) -> Result<Snapshot> {
        let begun = Instant::now();
        let _turn = self.data_locks.own(request.snapshot).await;
        if let Some(found) = self.taken(request)? {
            return Ok(found);
        }
        self.check_release_of(request)?;
        self.stop_users_of(request.instance, request.data_set).await?;
        let _ours = self.data_locks.own(request.data_set).await;
        let cluster = self.cluster_of(request).await?;
        let directory = self.layout.data_set(request.instance, request.data_set);
        let standing = self.standing_of(request.instance, request.data_set)?;
        let stopped_at = if cluster.find()?.is_none() { control_written_at(&cluster.pgdata) } else { None };
        let modules = modules_of_resting(&cluster).await?;
        let taken_at = stopped_at.unwrap_or_else(Utc::now);
        claim.check()?;
        let sizes = measure(&directory, taken_at).await?;
        let snapshot =
            self.describe(request, Moment { taken_at, live: false, begun }, standing, (modules, postgres_version(&cluster.pgdata)?), sizes);
        let place = self.layout.snapshot(request.snapshot);
        durable::make_directory(&self.layout.snapshots(), 0o700)?;
        // In the data set it means nothing; with the new name it makes the snapshot whole.
        durable::write_json(&directory.join(MANIFEST), &snapshot)?;
        claim.check()?;
        blocking({
            let (directory, place) = (directory.clone(), place.clone());
            move || {
                let rename = || {
                    std::fs::rename(&directory, &place)?;
                    durable::sync_parent(&place)?;
                    durable::sync_parent(&directory)?;
                    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o700))
                };
                rename().map_err(|error| {
                    HostError::machine_from(format!("{} could not be made a snapshot: {error}", directory.display()), error)
                })
            }
        })
        .await?;
        copy::remove(&self.layout.socket_directory(request.data_set)).await?;
        progress.log.line("Kept the data as they were as a snapshot; nothing was copied.");
        Ok(snapshot)
    }

    /// What a snapshot of the data set would hold and need.
    pub(super) async fn estimate(&self, instance: InstanceId, data_set: DataSetId) -> Result<SnapshotEstimate> {
        let directory = self.layout.data_set(instance, data_set);
        if !directory.is_dir() {
            return Err(HostError::NotFound { what: "data set", id: data_set.to_string() });
        }
        let sizes = measure(&directory, DateTime::<Utc>::MAX_UTC).await?;
        Ok(SnapshotEstimate {
            database_bytes: sizes.database_bytes,
            file_store_bytes: sizes.file_store_bytes,
            file_store_files: sizes.file_store_files,
            needed_bytes: self.pool.cost(sizes.held, sizes.entries, sizes.database_bytes),
            available_bytes: self.pool.facts().await?.available_bytes,
        })
    }

    /// Every whole snapshot, oldest first.
    pub(super) fn whole_snapshots(&self) -> Result<Vec<Snapshot>> {
        let Ok(entries) = std::fs::read_dir(self.layout.snapshots()) else { return Ok(Vec::new()) };
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<SnapshotId>().ok());
        let mut found: Vec<Snapshot> = ids.filter_map(|id| self.find_snapshot(id).transpose()).collect::<Result<_>>()?;
        found.sort_by_key(|snapshot| (snapshot.taken_at, snapshot.id));
        Ok(found)
    }

    /// The whole snapshot of that id.
    pub(super) fn find_snapshot(&self, snapshot: SnapshotId) -> Result<Option<Snapshot>> {
        durable::read_json(&self.layout.snapshot(snapshot).join(MANIFEST))
    }

    /// Waits until nobody copies it, and removes it. Absent is done.
    pub(super) async fn delete_snapshot(&self, snapshot: SnapshotId) -> Result<()> {
        let _ours = self.data_locks.own(snapshot).await;
        copy::remove(&self.layout.snapshot(snapshot)).await
    }

    /// Fills the directory of a new data set from a snapshot, which the caller has locked. The instance's users own what is made.
    pub(super) async fn fill_from_snapshot(
        &self,
        work: &WorkDirectory,
        snapshot: &Snapshot,
        allocation: &super::ledger::Allocation,
        is_foreign: bool,
        progress: &Progress,
    ) -> Result<()> {
        let source = self.layout.snapshot(snapshot.id);
        let what = "this copy of a snapshot";
        let cost = async || {
            let sizes = measure(&source, DateTime::<Utc>::MAX_UTC).await?;
            Ok::<_, HostError>(self.pool.cost(sizes.held, sizes.entries, sizes.database_bytes))
        };
        if !self.pool.fits_any_copy().await? {
            self.pool.require(cost().await?, what).await?;
        }
        let cancel = [progress.cancel.clone()];
        let (database, odoo) = (allocation.postgres.uid, allocation.odoo.uid);
        let share = self.pool.has_reflinks();
        let how = |owner: u32, take| TreeCopy { owner: Some((owner, owner)), take, ..TreeCopy::exact(share) };
        let (pgdata, data_dir) = (how(database, all), how(odoo, if is_foreign { all_but_sessions } else { all }));
        let places = ["pgdata", "data_dir"].map(|part| (source.join(part), work.path().join(part)));
        let copied = copy::side_by_side(
            &cancel,
            async |cancel| pgdata.run(&places[0].0, &places[0].1, work.hold(), &cancel, None).await,
            async |cancel| data_dir.run(&places[1].0, &places[1].1, work.hold(), &cancel, None).await,
        );
        let copied = copied.await;
        match copied {
            Err(error) if copy::is_full(&error) => Err(self.pool.full(cost().await?, what).await),
            copied => copied.map(drop),
        }
    }

    async fn take_live(&self, request: &TakeSnapshot, cluster: &Cluster, progress: &Progress) -> Result<Snapshot> {
        let begun = Instant::now();
        // One that is just starting is waited for.
        cluster.start().await?;
        let standing = self.standing_of(request.instance, request.data_set)?;
        self.require_room(request).await?;
        let work = self.work_directory(request.snapshot).await?;
        self.begin_with_warm_copy(request.instance, &work).await;
        let taken = Box::pin(self.copy_live(request, cluster, &work, begun, standing, progress)).await;
        let snapshot = self.explain_full(taken, request).await?;
        self.finish(request, work, snapshot, progress).await
    }

    /// Into a directory that is empty but, perhaps, for a `data_dir` that was begun.
    pub(super) async fn copy_live(
        &self,
        request: &TakeSnapshot,
        cluster: &Cluster,
        work: &WorkDirectory,
        begun: Instant,
        standing: Standing,
        progress: &Progress,
    ) -> Result<Snapshot> {
        let cancel = [progress.cancel.clone()];
        let share = self.pool.has_reflinks();
        let since = Utc::now().timestamp() - RECENT;
        let (pgdata, data_dir) = (work.path().join("pgdata"), work.path().join("data_dir"));
        let source = self.layout.data_dir(request.instance, request.data_set);
        let is_begun = data_dir.is_dir();
        let files = TreeCopy { live: true, again: is_begun, ..snapshot_files(share) };
        let database = async {
            progress.log.line("Putting the database into backup mode; it goes on serving.");
            let mut backup = Backup::begin(cluster, &format!("snapshot {}", request.snapshot)).await?;
            let copied = live::copy_files(&cluster.pgdata, &pgdata, share, work.hold(), &cancel).await?;
            let modules = database::modules(&mut cluster.connect_as_owner().await?).await?;
            let end = backup.end(cluster, &pgdata, share, work.hold()).await?;
            let taken_at = Utc::now();
            let log = end.complete(&cluster.pgdata, &pgdata, share, work.hold()).await?;
            backup.close().await;
            Ok((modules, taken_at, copied + log))
        };
        // Most of the file store is copied beside the database, so that little is left for after it.
        // What has gone from the source by now is named by no row of the database's moment, which is yet to come.
        let early = TreeCopy { prune: is_begun, ..files.clone() }.run(&source, &data_dir, work.hold(), &cancel, None);
        let ((modules, taken_at, database_bytes), _) = tokio::try_join!(database, early)?;
        // What a row of the copy names was written before the database's moment, so it is there by now; and what was cleared away since is there
        // from before.
        let again = TreeCopy { again: true, ..files };
        let pass = || again.clone().run(&source, &data_dir, work.hold(), &cancel, Some((file_store::is_suspect, since)));
        let copied = pass().await?;
        let mut torn = not_whole(&data_dir, copied.noted).await?;
        if !torn.is_empty() {
            pass().await?;
            torn = not_whole(&data_dir, torn).await?;
        }
        let damaged = drop_unfinished(&data_dir, torn, taken_at).await?;
        let sizes = Sizes { database_bytes, damaged, ..measure_file_store(&data_dir).await? };
        let version = postgres_version(&pgdata)?;
        Ok(self.describe(request, Moment { taken_at, live: true, begun }, standing, (modules, version), sizes))
    }

    async fn take_resting(&self, request: &TakeSnapshot, cluster: &Cluster, progress: &Progress) -> Result<Snapshot> {
        let begun = Instant::now();
        let standing = self.standing_of(request.instance, request.data_set)?;
        self.require_room(request).await?;
        // Also makes sure that it has been shut down well: one that was killed recovers now, and not in each copy.
        let modules = modules_of_resting(cluster).await?;
        let taken_at = Utc::now();
        let work = self.work_directory(request.snapshot).await?;
        let copied = async {
            let cancel = [progress.cancel.clone()];
            let share = self.pool.has_reflinks();
            let how = TreeCopy { owner: Some((0, 0)), no_links: true, ..TreeCopy::exact(share) };
            let (pgdata, data_dir) = (work.path().join("pgdata"), work.path().join("data_dir"));
            let source = self.layout.data_dir(request.instance, request.data_set);
            // Odoo has ended; should one of its own processes not have, what it removes is no error.
            let files = TreeCopy { live: true, ..snapshot_files(share) };
            copy::side_by_side(
                &cancel,
                async |cancel| how.run(&cluster.pgdata, &pgdata, work.hold(), &cancel, None).await,
                async |cancel| files.run(&source, &data_dir, work.hold(), &cancel, None).await,
            )
            .await?;
            measure(work.path(), taken_at).await
        };
        let copied = copied.await;
        let sizes = self.explain_full(copied, request).await?;
        let version = postgres_version(&cluster.pgdata)?;
        let snapshot = self.describe(request, Moment { taken_at, live: false, begun }, standing, (modules, version), sizes);
        self.finish(request, work, snapshot, progress).await
    }

    /// Writes the manifest, syncs and gives the snapshot its name.
    async fn finish(&self, request: &TakeSnapshot, work: WorkDirectory, snapshot: Snapshot, progress: &Progress) -> Result<Snapshot> {
        let result = durable::write_fleeting_json(&work.path().join(MANIFEST), &snapshot);
        self.explain_full(result, request).await?;
        work.keep().await?;
        progress.log.line(&format!(
            "Took a snapshot of {} of database and {} in {} files in {:.1} s{}.",
            super::pool::human(snapshot.database_bytes),
            super::pool::human(snapshot.file_store_bytes),
            snapshot.file_store_files,
            snapshot.seconds,
            if snapshot.shares_blocks { "; it shares its blocks" } else { "; the file system cannot share blocks, so it is a full copy" },
        ));
        for path in &snapshot.damaged_files {
            progress.log.line(&format!("The file {path} is damaged: its content is not what its name says."));
        }
        Ok(snapshot)
    }

    fn describe(
        &self,
        request: &TakeSnapshot,
        moment: Moment,
        standing: Standing,
        (modules, postgres_version): (Vec<InstalledModule>, String),
        sizes: Sizes,
    ) -> Snapshot {
        Snapshot {
            id: request.snapshot,
            instance: request.instance,
            data_set: request.data_set,
            release: request.release.clone(),
            taken_at: moment.taken_at,
            live: moment.live,
            standing,
            postgres_version,
            modules,
            database_bytes: sizes.database_bytes,
            file_store_bytes: sizes.file_store_bytes,
            file_store_files: sizes.file_store_files,
            shares_blocks: self.pool.has_reflinks(),
            seconds: moment.begun.elapsed().as_millis() as f64 / 1000.0,
            damaged_files: sizes.damaged,
        }
    }

    /// The snapshot that an earlier call took; one of something else is an error.
    fn taken(&self, request: &TakeSnapshot) -> Result<Option<Snapshot>> {
        match self.find_snapshot(request.snapshot)? {
            Some(found) if (found.instance, found.data_set) == (request.instance, request.data_set) => Ok(Some(found)),
            Some(found) => Err(HostError::machine(format!(
                "snapshot {} is there already, of data set {} and not of {}",
                found.id, found.data_set, request.data_set
            ))),
            None => Ok(None),
        }
    }

    fn check_release_of(&self, request: &TakeSnapshot) -> Result<()> {
        match &request.release {
            Some(release) if self.release(release)?.is_none() => Err(HostError::NotFound { what: "release", id: release.to_string() }),
            _ => Ok(()),
        }
    }

    async fn cluster_of(&self, request: &TakeSnapshot) -> Result<Cluster> {
        let TakeSnapshot { instance, data_set, .. } = *request;
        if !self.layout.data_set(instance, data_set).is_dir() {
            return Err(HostError::NotFound { what: "data set", id: data_set.to_string() });
        }
        self.cluster(&self.allocation(instance).await?, instance, data_set)
    }

    async fn require_room(&self, request: &TakeSnapshot) -> Result<()> {
        if self.pool.fits_any_copy().await? {
            return Ok(());
        }
        let estimate = self.estimate(request.instance, request.data_set).await?;
        self.pool.require(estimate.needed_bytes, "this snapshot").await
    }

    async fn work_directory(&self, snapshot: SnapshotId) -> Result<WorkDirectory> {
        durable::make_directory(&self.layout.snapshots(), 0o700)?;
        WorkDirectory::create(&self.layout.snapshot(snapshot)).await
    }

    async fn explain_full<T>(&self, result: Result<T>, request: &TakeSnapshot) -> Result<T> {
        match result {
            Err(error) if copy::is_full(&error) => {
                let estimate = self.estimate(request.instance, request.data_set).await?;
                Err(self.pool.full(estimate.needed_bytes, "this snapshot").await)
            }
            result => result,
        }
    }
}

struct Moment {
    taken_at: DateTime<Utc>,
    live: bool,
    begun: Instant,
}

/// What a data set or a snapshot holds.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// Lengths of all files together, and how many files, directories and links there are.
    pub(super) bytes: u64,
    /// Of those, what is really there.
    held: u64,
    pub(super) entries: u64,
    pub(super) database_bytes: u64,
    pub(super) file_store_bytes: u64,
    pub(super) file_store_files: u64,
    damaged: Vec<String>,
}

/// Of the `data_dir`, into a snapshot: all of it root's own, Odoo's contents sealed.
fn snapshot_files(share: bool) -> TreeCopy {
    TreeCopy { owner: Some((0, 0)), seal: file_store::is_content, ..TreeCopy::exact(share) }
}

pub(super) fn all(_: &Path) -> Take {
    Take::All
}

/// Whoever was logged in at the source must not be logged in at the copy.
pub(super) fn all_but_sessions(path: &Path) -> Take {
    if path == Path::new("sessions") { Take::Empty } else { Take::All }
}

/// Measures, and checks the files of the file store that may be half-written at that moment.
pub(super) async fn measure(directory: &Path, moment: DateTime<Utc>) -> Result<Sizes> {
    let (pgdata, data_dir) = (directory.join("pgdata"), directory.join("data_dir"));
    blocking(move || {
        let database = walk(&pgdata, i64::MAX)?;
        let files = walk(&data_dir, moment.timestamp().saturating_sub(RECENT))?;
        let sizes = Sizes {
            bytes: database.bytes.saturating_add(files.bytes),
            held: database.held.saturating_add(files.held),
            entries: database.entries + files.entries,
            database_bytes: database.bytes,
            file_store_bytes: files.file_store_bytes,
            file_store_files: files.file_store_files,
            damaged: Vec::new(),
        };
        if moment == DateTime::<Utc>::MAX_UTC {
            return Ok(sizes);
        }
        let damaged = file_store::not_whole(&data_dir, &files.suspects).map_err(|error| unreadable(&data_dir, error))?;
        Ok(Sizes { damaged: damaged.iter().map(|path| path.display().to_string()).collect(), ..sizes })
    })
    .await
}

async fn measure_file_store(data_dir: &Path) -> Result<Sizes> {
    let data_dir = data_dir.to_owned();
    blocking(move || {
        let files = walk(&data_dir, i64::MAX)?;
        Ok(Sizes { file_store_bytes: files.file_store_bytes, file_store_files: files.file_store_files, ..Sizes::default() })
    })
    .await
}

#[derive(Default)]
struct Walked {
    bytes: u64,
    held: u64,
    entries: u64,
    file_store_bytes: u64,
    file_store_files: u64,
    suspects: Vec<PathBuf>,
}

/// What vanishes meanwhile is not counted.
fn walk(tree: &Path, since: i64) -> Result<Walked> {
    let mut walked = Walked { entries: 1, ..Walked::default() };
    let walk = Directory::open(tree).and_then(|directory| {
        directory.walk(|entry| {
            walked.entries += 1;
            if !entry.is_file() {
                return Ok(());
            }
            // Somebody may have made files of any length.
            walked.bytes = walked.bytes.saturating_add(entry.length());
            walked.held += entry.length().min(entry.status.st_blocks.cast_unsigned() * 512);
            if file_store::is_in(entry.path) {
                walked.file_store_bytes = walked.file_store_bytes.saturating_add(entry.length());
                walked.file_store_files += 1;
                if file_store::is_suspect(entry.path, entry.status, since) {
                    walked.suspects.push(entry.path.to_owned());
                }
            }
            Ok(())
        })
    });
    walk.map_err(|error: std::io::Error| unreadable(tree, error))?;
    Ok(walked)
}

async fn not_whole(data_dir: &Path, paths: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let data_dir = data_dir.to_owned();
    blocking(move || file_store::not_whole(&data_dir, &paths).map_err(|error| unreadable(&data_dir, error))).await
}

/// Removes from a copy the files that were still being written at its moment, which no row of its database names, and answers with those that are
/// damaged for good.
async fn drop_unfinished(data_dir: &Path, torn: Vec<PathBuf>, moment: DateTime<Utc>) -> Result<Vec<String>> {
    let data_dir = data_dir.to_owned();
    blocking(move || {
        let copy = Directory::open(&data_dir).map_err(|error| unreadable(&data_dir, error))?;
        let mut damaged = Vec::new();
        for path in torn {
            let failed = |error| unreadable(&data_dir.join(&path), error);
            let Some(status) = copy.status(&path).map_err(failed)? else { continue };
            if status.st_mtime >= moment.timestamp() - BEING_WRITTEN {
                copy.remove(&path).map_err(failed)?;
            } else {
                damaged.push(path.display().to_string());
            }
        }
        Ok(damaged)
    })
    .await
}

/// Reads the modules of a cluster and leaves it stopped, cleanly.
async fn modules_of_resting(cluster: &Cluster) -> Result<Vec<InstalledModule>> {
    cluster.start().await?;
    let modules = async { database::modules(&mut cluster.connect_as_owner().await?).await }.await;
    cluster.stop().await?;
    modules
}

/// The major version that can read a cluster.
fn postgres_version(pgdata: &Path) -> Result<String> {
    Ok(cluster::major_version(pgdata)?.to_string())
}

/// PostgreSQL writes it last when it stops.
fn control_written_at(pgdata: &Path) -> Option<DateTime<Utc>> {
    let status = Directory::open(pgdata).ok()?.status("global/pg_control").ok()??;
    DateTime::from_timestamp(status.st_mtime, u32::try_from(status.st_mtime_nsec).ok()?)
}

fn unreadable(path: &Path, error: std::io::Error) -> HostError {
    HostError::machine_from(format!("{} could not be read: {error}", path.display()), error)
}

/// Removes what crashes have left of half-made and half-removed snapshots.
pub(super) fn sweep(layout: &Layout) -> Result<()> {
    copy::sweep(&layout.snapshots())
}
