//! The kernel's rules about what instances may reach: one nftables table for each home, read and changed by the program `nft`.
//!
//! ```text
//! chain output        every packet that a process of this machine sends: by the sender's user, to a chain of its instance
//! chain odoo_<uid>    what that instance's Odoo may do; the rest goes on to …
//! chain refuse_<uid>  counted by destination, and refused at once, so that nobody waits for an answer that never comes
//! chain fetch         what may leave for the builds: package indexes, and what the operator allows
//! chain shut          refused, without counting: whoever runs a build has no network but the one way that `fetch` looks after
//! ```
//!
//! The kernel finds the chain by one look into a map, however many instances there are. PostgreSQL goes straight to `refuse`: it talks
//! through Unix sockets alone, and `COPY … TO PROGRAM` must not be a way out. No rule needs the kernel to track connections, which would cost
//! every connection of the machine, the edge's too: an answer is known by the port that it comes from and by not opening a connection.
//!
//! The last rule of an instance's chain carries a comment that says what the chain was made from; so a change, and rules that somebody has
//! removed, are seen, and what is right is left alone with its counters.

mod rules;

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

use serde_json::Value;

pub(super) use self::rules::{Confined, Fetching};
use super::{
    exec::{Finished, Program},
    process,
};
use crate::{
    api::EgressAttempt,
    error::{HostError, Result},
};

/// Reading and changing takes milliseconds; a kernel that takes longer has another trouble.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Destinations that are counted for each instance and kind of address. More are refused all the same.
const COUNTED: u32 = 4096;
/// Rules of a `refuse` chain.
const REFUSALS: usize = 4;
const FETCH: &str = "fetch";
const SHUT: &str = "shut";
/// Rules of the chain `shut`.
const SHUT_RULES: [&str; 2] = ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"];
/// Of the chain that the kernel enters.
const OUTPUT_RULES: usize = 2;

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
        found.dispatches = found.rules.get("output") == Some(&OUTPUT_RULES);
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

    /// Packets find their chains, and users of builds send none.
    fn stands(&self, builders: &Range<u32>) -> bool {
        self.dispatches && self.marks.get("output") == Some(&numbers_of(builders)) && self.rules.get(SHUT) == Some(&SHUT_RULES.len())
    }

    /// Whoever fetches reaches what is meant, and no more.
    pub(super) fn keeps(&self, fetching: &Fetching) -> bool {
        self.owners.get(&fetching.fetcher).map(String::as_str) == Some(FETCH)
            && self.rules.get(FETCH) == Some(&(fetching.rules().len() + 1))
            && self.marks.get(FETCH) == Some(&fetching.mark())
    }

    /// Numbers in the names of chains and sets.
    fn numbers(&self) -> BTreeSet<u32> {
        self.chains.iter().chain(&self.sets).filter_map(|name| name.split_once('_')?.1.parse().ok()).collect()
    }
}

fn objects(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["nftables"].as_array().into_iter().flatten()
}

fn numbers_of(users: &Range<u32>) -> String {
    format!("{}-{}", users.start, users.end.saturating_sub(1))
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
    /// Users that run builds. They have no network at all, and this is the second lock.
    builders: Range<u32>,
}

impl Firewall {
    pub(super) fn new(nft: &Path, home: &Path, instance_ports: Range<u16>, builders: Range<u32>) -> Self {
        Self { nft: nft.to_owned(), table: table_name(home), instance_ports, builders }
    }

    /// What the kernel has now.
    pub(super) async fn read(&self) -> Result<InForce> {
        let Some(table) = self.list(&["-t"], "table", "").await? else { return Ok(InForce::default()) };
        let Some(owners) = self.list(&[], "map", "owners").await? else { return Ok(InForce::default()) };
        Ok(InForce::read(&table, &owners))
    }

    /// The instance's rules are in force.
    pub(super) fn confines(&self, in_force: &InForce, confined: &Confined) -> bool {
        in_force.stands(&self.builders) && in_force.confines(confined, &self.instance_ports)
    }

    /// Makes the difference between what is in force and what should be, in one transaction of the kernel. Says whether there was one. With
    /// nobody to confine the table goes.
    pub(super) async fn enforce(&self, wanted: &[Confined], fetching: Option<&Fetching>) -> Result<bool> {
        let in_force = self.read().await?;
        let Some(transaction) = self.transaction(&in_force, wanted, fetching) else { return Ok(false) };
        let finished = self.program(&["-f", "-"]).stdin(transaction).run().await.map_err(HostError::from);
        succeeded(finished).map(|_| true)
    }

