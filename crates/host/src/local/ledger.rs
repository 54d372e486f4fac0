//! Who has which user, group and port: one file, changed under a lock that other processes respect too, written whole or not at all.
//!
//! An entry is written before what it stands for is made, and removed after that is gone; so a crash leaves an entry too many, never one
//! too few, and whoever comes again finds its own entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg};
use ocore_machine::ports::Ports;
use ocore_model::{ids::InstanceId, instance::Color};
use serde::{Deserialize, Serialize};

use super::{config::LocalHostConfig, durable, durable::blocking, process, users};
use crate::{
    api::ReleaseId,
    error::{HostError, Result},
};

/// A user that has an entry in the system's user database; its own group has the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    pub uid: u32,
    pub name: String,
}

/// What an instance has been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Runs the instance's PostgreSQL clusters.
    pub postgres: OsUser,
    /// Runs the instance's Odoo.
    pub odoo: OsUser,
    pub ports: InstancePorts,
    /// The port of its mail catcher, on the loopback interface.
    pub mail: u16,
}

impl Allocation {
    /// Where its mail catcher listens.
    pub fn mail_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.mail))
    }
}

/// TCP ports on the loopback interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePorts {
    pub blue: SlotPorts,
    pub green: SlotPorts,
}

impl InstancePorts {
    pub fn of(&self, color: Color) -> SlotPorts {
        match color {
            Color::Blue => self.blue,
            Color::Green => self.green,
        }
    }
}

/// The ports of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPorts {
    pub http: u16,
    pub websocket: u16,
}

/// The ledger as it is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Book {
    instances: BTreeMap<InstanceId, Entry>,
    /// The user of the control plane's own cluster.
    control: Option<u32>,
    /// The user that downloads for builds.
    #[serde(default)]
    fetcher: Option<u32>,
    /// Groups of releases.
    releases: BTreeMap<String, u32>,
    /// Numbers in our range that somebody else took.
    foreign_uids: BTreeSet<u32>,
    /// The numbers that were lent last. The next ones come after them, so that one that was given back rests for as long as there are others.
    #[serde(default)]
    last_uid: Option<u32>,
    #[serde(default)]
    last_release_gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    postgres_uid: u32,
    odoo_uid: u32,
    ports: InstancePorts,
    /// 0 in a ledger from before there were mail catchers, until it is opened.
    #[serde(default)]
    mail: u16,
}

impl Entry {
    fn ports(&self) -> [u16; 5] {
        let InstancePorts { blue, green } = self.ports;
        [blue.http, blue.websocket, green.http, green.websocket, self.mail]
    }

    fn allocation(&self) -> Allocation {
        Allocation {
            postgres: OsUser { uid: self.postgres_uid, name: postgres_name(self.postgres_uid) },
            odoo: OsUser { uid: self.odoo_uid, name: odoo_name(self.odoo_uid) },
            ports: self.ports,
            mail: self.mail,
        }
    }
}

/// So many free numbers are looked at, in case that somebody who will not end still has the first ones.
const CANDIDATES: usize = 16;
const POSTGRES_PREFIX: &str = "ocore-p";
const ODOO_PREFIX: &str = "ocore-o";
const FETCHER_PREFIX: &str = "ocore-f";
const CONTROL_OWNER: &str = "control";
const FETCHER_OWNER: &str = "fetcher";

fn postgres_name(uid: u32) -> String {
    format!("{POSTGRES_PREFIX}{uid}")
}

fn odoo_name(uid: u32) -> String {
    format!("{ODOO_PREFIX}{uid}")
}

fn fetcher_name(uid: u32) -> String {
    format!("{FETCHER_PREFIX}{uid}")
}

impl Book {
    fn uids(&self) -> BTreeSet<u32> {
        let instances = self.instances.values().flat_map(|entry| [entry.postgres_uid, entry.odoo_uid]);
        instances.chain(self.control).chain(self.fetcher).chain(self.foreign_uids.iter().copied()).collect()
    }

    fn ports(&self) -> BTreeSet<u16> {
        self.instances.values().flat_map(Entry::ports).collect()
    }
}

struct Ranges {
    uids: Range<u32>,
    release_gids: Range<u32>,
    build_uids: Range<u32>,
    ports: Range<u16>,
}

struct Inner {
    path: PathBuf,
    home: PathBuf,
    ranges: Ranges,
    ports: Ports,
}

/// The open ledger; clones are the same one.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

