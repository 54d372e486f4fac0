//! What is let through, and for whom: the rules of each chain but for its last one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use ipnet::IpNet;
use ocore_model::ids::InstanceId;
use sha2::{Digest, Sha256};

use super::{SHUT, refuse_chain};
use crate::{
    api::Egress,
    local::networks::{NEVER, PRIVATE, is_never, of_family},
};

/// Domain names are asked for here.
const DOMAIN_PORT: u16 = 53;

/// One instance as the rules see it.
#[derive(Debug, Clone)]
pub(in crate::local) struct Confined {
    pub(in crate::local) instance: InstanceId,
    pub(in crate::local) postgres: u32,
    pub(in crate::local) odoo: u32,
    /// Ports on the loopback interface where its own Odoos listen.
    pub(in crate::local) ports: Vec<u16>,
    pub(in crate::local) mail: SocketAddr,
    pub(in crate::local) egress: Egress,
    /// The machine's name servers, when it may ask them.
    pub(in crate::local) name_servers: Vec<IpAddr>,
    /// What the operator takes out of [`NEVER`].
    pub(in crate::local) except: Vec<IpNet>,
}

/// Whoever downloads for builds.
#[derive(Debug, Clone, Default)]
pub(in crate::local) struct Fetching {
    pub(in crate::local) fetcher: u32,
    pub(in crate::local) name_servers: Vec<IpAddr>,
    /// Indexes that lie where nothing else may be reached, with their ports, and what the operator allows.
    pub(in crate::local) places: BTreeSet<(IpNet, Option<u16>)>,
}

impl Fetching {
    pub(super) fn rules(&self) -> Vec<String> {
        let mut rules: Vec<String> = destinations(self.name_servers.iter().map(|address| SocketAddr::new(*address, DOMAIN_PORT))).collect();
        for (network, port) in &self.places {
            let family = if network.addr().is_ipv4() { "ip" } else { "ip6" };
            let port = port.map_or_else(String::new, |port| format!(" tcp dport {port}"));
            rules.push(format!("{family} daddr {network}{port} accept"));
        }
        rules.push(format!(r#"oifname "lo" goto {SHUT}"#));
        rules.extend(refusals(NEVER, SHUT));
        rules.extend(refusals(PRIVATE, SHUT));
        rules.push("tcp dport { 80, 443 } accept".to_owned());
        rules
    }

    pub(super) fn mark(&self) -> String {
        hex::encode(&Sha256::digest(self.rules().join("\n"))[..12])
    }
}

/// Rules that send what is for these networks to a chain that refuses it.
fn refusals<'a>(networks: impl IntoIterator<Item = &'a str> + Clone, chain: &str) -> Vec<String> {
    let rule = |family: &str, four| format!("{family} daddr {{ {} }} goto {chain}", of_family(networks.clone(), four).join(", "));
    vec![rule("ip", true), rule("ip6", false)]
}

impl Confined {
    fn own_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).chain([self.mail])
    }

    /// What its chain says, a rule a line, but for the last one.
    pub(super) fn rules(&self, instance_ports: &Range<u16>) -> Vec<String> {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let answers = format!(r#"oifname "lo" tcp sport {{ {} }} tcp flags & (syn | ack) != syn accept"#, ports.join(", "));
        let name_servers = self.name_servers.iter().map(|address| SocketAddr::new(*address, DOMAIN_PORT));
        match &self.egress {
            // Even who may go everywhere may not go to a neighbour: the ports of instances are the edge's alone. Clouds have name servers among what
            // is never reached.
            Egress::Open => {
                let mut rules: Vec<String> = destinations(name_servers).collect();
                rules.extend(self.except.iter().map(|network| {
                    let family = if network.addr().is_ipv4() { "ip" } else { "ip6" };
                    format!("{family} daddr {network} accept")
                }));
                rules.extend(refusals(NEVER, &refuse_chain(self.odoo)));
                rules.extend([r#"oifname != "lo" accept"#.to_owned(), answers]);
                rules.extend(destinations(self.own_addresses()));
                rules.push(format!("tcp dport != {}-{} accept", instance_ports.start, instance_ports.end.saturating_sub(1)));
                rules.push("meta l4proto != tcp accept".to_owned());
                rules
            }
            Egress::Closed { allow, .. } => {
                // Whoever may allow places for an environment is a tenant, too.
                let is_allowed =
                    |address: &SocketAddr| !is_never(address.ip()) || self.except.iter().any(|network| network.contains(&address.ip()));
                let allow = allow.iter().copied().filter(is_allowed);
                let mut rules = vec![answers];
                rules.extend(destinations(self.own_addresses().chain(allow).chain(name_servers)));
                rules
            }
        }
    }

    /// The comment of the chain's last rule: whose it is, of which kind, and a hash of all that it says.
    pub(super) fn mark(&self, instance_ports: &Range<u16>) -> String {
        let digest = Sha256::digest(self.rules(instance_ports).join("\n"));
        format!("{} {}", self.subject(), hex::encode(&digest[..12]))
    }

    /// As long as this stays the same, what was counted stays too.
    pub(super) fn subject(&self) -> String {
        let kind = if self.egress == Egress::Open { "open" } else { "closed" };
        format!("{} {kind}", self.instance)
    }
}

/// Rules that let these through, TCP and UDP.
fn destinations(addresses: impl Iterator<Item = SocketAddr>) -> impl Iterator<Item = String> {
    let mut families: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for address in addresses {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        for protocol in ["tcp", "udp"] {
            families.entry(family).or_default().insert(format!("{} . {protocol} . {}", address.ip(), address.port()));
        }
    }
    families.into_iter().map(|(family, elements)| {
        let elements: Vec<String> = elements.into_iter().collect();
        format!("{family} daddr . meta l4proto . th dport {{ {} }} accept", elements.join(", "))
    })
}
