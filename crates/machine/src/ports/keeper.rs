//! The process that holds the ports of a server: it does nothing else, needs nobody, and outlives those who use it.
//!
//! What is said on its socket: one request a connection, a line of JSON; one answer, a byte that says whether it went well, then the words of an error. A
//! socket that was asked for rides on the byte.

use std::{
    fs,
    io::{self, BufRead, BufReader, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    time::Duration,
};

use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt},
    process::{Resource, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};

use super::holder::Holder;

/// Nobody keeps the others waiting.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A request is some 20 bytes.
const REQUEST_LIMIT: u64 = 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Hold(u16),
    Quiet(u16),
    Release(u16),
}

pub(super) const DONE: u8 = b'+';
pub(super) const REFUSED: u8 = b'-';
/// Another has the port: the caller may take another one.
pub(super) const IN_USE: u8 = b'!';

/// A keeper whose socket is open.
pub struct Keeper {
    listener: UnixListener,
    holder: Holder,
}

impl Keeper {
    /// Opens the socket with mode 0600 under its name at once, in the place of one that a dead keeper left.
    pub fn open(socket: &Path) -> io::Result<Self> {
        if answers(socket) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another keeper answers at {}", socket.display())));
        }
        // One descriptor for each port.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum })?;
        let mut fresh = socket.as_os_str().to_owned();
        fresh.push(".new");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(&fresh, socket)?;
        Ok(Self { listener, holder: Holder::new()? })
    }

    /// Serves for ever, one connection at a time.
    pub fn serve(mut self) -> io::Result<()> {
        loop {
            let (stream, _) = self.listener.accept()?;
            if let Err(error) = self.answer(stream) {
                tracing::debug!(%error, "a request for a port was broken off");
            }
        }
    }

    fn answer(&mut self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if !sockopt::socket_peercred(&stream)?.uid.is_root() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user asked"));
        }
        let mut line = String::new();
        BufReader::new((&stream).take(REQUEST_LIMIT)).read_line(&mut line)?;
        // Whether it still answers: nothing is asked.
        if line.is_empty() {
            return Ok(());
        }
        let outcome = match serde_json::from_str(&line)? {
            Request::Hold(port) => self.holder.hold(port).map(Some),
            Request::Quiet(port) => self.holder.quiet(port).map(|()| None),
            Request::Release(port) => {
                self.holder.release(port);
                Ok(None)
            }
        };
        match outcome {
            Ok(Some(socket)) => {
                let sockets = [socket.as_fd()];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&sockets));
                sendmsg(&stream, &[IoSlice::new(&[DONE])], &mut control, SendFlags::NOSIGNAL)?;
                Ok(())
            }
            Ok(None) => stream.write_all(&[DONE]),
            Err(error) => {
                let sign = if error.kind() == io::ErrorKind::AddrInUse { IN_USE } else { REFUSED };
                stream.write_all(&[&[sign], error.to_string().as_bytes()].concat())
            }
        }
    }
}

/// Whether a keeper listens there.
pub fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}
