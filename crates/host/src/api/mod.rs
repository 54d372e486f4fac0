//! The one door to a server: [`Host`], with its arguments and answers.
//!
//! Rules that hold for every call: it may run twice and the second run finds the first one's work; it leaves nothing half-made that a later
//! call could take for whole; a call for an instance carries a [`Fence`], and one with an older generation than the newest seen for that
//! instance is refused with [`HostError::Fenced`](crate::HostError::Fenced) before any effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use ocore_model::{
    edge::{EdgeStatus, RouteTraffic, Wanted},
    ids::{DataSetId, ExportId, ImportId, InstanceId, OperationId, SnapshotId, TemplateId},
    instance::Color,
    mail::MailboxStatus,
    names::{ModuleName, OdooVersion},
    odoo_options::OdooOptions,
    plan::{Correction, ModuleDescription},
    project::DeploySettings,
    rehearsal::Rehearsal,
    route::RouteSnapshot,
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

mod exports;
mod imports;
mod quarantine;
mod set_aside;
mod snapshots;
mod templates;

pub use self::{exports::*, imports::*, quarantine::*, set_aside::*, snapshots::*, templates::*};
use crate::error::Result;

/// Who calls: the operation, and the generation that was raised when it was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub operation: OperationId,
    /// Grows with every claim on the instance.
    pub generation: i64,
}

/// The name of an unpacked source tree: 64 hexadecimal digits, a hash over the commit, its submodules' commits and the owner's isolation key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceId(pub String);

/// The name of a release: 64 hexadecimal digits, a hash over source, Python environment and Odoo distribution. The API's `imageTag`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseId(pub String);

impl std::fmt::Display for SourceId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::fmt::Display for ReleaseId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Both ways of a connection to the mail catcher.
pub trait MailConnection: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> MailConnection for T {}

/// See [`Host::connect_mail`].
pub type MailStream = Box<dyn MailConnection>;

/// A tar stream as `git archive` writes it.
pub type TarStream = Box<dyn AsyncRead + Send + Unpin>;

/// One Odoo module of a source tree, read from its manifest without running it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceModule {
    pub name: ModuleName,
    /// The directory, relative to the source tree, with `/`.
    pub path: String,
    /// Lies in a submodule.
    pub in_submodule: bool,
    pub installable: bool,
    pub auto_install: bool,
    /// Of one that Odoo installs by itself: the modules that it waits for, where these are not all that it depends on.
    #[serde(default)]
    pub triggers: Option<Vec<String>>,
    pub version: String,
    /// Direct dependencies, as written.
    pub depends: Vec<String>,
    /// SHA-256 over the paths, modes and contents of its files, hexadecimal.
    pub digest: String,
}

/// What a sealed source tree holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub id: SourceId,
    pub modules: Vec<SourceModule>,
    /// Paths of the `requirements.txt` files that count: the root's and those of directories that hold modules; relative, sorted.
    pub requirements: Vec<String>,
    /// SHA-256 over what they say, hexadecimal. Empty in seals of earlier versions.
    #[serde(default)]
    pub requirements_digest: String,
    /// What its `ocore.toml` says of deployments.
    #[serde(default)]
    pub deploy: DeploySettings,
    /// What it says of Odoo's own options.
    #[serde(default)]
    pub odoo: OdooOptions,
    /// Modules that have another name now, the earlier one first.
    #[serde(default)]
    pub renamed: BTreeMap<ModuleName, ModuleName>,
    /// What people put into a repository and what is not heeded, a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
    pub bytes: u64,
}

/// An Odoo that is installed on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    pub odoo_version: OdooVersion,
    /// Changes whenever its source or its Python environment does, e.g. the package's version.
    pub id: String,
    /// Technical names of the modules that come with it.
    pub modules: Vec<ModuleName>,
}

/// An immutable build: what Odoo runs from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub id: ReleaseId,
    pub source: SourceId,
    pub odoo_version: OdooVersion,
    pub distribution_id: String,
    /// Module name to digest, for the plan of the next deployment.
    pub modules: BTreeMap<ModuleName, String>,
}