impl Ledger {
    /// Opens the ledger of a home; the directory must be there. A damaged file is replaced by the one before it and by what the system's
    /// user database says about our users.
    pub async fn open(config: &LocalHostConfig) -> Result<Self> {
        let ranges = Ranges {
            uids: config.uids.clone(),
            release_gids: config.release_gids.clone(),
            build_uids: config.build_uids.clone(),
            ports: config.ports.clone(),
        };
        let ports = config.held_ports()?;
        let inner = Inner { path: config.home.join("ledger.json"), home: config.home.clone(), ranges, ports };
        let ledger = Self(Arc::new(inner));
        ledger.change(|book, inner| inner.complete(book)).await?;
        Ok(ledger)
    }

    /// Users and ports for an instance; the same ones when it has them already. The users are there afterwards.
    pub async fn allocate(&self, instance: InstanceId) -> Result<Allocation> {
        let owner = instance.to_string();
        loop {
            let entry = self
                .change(move |book, inner| {
                    if let Some(entry) = book.instances.get(&instance) {
                        return Ok(entry.clone());
                    }
                    let postgres_uid = inner.free_uid(book, &[])?;
                    let odoo_uid = inner.free_uid(book, &[postgres_uid])?;
                    book.last_uid = Some(odoo_uid);
                    let (ports, mail) = inner.free_ports(book)?;
                    let entry = Entry { postgres_uid, odoo_uid, ports, mail };
                    book.instances.insert(instance, entry.clone());
                    Ok(entry)
                })
                .await?;
            let postgres = self.ensure_user(entry.postgres_uid, &postgres_name(entry.postgres_uid), &owner).await?;
            let odoo = self.ensure_user(entry.odoo_uid, &odoo_name(entry.odoo_uid), &owner).await?;
            if postgres == users::Ensured::Ours && odoo == users::Ensured::Ours {
                return Ok(entry.allocation());
            }
            // Somebody else was faster: note it, and take others in their place.
            let taken: Vec<u32> = [(postgres, entry.postgres_uid), (odoo, entry.odoo_uid)]
                .into_iter()
                .filter(|(e, _)| *e == users::Ensured::Taken)
                .map(|(_, uid)| uid)
                .collect();
            self.change(move |book, inner| {
                book.foreign_uids.extend(taken.iter().copied());
                let Some(mut entry) = book.instances.get(&instance).cloned() else { return Ok(()) };
                if taken.contains(&entry.postgres_uid) {
                    entry.postgres_uid = inner.free_uid(book, &[])?;
                }
                if taken.contains(&entry.odoo_uid) {
                    entry.odoo_uid = inner.free_uid(book, &[entry.postgres_uid])?;
                }
                book.instances.insert(instance, entry);
                Ok(())
            })
            .await?;
        }
    }

    /// What the instance has; `None` when nothing has been allocated.
    pub async fn find(&self, instance: InstanceId) -> Result<Option<Allocation>> {
        self.read(move |book| book.instances.get(&instance).map(Entry::allocation)).await
    }

    /// All instances that have something.
    pub async fn instances(&self) -> Result<Vec<InstanceId>> {
        self.read(|book| book.instances.keys().copied().collect()).await
    }

    /// Removes the instance's users and gives its numbers and ports back. Nothing of it may run any more: what does keeps its numbers from being given back.
    /// Absent is done.
    pub async fn release(&self, instance: InstanceId) -> Result<()> {
        let Some(allocation) = self.find(instance).await? else { return Ok(()) };
        self.remove_user(&allocation.postgres).await?;
        self.remove_user(&allocation.odoo).await?;
        self.change(move |book, inner| {
            if let Some(entry) = book.instances.remove(&instance) {
                for port in entry.ports() {
                    // Whoever held it may be gone, and with it what it held.
                    let _ = inner.ports.release(port);
                }
            }
            Ok(())
        })
        .await
    }

    /// The ports of a slot that is about to start, each of which is held; one that a foreign process has taken while nobody held it is replaced by another for
    /// good. Call it only while the slot does not run.
    pub async fn free_slot_ports(&self, instance: InstanceId, color: Color) -> Result<SlotPorts> {
        self.change(move |book, inner| {
            let ports = book.instances.get(&instance).ok_or_else(|| not_found(instance))?.ports;
            let mut slot = ports.of(color);
            let mut taken = book.ports();
            for port in [&mut slot.http, &mut slot.websocket] {
                if !inner.has(*port)? {
                    let [other] = inner.free_port_numbers(&taken)?;
                    tracing::warn!(port, other, %instance, "another program listens on an instance's port; the instance takes another one");
                    taken.insert(other);
                    *port = other;
                }
            }
            if let Some(entry) = book.instances.get_mut(&instance) {
                entry.ports = with_slot(entry.ports, color, slot);
            }
            Ok(slot)
        })
        .await
    }

