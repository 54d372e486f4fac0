//! Which mailboxes there are: a directory each, with `mailbox.json` for what its listener needs. Kept on disk, so that a catcher which starts again
//! takes mail before anybody has told it anything.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use ocore_model::{ids::InstanceId, mail::MailboxSpec};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::MailConfig,
    error::{MailError, Result},
    index::Mark,
    mailbox::Mailbox,
    smtp,
};

/// All mailboxes of a server.
pub(crate) struct Mailboxes {
    pub(crate) config: MailConfig,
    slots: Mutex<BTreeMap<InstanceId, Arc<Slot>>>,
    listeners: TaskTracker,
    /// One change of the list at a time.
    changes: tokio::sync::Mutex<()>,
    pub(crate) gates: smtp::Gates,
}

/// A mailbox, used or not.
pub(crate) struct Slot {
    pub(crate) instance: InstanceId,
    pub(crate) spec: MailboxSpec,
    directory: PathBuf,
    open: tokio::sync::Mutex<Option<(Arc<Mailbox>, Instant)>>,
    /// Where it listens, once it does; why it does not.
    listening: Mutex<std::result::Result<SocketAddr, String>>,
    pub(crate) end: CancellationToken,
    /// Held by a large message while it comes in.
    pub(crate) large: Arc<Semaphore>,
}

impl Slot {
    /// The mailbox for use. Reads it from the disk when nobody has for a while.
    pub(crate) async fn mailbox(&self, config: &MailConfig) -> Result<Arc<Mailbox>> {
        let mut open = self.open.lock().await;
        if self.end.is_cancelled() {
            return Err(MailError::Stopping);
        }
        let mailbox = match &*open {
            Some((mailbox, _)) => Arc::clone(mailbox),
            None => Arc::new(Mailbox::open(self.directory.clone(), config.limits.clone()).await?),
        };
        *open = Some((Arc::clone(&mailbox), Instant::now()));
        Ok(mailbox)
    }

    pub(crate) fn note_listening(&self, state: std::result::Result<SocketAddr, String>) {
        *self.listening.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub(crate) fn listening(&self) -> std::result::Result<SocketAddr, String> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the memory of a mailbox back that nobody uses.
    async fn rest(&self, config: &MailConfig) -> bool {
        let Ok(mut open) = self.open.try_lock() else { return false };
        let idle = |(mailbox, used): &mut (Arc<Mailbox>, Instant)| Arc::strong_count(mailbox) == 1 && used.elapsed() >= config.idle;
        let Some((mailbox, _)) = open.take_if(idle) else { return false };
        // Under the lock: nobody opens it again before its files are free.
        mailbox.ended().await;
        true
    }

    /// It has messages that are older than it may keep, or is in use and may have.
    async fn has_aged(&self, config: &MailConfig) -> bool {
        if self.open.lock().await.is_some() {
            return true;
        }
        let Ok(entries) = fs::read_dir(&self.directory) else { return false };
        let eldest = SystemTime::now().checked_sub(config.limits.age);
        entries.flatten().filter(|entry| entry.path().extension().is_some_and(|ending| ending == "mail")).any(|entry| {
            let metadata = entry.metadata().ok().filter(|metadata| metadata.len() > 0);
            metadata.and_then(|metadata| metadata.modified().ok()).is_some_and(|modified| Some(modified) < eldest)
        })
    }
}

impl Mailboxes {
    /// Finds the mailboxes on disk and starts their listeners.
    pub(crate) fn open(config: MailConfig) -> Result<Arc<Self>> {
        let directory = config.directory.clone();
        let storage = |source| MailError::storage(&directory, source);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(storage)?;
        let mailboxes = Arc::new(Self {
            config,
            slots: Mutex::default(),
            listeners: TaskTracker::new(),
            changes: tokio::sync::Mutex::default(),
            gates: smtp::Gates::new(),
        });
        for entry in fs::read_dir(&directory).map_err(storage)?.flatten() {
            let Some(instance) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match fs::read(entry.path().join("mailbox.json")).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                Ok(spec) => mailboxes.start(instance, spec),
                // It was being made or removed; whoever wants it makes it again.
                Err(error) => tracing::warn!(%instance, %error, "a mailbox is left out until it is asked for again"),
            }
        }
        Ok(mailboxes)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, instance: InstanceId) -> Option<Arc<Slot>> {
        self.slots().get(&instance).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.slots().values().cloned().collect()
    }