/// What [`Host::build_release`] needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildRelease {
    pub source: SourceId,
    pub odoo_version: OdooVersion,
    /// Python environments are shared only between builds with the same key; the caller gives one key to each tenant's project.
    pub isolation_key: String,
}

/// Where a new data set comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// An empty cluster with an empty database, an empty file store.
    Fresh,
    /// A copy of another data set of the same instance, whose Odoo is paused first, as by [`Host::pause_slot`], and stays so. An earlier call's is
    /// made again.
    CopyOf(DataSetId),
    /// What another data set of the same instance is at one moment, while it goes on serving. Raw, whatever it is a copy of, so that nothing that
    /// runs on it reaches anybody; it is never made anything else. An earlier call's is made again.
    Rehearsal { of: DataSetId },
    /// A snapshot brought to life. The instance's own snapshot keeps its standing; another instance's own data become raw, unless `as_own`.
    Snapshot {
        snapshot: SnapshotId,
        /// The target is production, and takes the data over as they are.
        as_own: bool,
    },
    /// A snapshot that was taken for this data set and for nothing else: it becomes the data set, and is none any more. Another instance's own data
    /// become raw. `NotFound` when it is gone, also because an earlier data set that it became has been removed.
    Taken { snapshot: SnapshotId },
    /// A database with modules installed that nobody has used. It gets an identity of its own, and the password of its administrator by the next
    /// [`Host::run_modules`], also by one that has nothing to install; before that no slot starts on it. `NotFound` when the template is gone, also
    /// when it turned out to be damaged: it is removed then.
    Template { template: TemplateId },
    /// A backup that has been received and checked ([`Host::check_import`]). Raw, unless `as_own`.
    Import {
        import: ImportId,
        /// The target is production, and takes the data over as they are.
        as_own: bool,
    },
}

/// The scheduled actions (`ir.cron`) of a database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledActions {
    /// One is at work at this moment.
    pub running: bool,
    /// When the next active one is due, in the past for one that waits for its turn; `None`: none is active.
    pub next: Option<DateTime<Utc>>,
}

/// A module as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledModule {
    pub name: String,
    /// Odoo's word: `installed`, `to upgrade`, `uninstalled` …
    pub state: String,
    pub version: Option<String>,
    /// It is nothing but rows in the database and has no files, so that no Odoo looks for any: somebody has imported it, or made it with Studio.
    #[serde(default)]
    pub imported: bool,
    /// It has its demo data. Where that is not known, it has.
    #[serde(default = "unknown_demo")]
    pub demo: bool,
}

fn unknown_demo() -> bool {
    true
}

impl InstalledModule {
    /// One with files and without demo data.
    pub fn new(name: &str, state: &str) -> Self {
        Self { name: name.to_owned(), state: state.to_owned(), version: None, imported: false, demo: false }
    }
}

/// What [`Host::run_modules`] does in a data set that nobody else uses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunModules {
    pub data_set: DataSetId,
    pub release: ReleaseId,
    pub install: Vec<ModuleName>,
    pub update: Vec<ModuleName>,
    /// Modules that have another name now, the earlier one first: what the database has under it belongs to the later one, before anything runs.
    /// `update` names the later one. Where the earlier one is not installed there is nothing to do.
    #[serde(default)]
    pub renames: Vec<(ModuleName, ModuleName)>,
    /// Translations that are taken out of the database where they are still what is named here, so that the update puts in what the files say now.
    #[serde(default)]
    pub corrections: Vec<Correction>,
    /// Loads demo data into a fresh database.
    pub with_demo: bool,
    /// Set after a fresh install: the password of Odoo's `admin`. Never logged.
    pub admin_password: Option<String>,
    pub settings: OdooSettings,
}

