//! How an edge gives way to a newer one: the newer one gets the listening sockets themselves, so that the queue of connections in the kernel never
//! ends, and the routes as they are at that moment.
//!
//! What is said on the handover socket, in this order; each side goes on alone when the other one dies:
//!
//! 1. The older one sends its sockets and its routes, and serves on.
//! 2. The newer one is *ready*: everything is open, nothing is accepted.
//! 3. The older one lets its routes change no more and says *go*, with the routes and the sleepers that are wanted.
//! 4. The newer one accepts and is *serving*.
//! 5. The older one gives it the name of the administration socket, accepts no more, and says *done*. What it has begun it finishes, by the
//!    routes that the newer one passes on to it.
//!
//! Until *serving* has arrived, the older one serves on as if nobody had asked. After it, there is nothing that only the older one could do.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::TcpListener as StdListener,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ocore_model::{ids::InstanceId, route::RouteSnapshot};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{TcpListener, UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{admin, predecessor::Predecessor, server::Shared};

/// Listening sockets of one edge; the kernel would take 253 in one message.
const SOCKETS: usize = 16;
/// For a newer edge to open what it needs.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Of one line, in bytes: more than the routes of ten thousand instances.
const LINE_LIMIT: u64 = 16 * 1024 * 1024;
/// While the routes may not change.
const SERVING_LIMIT: Duration = Duration::from_secs(5);
/// For the older edge to write its next line.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    snapshot: RouteSnapshot,
    /// Where the older edge can be reached to its end.
    own_socket: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// The socket that is to get the name of the administration socket.
    admin: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Go {
    snapshot: RouteSnapshot,
    wanted: Vec<InstanceId>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Serving {}

#[derive(Debug, Serialize, Deserialize)]
struct Done {}

/// One side of a handover: lines of JSON.
struct Line(BufReader<UnixStream>);

impl Line {
    async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line).await
    }

    async fn hear<T: DeserializeOwned>(&mut self, limit: Duration) -> io::Result<T> {
        let mut line = String::new();
        match timeout(limit, (&mut self.0).take(LINE_LIMIT).read_line(&mut line)).await {
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the other edge said nothing for {limit:?}"))),
            Ok(Err(error)) => Err(error),
            Ok(Ok(read)) if read as u64 == LINE_LIMIT => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the other edge's line does not end"))
            }
            Ok(Ok(0)) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other edge is gone")),
            Ok(Ok(_)) => Ok(serde_json::from_str(&line)?),
        }
    }
}

/// Waits for a newer edge and gives way to it; returns when it serves. An attempt that fails changes nothing.
pub(crate) async fn give_way(shared: &Shared, socket: UnixListener, listeners: &[Arc<TcpListener>], stop: CancellationToken) {
    loop {
        let newer = tokio::select! {
            () = stop.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        let outcome = match newer {
            Ok((stream, _)) => hand_over(shared, stream, listeners).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "a newer edge did not take over; this one serves on"),
        }
    }
}

async fn hand_over(shared: &Shared, stream: UnixStream, listeners: &[Arc<TcpListener>]) -> io::Result<()> {
    let sockets: Vec<BorrowedFd<'_>> = listeners.iter().map(|listener| listener.as_fd()).collect();
    stream.async_io(Interest::WRITABLE, || send_sockets(&stream, &sockets)).await?;
    let mut line = Line(BufReader::new(stream));
    let offer = Offer { snapshot: (*shared.routes.snapshot()).clone(), own_socket: shared.own_socket.clone() };
    line.say(&offer).await?;
    let Ready { admin } = line.hear(READY_LIMIT).await?;

    let frozen = shared.routes.freeze().await;
    line.say(&Go { snapshot: (*shared.routes.snapshot()).clone(), wanted: shared.traffic.wanted() }).await?;
    let Serving {} = line.hear(SERVING_LIMIT).await?;
    // From here on the newer one serves, whatever happens to us.
    if let Err(error) = std::fs::rename(&admin, &shared.config.admin_socket) {
        tracing::error!(%error, "the newer edge did not get the name of the administration socket from us; it takes it itself");
    }
    shared.handed_over.cancel();
    drop(frozen);
    let _ = line.say(&Done {}).await;
    Ok(())
}

/// The listening sockets ride on one byte; more than one edge has are an error.
fn send_sockets(stream: &UnixStream, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other(format!("more than {SOCKETS} listening sockets cannot be handed over")));
    }
    sendmsg(stream, &[IoSlice::new(b"\n")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_sockets(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the older edge is gone"));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("not all listening sockets arrived"));
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

/// A newer edge's side, before it is ready.
pub(crate) struct TakeOver {
    line: Line,
    /// The older edge's sockets.
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) snapshot: RouteSnapshot,
    pub(crate) predecessor: PathBuf,
}

impl TakeOver {
    /// Asks the edge that answers at the administration socket for its sockets. `None` when none does.
    pub(crate) async fn ask(admin_socket: &Path) -> io::Result<Option<Self>> {
        if UnixStream::connect(admin_socket).await.is_err() {
            return Ok(None);
        }
        let socket = Predecessor::new(admin_socket).handover_socket().await.map_err(|error| {
            io::Error::new(error.kind(), format!("the edge that runs cannot hand over its sockets; end it first: {error}"))
        })?;
        let stream = UnixStream::connect(&socket).await?;
        let sockets = stream.async_io(Interest::READABLE, || receive_sockets(&stream)).await?;
        let mut line = Line(BufReader::new(stream));
        let offer: Offer = line.hear(ANSWER_LIMIT).await?;
        let mut listeners = Vec::with_capacity(sockets.len());
        for socket in sockets {
            let listener = StdListener::from(socket);
            listener.set_nonblocking(true)?;
            listeners.push(TcpListener::from_std(listener)?);
        }
        Ok(Some(Self { line, listeners, snapshot: offer.snapshot, predecessor: offer.own_socket }))
    }

    /// Everything is open; returns when it is ours to accept, with the newest routes in force. An error when the older edge serves on.
    pub(crate) async fn go(&mut self, shared: &Shared, admin: &Path) -> io::Result<()> {
        let said = async {
            self.line.say(&Ready { admin: admin.to_owned() }).await?;
            self.line.hear::<Go>(READY_LIMIT).await
        };
        match said.await {
            Ok(Go { snapshot, wanted }) => {
                shared.routes.apply(snapshot).await.map_err(io::Error::other)?;
                shared.traffic.want_again(&wanted);
                Ok(())
            }
            Err(error) => if_it_is_dead(shared, error).await,
        }
    }

    /// We accept. Returns when the administration socket is ours.
    pub(crate) async fn serving(mut self, shared: &Shared, admin: &Path) -> io::Result<()> {
        let said = async {
            self.line.say(&Serving {}).await?;
            self.line.hear::<Done>(ANSWER_LIMIT).await
        };
        match said.await {
            Ok(Done {}) => {}
            Err(error) => if_it_is_dead(shared, error).await?,
        }
        match std::fs::rename(admin, &shared.config.admin_socket) {
            // Given by the older edge already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }
}

/// An older edge that is silent and alive serves on, so this one must not.
async fn if_it_is_dead(shared: &Shared, error: io::Error) -> io::Result<()> {
    if admin::answers(&shared.config.admin_socket).await {
        return Err(error);
    }
    tracing::warn!(%error, "the older edge died while it handed over; this one goes on alone");
    Ok(())
}
