//! Connections to Odoo: made, kept for a while, made again.
//!
//! A kept connection may have been closed by the other side a moment ago, and what was sent on it is then lost in doubt. So only requests
//! that may be sent twice ride on kept connections; every other one gets a new connection, which on one machine costs some fifty
//! microseconds. That is why this is not hyper-util's pool, which does not tell its user which of the two he got.
//!
//! A connection for a request without a body is driven by the task of the client whose answer it brings: what arrives is passed on where it was
//! read, and no second task has to be woken for each piece. One that sends a body has a task of its own, so that sending does not wait for a
//! client that does not read its answer yet.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use hyper::client::conn::http1::{self, Builder, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use crate::body::RequestBody;

/// For how long an unused connection is kept; shorter than what servers usually keep.
const IDLE_LIMIT: Duration = Duration::from_secs(15);
const IDLE_COUNT_LIMIT: usize = 64;
/// Bounds what one connection holds of an answer that the client does not read.
const BUFFER_SIZE: usize = 64 * 1024;
const RESPONSE_HEADER_COUNT: usize = 200;

#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("cannot connect to {address}")]
    Refused {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{address} did not accept a connection within {limit:?}")]
    TimedOut { address: SocketAddr, limit: Duration },
    #[error("cannot speak HTTP with {address}")]
    Handshake {
        address: SocketAddr,
        #[source]
        source: hyper::Error,
    },
}

impl ConnectError {
    /// The machine is there and nobody listens at the port.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

pub(crate) struct Pool {
    connect_timeout: Duration,
    idle: Mutex<HashMap<SocketAddr, Vec<Idle>>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// One connection to one address, for one request at a time.
pub(crate) struct Connection {
    pub(crate) address: SocketAddr,
    pub(crate) sender: SendRequest<RequestBody>,
    /// `None`: it has a task of its own, or has ended.
    driver: Option<Driver>,
}

type Driver = Box<http1::Connection<TokioIo<TcpStream>, RequestBody>>;

/// Who reads and writes a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrivenBy {
    /// Whoever waits for the answer: [`Connection::drive`].
    Asker,
    /// A task of its own.
    Itself,
}

impl Connection {
    /// Whoever has it must drive it.
    pub(crate) fn is_driven(&self) -> bool {
        self.driver.is_some()
    }

    /// Reads and writes what can be; does nothing for one with a task of its own. How it ended, its answer tells.
    pub(crate) fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let std::task::Poll::Ready(ended) = Pin::new(driver).poll(context)
        {
            if let Err(error) = ended {
                tracing::debug!(address = %self.address, %error, "a connection to Odoo ended");
            }
            self.driver = None;
        }
    }

    /// Looks whether the other side has closed it, of which nobody is told while nobody drives it.
    fn is_closed(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.sender.is_closed()
    }
}

impl Pool {
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, idle: Mutex::default() }
    }

    /// A kept connection that looks alive. Whether it is, only an answer tells.
    pub(crate) fn take_idle(&self, address: SocketAddr) -> Option<Connection> {
        let mut idle = self.lock();
        let kept = idle.get_mut(&address)?;
        while let Some(Idle { mut connection, since }) = kept.pop() {
            if since.elapsed() < IDLE_LIMIT && !connection.is_closed() && connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    pub(crate) async fn connect(&self, address: SocketAddr, driven_by: DrivenBy) -> Result<Connection, ConnectError> {
        let stream = match timeout(self.connect_timeout, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(|source| ConnectError::Refused { address, source })?,
            Err(_) => return Err(ConnectError::TimedOut { address, limit: self.connect_timeout }),
        };
        // Only a socket that is already gone refuses this; the request will say so.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER_SIZE)
            .max_headers(RESPONSE_HEADER_COUNT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ConnectError::Handshake { address, source })?;
        let driver = match driven_by {
            DrivenBy::Asker => Some(Box::new(connection)),
            DrivenBy::Itself => {
                // Ends when the other side closes, or when the sender is dropped and the last answer has been read.
                tokio::spawn(async move {
                    if let Err(error) = connection.with_upgrades().await {
                        tracing::debug!(%address, %error, "a connection to Odoo ended");
                    }
                });
                None
            }
        };
        Ok(Connection { address, sender, driver })
    }

    /// Keeps a connection for later once its answer has been read; lets it go if the other side closes it. One that is driven must have been read
    /// to the answer's end.
    pub(crate) fn give_back(self: &Arc<Self>, mut connection: Connection) {
        if connection.is_closed() {
            return;
        }
        if connection.is_driven() {
            if connection.sender.is_ready() {
                self.keep(connection);
            }
            return;
        }
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            if connection.sender.ready().await.is_ok() {
                pool.keep(connection);
            }
        });
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.lock();
        let kept = idle.entry(connection.address).or_default();
        if kept.len() < IDLE_COUNT_LIMIT {
            kept.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes kept connections to everywhere else, so that a slot that lost its route can stop at once.
    pub(crate) fn keep_only(&self, live: &HashSet<SocketAddr>) {
        self.lock().retain(|address, _| live.contains(address));
    }

    /// Closes what was kept too long.
    pub(crate) fn sweep(&self) {
        self.lock().retain(|_, kept| {
            kept.retain_mut(|idle| idle.since.elapsed() < IDLE_LIMIT && !idle.connection.is_closed());
            !kept.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
