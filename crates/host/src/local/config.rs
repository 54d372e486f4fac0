//! What an operator decides about a server's data plane.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use ocore_machine::ports::Ports;
use ocore_model::names::OdooVersion;
use serde::Deserialize;

use super::{distribution::ExternalDistribution, facts, networks::Place, pip};
use crate::error::{HostError, Result};

const GIB: u64 = 1024 * 1024 * 1024;

/// Everything that [`LocalHost`](super::LocalHost) needs to know.
#[derive(Debug, Clone)]
pub struct LocalHostConfig {
    /// The directory for everything that oCore keeps on this server. Absolute; short, since sockets below it have at most 107 bytes.
    pub home: PathBuf,
    pub pool: PoolConfig,
    /// Numbers for the users of instances; real users with entries in the system's user database. Two an instance.
    pub uids: Range<u32>,
    /// Numbers for the groups of releases; no entries are made.
    pub release_gids: Range<u32>,
    /// Numbers for the users of builds; no entries are made. As many builds run at once at most.
    pub build_uids: Range<u32>,
    /// TCP ports on the loopback interface. Five an instance: two for each slot, one for its mail catcher.
    pub ports: Range<u16>,
    /// The socket of the process that holds these ports; `None`: this process does, and they are free when it ends.
    pub port_keeper: Option<PathBuf>,
    /// Where new clusters' programs are; `None` for the newest of Debian's `/usr/lib/postgresql/*/bin`. An existing cluster uses Debian's
    /// programs of its own major version when they are installed.
    pub postgres_bin: Option<PathBuf>,
    /// One directory for each Odoo distribution.
    pub distributions: PathBuf,
    /// Odoo series whose source and Python environment the operator keeps; they go before installed ones.
    pub external_distributions: BTreeMap<OdooVersion, ExternalDistribution>,
    /// Whether Odoos are forked from a parent that has imported it already, where that is possible.
    pub warm_starts: bool,
    /// The administration socket of this server's edge.
    pub edge_socket: PathBuf,
    pub logs: LogLimits,
    pub limits: InstanceLimits,
    pub build_limits: BuildLimits,
    pub patience: Patience,
    pub egress: EgressConfig,
    pub builds: BuildsConfig,
}

/// What builds may reach.
#[derive(Debug, Clone)]
pub struct BuildsConfig {
    /// Reached besides the package indexes and the public hosts that a project's requirements name.
    pub allow: Vec<Place>,
    /// What the operator set for pip, as in the environment of pip itself: `PIP_*`, proxies, certificates. No build sees it.
    pub pip: Vec<(OsString, OsString)>,
}

impl Default for BuildsConfig {
    fn default() -> Self {
        Self { allow: Vec::new(), pip: pip::of_this_process() }
    }
}

/// How the network is kept from instances that are closed.
#[derive(Debug, Clone)]
pub struct EgressConfig {
    pub enforce: EnforceEgress,
    /// The program that reads and changes the kernel's rules, by path or by name.
    pub nft: PathBuf,
    /// Of the networks that no instance reaches, link-local ones and others where clouds answer a machine's own questions, those that open instances reach
    /// all the same, and closed ones when somebody allows it.
    pub except: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnforceEgress {
    /// Nothing of a closed instance starts where the rules cannot be put into force.
    Required,
    /// Nothing is refused, and whoever asks is told so.
    Off,
}

/// Where instances, releases and copies live.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    pub path: PathBuf,
    /// A sparse XFS image that is mounted at `path` when the file system there has no reflinks; `None` to do without.
    pub image: Option<PathBuf>,
    /// The size that a new image claims, in bytes. It takes only what is used.
    pub image_size: u64,
    /// The size that a full image may grow to, in bytes.
    pub image_size_limit: u64,
    /// Kept free by whatever asks before it writes (copies, snapshots, uploads), in the pool and on the disk below its image, in bytes. Of a small pool at
    /// most a sixth.
    pub reserve: u64,
}

/// When a log is rotated, and how many old ones are kept.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    pub max_bytes: u64,
    pub keep: usize,
}