    /// Holds the ports of all instances, so that nobody else can take one while its instance does not listen there. A mail catcher's port that somebody else has
    /// is replaced for good; a slot's is when the slot starts. May run twice.
    pub async fn hold_ports(&self) -> Result<()> {
        self.change(|book, inner| {
            let mut taken = book.ports();
            for (instance, entry) in &mut book.instances {
                for slot in [entry.ports.blue, entry.ports.green] {
                    for port in [slot.http, slot.websocket] {
                        if !inner.has(port)? {
                            tracing::warn!(%instance, port, "another program has a port of an instance, which takes another one at its next start");
                        }
                    }
                }
                if !inner.has(entry.mail)? {
                    let [other] = inner.free_port_numbers(&taken)?;
                    tracing::error!(%instance, port = entry.mail, other, "another program has the port of an instance's mail catcher; start its Odoo anew");
                    taken.insert(other);
                    entry.mail = other;
                }
            }
            Ok(())
        })
        .await
    }

    /// The group that may read a release; the same one when it has one already.
    pub async fn release_gid(&self, release: &ReleaseId) -> Result<u32> {
        let name = release.0.clone();
        self.change(move |book, inner| {
            if let Some(gid) = book.releases.get(&name) {
                return Ok(*gid);
            }
            let taken: BTreeSet<u32> = book.releases.values().copied().collect();
            let candidates = beginning_after(&inner.ranges.release_gids, book.last_release_gid);
            let free: Vec<u32> = candidates.filter(|gid| !taken.contains(gid) && !users::is_known(*gid)).take(CANDIDATES).collect();
            let alive = process::groups_of_the_living(&free);
            let gid = free.into_iter().find(|gid| !alive.contains(gid));
            let gid = gid.ok_or_else(|| HostError::machine("all group numbers for releases are in use; configure a larger range"))?;
            book.last_release_gid = Some(gid);
            book.releases.insert(name, gid);
            Ok(gid)
        })
        .await
    }

    /// Gives the group of a removed release back. Absent is done.
    pub async fn forget_release(&self, release: &ReleaseId) -> Result<()> {
        let name = release.0.clone();
        self.change(move |book, _| {
            book.releases.remove(&name);
            Ok(())
        })
        .await
    }

    /// The user of the control plane's own cluster; it is there afterwards.
    pub async fn allocate_control(&self) -> Result<OsUser> {
        loop {
            let uid = self
                .change(|book, inner| {
                    let uid = match book.control {
                        Some(uid) => uid,
                        None => inner.free_uid(book, &[])?,
                    };
                    book.control = Some(uid);
                    Ok(uid)
                })
                .await?;
            let name = postgres_name(uid);
            if self.ensure_user(uid, &name, CONTROL_OWNER).await? == users::Ensured::Ours {
                return Ok(OsUser { uid, name });
            }
            self.change(move |book, _| {
                book.foreign_uids.insert(uid);
                book.control = None;
                Ok(())
            })
            .await?;
        }
    }

    /// The user that downloads for builds; it is there afterwards. It runs nobody's code, so all builds of a home have the same.
    pub async fn allocate_fetcher(&self) -> Result<OsUser> {
        loop {
            let uid = self
                .change(|book, inner| {
                    let uid = match book.fetcher {
                        Some(uid) => uid,
                        None => inner.free_uid(book, &[])?,
                    };
                    book.fetcher = Some(uid);
                    Ok(uid)
                })
                .await?;
            let name = fetcher_name(uid);
            if self.ensure_user(uid, &name, FETCHER_OWNER).await? == users::Ensured::Ours {
                return Ok(OsUser { uid, name });
            }
            self.change(move |book, _| {
                book.foreign_uids.insert(uid);
                book.fetcher = None;
                Ok(())
            })
            .await?;
        }
    }

    /// The user that downloads for builds, when there is one.
    pub async fn find_fetcher(&self) -> Result<Option<OsUser>> {
        self.read(|book| book.fetcher.map(|uid| OsUser { uid, name: fetcher_name(uid) })).await
    }

    /// The user of the control plane's own cluster, when it has one.
    pub async fn find_control(&self) -> Result<Option<OsUser>> {
        self.read(|book| book.control.map(|uid| OsUser { uid, name: postgres_name(uid) })).await
    }

    /// Removes the user of the control plane's own cluster. Absent is done.
    pub async fn release_control(&self) -> Result<()> {
        let Some(user) = self.find_control().await? else { return Ok(()) };
        self.remove_user(&user).await?;
        self.change(|book, _| {
            book.control = None;
            Ok(())
        })
        .await
    }