/// How an instance's Odoo runs. Units as in Odoo's own configuration: bytes and seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OdooSettings {
    /// 0: one threaded process that serves websockets too.
    pub workers: u16,
    pub max_cron_threads: u16,
    pub limit_memory_soft: u64,
    pub limit_memory_hard: u64,
    pub limit_time_cpu: u32,
    pub limit_time_real: u32,
    /// Odoo's `--log-level`.
    pub log_level: String,
    /// Added to the processes' environment.
    pub env_vars: BTreeMap<String, String>,
}

impl Default for OdooSettings {
    fn default() -> Self {
        Self {
            workers: 0,
            max_cron_threads: 1,
            limit_memory_soft: 2048 * 1024 * 1024,
            limit_memory_hard: 2560 * 1024 * 1024,
            limit_time_cpu: 600,
            limit_time_real: 1200,
            log_level: "info".to_owned(),
            env_vars: BTreeMap::new(),
        }
    }
}

/// What [`Host::start_slot`] starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSpec {
    pub color: Color,
    pub data_set: ServableDataSet,
    pub release: ReleaseId,
    pub settings: OdooSettings,
}

/// A slot whose Odoo runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningSlot {
    pub color: Color,
    pub data_set: DataSetId,
    pub release: ReleaseId,
    pub http: SocketAddr,
    /// Present when there are workers.
    pub websocket: Option<SocketAddr>,
    /// Its crons run only while those of no other slot of the instance do, so that another may start beside it on the same data.
    pub takes_turns: bool,
    pub pid: i32,
    pub started_at: DateTime<Utc>,
}

/// What a slot answered to one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbedPage {
    pub path: String,
    /// Of the last answer, when it redirected.
    pub status: u16,
    pub seconds: f64,
}

/// What a server sees of one instance, now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceObservation {
    pub instance: InstanceId,
    /// Data sets whose directories are whole.
    pub data_sets: Vec<DataSetId>,
    /// Data sets whose PostgreSQL cluster runs.
    pub clusters: Vec<DataSetId>,
    pub slots: Vec<RunningSlot>,
    /// How many of its processes the kernel has ended, since they took more memory together than they may. Grows until the machine restarts.
    #[serde(default)]
    pub memory_kills: u64,
}

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub hostname: String,
    pub os_name: String,
    pub os_version: String,
    pub cpu_cores: u32,
    pub ram_total_bytes: u64,
    pub pool: PoolFacts,
    pub distributions: Vec<Distribution>,
}

/// The storage pool as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolFacts {
    pub path: String,
    /// `xfs`, `btrfs`, `ext4` …
    pub file_system: String,
    /// Copies share their blocks. When false, copies are plain and take the data's full size and time.
    pub reflinks: bool,
    pub total_bytes: u64,
    pub available_bytes: u64,
}

/// Where a step's output goes while it runs; each call is one line without its end.
pub trait LogSink: Send + Sync {
    fn line(&self, text: &str);
}

/// Progress of one call: where its lines go and how it is asked to stop.
#[derive(Clone)]
pub struct Progress {
    pub log: std::sync::Arc<dyn LogSink>,
    pub cancel: CancellationToken,
}

