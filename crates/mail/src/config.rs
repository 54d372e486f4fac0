//! What an installation can set about its mail catcher.

use std::{path::PathBuf, time::Duration};

use ocore_machine::ports::Ports;

/// A catcher's settings. [`MailConfig::new`] gives the defaults that each field names.
#[derive(Debug, Clone)]
pub struct MailConfig {
    /// Mailboxes lie here, one directory each, named by their instance.
    pub directory: PathBuf,
    /// The administration socket; made with mode 0600.
    pub socket: PathBuf,
    /// Who holds the mailboxes' ports, also while no catcher runs.
    pub ports: Ports,
    pub limits: Limits,
    /// A mailbox that nobody has used for this long gives its memory back; 5 min.
    pub idle: Duration,
}

/// What a mailbox may hold; the oldest messages go first.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A larger message is refused (552). Bytes; 50 MiB.
    pub message_bytes: usize,
    /// 10,000 messages.
    pub messages: usize,
    /// Bytes of a whole mailbox; 1 GiB.
    pub mailbox_bytes: u64,
    /// Older ones go; 30 days.
    pub age: Duration,
    /// Nothing is taken (452) when the disk has less free than this. Bytes; 256 MiB.
    pub free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 50 << 20,
            messages: 10_000,
            mailbox_bytes: 1 << 30,
            age: Duration::from_hours(30 * 24),
            free_bytes: 256 << 20,
        }
    }
}

impl MailConfig {
    pub fn new(directory: impl Into<PathBuf>, socket: impl Into<PathBuf>, ports: Ports) -> Self {
        Self { directory: directory.into(), socket: socket.into(), ports, limits: Limits::default(), idle: Duration::from_mins(5) }
    }
}
