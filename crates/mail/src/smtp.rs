//! SMTP (RFC 5321) as a mailbox takes it: from its own instance, on the loopback interface, without TLS or log-in, and never passed on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ocore_model::mail::MailboxSpec;
use smtp_proto::{
    Error as ParseError, Request,
    request::receiver::{DataReceiver, DummyDataReceiver, RequestReceiver},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    config::MailConfig,
    error::{MailError, Result},
    mailboxes::{Mailboxes, Slot},
    message::Envelope,
    peer,
};

/// RFC 5321, 4.5.3.2.7: at least five minutes.
const IDLE: Duration = Duration::from_mins(5);
/// How long a connection may last without a message that was kept, and how long a message may take to come: a place is held meanwhile that others wait
/// for, and all who send are on this machine.
const SESSION: Duration = Duration::from_mins(10);
const MESSAGE: Duration = Duration::from_mins(5);
/// For the last word to one that has taken too long.
const FAREWELL: Duration = Duration::from_secs(5);
/// Bytes of all recipients of one message.
const RECIPIENT_BYTES: usize = 64 << 10;
/// How long a listener whose port is taken waits before it looks again.
const PAUSE: Duration = Duration::from_secs(1);
/// Connections that wait to be taken.
const BACKLOG: i32 = 128;
const RECIPIENTS: usize = 1000;
/// Mistakes after which a connection ends.
const MISTAKES: usize = 20;
const READ: usize = 32 << 10;
/// Connections at once: of all mailboxes, and of one.
const CONNECTIONS: usize = 512;
const CONNECTIONS_EACH: usize = 32;
/// A message that grows beyond this waits until fewer such ones are under way, so that memory is bounded.
const LARGE: usize = 1 << 20;
const LARGE_AT_ONCE: usize = 4;

