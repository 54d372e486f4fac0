//! The control plane's own cluster, when nobody gave it a database: made and run by the very code that makes those of instances.

use std::os::unix::fs::chown;

use super::{
    cluster::{self, Cluster, ClusterMemory, Tenant},
    config::LocalHostConfig,
    copy::WorkDirectory,
    durable, facts,
    layout::Layout,
    ledger::Ledger,
};
use crate::error::{HostError, Result};

/// The role and the database.
const NAME: &str = "ocore";

/// A private cluster that runs.
pub struct PrivateCluster {
    cluster: Cluster,
}

impl PrivateCluster {
    /// Makes it when it is not there, starts it when it does not run, adopts it when it does. Needs root.
    pub async fn start(config: &LocalHostConfig) -> Result<Self> {
        config.check()?;
        super::make_home(config)?;
        let layout = Layout::new(config);
        let ledger = Ledger::open(config).await?;
        let user = ledger.allocate_control().await?;
        let directory = layout.control();
        durable::make_directory(&directory, 0o711)?;
        super::copy::sweep(&directory)?;
        let cluster = describe(config, user)?;
        if !cluster.pgdata.exists() {
            let work = WorkDirectory::create(&cluster.pgdata).await?;
            let uid = cluster.user.uid;
            chown(work.path(), Some(uid), Some(uid))
                .map_err(|error| HostError::machine_from("the private cluster's directory has no owner", error))?;
            cluster::initialise(&config.postgres_bin()?, work.path(), &cluster.user, &cluster.tenant).await?;
            work.keep().await?;
        }
        cluster.start().await?;
        Ok(Self { cluster })
    }

    /// Finds the cluster of a home, running or not; `None` when it was never made.
    pub async fn find(config: &LocalHostConfig) -> Result<Option<Self>> {
        if !config.home.exists() {
            return Ok(None);
        }
        let Some(user) = Ledger::open(config).await?.find_control().await? else { return Ok(None) };
        Ok(Some(Self { cluster: describe(config, user)? }))
    }

    /// Its address for clients that run as root.
    pub fn url(&self) -> String {
        let directory = self.cluster.socket_directory.display().to_string();
        let encoded: String = directory
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect();
        format!("postgres://{NAME}@localhost/{NAME}?host={encoded}")
    }

    /// Stops it. Not running is done.
    pub async fn stop(&self) -> Result<()> {
        self.cluster.stop().await
    }

    pub async fn is_healthy(&self) -> bool {
        self.cluster.is_healthy().await
    }
}

fn describe(config: &LocalHostConfig, user: super::ledger::OsUser) -> Result<Cluster> {
    let layout = Layout::new(config);
    let record = layout.control_record();
    durable::make_directory(record.parent().unwrap_or(layout.home()), 0o700)?;
    Ok(Cluster {
        pgdata: layout.control().join("pgdata"),
        socket_directory: layout.control_socket_directory(),
        log: layout.control().join("log"),
        record,
        mark: format!("{}/control", layout.home().display()),
        data_set: None,
        socket_gid: user.uid,
        passage_gid: user.uid,
        trusts_its_group: false,
        tenant: Tenant { name: NAME, os_users: vec![facts::own_user_name()?, user.name.clone()], extensions: &[] },
        memory: ClusterMemory { shared_buffers: 64 * 1024 * 1024, ..ClusterMemory::for_machine(facts::memory_total()?) },
        max_connections: 100,
        place: None,
        user,
    })
}