/// What all processes of one instance may take together, where control groups are there.
#[derive(Debug, Clone, Copy, Default)]
pub struct InstanceLimits {
    pub memory_bytes: Option<u64>,
    /// Thousandths of one core.
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    pub processes: Option<u32>,
}

/// What all processes of one build may take together, where control groups are there.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuildLimits {
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u32>,
}

/// Workers, threads, PostgreSQL's sessions and what prints reports are some hundred in a large instance.
const INSTANCE_PROCESSES: u32 = 4096;
/// A compiler for each core, and what starts them.
const BUILD_PROCESSES: u32 = 1024;

impl BuildLimits {
    /// Half of the memory, so that two builds at once do not take the machine down.
    pub fn of_this_machine() -> Self {
        Self { memory_bytes: facts::memory_total().ok().map(|total| total / 2), processes: Some(BUILD_PROCESSES) }
    }
}

impl InstanceLimits {
    /// No instance alone can take this machine down: three quarters of its memory, the rest stays for everything else.
    pub fn of_this_machine() -> Self {
        Self { memory_bytes: facts::memory_total().ok().map(|total| total / 4 * 3), cpu_millis: None, processes: Some(INSTANCE_PROCESSES) }
    }
}

/// How long is waited for an Odoo that does not come. Whoever waits for a deployment has a shorter one of his own where a rehearsal told how long it takes.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From its start until it has loaded the database: a large one takes its time.
    pub start: Duration,
    /// For one page, of an Odoo that has loaded its database.
    pub answer: Duration,
    /// For all modules that are installed or updated in one go.
    pub update: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { start: Duration::from_mins(10), answer: Duration::from_secs(30), update: Duration::from_hours(12) }
    }
}

impl LocalHostConfig {
    /// The usual configuration for a home directory.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        let home = home.into();
        Self {
            pool: PoolConfig {
                path: home.join("pool"),
                image: Some(home.join("pool.xfs")),
                image_size: 64 * GIB,
                image_size_limit: 1024 * GIB,
                reserve: GIB,
            },
            uids: 20_000..30_000,
            release_gids: 30_000..40_000,
            build_uids: 40_000..40_064,
            ports: 20_000..30_000,
            port_keeper: None,
            postgres_bin: None,
            distributions: home.join("odoo"),
            external_distributions: BTreeMap::new(),
            warm_starts: true,
            edge_socket: home.join("edge").join("admin.sock"),
            logs: LogLimits { max_bytes: 32 * 1024 * 1024, keep: 5 },
            limits: InstanceLimits::of_this_machine(),
            build_limits: BuildLimits::of_this_machine(),
            patience: Patience::default(),
            egress: EgressConfig { enforce: EnforceEgress::Required, nft: PathBuf::from("nft"), except: Vec::new() },
            builds: BuildsConfig::default(),
            home,
        }
    }

    /// Where the programs for a new cluster are.
    pub fn postgres_bin(&self) -> Result<PathBuf> {
        match &self.postgres_bin {
            Some(bin) => Ok(bin.clone()),
            None => newest_postgres_bin().ok_or_else(|| {
                HostError::machine("PostgreSQL is not installed: there is no /usr/lib/postgresql/*/bin; install the package `postgresql`")
            }),
        }
    }

    /// Who holds the instances' ports.
    pub fn held_ports(&self) -> Result<Ports> {
        match &self.port_keeper {
            Some(socket) => Ok(Ports::kept_at(socket)),
            None => Ports::of_this_process(&self.home)
                .map_err(|error| HostError::machine_from(format!("the ports of instances cannot be held: {error}"), error)),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if !self.home.is_absolute() || !self.pool.path.is_absolute() {
            return Err(HostError::machine("the home and the pool of a host must be absolute paths"));
        }
        Ok(())
    }
}

fn newest_postgres_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").is_file())
        .max()
        .map(|(_, bin)| bin)
}

/// Debian's programs of one major version, when they are installed.
pub(super) fn postgres_bin_of(major: u32) -> Option<PathBuf> {
    let bin = Path::new("/usr/lib/postgresql").join(major.to_string()).join("bin");
    bin.join("postgres").is_file().then_some(bin)
}