    pub(super) fn build_uids(&self) -> Range<u32> {
        self.0.ranges.build_uids.clone()
    }

    async fn ensure_user(&self, uid: u32, name: &str, owner: &str) -> Result<users::Ensured> {
        users::ensure(uid, name, &self.0.comment(owner)).await
    }

    /// Removes every user that the system's user database knows as this home's, also one that the ledger has forgotten.
    pub async fn remove_all_users(&self) -> Result<()> {
        let suffix = self.0.comment_suffix();
        for (prefix, name) in
            [(POSTGRES_PREFIX, postgres_name as fn(u32) -> String), (ODOO_PREFIX, odoo_name), (FETCHER_PREFIX, fetcher_name)]
        {
            for (uid, comment) in users::list(prefix)? {
                if comment.ends_with(&suffix) {
                    self.remove_user(&OsUser { uid, name: name(uid) }).await?;
                }
            }
        }
        Ok(())
    }

    /// Ends what still runs as the user, then removes it, unless its number has come to belong to somebody else.
    async fn remove_user(&self, user: &OsUser) -> Result<()> {
        let suffix = self.0.comment_suffix();
        let is_ours = users::list(&user.name)?.iter().any(|(uid, comment)| *uid == user.uid && comment.ends_with(&suffix));
        if !is_ours {
            return Ok(());
        }
        process::end_users(&BTreeSet::from([user.uid])).await?;
        users::remove(&user.name).await
    }

    async fn read<T: Send + 'static>(&self, look: impl FnOnce(&Book) -> T + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let _lock = inner.lock()?;
            Ok(look(&inner.load()?.0))
        })
        .await
    }

    async fn change<T: Send + 'static>(&self, change: impl FnOnce(&mut Book, &Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let _lock = inner.lock()?;
            let (before, damaged) = inner.load()?;
            let mut book = before.clone();
            let result = change(&mut book, &inner)?;
            if book != before || damaged {
                inner.store(&book, damaged)?;
            }
            Ok(result)
        })
        .await
    }
}

