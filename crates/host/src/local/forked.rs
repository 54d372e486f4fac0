//! A process that somebody else has forked for us: it is known by its identity, and its parent tells how it ended.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixStream, unix::pipe},
    time::timeout,
};

use super::process::{Identity, scan};

/// No line of a conversation is longer, in bytes.
const LINE_LIMIT: usize = 64 * 1024;
/// Descriptors that a conversation passes on at once.
const DESCRIPTORS: usize = 8;
/// Of the code that a process says it will end with, in bytes.
const ANNOUNCEMENT_LIMIT: u64 = 16;
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

    /// Who listens at the socket, as the kernel knows: root's process, or an error.
    pub(super) fn listener(&self) -> io::Result<i32> {
        let peer = self.stream.peer_cred()?;
        peer.pid().filter(|_| peer.uid() == 0).ok_or_else(|| io::Error::other("another user listens there"))
    }

    /// Sends descriptors on the first byte of what is said next, which is a space.
    pub(super) async fn pass_on(&mut self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other(format!("more than {DESCRIPTORS} descriptors are not passed on at once")));
            }
            sendmsg(&self.stream, &[IoSlice::new(b" ")], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        self.stream.async_io(Interest::WRITABLE, send).await
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

/// A process that was forked for us, and the connection on which its parent tells how it ended. The process itself has that connection until it may run, and
/// not any more when it does: what it runs is somebody else's code.
#[derive(Debug)]
pub(super) struct Forked {
    identity: Identity,
    conversation: Conversation,
    /// Where it says, just before it ends, with which code: in case that its parent is gone. It may say what it likes.
    announcement: Option<pipe::Receiver>,
}

impl Forked {
    pub(super) fn new(identity: Identity, conversation: Conversation) -> Self {
        Self { identity, conversation, announcement: None }
    }

    pub(super) fn announces_at(&mut self, pipe: pipe::Receiver) {
        self.announcement = Some(pipe);
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
                        if let Some(status) = parents_word(&line) {
                            return Ok(Some(status));
                        }
                    }
                    // Its parent has closed its end, too.
                    Ok(None) | Err(_) => break false,
                },
                ended = &mut exited => { ended?; break true; }
            }
        };
        if has_ended {
            let last_words = async {
                while let Ok(Some(line)) = self.conversation.hear().await {
                    if let Some(status) = parents_word(&line) {
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
        Ok(self.announced().await.map(|code| ExitStatus::from_raw((code & 0xff) << 8)))
    }

    /// The code that it said it would end with. What it has started may keep the pipe open.
    async fn announced(&mut self) -> Option<i32> {
        let mut said = Vec::new();
        let mut pipe = self.announcement.as_mut()?.take(ANNOUNCEMENT_LIMIT);
        let _ = timeout(WORD_LIMIT, pipe.read_to_end(&mut said)).await;
        std::str::from_utf8(&said).ok()?.lines().next()?.parse().ok()
    }
}

/// `ended <wait status>`.
fn parents_word(line: &str) -> Option<ExitStatus> {
    line.strip_prefix("ended ")?.parse().ok().map(ExitStatus::from_raw)
}

/// Somebody of the group that this process has led is left, so that its number means this group and no other.
pub(super) fn group_is_left(leader: &Identity) -> bool {
    scan().iter().any(|entry| entry.group == leader.pid && entry.start_ticks >= leader.start_ticks)
}
