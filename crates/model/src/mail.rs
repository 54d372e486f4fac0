//! What the host and the mail catcher tell each other about mailboxes.

use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;

/// What a mailbox's listener needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MailboxSpec {
    /// On the loopback interface.
    pub port: u16,
    /// The operating system's user whose mail is taken; nobody else's but root's is.
    pub uid: u32,
}

/// A mailbox as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MailboxStatus {
    pub instance: InstanceId,
    pub spec: MailboxSpec,
    /// Why it takes no mail; `None` when it does.
    pub problem: Option<String>,
}