impl Inner {
    fn lock(&self) -> Result<Flock<File>> {
        let file = open_lock(&self.path.with_extension("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| HostError::machine_from("the ledger could not be locked", error))
    }

    fn previous(&self) -> PathBuf {
        self.path.with_extension("previous.json")
    }

    /// The book, and whether it had to be put together again.
    fn load(&self) -> Result<(Book, bool)> {
        match durable::read_json::<Book>(&self.path) {
            Ok(Some(book)) => Ok((book, false)),
            Ok(None) if !self.previous().exists() => Ok((Book::default(), false)),
            Ok(None) => Ok((self.restore()?, true)),
            Err(error) => {
                tracing::error!(%error, "the ledger is damaged; it is put together from its previous version and the system's users");
                Ok((self.restore()?, true))
            }
        }
    }

    fn store(&self, book: &Book, damaged: bool) -> Result<()> {
        if !damaged && self.path.exists() {
            let content = std::fs::read(&self.path).and_then(|content| durable::write(&self.previous(), &content));
            content.map_err(|error| HostError::machine_from(format!("the ledger could not be saved: {error}"), error))?;
        }
        durable::write_json(&self.path, book)
    }

    /// The previous book, corrected by the system's user database: users exist before anything belongs to them.
    fn restore(&self) -> Result<Book> {
        let mut book = durable::read_json::<Book>(&self.previous()).ok().flatten().unwrap_or_default();
        let suffix = self.comment_suffix();
        let owned = |prefix: &str| -> Result<BTreeMap<String, u32>> {
            let all = users::list(prefix)?.into_iter();
            Ok(all.filter_map(|(uid, comment)| Some((owner_of(comment.strip_suffix(&suffix)?)?.to_owned(), uid))).collect())
        };
        let (postgres, odoo) = (owned(POSTGRES_PREFIX)?, owned(ODOO_PREFIX)?);
        book.control = postgres.get(CONTROL_OWNER).copied().or(book.control);
        book.fetcher = owned(FETCHER_PREFIX)?.get(FETCHER_OWNER).copied().or(book.fetcher);
        for owner in postgres.keys().chain(odoo.keys()) {
            let Ok(instance) = owner.parse::<InstanceId>() else { continue };
            let (postgres_uid, odoo_uid) = (postgres.get(owner).copied(), odoo.get(owner).copied());
            let entry = if let Some(entry) = book.instances.get(&instance) {
                Entry {
                    postgres_uid: postgres_uid.unwrap_or(entry.postgres_uid),
                    odoo_uid: odoo_uid.unwrap_or(entry.odoo_uid),
                    ports: entry.ports,
                    mail: entry.mail,
                }
            } else {
                // One of the two is missing at most: the owner was found by the other.
                let taken: Vec<u32> = [postgres_uid, odoo_uid].into_iter().flatten().collect();
                let found = |uid: Option<u32>| uid.map_or_else(|| self.free_uid(&book, &taken), Ok);
                let (ports, mail) = self.free_ports(&book)?;
                Entry { postgres_uid: found(postgres_uid)?, odoo_uid: found(odoo_uid)?, ports, mail }
            };
            book.instances.insert(instance, entry);
        }
        Ok(book)
    }

    /// What our users have as comment: the owner and the home, so that two homes on one machine do not take each other's.
    fn comment(&self, owner: &str) -> String {
        format!("oCore {owner}{}", self.comment_suffix())
    }

    fn comment_suffix(&self) -> String {
        // A colon or a line end would break the user database.
        format!(" {}", self.home.display().to_string().replace([':', ',', '\n'], "_"))
    }

    fn free_uid(&self, book: &Book, besides: &[u32]) -> Result<u32> {
        let taken = book.uids();
        let last = besides.iter().copied().chain(book.last_uid).next();
        let candidates = beginning_after(&self.ranges.uids, last);
        let free: BTreeSet<u32> = candidates
            .clone()
            .filter(|uid| !taken.contains(uid) && !besides.contains(uid) && !users::is_known(*uid))
            .take(CANDIDATES)
            .collect();
        let alive: BTreeSet<u32> = process::living(&free).iter().filter_map(process::ProcEntry::uid).collect();
        let mut free = candidates.filter(|uid| free.contains(uid) && !alive.contains(uid));
        free.next().ok_or_else(|| HostError::machine("all user numbers for instances are in use; configure a larger range"))
    }

    /// Ports for the slots of an instance and for its mail catcher.
    fn free_ports(&self, book: &Book) -> Result<(InstancePorts, u16)> {
        let [one, two, three, four, mail] = self.free_port_numbers(&book.ports())?;
        let ports = InstancePorts { blue: SlotPorts { http: one, websocket: two }, green: SlotPorts { http: three, websocket: four } };
        Ok((ports, mail))
    }

    /// Gives instances that are older than a kind of port one of it.
    fn complete(&self, book: &mut Book) -> Result<()> {
        let mut taken = book.ports();
        for entry in book.instances.values_mut().filter(|entry| entry.mail == 0) {
            let [mail] = self.free_port_numbers(&taken)?;
            taken.insert(mail);
            entry.mail = mail;
        }
        Ok(())
    }

    /// Whether the port is ours: held, from now on at the latest.
    fn has(&self, port: u16) -> Result<bool> {
        match self.ports.hold(port) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => Ok(false),
            Err(error) => Err(HostError::machine_from(format!("a port for an instance could not be held: {error}"), error)),
        }
    }

    /// Ports that are not allocated and that nobody uses; held from now on. Homes start looking at different places, so that several on one machine seldom meet.
    fn free_port_numbers<const N: usize>(&self, taken: &BTreeSet<u16>) -> Result<[u16; N]> {
        let range = &self.ranges.ports;
        let count = u64::from(range.end.saturating_sub(range.start)).max(1);
        let mut hasher = DefaultHasher::new();
        self.home.hash(&mut hasher);
        let start = (hasher.finish() % count) as u16;
        let candidates = range.clone().cycle().skip(start.into()).take(range.len());
        let mut found = Vec::new();
        for port in candidates.filter(|port| !taken.contains(port)) {
            if found.len() == N {
                break;
            }
            if self.has(port)? {
                found.push(port);
            }
        }
        found.try_into().map_err(|_| HostError::machine("all ports for instances are in use; configure a larger range"))
    }
}

/// All numbers of the range, from the one after `last` on.
fn beginning_after(range: &Range<u32>, last: Option<u32>) -> impl Iterator<Item = u32> + Clone + use<> {
    let first = last.map_or(range.start, |last| last + 1).clamp(range.start, range.end);
    (first..range.end).chain(range.start..first)
}

fn owner_of(comment: &str) -> Option<&str> {
    comment.strip_prefix("oCore ")
}

fn with_slot(ports: InstancePorts, color: Color, slot: SlotPorts) -> InstancePorts {
    match color {
        Color::Blue => InstancePorts { blue: slot, ..ports },
        Color::Green => InstancePorts { green: slot, ..ports },
    }
}

pub(super) fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| HostError::machine_from(format!("the lock {} could not be opened: {error}", path.display()), error))
}

fn not_found(instance: InstanceId) -> HostError {
    HostError::NotFound { what: "instance", id: instance.to_string() }
}
