//! The kernel's rules about what instances may reach: one nftables table for each home, read and changed by the program `nft`.
//!
//! ```text
//! chain output        every packet that a process of this machine sends: by the sender's user, to a chain of its instance
//! chain odoo_<uid>    what that instance's Odoo may do; the rest goes on to …
//! chain refuse_<uid>  counted by destination, and refused at once, so that nobody waits for an answer that never comes
//! ```
//!
//! The kernel finds the chain by one look into a map, however many instances there are. PostgreSQL goes straight to `refuse`: it talks
//! through Unix sockets alone, and `COPY … TO PROGRAM` must not be a way out. No rule needs the kernel to track connections, which would cost
//! every connection of the machine, the edge's too: an answer is known by the port that it comes from and by not opening a connection.
//!
//! The last rule of an instance's chain carries a comment that says what the chain was made from; so a change, and rules that somebody has
//! removed, are seen, and what is right is left alone with its counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt::Write,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_model::ids::InstanceId;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    exec::{Finished, Program},
    process,
};
use crate::{
    api::{Egress, EgressAttempt},
    error::{HostError, Result},
};

/// Reading and changing takes milliseconds; a kernel that takes longer has another trouble.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Destinations that are counted for each instance and kind of address. More are refused all the same.
const COUNTED: u32 = 4096;
/// Rules of a `refuse` chain.
const REFUSALS: usize = 4;
/// Domain names are asked for here.
const DOMAIN_PORT: u16 = 53;

/// One instance as the rules see it.
#[derive(Debug, Clone)]
pub(super) struct Confined {
    pub(super) instance: InstanceId,
    pub(super) postgres: u32,
    pub(super) odoo: u32,
    /// Ports on the loopback interface where its own Odoos listen.
    pub(super) ports: Vec<u16>,
    pub(super) mail: SocketAddr,
    pub(super) egress: Egress,
    /// The machine's name servers, when it may ask them.
    pub(super) name_servers: Vec<IpAddr>,
}