/// What bounds memory over all mailboxes.
pub(crate) struct Gates {
    connections: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Gates {
    pub(crate) fn new() -> Self {
        Self { connections: Arc::new(Semaphore::new(CONNECTIONS)), large: Arc::new(Semaphore::new(LARGE_AT_ONCE)) }
    }
}

/// Takes mail for a mailbox until it ends.
pub(crate) async fn listen(mailboxes: Arc<Mailboxes>, slot: Arc<Slot>) {
    let end = slot.end.clone();
    let sessions = TaskTracker::new();
    tokio::select! {
        () = end.cancelled() => {}
        () = accept(&mailboxes, &slot, &sessions) => {}
    }
    sessions.close();
    sessions.wait().await;
}

/// At the socket that is held for the mailbox. It stays open when we end, so that who comes meanwhile waits for the next catcher.
fn listen_at(mailboxes: &Mailboxes, port: u16) -> std::io::Result<TcpListener> {
    let socket = mailboxes.config.ports.hold(port)?;
    rustix::net::listen(&socket, BACKLOG)?;
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept(mailboxes: &Arc<Mailboxes>, slot: &Arc<Slot>, sessions: &TaskTracker) {
    let MailboxSpec { port, uid } = slot.spec;
    let each = Arc::new(Semaphore::new(CONNECTIONS_EACH));
    let listener = loop {
        match listen_at(mailboxes, port) {
            Ok(listener) => break listener,
            Err(error) => {
                if slot.listening().err().is_none_or(|before| before != error.to_string()) {
                    tracing::error!(instance = %slot.instance, port, %error, "a mailbox cannot listen; it is tried again");
                }
                slot.note_listening(Err(error.to_string()));
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let local = match listener.local_addr() {
        Ok(local) => local,
        Err(error) => return slot.note_listening(Err(error.to_string())),
    };
    slot.note_listening(Ok(local));
    loop {
        let Ok(one) = Arc::clone(&each).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(instance = %slot.instance, %error, "a connection was not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (mailboxes, slot) = (Arc::clone(mailboxes), Arc::clone(slot));
        sessions.spawn(async move {
            let _one = one;
            let end = slot.end.clone();
            let session = async {
                if may_send(peer, local, uid) {
                    // Not before somebody has come: a mailbox that only listens would keep the place from the others.
                    match mailboxes.gates.connections.acquire().await {
                        Ok(_of_all) => serve(stream, &mailboxes, &slot).await,
                        Err(_) => Ok(()),
                    }
                } else {
                    tracing::warn!(instance = %slot.instance, %peer, "a stranger wanted to leave mail");
                    let mut stream = stream;
                    stream.write_all(b"554 5.7.1 this mailbox takes mail from its own Odoo only\r\n").await
                }
            };
            tokio::select! {
                ended = session => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                },
                () = end.cancelled() => {}
            }
        });
    }
}

/// Its own instance may, and root.
fn may_send(peer: SocketAddr, local: SocketAddr, uid: u32) -> bool {
    peer::uid(peer, local).is_some_and(|sender| sender == uid || sender == 0)
}

/// A message that is being received.
#[derive(Default)]
struct Transaction {
    envelope: Option<Envelope>,
    large: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

struct Session<'a> {
    stream: TcpStream,
    slot: &'a Slot,
    config: &'a MailConfig,
    gates: &'a Gates,
    transaction: Transaction,
    greeted: bool,
    mistakes: usize,
    answer: Vec<u8>,
    /// When it ends, if it keeps no message until then; while one comes, when that has to be here.
    deadline: Instant,
}

async fn serve(stream: TcpStream, mailboxes: &Mailboxes, slot: &Slot) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut session = Session {
        stream,
        slot,
        config: &mailboxes.config,
        gates: &mailboxes.gates,
        transaction: Transaction::default(),
        greeted: false,
        mistakes: 0,
        answer: Vec::new(),
        deadline: Instant::now() + SESSION,
    };
    session.say("220 ocore mail catcher ESMTP");
    session.run().await
}

impl Session<'_> {
    fn say(&mut self, line: &str) {
        self.answer.extend(line.as_bytes());
        self.answer.extend(b"\r\n");
    }

    /// Sends what was said since the last time: several answers together when several commands came together.
    async fn flush(&mut self) -> std::io::Result<()> {
        let written = timeout_at(self.deadline, self.stream.write_all(&self.answer)).await;
        self.answer.clear();
        written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// The next bytes; `None` at the end of the connection.
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<Option<usize>> {
        self.flush().await?;
        match timeout_at(self.deadline.min(Instant::now() + IDLE), self.stream.read(buffer)).await {
            Ok(Ok(0)) => Ok(None),
            Ok(read) => read.map(Some),
            Err(_) => {
                self.say("421 4.4.2 too long without a word or a message");
                self.deadline = Instant::now() + FAREWELL;
                self.flush().await?;
                Ok(None)
            }
        }
    }

    async fn run(&mut self) -> std::io::Result<()> {
        let mut receiver = RequestReceiver::default();
        let mut buffer = vec![0; READ];
        loop {
            let Some(length) = self.read(&mut buffer).await? else { return Ok(()) };
            let mut bytes = buffer[..length].iter();
            while !bytes.as_slice().is_empty() {
                let request = match receiver.ingest(&mut bytes).map(Request::into_owned) {
                    Ok(request) => request,
                    Err(ParseError::NeedsMoreData { .. }) => break,
                    Err(error) => {
                        self.say(&refusal(&error));
                        if self.too_many_mistakes() {
                            return self.flush().await;
                        }
                        if matches!(error, ParseError::ResponseTooLong) {
                            return self.flush().await;
                        }
                        continue;
                    }
                };
                let go_on = match request {
                    Request::Data => {
                        let rest = bytes.as_slice().to_vec();
                        let Some(rest) = self.data(rest).await? else { return Ok(()) };
                        // What came behind the message are commands again.
                        buffer = rest;
                        let kept = buffer.len();
                        buffer.resize(kept.max(READ), 0);
                        bytes = buffer[..kept].iter();
                        true
                    }
                    request => self.command(request),
                };
                if !go_on {
                    return self.flush().await;
                }
            }
        }
    }

    fn too_many_mistakes(&mut self) -> bool {
        self.mistakes += 1;
        if self.mistakes >= MISTAKES {
            self.say("421 4.7.0 too many mistakes");
        }
        self.mistakes >= MISTAKES
    }

    /// Answers a command; `false` when the connection ends.
    fn command(&mut self, request: Request<String>) -> bool {
        match request {
            Request::Ehlo { .. } => {
                self.transaction = Transaction::default();
                self.greeted = true;
                let limit = self.config.limits.message_bytes;
                let lines = ["250-ocore", "250-PIPELINING", "250-8BITMIME", "250-SMTPUTF8", "250-ENHANCEDSTATUSCODES"];
                for line in lines {
                    self.say(line);
                }
                self.say(&format!("250 SIZE {limit}"));
            }
            Request::Helo { .. } => {
                self.transaction = Transaction::default();
                self.greeted = true;
                self.say("250 ocore");
            }
            Request::Mail { from } => {
                if !self.greeted {
                    self.say("503 5.5.1 say EHLO first");
                } else if self.transaction.envelope.is_some() {
                    self.say("503 5.5.1 one message at a time");
                } else if from.size > self.config.limits.message_bytes {
                    let answer = self.too_large();
                    self.say(&answer);
                } else {
                    self.transaction.envelope = Some(Envelope { from: from.address, to: Vec::new() });
                    self.say("250 2.1.0 OK");
                }
            }
            Request::Rcpt { to } => match &mut self.transaction.envelope {
                None => self.say("503 5.5.1 say MAIL FROM first"),
                Some(envelope) if envelope.to.len() >= RECIPIENTS || envelope.bytes() + to.address.len() > RECIPIENT_BYTES => {
                    self.say("452 4.5.3 too many recipients");
                }
                Some(envelope) => {
                    envelope.to.push(to.address);
                    self.say("250 2.1.5 OK");
                }
            },
            Request::Rset => {
                self.transaction = Transaction::default();
                self.say("250 2.0.0 OK");
            }
            Request::Noop { .. } => self.say("250 2.0.0 OK"),
            Request::Vrfy { .. } => self.say("252 2.5.2 it would be caught"),
            Request::Help { .. } => self.say("214 2.0.0 mail is caught here and goes nowhere"),
            Request::Quit => {
                self.say("221 2.0.0 bye");
                return false;
            }
            other => {
                self.say(&format!("502 5.5.1 {} is not taken here", other.name()));
                return !self.too_many_mistakes();
            }
        }
        true
    }

    fn too_large(&self) -> String {
        format!("552 5.3.4 the message is larger than {} bytes", self.config.limits.message_bytes)
    }

    /// Receives a message; gives what came behind it, or `None` when the connection ended.
    async fn data(&mut self, first: Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
        if self.transaction.envelope.as_ref().is_none_or(|envelope| envelope.to.is_empty()) {
            self.say("503 5.5.1 say RCPT TO first");
            return Ok(Some(first));
        }
        let limit = self.config.limits.message_bytes;
        self.say("354 end with a dot on a line of its own");
        self.deadline = Instant::now() + MESSAGE;
        let mut receiver = DataReceiver::new();
        // A message that is too large is read to its end and thrown away.
        let mut dropped: Option<DummyDataReceiver> = None;
        let mut message = Vec::new();
        let mut buffer = first;
        let mut length = buffer.len();
        loop {
            let mut bytes = buffer[..length].iter();
            let ended = match &mut dropped {
                Some(receiver) => receiver.ingest(&mut bytes),
                None => receiver.ingest(&mut bytes, &mut message),
            };
            if message.len() > limit && dropped.is_none() {
                dropped = Some(DummyDataReceiver::new_data(&receiver));
                message = Vec::new();
                self.transaction.large = None;
            }
            if ended {
                let rest = bytes.as_slice().to_vec();
                let answer = if dropped.is_some() { self.too_large() } else { self.keep(message).await };
                self.transaction = Transaction::default();
                self.deadline = Instant::now() + SESSION;
                self.say(&answer);
                return Ok(Some(rest));
            }
            if message.len() > LARGE && self.transaction.large.is_none() {
                self.flush().await?;
                // One a mailbox, so that none keeps the others waiting.
                let own = Arc::clone(&self.slot.large).acquire_owned().await.ok();
                self.transaction.large = own.zip(Arc::clone(&self.gates.large).acquire_owned().await.ok());
                // Its own waiting for a place is not the sender's doing.
                self.deadline = Instant::now() + MESSAGE;
            }
            buffer.resize(READ, 0);
            let Some(read) = self.read(&mut buffer).await? else { return Ok(None) };
            length = read;
        }
    }

    /// The answer to a whole message. `250` says that it is on the disk.
    async fn keep(&mut self, message: Vec<u8>) -> String {
        let envelope = self.transaction.envelope.take().unwrap_or_default();
        match self.store(envelope, message).await {
            Ok(id) => format!("250 2.0.0 kept as {id}"),
            Err(MailError::Full) => "452 4.3.1 the mail catcher's disk is full; try again later".to_owned(),
            Err(error) => {
                tracing::error!(instance = %self.slot.instance, %error, "a message could not be kept");
                "451 4.3.0 the message could not be kept; try again later".to_owned()
            }
        }
    }

    async fn store(&self, envelope: Envelope, message: Vec<u8>) -> Result<String> {
        let mailbox = self.slot.mailbox(self.config).await?;
        let id = mailbox.append(envelope, message.into()).await?;
        Ok(id.simple().to_string())
    }
}

fn refusal(error: &ParseError) -> String {
    match error {
        ParseError::UnknownCommand | ParseError::InvalidResponse { .. } => "500 5.5.1 that is no command".to_owned(),
        ParseError::InvalidSenderAddress => "501 5.1.7 that is no sender's address".to_owned(),
        ParseError::InvalidRecipientAddress => "501 5.1.3 that is no recipient's address".to_owned(),
        ParseError::SyntaxError { syntax } => format!("501 5.5.4 say it as {syntax}"),
        ParseError::InvalidParameter { param } => format!("501 5.5.4 the parameter {param} does not fit"),
        ParseError::UnsupportedParameter { .. } => "504 5.5.4 that parameter is not taken here".to_owned(),
        ParseError::ResponseTooLong => "500 5.5.2 that line is too long".to_owned(),
        ParseError::NeedsMoreData { .. } => "500 5.5.2 that line has no end".to_owned(),
    }
}
