//! What the processes of an instance may reach: written down for each instance, put into force in the kernel, kept there.
//!
//! An instance that nothing is written down for is closed. Nothing of a closed instance starts while the rules cannot be put into force, unless
//! the operator has switched the protection off.

use std::{fs, net::IpAddr};

use nix::fcntl::{Flock, FlockArg};
use ocore_model::{ids::InstanceId, instance::Color};
use serde::{Deserialize, Serialize};

use super::{
    LocalHost,
    config::EnforceEgress,
    durable::{self, blocking},
    firewall::{Confined, Fetching, Firewall},
    ledger::{self, Allocation},
};
use crate::{
    LocalHostConfig,
    api::{Egress, EgressReport},
    error::{HostError, Result},
};

/// Where the machine's name servers are written down (resolv.conf(5)).
const RESOLVER_FILE: &str = "/etc/resolv.conf";

/// What is written down for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Policy {
    version: i64,
    egress: Egress,
}

impl LocalHost {
    /// Writes the policy down and puts it into force. A policy that closes and cannot be put into force is an error; it is written down all the
    /// same, so that nothing of the instance starts.
    pub(super) async fn change_egress(&self, instance: InstanceId, egress: Egress, version: i64) -> Result<()> {
        self.allocation(instance).await?;
        let is_open = egress == Egress::Open;
        let turn = self.egress_turn().await?;
        let layout = self.layout.clone();
        blocking(move || {
            let path = layout.egress_policy(instance);
            durable::make_directory(&layout.egress_policies(), 0o700)?;
            // One that cannot be read is replaced.
            match durable::read_json::<Policy>(&path) {
                Ok(Some(newest)) if newest.version > version => {
                    return Err(HostError::Fenced { held: version, newest: newest.version });
                }
                Ok(Some(same)) if same == (Policy { version, egress: egress.clone() }) => return Ok(()),
                _ => {}
            }
            durable::write_json(&path, &Policy { version, egress })
        })
        .await?;
        drop(turn);
        match self.put_egress_into_force().await {
            Err(error) if is_open => {
                tracing::warn!(%instance, %error, "an open instance can reach its neighbours' ports and the metadata service of a cloud");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// Called before anything of the instance starts, and again when its ports have changed. Without a policy that is in force nothing of a
    /// closed instance starts.
    pub(super) async fn confine(&self, instance: InstanceId) -> Result<()> {
        match self.put_egress_into_force().await {
            Err(error) if self.egress_policy(instance) == Egress::Open => {
                tracing::warn!(%instance, %error, "an open instance can reach its neighbours' ports and the metadata service of a cloud");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// Everything that is written down, in the kernel. Says whether something had to be changed.
    pub(super) async fn put_egress_into_force(&self) -> Result<bool> {
        let firewall = firewall(&self.config);
        let _turn = self.egress_turn().await?;
        if self.config.egress.enforce == EnforceEgress::Off {
            if let Err(error) = firewall.remove().await {
                tracing::debug!(%error, "network rules from before egress.enforce was \"off\", if there are any, could not be removed");
            }
            return Ok(false);
        }
        let mut wanted = Vec::new();
        for instance in self.ledger.instances().await? {
            // One that is being destroyed meanwhile is gone from the ledger.
            if let Some(allocation) = self.ledger.find(instance).await? {
                wanted.push(self.confined(instance, &allocation));
            }
        }
        let fetching = self.fetching().await?;
        if wanted.is_empty() && fetching.is_none() {
            firewall.remove().await?;
            return Ok(false);
        }
        firewall.enforce(&wanted, fetching.as_ref()).await
    }

    /// What whoever downloads for builds may reach; `None` while nobody has had to.
    async fn fetching(&self) -> Result<Option<Fetching>> {
        let Some(fetcher) = self.ledger.find_fetcher().await? else { return Ok(None) };
        let name_servers = name_servers(&fs::read_to_string(RESOLVER_FILE).unwrap_or_default());
        Ok(Some(Fetching { fetcher: fetcher.uid, name_servers, places: self.fetch_places.known(&self.config.builds) }))
    }

    /// At the start of a host: what cannot be put into force now is said once; what needs it says so when it starts.
    pub(super) async fn restore_egress(&self) {
        if self.config.egress.enforce == EnforceEgress::Off {
            tracing::warn!("egress.enforce is \"off\": non-production instances reach whatever this machine reaches");
        }
        if let Err(error) = forget_vanished_homes(&self.config).await {
            tracing::debug!(%error, "network rules of homes that are gone, if there are any, stay");
        }
        match self.put_egress_into_force().await {
            Ok(true) => tracing::info!("the network rules of instances are in force again"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "closed instances do not start"),
        }
    }

    /// Forgets the policy of an instance whose users are gone.
    pub(super) async fn forget_egress(&self, instance: InstanceId) -> Result<()> {
        let path = self.layout.egress_policy(instance);
        durable::remove_fleeting(&path)
            .map_err(|error| HostError::machine_from(format!("{} could not be removed", path.display()), error))?;
        // Rules for users that are not there do no harm, and whoever gets their numbers gets rules of its own first.
        if let Err(error) = self.put_egress_into_force().await {
            tracing::warn!(%instance, %error, "the network rules of a destroyed instance could not be removed");
        }
        Ok(())
    }

    pub(super) async fn report_egress(&self, instance: InstanceId) -> Result<EgressReport> {
        let allocation = self.allocation(instance).await?;
        if self.config.egress.enforce == EnforceEgress::Off {
            let problem = "egress.enforce is \"off\" in this server's configuration".to_owned();
            return Ok(EgressReport { enforced: false, problem: Some(problem), attempts: Vec::new() });
        }
        let firewall = firewall(&self.config);
        let look = async {
            let enforced = firewall.confines(&firewall.read().await?, &self.confined(instance, &allocation));
            Ok::<_, HostError>((enforced, firewall.refused(allocation.odoo.uid).await?))
        };
        let (enforced, mut attempts) = match look.await {
            Ok(found) => found,
            Err(error) => return Ok(EgressReport { enforced: false, problem: Some(error.to_string()), attempts: Vec::new() }),
        };
        // What has been allowed since was refused then, and nobody has to do anything about it any more.
        if let Egress::Closed { allow, .. } = self.egress_policy(instance) {
            attempts.retain(|attempt| !allow.contains(&attempt.destination));
        }
        let problem = "the rules are not in force; they are put into force within a minute";
        Ok(EgressReport { enforced, problem: (!enforced).then(|| problem.to_owned()), attempts })
    }

    fn confined(&self, instance: InstanceId, allocation: &Allocation) -> Confined {
        let egress = self.egress_policy(instance);
        let resolves = matches!(egress, Egress::Open | Egress::Closed { resolve_names: true, .. });
        Confined {
            instance,
            postgres: allocation.postgres.uid,
            odoo: allocation.odoo.uid,
            ports: Color::ALL.iter().map(|color| allocation.ports.of(*color)).flat_map(|slot| [slot.http, slot.websocket]).collect(),
            mail: allocation.mail_address(),
            egress,
            name_servers: if resolves { name_servers(&fs::read_to_string(RESOLVER_FILE).unwrap_or_default()) } else { Vec::new() },
            except: self.config.egress.except.clone(),
        }
    }

    /// What is written down; closed when nothing is, or nothing that can be read.
    pub(super) fn egress_policy(&self, instance: InstanceId) -> Egress {
        match durable::read_json::<Policy>(&self.layout.egress_policy(instance)) {
            Ok(found) => found.map_or_else(Egress::default, |policy| policy.egress),
            Err(error) => {
                tracing::error!(%instance, %error, "an instance's network policy cannot be read; the instance is closed");
                Egress::default()
            }
        }
    }

    /// One change of the rules at a time, also among processes.
    async fn egress_turn(&self) -> Result<Flock<fs::File>> {
        let path = self.layout.egress_lock();
        blocking(move || {
            let file = ledger::open_lock(&path)?;
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, error)| HostError::machine_from("the network rules could not be locked", error))
        })
        .await
    }
}

/// Removes all rules of a home. Absent is done. A machine on which nobody may change rules has none.
pub(super) async fn purge(config: &LocalHostConfig) {
    if let Err(error) = firewall(config).remove().await {
        tracing::warn!(%error, home = %config.home.display(), "the network rules of a home could not be removed, if there are any");
    }
}

/// Removes the rules of homes that are not there any more, so that they confine nobody else.
async fn forget_vanished_homes(config: &LocalHostConfig) -> Result<()> {
    for vanished in firewall(config).of_vanished_homes().await? {
        match vanished.remove().await {
            Ok(()) => tracing::info!(table = vanished.table(), "removed the network rules of a home that is gone"),
            Err(error) => {
                tracing::debug!(%error, table = vanished.table(), "the network rules of a home that is gone stay, or went by another hand");
            }
        }
    }
    Ok(())
}

fn firewall(config: &LocalHostConfig) -> Firewall {
    Firewall::new(&config.egress.nft, &config.home, config.ports.clone(), config.build_uids.clone())
}

/// The addresses in a resolv.conf(5).
fn name_servers(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.split_whitespace().next()?.split('%').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_resolver_reads_them() {
        let text =
            "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n nameserver\tfe80::1%eth0 # ours\nnameserver nonsense\n";
        assert_eq!(name_servers(text), ["192.0.2.1".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    }
}