impl Confined {
    fn own_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).chain([self.mail])
    }

    /// What its chain says, a rule a line, but for the last one.
    fn rules(&self, instance_ports: &Range<u16>) -> Vec<String> {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let answers = format!(r#"oifname "lo" tcp sport {{ {} }} tcp flags & (syn | ack) != syn accept"#, ports.join(", "));
        match &self.egress {
            // Even who may go everywhere may not go to a neighbour: the ports of instances are the edge's alone.
            Egress::Open => {
                let mut rules = vec![r#"oifname != "lo" accept"#.to_owned(), answers];
                rules.extend(destinations(self.own_addresses()));
                rules.push(format!("tcp dport != {}-{} accept", instance_ports.start, instance_ports.end.saturating_sub(1)));
                rules.push("meta l4proto != tcp accept".to_owned());
                rules
            }
            Egress::Closed { allow, .. } => {
                let name_servers = self.name_servers.iter().map(|address| SocketAddr::new(*address, DOMAIN_PORT));
                let mut rules = vec![answers];
                rules.extend(destinations(self.own_addresses().chain(allow.iter().copied()).chain(name_servers)));
                rules
            }
        }
    }

    /// The comment of the chain's last rule: whose it is, of which kind, and a hash of all that it says.
    fn mark(&self, instance_ports: &Range<u16>) -> String {
        let digest = Sha256::digest(self.rules(instance_ports).join("\n"));
        format!("{} {}", self.subject(), hex::encode(&digest[..12]))
    }

    /// As long as this stays the same, what was counted stays too.
    fn subject(&self) -> String {
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

/// What the kernel has of our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct InForce {
    exists: bool,
    /// The chain that the kernel enters has its rule.
    dispatches: bool,
    /// Where the packets of which user go.
    owners: BTreeMap<u32, String>,
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
    /// Rules of each chain.
    rules: BTreeMap<String, usize>,
    /// The comment of each chain's last rule.
    marks: BTreeMap<String, String>,
}

impl InForce {
    fn read(table: &Value, owners: &Value) -> Self {
        let mut found = Self { exists: true, ..Self::default() };
        for object in objects(table) {
            if let Some(name) = object["chain"]["name"].as_str() {
                found.chains.insert(name.to_owned());
            } else if let Some(name) = object["set"]["name"].as_str() {
                found.sets.insert(name.to_owned());
            } else if let Some(chain) = object["rule"]["chain"].as_str() {
                *found.rules.entry(chain.to_owned()).or_default() += 1;
                let comment = object["rule"]["comment"].as_str().unwrap_or_default();
                found.marks.insert(chain.to_owned(), comment.to_owned());
            }
        }
        found.dispatches = found.rules.get("output") == Some(&1);
        for entry in objects(owners).filter_map(|object| object["map"]["elem"].as_array()).flatten() {
            if let (Some(uid), Some(chain)) = (entry[0].as_u64().and_then(|uid| uid.try_into().ok()), entry[1]["goto"]["target"].as_str()) {
                found.owners.insert(uid, chain.to_owned());
            }
        }
        found
    }

    /// The instance's rules are in force, all of them.
    pub(super) fn confines(&self, confined: &Confined, instance_ports: &Range<u16>) -> bool {
        self.dispatches
            && self.owners.get(&confined.odoo) == Some(&odoo_chain(confined.odoo))
            && self.owners.get(&confined.postgres) == Some(&refuse_chain(confined.odoo))
            && self.rules.get(&odoo_chain(confined.odoo)) == Some(&(confined.rules(instance_ports).len() + 1))
            && self.rules.get(&refuse_chain(confined.odoo)) == Some(&REFUSALS)
            && self.marks.get(&odoo_chain(confined.odoo)) == Some(&confined.mark(instance_ports))
    }

    /// Numbers in the names of chains and sets.
    fn numbers(&self) -> BTreeSet<u32> {
        self.chains.iter().chain(&self.sets).filter_map(|name| name.split_once('_')?.1.parse().ok()).collect()
    }
}

fn objects(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["nftables"].as_array().into_iter().flatten()
}

fn odoo_chain(odoo: u32) -> String {
    format!("odoo_{odoo}")
}

fn refuse_chain(odoo: u32) -> String {
    format!("refuse_{odoo}")
}

/// The sets of refused destinations: name and how a rule writes the address.
fn counters(odoo: u32) -> [(String, &'static str); 2] {
    [(format!("refused4_{odoo}"), "ip"), (format!("refused6_{odoo}"), "ip6")]
}

/// The table of one home.
#[derive(Debug, Clone)]
pub(super) struct Firewall {
    nft: PathBuf,
    table: String,
    instance_ports: Range<u16>,
}

impl Firewall {
    pub(super) fn new(nft: &Path, home: &Path, instance_ports: Range<u16>) -> Self {
        Self { nft: nft.to_owned(), table: table_name(home), instance_ports }
    }

    /// What the kernel has now.
    pub(super) async fn read(&self) -> Result<InForce> {
        let Some(table) = self.list(&["-t"], "table", "").await? else { return Ok(InForce::default()) };
        let Some(owners) = self.list(&[], "map", "owners").await? else { return Ok(InForce::default()) };
        Ok(InForce::read(&table, &owners))
    }

    /// The instance's rules are in force.
    pub(super) fn confines(&self, in_force: &InForce, confined: &Confined) -> bool {
        in_force.confines(confined, &self.instance_ports)
    }

    /// Makes the difference between what is in force and what should be, in one transaction of the kernel. Says whether there was one. With
    /// nobody to confine the table goes.
    pub(super) async fn enforce(&self, wanted: &[Confined]) -> Result<bool> {
        let in_force = self.read().await?;
        let Some(transaction) = self.transaction(&in_force, wanted) else { return Ok(false) };
        let finished = self.program(&["-f", "-"]).stdin(transaction).run().await.map_err(HostError::from);
        succeeded(finished).map(|_| true)
    }

    /// Removes the table. Absent is done, and so is a machine without `nft`.
    pub(super) async fn remove(&self) -> Result<()> {
        match self.enforce(&[]).await {
            Err(error) if self.is_absent() => {
                tracing::debug!(%error, "there is no program to remove firewall rules with");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// The tables of homes that are gone: whoever removes one by hand leaves its rules to those who get the same user numbers next. One whose users
    /// still run something is none of them; its home is only out of sight.
    pub(super) async fn of_vanished_homes(&self) -> Result<Vec<Self>> {
        let finished = succeeded(self.program(&["-j"]).args(["list", "tables", "inet"]).run().await.map_err(HostError::from))?;
        let mut vanished = Vec::new();
        for name in objects(&understood(&finished)?).filter_map(|object| object["table"]["name"].as_str()) {
            if !home_of(name).is_some_and(|home| home.try_exists().is_ok_and(|exists| !exists)) {
                continue;
            }
            let other = Self { table: name.to_owned(), ..self.clone() };
            // It may go at this moment, by another host's hand; the next ones are looked at all the same.
            let users = match other.read().await {
                Ok(in_force) => in_force.owners,
                Err(error) => {
                    tracing::debug!(%error, table = name, "the network rules of a home that is gone cannot be read");
                    continue;
                }
            };
            // What has ended and waits to be reaped runs nothing.
            if !process::scan().iter().any(|entry| !entry.is_dead() && entry.uid().is_some_and(|uid| users.contains_key(&uid))) {
                vanished.push(other);
            }
        }
        Ok(vanished)
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// What was refused to the instance with that user, the most frequent first.
    pub(super) async fn refused(&self, odoo: u32) -> Result<Vec<EgressAttempt>> {
        let mut attempts = Vec::new();
        for (set, _) in counters(odoo) {
            let Some(answer) = self.list(&[], "set", &set).await? else { continue };
            let elements = objects(&answer).filter_map(|object| object["set"]["elem"].as_array()).flatten();
            attempts.extend(elements.filter_map(attempt));
        }
        attempts.sort_by_key(|attempt| (std::cmp::Reverse(attempt.packets), attempt.destination));
        Ok(attempts)
    }

    /// The file that the text of a transaction goes through is standard input, so the words of `nft` name lines of it.
    fn transaction(&self, in_force: &InForce, wanted: &[Confined]) -> Option<String> {
        let table = format!("inet {}", self.table);
        if wanted.is_empty() {
            return in_force.exists.then(|| format!("delete table {table}\n"));
        }
        let mut text = String::new();
        let mut line = |words: String| {
            let _ = writeln!(text, "{words}");
        };
        let ports = &self.instance_ports;
        let changed: Vec<&Confined> = wanted.iter().filter(|confined| !in_force.confines(confined, ports)).collect();
        let owners: BTreeMap<u32, String> = wanted
            .iter()
            .flat_map(|confined| [(confined.odoo, odoo_chain(confined.odoo)), (confined.postgres, refuse_chain(confined.odoo))])
            .collect();
        let numbers: BTreeSet<u32> = wanted.iter().map(|confined| confined.odoo).collect();
        let stale_owners: Vec<u32> =
            in_force.owners.iter().filter(|(uid, chain)| owners.get(uid) != Some(chain)).map(|(uid, _)| *uid).collect();
        let stale_numbers: Vec<u32> = in_force.numbers().difference(&numbers).copied().collect();
        if changed.is_empty() && stale_owners.is_empty() && stale_numbers.is_empty() {
            return None;
        }
        line(format!("add table {table}"));
        line(format!("add map {table} owners {{ typeof meta skuid : verdict; }}"));
        line(format!("add chain {table} output {{ type filter hook output priority 0; policy accept; }}"));
        line(format!("flush chain {table} output"));
        line(format!("add rule {table} output meta skuid vmap @owners"));
        for uid in &stale_owners {
            line(format!("delete element {table} owners {{ {uid} }}"));
        }
        for uid in stale_numbers {
            for chain in [odoo_chain(uid), refuse_chain(uid)].into_iter().filter(|chain| in_force.chains.contains(chain)) {
                line(format!("delete chain {table} {chain}"));
            }
            for (set, _) in counters(uid).iter().filter(|(set, _)| in_force.sets.contains(set)) {
                line(format!("delete set {table} {set}"));
            }
        }
        for confined in changed {
            let (odoo, refuse) = (odoo_chain(confined.odoo), refuse_chain(confined.odoo));
            let keeps_counters = in_force.marks.get(&odoo).is_some_and(|mark| mark.starts_with(&confined.subject()));
            for chain in [&refuse, &odoo] {
                line(format!("add chain {table} {chain}"));
                line(format!("flush chain {table} {chain}"));
            }
            for (set, family) in counters(confined.odoo) {
                let key = format!("{family} daddr . meta l4proto . th dport");
                line(format!("add set {table} {set} {{ typeof {key}; size {COUNTED}; flags dynamic; counter; }}"));
                if !keeps_counters {
                    line(format!("flush set {table} {set}"));
                }
                line(format!("add rule {table} {refuse} meta l4proto {{ tcp, udp }} update @{set} {{ {key} }}"));
            }
            line(format!("add rule {table} {refuse} meta l4proto tcp reject with tcp reset"));
            line(format!("add rule {table} {refuse} reject with icmpx admin-prohibited"));
            for rule in confined.rules(ports) {
                line(format!("add rule {table} {odoo} {rule}"));
            }
            line(format!(r#"add rule {table} {odoo} goto {refuse} comment "{}""#, confined.mark(ports)));
            line(format!("add element {table} owners {{ {} : goto {odoo}, {} : goto {refuse} }}", confined.odoo, confined.postgres));
        }
        Some(text)
    }

    /// One object of the table, or the table itself; `None` when it is not there.
    async fn list(&self, options: &[&str], kind: &str, name: &str) -> Result<Option<Value>> {
        let mut program = self.program(options).args(["-j", "list", kind, "inet", &self.table]);
        if !name.is_empty() {
            program = program.arg(name);
        }
        let finished = program.output_limit(64 * 1024 * 1024).run().await.map_err(HostError::from);
        if finished
            .as_ref()
            .is_ok_and(|finished| !finished.status.success() && finished.stderr_text().contains("No such file or directory"))
        {
            return Ok(None);
        }
        understood(&succeeded(finished)?).map(Some)
    }

    fn program(&self, options: &[&str]) -> Program {
        Program::new(&self.nft).args(options).time_limit(TIME_LIMIT)
    }

    fn is_absent(&self) -> bool {
        let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        !directories.iter().any(|directory| Path::new(directory).join(&self.nft).is_file())
    }
}

fn succeeded(finished: Result<Finished>) -> Result<Finished> {
    finished.and_then(|finished| finished.expect_success("`nft` failed")).map_err(|error| {
        let summary = format!(
            "the network cannot be closed for instances: {error}; install the package `nftables` and run oCore as root with the right to \
             change firewall rules, or set egress.enforce to \"off\" to run without this protection"
        );
        HostError::machine_from(summary, error)
    })
}

fn understood(finished: &Finished) -> Result<Value> {
    serde_json::from_slice(&finished.stdout)
        .map_err(|error| HostError::machine_from("what `nft` says about the firewall rules cannot be understood", error))
}

/// An element of a set of refused destinations.
fn attempt(element: &Value) -> Option<EgressAttempt> {
    let element = &element["elem"];
    let value = &element["val"]["concat"];
    let address: IpAddr = value[0].as_str()?.parse().ok()?;
    let port = value[2].as_u64()?.try_into().ok()?;
    Some(EgressAttempt {
        destination: SocketAddr::new(address, port),
        protocol: value[1].as_str()?.to_owned(),
        packets: element["counter"]["packets"].as_u64()?,
    })
}

/// `ocore` and the home's path, in the letters that `nft` takes in a name without quotes; others are written as their numbers. Two homes never
/// have the same.
fn table_name(home: &Path) -> String {
    let mut name = "ocore".to_owned();
    for byte in home.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.') {
            name.push(char::from(*byte));
        } else {
            let _ = write!(name, "_{byte:02x}");
        }
    }
    name
}

/// The home whose table has that name; `None` for a table that is none of ours.
fn home_of(table: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = table.strip_prefix("ocore")?.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'_' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    let home = PathBuf::from(OsString::from_vec(bytes));
    (home.is_absolute() && table_name(&home) == table).then_some(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confined(egress: Egress) -> Confined {
        Confined {
            instance: "0192d3a4-0000-7000-8000-000000000001".parse().unwrap(),
            postgres: 20_000,
            odoo: 20_001,
            ports: vec![21_000, 21_001, 21_002, 21_003],
            mail: ([127, 0, 0, 1], 21_004).into(),
            egress,
            name_servers: Vec::new(),
        }
    }

    fn firewall() -> Firewall {
        Firewall::new(Path::new("nft"), Path::new("/var/lib/ocore"), 20_000..30_000)
    }

    #[test]
    fn a_closed_instance_reaches_itself_its_catcher_and_what_is_allowed() {
        let allow = vec!["192.0.2.7:443".parse().unwrap(), "[2001:db8::7]:443".parse().unwrap()];
        let wanted = [confined(Egress::Closed { allow, resolve_names: false })];
        insta::assert_snapshot!(firewall().transaction(&InForce::default(), &wanted).unwrap());
    }

    #[test]
    fn an_open_instance_reaches_everything_but_its_neighbours() {
        insta::assert_snapshot!(firewall().transaction(&InForce::default(), &[confined(Egress::Open)]).unwrap());
    }

    #[test]
    fn nobody_to_confine_means_no_table() {
        assert_eq!(firewall().transaction(&InForce::default(), &[]), None);
        let left = InForce { exists: true, ..InForce::default() };
        assert_eq!(firewall().transaction(&left, &[]).unwrap(), "delete table inet ocore/var/lib/ocore\n");
    }

    #[test]
    fn homes_have_tables_of_their_own() {
        let names: Vec<String> = ["/srv/a_b", "/srv/a_5fb", "/srv/a b", "/srv/a"].iter().map(|home| table_name(Path::new(home))).collect();
        assert_eq!(names, ["ocore/srv/a_5fb", "ocore/srv/a_5f5fb", "ocore/srv/a_20b", "ocore/srv/a"]);
        for home in ["/srv/a_b", "/srv/a_5fb", "/srv/a b", "/srv/ä", "/"] {
            assert_eq!(home_of(&table_name(Path::new(home))).as_deref(), Some(Path::new(home)));
        }
        for other in ["ocore", "ocore_edge", "ocorelike", "filter", "docker/srv", "ocore/srv/a_zz", "ocore/srv/a_5", "ocore/srv/a_61"] {
            assert_eq!(home_of(other), None, "{other}");
        }
    }
}
