//! The data plane of the machine that this program runs on.

mod backup_recovery;
mod below;
pub mod build_users;
pub mod cgroups;
pub mod cluster;
pub mod config;
pub mod copy;
mod data_locks;
pub mod data_sets;
mod database;
#[allow(clippy::disallowed_methods, reason = "these trees are root's own, or sealed before anybody works in them")]
pub mod distribution;
pub mod durable;
mod egress;
pub mod exec;
mod exports;
mod facts;
pub mod fence;
mod firewall;
mod forked;
mod host;
mod imports;
mod instances;
pub mod layout;
pub mod ledger;
mod mail;
pub mod networks;
mod odoo;
mod packaged;
mod pip;
pub mod pool;
mod private;
mod private_cluster;
pub mod process;
mod quarantine;
#[allow(clippy::disallowed_methods, reason = "these trees are root's own, or sealed before anybody works in them")]
mod releases;
mod schema;
pub mod slots;
mod snapshots;
#[allow(clippy::disallowed_methods, reason = "these trees are root's own, or sealed before anybody works in them")]
mod sources;
mod templates;
mod unlogged;
mod users;

use std::{os::unix::fs::PermissionsExt, path::Path};

use nix::unistd::geteuid;
use ocore_machine::ports::Ports;
use ocore_model::ids::InstanceId;

use self::{
    cgroups::Cgroups,
    fence::Fences,
    layout::Layout,
    ledger::Ledger,
    pool::Pool,
    snapshots::{prepared::PreparedCopies, warm_copy::WarmCopies},
};
pub use self::{
    config::{BuildLimits, BuildsConfig, EgressConfig, EnforceEgress, InstanceLimits, LocalHostConfig, LogLimits, Patience, PoolConfig},
    odoo::nursery::WarmStarts,
    private_cluster::PrivateCluster,
};
use crate::{
    EdgeClient, MailClient,
    error::{HostError, Result},
};

/// This machine as a [`Host`](crate::Host). All that it must not forget is in its home; another value on the same home finds it there.
pub struct LocalHost {
    pub config: LocalHostConfig,
    pub layout: Layout,
    pub ledger: Ledger,
    pub pool: Pool,
    pub cgroups: Cgroups,
    edge: EdgeClient,
    mail: MailClient,
    fences: Fences,
    template_turn: tokio::sync::Mutex<()>,
    warm_copies: WarmCopies,
    prepared_copies: PreparedCopies,
    workshop: tokio::sync::Mutex<()>,
    builds: releases::Turns,
    fetch_places: pip::FetchPlaces,
    data_locks: data_locks::DataLocks,
    uploading: imports::Uploading,
    nurseries: odoo::nursery::Nurseries,
    /// Who holds the ports of the instances.
    pub ports: Ports,
    listening: odoo::listening::Listening,
}

impl LocalHost {
    /// Makes or finds the home, mounts the pool, and clears away what a crash has left half-made. Touches no running process. Needs root.
    pub async fn open(config: LocalHostConfig) -> Result<Self> {
        config.check()?;
        private::require_visible(&[&config.home, &config.pool.path, &config.distributions])?;
        make_home(&config)?;
        let layout = Layout::new(&config);
        let ledger = Ledger::open(&config).await?;
        let pool = Pool::open(&config.pool).await?;
        durable::make_directory(&layout.instances(), 0o711)?;
        odoo::printing::prepare(&layout)?;
        let host = Self {
            cgroups: Cgroups::detect(&config.home, config.limits, config.build_limits),
            edge: EdgeClient::new(&config.edge_socket),
            mail: MailClient::new(layout.mail_socket()),
            fences: Fences::new(layout.fences()),
            template_turn: tokio::sync::Mutex::default(),
            warm_copies: WarmCopies::default(),
            prepared_copies: PreparedCopies::default(),
            workshop: tokio::sync::Mutex::default(),
            builds: releases::Turns::default(),
            fetch_places: pip::FetchPlaces::default(),
            data_locks: data_locks::DataLocks::default(),
            uploading: imports::Uploading::default(),
            nurseries: odoo::nursery::Nurseries::new(layout.clone(), config.warm_starts),
            ports: config.held_ports()?,
            listening: odoo::listening::Listening::default(),
            config,
            layout,
            ledger,
            pool,
        };
        host.sweep().await?;
        host.restore_egress().await;
        Ok(host)
    }

    /// Stops all instances of a home, gracefully and then by force, and leaves their data. The pool stays mounted.
    pub async fn stop_all(&self) -> Result<()> {
        for instance in self.ledger.instances().await? {
            self.stop_instance(instance).await?;
        }
        odoo::nursery::stop_all(&self.layout).await
    }

    async fn stop_instance(&self, instance: InstanceId) -> Result<()> {
        self.stop_questions(instance).await?;
        for data_set in self.data_sets(instance)? {
            self.stop_users_of(instance, data_set).await?;
            let allocation = self.allocation(instance).await?;
            self.cluster(&allocation, instance, data_set)?.stop().await?;
        }
        Ok(())
    }
}

/// Ends everything that runs from a home and removes the home with all data, users, mounts, control groups and network rules. Absent is done.
pub async fn purge(config: &LocalHostConfig) -> Result<()> {
    if !config.home.exists() {
        egress::purge(config).await;
        return Ok(());
    }
    let ledger = Ledger::open(config).await?;
    let cgroups = Cgroups::detect(&config.home, config.limits, config.build_limits);
    odoo::nursery::stop_all(&Layout::new(config)).await?;
    if let Some(cluster) = PrivateCluster::find(config).await? {
        cluster.stop().await?;
    }
    for instance in ledger.instances().await? {
        // Its data goes too, so nothing has to end gracefully.
        ledger.release(instance).await?;
        cgroups.remove(instance);
    }
    ledger.release_control().await?;
    ledger.remove_all_users().await?;
    // Builds, and whatever else works in the home, would keep the pool from being unmounted.
    let builds = config.build_uids.clone();
    process::end_all(|entry| {
        entry.uid().is_some_and(|uid| builds.contains(&uid)) && entry.cwd().is_some_and(|cwd| cwd.starts_with(&config.home))
    })
    .await?;
    ledger.remove_build_claims(&cgroups).await?;
    cgroups.remove_empty();
    egress::purge(config).await;
    pool::purge(&config.pool).await?;
    durable::remove_tree(&config.home)
}

/// The home and the directories in it that everything needs.
fn make_home(config: &LocalHostConfig) -> Result<()> {
    if !geteuid().is_root() {
        return Err(HostError::machine("oCore runs instances as users of their own and must therefore run as root"));
    }
    let layout = Layout::new(config);
    layout.check()?;
    durable::make_directory(&config.home, 0o711)?;
    durable::make_directory(&layout.state(), 0o700)?;
    durable::make_directory(&layout.fences(), 0o700)?;
    durable::make_directory(&layout.sockets(), 0o711)?;
    check_passage(&config.home)
}

/// The users of instances must be able to pass through every directory above the home.
fn check_passage(home: &Path) -> Result<()> {
    for directory in home.ancestors().skip(1) {
        let metadata = std::fs::metadata(directory)
            .map_err(|error| HostError::machine_from(format!("{} could not be looked at: {error}", directory.display()), error))?;
        if metadata.permissions().mode() & 0o001 == 0 {
            return Err(HostError::machine(format!(
                "the users of instances cannot pass through {}; choose another home, or `chmod o+x` it",
                directory.display()
            )));
        }
    }
    Ok(())
}