/// One server's data plane.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    async fn facts(&self) -> Result<HostFacts>;

    /// Unpacks a tar stream below `prefix` (relative, empty for the root) of an unsealed source tree; a sealed one is left as it is and the
    /// stream is dropped. Links that leave the tree are refused.
    async fn unpack_source(&self, source: &SourceId, prefix: &str, tar: TarStream) -> Result<()>;

    /// Reads the manifests, hashes the modules and makes the tree read-only. The answer for a sealed one is the stored one.
    /// `submodules` are the prefixes that came from submodules.
    async fn seal_source(&self, source: &SourceId, submodules: &[String], progress: Progress) -> Result<Source>;

    /// The sealed source of that name, or `None`.
    async fn find_source(&self, source: &SourceId) -> Result<Option<Source>>;

    /// What these modules of a sealed source declare, read without running any of it. Names that the source does not have are left out; what
    /// cannot be read is described as such and is no error.
    async fn describe_modules(
        &self,
        source: &SourceId,
        modules: &[ModuleName],
        progress: Progress,
    ) -> Result<BTreeMap<ModuleName, ModuleDescription>>;

    /// The distribution for an Odoo series; `Rejected` when it is not installed, with what to do.
    async fn distribution(&self, version: &OdooVersion) -> Result<Distribution>;

    /// Makes the Python environment, compiles the byte code (a syntax error is `Rejected` with file and line) and writes the release.
    async fn build_release(&self, request: BuildRelease, progress: Progress) -> Result<Release>;

    async fn find_release(&self, release: &ReleaseId) -> Result<Option<Release>>;

    /// Technical names of the modules that come with the Python packages of a release: wheels may hold some, which Odoo finds by itself.
    async fn packaged_modules(&self, release: &ReleaseId) -> Result<BTreeSet<String>>;

    /// Removes sources, releases and environments that are not needed for `keep` and are older than an hour; never one that runs.
    async fn prune_releases(&self, keep: &[ReleaseId]) -> Result<()>;

    /// Allocates users and ports and makes the instance's directories.
    async fn create_instance(&self, instance: InstanceId, fence: Fence) -> Result<()>;

    /// Stops everything of the instance and removes it with all its data, users and ports.
    async fn destroy_instance(&self, instance: InstanceId, fence: Fence) -> Result<()>;

    /// Does what can be done ahead for a [`DataSource::CopyOf`], while its source goes on serving: the call that makes the data set then takes only as
    /// long as what has changed since. At the end a transaction that is open for long is waited for, up to a minute, since it would keep users waiting
    /// then. Once users wait it is too late for this. May run twice; nothing depends on it, and nothing of it is left when
    /// the data set is made or removed, a newer claim comes, or this process ends. `Machine` with the numbers when the pool has no room for a copy.
    async fn prepare_copy(&self, instance: InstanceId, data_set: DataSetId, of: DataSetId, fence: Fence, progress: Progress) -> Result<()>;

    async fn create_data_set(
        &self,
        instance: InstanceId,
        data_set: DataSetId,
        source: DataSource,
        fence: Fence,
        progress: Progress,
    ) -> Result<NewDataSet>;

    /// Stops what uses the data set and removes it. Absent is done.
    async fn remove_data_set(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()>;

    /// Starts the data set's cluster and waits until it accepts connections.
    async fn start_cluster(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()>;

    async fn stop_cluster(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()>;

    /// The modules of the data set's database, starting the cluster if need be. Empty for a fresh one.
    async fn installed_modules(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<Vec<InstalledModule>>;

    /// The same of a data set whose cluster runs, beside whatever an operation does there; nothing is claimed and nothing is started. `None` when
    /// the cluster does not run.
    async fn peek_modules(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<InstalledModule>>>;

    /// Odoo's codes of the languages that are active in the data set's database, read in the same manner.
    async fn peek_languages(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<String>>>;

    /// Brings a copy of the data set's file store, from which the instance's next copy begins, up to date. Nobody sees it but by the time that a
    /// copy takes. Nothing is claimed; may run twice, beside everything else, and be broken off at any moment: `Cancelled` when somebody needs
    /// the copy meanwhile. Does nothing when the last time was less than five minutes ago,
    /// where files cannot share blocks, and when the pool has no room.
    async fn keep_copy_warm(&self, instance: InstanceId, data_set: DataSetId, progress: Progress) -> Result<()>;

    /// What the data set's Odoo does and will do by itself, read in the same manner. `None` when the cluster does not run.
    async fn scheduled_actions(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<ScheduledActions>>;

    /// Installs and updates modules with Odoo's own `-i`/`-u` and reads all signs of failure, also the silent ones
    /// (reference: exit 0 with `invalid module names`, `Some modules are not loaded`, `odoo.schema` errors). A failure is `Rejected`.
    /// Not repeatable on the same data set after a failure: the caller throws the data set away.
    async fn run_modules(&self, instance: InstanceId, request: RunModules, fence: Fence, progress: Progress) -> Result<()>;

    /// The same in the Odoo that serves afterwards, as [`Host::start_slot`] has it: one process instead of two. For data that may serve and have Odoo in
    /// them already, with the slot's own data set, release and settings, and without a new password. After a failure nothing runs.
    async fn update_and_serve(
        &self,
        instance: InstanceId,
        request: RunModules,
        slot: SlotSpec,
        fence: Fence,
        progress: Progress,
    ) -> Result<RunningSlot>;

    /// The same as [`Host::run_modules`] on a copy that is thrown away afterwards ([`DataSource::Rehearsal`]; any other is refused), with what it did to the schema, which
    /// locks it held and what it logged.
    async fn rehearse_modules(&self, instance: InstanceId, request: RunModules, fence: Fence, progress: Progress) -> Result<Rehearsal>;

    /// Starts a slot (and the cluster of its data set) and waits until Odoo answers real requests with its database. Running already with
    /// the same specification is done, and a paused one goes on; with another, it is restarted.
    async fn start_slot(&self, instance: InstanceId, slot: SlotSpec, fence: Fence, progress: Progress) -> Result<RunningSlot>;

    /// Asks a running slot for pages, one after the other, as a browser without a session would; redirections within it are followed. Each path
    /// begins with `/`. `Rejected` names the first that does not answer 2xx or 3xx, with the lines of the log that it left.
    async fn probe_slot(&self, instance: InstanceId, color: Color, paths: &[String], progress: Progress) -> Result<Vec<ProbedPage>>;

    /// Has a slot's Odoo stand still between two transactions, with its users' websockets and all else that it has open, until it is started again or
    /// stopped. Transactions that do not end within 30 s are rolled back. Its cluster runs on. Not running is done, paused already too.
    async fn pause_slot(&self, instance: InstanceId, color: Color, fence: Fence) -> Result<()>;

    /// Stops a slot gracefully, then by force; a paused one does not run again. Not running is done.
    async fn stop_slot(&self, instance: InstanceId, color: Color, fence: Fence) -> Result<()>;

    /// Takes a data set's data at one moment, while it serves or while it rests, and leaves both as they were. The source is not claimed: it may
    /// be taken while an operation holds the instance. Taken already is done. `Machine` with the numbers when the pool could not survive it.
    async fn take_snapshot(&self, request: TakeSnapshot, progress: Progress) -> Result<Snapshot>;

    /// Turns a data set that is not live any more into a snapshot: nothing is copied. Stops what uses it. Done already is done.
    async fn retire_data_set(&self, request: TakeSnapshot, fence: Fence, progress: Progress) -> Result<Snapshot>;

    /// The templates that this server can use; for a release, only those for everybody and those that were made with the same Python packages.
    async fn templates(&self, release: Option<&ReleaseId>) -> Result<Vec<Template>>;

    /// Installs modules of Odoo's own in a database that no tenant has, and keeps it for everybody. Made already is done. Takes as long as the
    /// installation; dropped in the middle, it leaves what the next [`Host::prune_templates`] removes.
    async fn make_template(&self, request: MakeTemplate, progress: Progress) -> Result<Template>;

    /// Keeps a fresh data set, in which modules have been installed and that nobody can have used yet, for builds with the same key. Its cluster
    /// goes on serving meanwhile. Kept already is done. Needs no fence: like a snapshot it changes nothing of the instance.
    async fn keep_template(&self, instance: InstanceId, request: KeepTemplate, progress: Progress) -> Result<Template>;

    /// Removes the templates that are too many, too old or no use, and what a crash has left of one in the making. Says which.
    async fn prune_templates(&self, limits: TemplateLimits) -> Result<Vec<TemplateId>>;

    async fn estimate_snapshot(&self, instance: InstanceId, data_set: DataSetId) -> Result<SnapshotEstimate>;

    /// Every whole snapshot, oldest first.
    async fn snapshots(&self) -> Result<Vec<Snapshot>>;

    /// Reads all of a snapshot: file store against names, database pages against their checksums.
    async fn verify_snapshot(&self, snapshot: SnapshotId, progress: Progress) -> Result<Verification>;

    /// Absent is done.
    async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<()>;

    /// What is shared and what is not. Reads the file system's maps: seconds for large pools.
    async fn space(&self) -> Result<SpaceReport>;

    /// Makes room for a part of an import, and says how much of it is there already. The same part with another size or digest is `Rejected`;
    /// `Machine` with the numbers when the pool has no room for it.
    async fn open_upload(&self, upload: &NewUpload) -> Result<UploadedPart>;

    /// Appends to a part at `offset`, which must be what it has received; otherwise nothing is taken, and the answer says how much it has. A later
    /// call for the same part ends an earlier one, so that a client whose connection hangs can go on. Ends with what has arrived when the
    /// stream breaks off.
    async fn append_upload(&self, import: ImportId, part: UploadPart, offset: u64, body: ByteStream) -> Result<UploadedPart>;

    /// The parts of an import as far as they have come; none when there is no such import.
    async fn upload(&self, import: ImportId) -> Result<Vec<UploadedPart>>;

    /// Every import of which something lies here.
    async fn uploads(&self) -> Result<Vec<ImportId>>;

    /// Absent is done.
    async fn remove_upload(&self, import: ImportId) -> Result<()>;

    /// Reads all of a backup and says what it is, without restoring anything. What can be said of it is in the facts, problems too; `Rejected` when it
    /// is no backup at all, is damaged, or would harm (paths that climb out, links, bombs).
    async fn check_import(&self, request: CheckImport, progress: Progress) -> Result<ImportFacts>;

    /// Writes an export of a data set that nobody else uses. Written already is done.
    async fn write_export(&self, instance: InstanceId, request: WriteExport, fence: Fence, progress: Progress) -> Result<ExportedFile>;

    /// An export's bytes from `offset` on, `NotFound` when it is not there.
    async fn read_export(&self, export: ExportId, offset: u64) -> Result<ByteStream>;

    /// Every export that lies here.
    async fn exports(&self) -> Result<Vec<ExportId>>;

    /// Absent is done.
    async fn remove_export(&self, export: ExportId) -> Result<()>;

    /// Makes a raw copy, already updated to `release`, harmless, checks it and reports. `Rejected` names the fact that does not hold, the module that is
    /// not on the addons path or the script that failed; the copy then stays raw. May run again on the same copy.
    async fn neutralize(&self, instance: InstanceId, request: Neutralize, fence: Fence, progress: Progress) -> Result<Neutralized>;

    /// Sets a data set aside that could not be made harmless: it stops being one, and what was set aside of the instance before goes. Stops what uses
    /// it. Done already is done. `Machine` for the instance's own data.
    async fn set_aside(&self, instance: InstanceId, request: SetAside, fence: Fence) -> Result<Quarantined>;

    /// Everything that is set aside on this server, in no order.
    async fn quarantined(&self) -> Result<Vec<Quarantined>>;

    /// Asks the database of what was set aside, in a transaction that only reads, as the role that owns the database and not as a superuser. Its
    /// cluster runs for that long, reached by nobody else; one question at a time, the others wait. Needs no fence: nothing is changed. `Rejected` has
    /// PostgreSQL's words, or what the limits say; `NotFound` when nothing of that name is set aside. It must not be dropped before it ends; what it has
    /// left running then is stopped by [`Host::rest_quarantined`].
    async fn inspect_quarantined(&self, instance: InstanceId, data_set: DataSetId, question: Inspect) -> Result<Inspected>;

    /// Waits until nobody asks it anything, and removes what was set aside. Absent is done.
    async fn remove_quarantined(&self, instance: InstanceId, data_set: DataSetId) -> Result<()>;

    /// Stops the clusters that questions have left running that were cut off. Says of how many instances.
    async fn rest_quarantined(&self) -> Result<u32>;

    /// Where the instance's mail catcher listens, or would: the only place that its Odoo may send mail to. It stays the same for the instance's life.
    async fn mail_address(&self, instance: InstanceId) -> Result<SocketAddr>;

    /// The mailboxes of this server's mail catcher. `Machine` when the catcher is away.
    async fn mailboxes(&self) -> Result<Vec<MailboxStatus>>;

    /// Has a mailbox for the instance, or none; with it go its messages. Its Odoo is told at its next start. Done already is done.
    async fn set_mailbox(&self, instance: InstanceId, wanted: bool) -> Result<()>;

    /// Makes the instance's catcher the only active outgoing mail server of a data set that is awake, and incoming mail none. Says what it switched
    /// off. Nothing is done for an instance without a mailbox, or while the data set rests.
    async fn catch_mail(&self, instance: InstanceId, data_set: DataSetId) -> Result<Vec<String>>;

    /// A connection to the mail catcher's socket, which speaks HTTP and sees every mailbox.
    async fn connect_mail(&self) -> Result<MailStream>;

    /// What the instance's processes may reach, from now on and after each restart of the machine. Instances are closed until this is called. It
    /// takes no claim, so that closing never waits for an operation; `version` grows with every change of the policy, and an older one than the
    /// newest seen is refused with `Fenced`. `Machine` when a policy that closes cannot be put into force: nothing of the instance starts then.
    async fn set_egress(&self, instance: InstanceId, egress: Egress, version: i64) -> Result<()>;

    /// What the instance's processes tried to reach and were refused since its policy last changed or the rules were last written, and whether
    /// anything is refused at all.
    async fn egress_report(&self, instance: InstanceId) -> Result<EgressReport>;

    /// Puts every instance's policy into force where it is not, because the machine was restarted or somebody flushed the kernel's rules. Says
    /// whether it had to. `Machine` when this machine cannot, with what to do.
    async fn enforce_egress(&self) -> Result<bool>;

    /// What is there, for every instance of this server.
    async fn observe(&self) -> Result<Vec<InstanceObservation>>;

    /// The memory of all processes of an instance, in bytes, each shared page counted in parts (`Pss` in proc_pid_smaps(5)). 0 when none runs.
    async fn memory(&self, instance: InstanceId) -> Result<u64>;

    /// The last `lines` lines of the instance's Odoo log, then, when `follow`, new ones as they come, across rotations, until the receiver goes.
    async fn odoo_log(&self, instance: InstanceId, lines: usize, follow: bool) -> Result<tokio::sync::mpsc::Receiver<String>>;

    /// How many errors the instance's Odoo has logged since, as far back as its log goes. Such as only tell that a request is tried again are not
    /// among them.
    async fn logged_errors(&self, instance: InstanceId, since: DateTime<Utc>) -> Result<u64>;

    /// Housekeeping: rotates logs that have grown past their limit, and makes a pool image that is nearly full larger, up to its own.
    async fn rotate_logs(&self) -> Result<()>;

    /// Puts a complete snapshot into force at this server's edge; the answer is the generation then in force. The edge stores it and serves
    /// by it when it starts alone. The same snapshot again is done. `Fenced` when the edge has a newer generation; `Machine` when it does not answer.
    async fn apply_routes(&self, snapshot: RouteSnapshot) -> Result<u64>;

    /// What passes through this server's edge, by instance and slot. `Machine` when it does not answer.
    async fn edge_status(&self) -> Result<EdgeStatus>;

    /// What the users of an instance got from this server's edge until now, by slot; `None` when it has no route there. Two of them give what happened
    /// in between. `Machine` when the edge does not answer.
    async fn traffic(&self, instance: InstanceId) -> Result<Option<RouteTraffic>>;

    /// The same of every instance that the edge has, for the metrics.
    async fn all_traffic(&self) -> Result<Vec<RouteTraffic>>;

    /// The sleeping instances that somebody has asked for after that sequence (0 at first, then what the last answer said). Waits some seconds
    /// for one; an answer without any is no error. May run twice.
    async fn wanted(&self, after: u64) -> Result<Wanted>;
}