    fn start(self: &Arc<Self>, instance: InstanceId, spec: MailboxSpec) {
        let slot = Arc::new(Slot {
            instance,
            spec,
            directory: self.config.directory.join(instance.to_string()),
            open: tokio::sync::Mutex::default(),
            listening: Mutex::new(Err("it is about to listen".to_owned())),
            end: CancellationToken::new(),
            large: Arc::new(Semaphore::new(1)),
        });
        self.slots().insert(instance, Arc::clone(&slot));
        self.listeners.spawn(smtp::listen(Arc::clone(self), slot));
    }

    /// Makes a mailbox, or gives it another port or user. The same again is done.
    pub(crate) async fn put(self: &Arc<Self>, instance: InstanceId, spec: MailboxSpec) -> Result<()> {
        let _change = self.changes.lock().await;
        let before = self.get(instance);
        if before.as_ref().is_some_and(|slot| slot.spec == spec) {
            return Ok(());
        }
        let directory = self.config.directory.join(instance.to_string());
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            let aside = directory.join(".mailbox.json.new");
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(&serde_json::to_vec(&spec)?)?;
            file.sync_all()?;
            fs::rename(&aside, directory.join("mailbox.json"))?;
            File::open(&directory)?.sync_all()?;
            File::open(&self.config.directory)?.sync_all()
        };
        write().map_err(|source| MailError::storage(&directory, source))?;
        if let Some(before) = before {
            before.end.cancel();
            // Its writing task must be gone before another one opens the same files.
            close(&before).await;
            self.nobody_listens(before.spec.port);
        }
        self.start(instance, spec);
        Ok(())
    }

    /// Removes a mailbox with all its messages. Absent is done.
    pub(crate) async fn remove(&self, instance: InstanceId) -> Result<()> {
        let _change = self.changes.lock().await;
        let removed = self.slots().remove(&instance);
        if let Some(slot) = removed {
            slot.end.cancel();
            close(&slot).await;
            self.nobody_listens(slot.spec.port);
        }
        let directory = self.config.directory.join(instance.to_string());
        // First what makes it a mailbox, so that a half-removed one is none.
        let _ = fs::remove_file(directory.join("mailbox.json"));
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MailError::storage(directory, error)),
            _ => Ok(()),
        }
    }

    /// The port stays held; who comes is refused instead of waiting for nobody.
    fn nobody_listens(&self, port: u16) {
        if let Err(error) = self.config.ports.quiet(port) {
            tracing::warn!(port, %error, "who comes to the port of a mailbox that is gone waits there");
        }
    }

    /// Gives memory of resting mailboxes back.
    pub(crate) async fn rest(&self) {
        for slot in self.all() {
            if slot.rest(&self.config).await {
                tracing::debug!(instance = %slot.instance, "a mailbox rests");
            }
        }
    }

    /// Removes messages that are too old, also where none come any more.
    pub(crate) async fn expire(&self) {
        for slot in self.all() {
            if !slot.has_aged(&self.config).await {
                continue;
            }
            let tidied = match slot.mailbox(&self.config).await {
                Ok(mailbox) => mailbox.mark(Mark::Removed { ids: Vec::new() }).await,
                Err(error) => Err(error),
            };
            if let Err(error) = tidied {
                tracing::warn!(instance = %slot.instance, %error, "old messages could not be removed; it is tried again");
            }
        }
    }

    /// Lets the listeners and what they receive end.
    pub(crate) async fn stop(&self) {
        for slot in self.all() {
            slot.end.cancel();
        }
        self.listeners.close();
        self.listeners.wait().await;
    }
}

/// Waits until nothing writes to a mailbox that is ending.
async fn close(slot: &Slot) {
    let mailbox = slot.open.lock().await.take();
    if let Some((mailbox, _)) = mailbox {
        mailbox.ended().await;
    }
}
