//! A process that somebody else has forked for us: it is known by its identity, and its parent tells how it ended.

use std::{io, os::unix::process::ExitStatusExt, path::Path, process::ExitStatus, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::process::{Identity, scan};

/// No line of a conversation is longer, in bytes.
const LINE_LIMIT: usize = 64 * 1024;
/// Between the end of a process and its parent's word about it.
const WORD_LIMIT: Duration = Duration::from_secs(2);

/// Lines to and from a parent, and the child that it forks for this connection.
#[derive(Debug)]
pub(super) struct Conversation {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Conversation {
    pub(super) async fn begin(socket: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(socket).await?, received: Vec::new() })
    }

    /// Sends a line; the end of it is added.
    pub(super) async fn say(&mut self, line: &[u8]) -> io::Result<()> {
        self.stream.write_all(line).await?;
        self.stream.write_all(b"\n").await
    }

    /// The next line without its end; `None` at the end of the stream. May be dropped and called again.
    pub(super) async fn hear(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.received.len() > LINE_LIMIT {
                return Err(io::Error::other("the other side sends a line without an end"));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// A process on the other end of a connection that its parent holds, too.
#[derive(Debug)]
pub(super) struct Forked {
    identity: Identity,
    conversation: Conversation,
    /// The exit code that it said it would end with.
    announced: Option<i32>,
}

impl Forked {
    /// `None` when it has ended already.
    pub(super) fn new(pid: i32, conversation: Conversation) -> Option<Self> {
        Some(Self { identity: Identity::of(pid)?, conversation, announced: None })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Lets it run. Until then it is nothing but ready, and ends when this value is dropped.
    pub(super) async fn go(&mut self) -> io::Result<()> {
        self.conversation.say(b"go").await
    }

    /// Waits until it has ended; may be dropped and called again. `None` when nobody knows how: its parent was killed, and it as well.
    pub(super) async fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let exited = self.identity.clone();
        let exited = async { exited.exited().await.map_err(io::Error::other) };
        tokio::pin!(exited);
        let has_ended = loop {
            tokio::select! {
                line = self.conversation.hear() => match line {
                    Ok(Some(line)) => {
                        if let Some(status) = self.take_in(&line) {
                            return Ok(Some(status));
                        }
                    }
                    // Both it and its parent have closed their ends.
                    Ok(None) | Err(_) => break false,
                },
                ended = &mut exited => { ended?; break true; }
            }
        };
        if has_ended {
            let last_words = async {
                while let Ok(Some(line)) = self.conversation.hear().await {
                    if let Some(status) = self.take_in(&line) {
                        return Some(status);
                    }
                }
                None
            };
            if let Ok(Some(status)) = timeout(WORD_LIMIT, last_words).await {
                return Ok(Some(status));
            }
        } else {
            exited.await?;
        }
        Ok(self.announced.map(|code| ExitStatus::from_raw((code & 0xff) << 8)))
    }

    /// The parent's word counts; the process' own is kept in case that there is no other.
    fn take_in(&mut self, line: &str) -> Option<ExitStatus> {
        match line.split_once(' ')? {
            ("ended", status) => status.parse().ok().map(ExitStatus::from_raw),
            ("ending", code) => {
                self.announced = code.parse().ok();
                None
            }
            _ => None,
        }
    }
}

/// Somebody of the group that this process has led is left, so that its number means this group and no other.
pub(super) fn group_is_left(leader: &Identity) -> bool {
    scan().iter().any(|entry| entry.group == leader.pid && entry.start_ticks >= leader.start_ticks)
}