    /// Removes the table. Absent is done, and so is a machine without `nft`.
    pub(super) async fn remove(&self) -> Result<()> {
        match self.enforce(&[], None).await {
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
    fn transaction(&self, in_force: &InForce, wanted: &[Confined], fetching: Option<&Fetching>) -> Option<String> {
        let table = format!("inet {}", self.table);
        if wanted.is_empty() && fetching.is_none() {
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
            .chain(fetching.map(|fetching| (fetching.fetcher, FETCH.to_owned())))
            .collect();
        let numbers: BTreeSet<u32> = wanted.iter().map(|confined| confined.odoo).collect();
        let stale_owners: Vec<u32> =
            in_force.owners.iter().filter(|(uid, chain)| owners.get(uid) != Some(chain)).map(|(uid, _)| *uid).collect();
        let stale_numbers: Vec<u32> = in_force.numbers().difference(&numbers).copied().collect();
        let fetching = fetching.filter(|fetching| !in_force.keeps(fetching));
        let stands = in_force.stands(&self.builders);
        if changed.is_empty() && stale_owners.is_empty() && stale_numbers.is_empty() && fetching.is_none() && stands {
            return None;
        }
        line(format!("add table {table}"));
        line(format!("add map {table} owners {{ typeof meta skuid : verdict; }}"));
        line(format!("add chain {table} output {{ type filter hook output priority 0; policy accept; }}"));
        line(format!("flush chain {table} output"));
        line(format!("add chain {table} {SHUT}"));
        line(format!("flush chain {table} {SHUT}"));
        for rule in SHUT_RULES {
            line(format!("add rule {table} {SHUT} {rule}"));
        }
        let builders = numbers_of(&self.builders);
        line(format!("add rule {table} output meta skuid vmap @owners"));
        line(format!(r#"add rule {table} output meta skuid {builders} goto {SHUT} comment "{builders}""#));
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
        if let Some(fetching) = fetching {
            line(format!("add chain {table} {FETCH}"));
            line(format!("flush chain {table} {FETCH}"));
            for rule in fetching.rules() {
                line(format!("add rule {table} {FETCH} {rule}"));
            }
            line(format!(r#"add rule {table} {FETCH} goto {SHUT} comment "{}""#, fetching.mark()));
            line(format!("add element {table} owners {{ {} : goto {FETCH} }}", fetching.fetcher));
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
    use ipnet::IpNet;

    use super::*;
    use crate::api::Egress;

    fn confined(egress: Egress) -> Confined {
        Confined {
            instance: "0192d3a4-0000-7000-8000-000000000001".parse().unwrap(),
            postgres: 20_000,
            odoo: 20_001,
            ports: vec![21_000, 21_001, 21_002, 21_003],
            mail: ([127, 0, 0, 1], 21_004).into(),
            egress,
            name_servers: Vec::new(),
            except: Vec::new(),
        }
    }

    fn firewall() -> Firewall {
        Firewall::new(Path::new("nft"), Path::new("/var/lib/ocore"), 20_000..30_000, 40_000..40_064)
    }

    #[test]
    fn a_closed_instance_reaches_itself_its_catcher_and_what_is_allowed() {
        let allow = vec!["192.0.2.7:443".parse().unwrap(), "[2001:db8::7]:443".parse().unwrap()];
        let wanted = [confined(Egress::Closed { allow, resolve_names: false })];
        insta::assert_snapshot!(firewall().transaction(&InForce::default(), &wanted, None).unwrap());
    }

    #[test]
    fn an_open_instance_reaches_everything_but_its_neighbours() {
        insta::assert_snapshot!(firewall().transaction(&InForce::default(), &[confined(Egress::Open)], None).unwrap());
    }

    #[test]
    fn whoever_fetches_for_builds_reaches_name_servers_what_is_allowed_and_the_public_web() {
        let places = [("10.0.0.5/32".parse().unwrap(), Some(8080)), ("fd00:1::/64".parse().unwrap(), None)];
        let name_servers = vec!["127.0.0.53".parse().unwrap()];
        let fetching = Fetching { fetcher: 20_002, name_servers, places: places.into() };
        insta::assert_snapshot!(firewall().transaction(&InForce::default(), &[], Some(&fetching)).unwrap());
    }

    #[test]
    fn the_exceptions_of_an_operator_come_before_what_is_never_reached() {
        let exception: IpNet = "169.254.169.254/32".parse().unwrap();
        let open = Confined { except: vec![exception], ..confined(Egress::Open) };
        let rules = open.rules(&(20_000..30_000));
        let place = |words: &str| rules.iter().position(|rule| rule.starts_with(words)).unwrap();
        assert!(place("ip daddr 169.254.169.254/32 accept") < place("ip daddr { 0.0.0.0/8"), "{rules:#?}");
        let allow = vec!["169.254.169.254:80".parse().unwrap(), "[fd00:ec2::254]:80".parse().unwrap()];
        let closed = confined(Egress::Closed { allow, resolve_names: false });
        assert!(!closed.rules(&(20_000..30_000)).join("\n").contains("254 "), "{:#?}", closed.rules(&(20_000..30_000)));
        let allowed = Confined { except: vec![exception], ..closed }.rules(&(20_000..30_000)).join("\n");
        assert!(allowed.contains("169.254.169.254 . tcp . 80") && !allowed.contains("fd00:ec2"), "{allowed}");
    }

    #[test]
    fn nobody_to_confine_means_no_table() {
        assert_eq!(firewall().transaction(&InForce::default(), &[], None), None);
        let left = InForce { exists: true, ..InForce::default() };
        assert_eq!(firewall().transaction(&left, &[], None).unwrap(), "delete table inet ocore/var/lib/ocore\n");
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
