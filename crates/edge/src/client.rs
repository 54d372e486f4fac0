//! One client's socket, shared so that who waits for something else learns that the client has gone.
//!
//! hyper reads a connection only when it has use for the bytes: while a request with an unread body waits, it would never see the end of it. What it
//! would answer itself, to a head that it cannot read, is not passed on: it has no words and no id, and ours takes its place.

use std::{
    io,
    net::Shutdown,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Sleep, timeout},
};

use crate::{
    crowd::Member,
    heads::{Follows, Heads},
};

/// What a client still sends while its last answer is on its way is read for so long, and so much of it.
const LINGER_LIMIT: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

/// The socket as hyper uses it.
pub(crate) struct ClientStream {
    socket: Arc<Socket>,
    /// How long the client may read nothing.
    patience: Duration,
    reads_nothing: Option<Pin<Box<Sleep>>>,
}

/// The same socket, only to be watched.
#[derive(Clone)]
pub(crate) struct Client(Arc<Socket>);

struct Socket {
    stream: TcpStream,
    /// Something has come that nothing was answered to.
    asks: AtomicBool,
    talk: Mutex<Talk>,
    /// Its place among the connections of its client, also when it has become a websocket.
    _member: Member,
}

/// Whose turn it is, seen from outside of hyper.
#[derive(Default)]
struct Talk {
    heads: Heads,
    voice: Voice,
    /// hyper refused what came, and its answer was kept back.
    refused: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// No request is under way: what hyper says now, it says to a head that it could not read.
    #[default]
    Nobody,
    Answer,
    /// All of the answer is hyper's, and perhaps not with the kernel yet.
    Ending,
    Tunnel,
}

impl Socket {
    fn talk(&self) -> MutexGuard<'_, Talk> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read that does not fill the buffer has emptied the socket: tokio is told so, as its own streams do, and spares the next call to the
    /// kernel, which would only say that there is nothing.
    fn read(&self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut is_empty = false;
        let read = self.stream.try_io(Interest::READABLE, || {
            let room = buffer.remaining();
            let count = self.stream.try_read_buf(buffer)?;
            is_empty = 0 < count && count < room;
            if is_empty { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if is_empty { Ok(()) } else { read }
    }
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream, patience: Duration, member: Member) -> (Self, Client) {
        let socket = Arc::new(Socket { stream, asks: AtomicBool::new(false), talk: Mutex::default(), _member: member });
        (Self { socket: Arc::clone(&socket), patience, reads_nothing: None }, Client(socket))
    }
}

impl Client {
    /// Ends when the client has closed the connection or its side of it, also while what it sent is still unread. An orderly end behind more
    /// than the kernel takes of an unread body arrives only after it; a reset arrives at once.
    pub(crate) async fn gone(&self) {
        loop {
            // Nobody asked the kernel for urgent data, so the end of what can be read is all that this can mean.
            match self.0.stream.ready(Interest::PRIORITY).await {
                Ok(ready) if !ready.is_read_closed() => tokio::task::yield_now().await,
                _ => return,
            }
        }
    }

    /// Says a last word, as much of it as the kernel takes, to a client that waits for one, and tells whether it did. To be called when nobody
    /// speaks HTTP any more.
    pub(crate) fn say_at_last(&self, word: impl FnOnce() -> Vec<u8>) -> bool {
        let asks = self.0.asks.swap(false, Relaxed);
        if asks {
            // Who does not read it is gone.
            let _ = self.0.stream.try_write(&word());
        }
        asks
    }

    /// hyper has read a head; its answer is under way until the guard is dropped.
    pub(crate) fn begins(&self, follows: Follows) -> Answering {
        let mut talk = self.0.talk();
        talk.heads.parsed(follows);
        talk.voice = Voice::Answer;
        Answering(Arc::clone(&self.0))
    }

    /// What follows is no HTTP.
    pub(crate) fn becomes_tunnel(&self) {
        self.0.talk().voice = Voice::Tunnel;
    }

    /// Whether hyper refused the last head, whose client waits for an answer.
    pub(crate) fn was_refused(&self) -> bool {
        self.0.talk().refused
    }

    /// The beginning of the head that hyper was reading.
    pub(crate) fn head(&self) -> Vec<u8> {
        self.0.talk().heads.head()
    }

    /// Says a last word to a client that may still be sending, and reads on for a moment: a socket that is closed over unread bytes is reset, and the
    /// client would lose the word.
    pub(crate) async fn part_with(&self, word: &[u8]) {
        let stream = &self.0.stream;
        // Who does not read it is gone.
        let _ = stream.try_write(word);
        let _ = shut_down(stream);
        let rest = async {
            let (mut buffer, mut left) = ([0; 8 * 1024], LINGER_BYTES);
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut buffer) {
                    Ok(count) if 0 < count && count < left => left -= count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => return,
                }
            }
        };
        // What did not come by then is not waited for.
        let _ = timeout(LINGER_LIMIT, rest).await;
    }
}

/// One request's answer is under way.
pub(crate) struct Answering(Arc<Socket>);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut talk = self.0.talk();
        if talk.voice == Voice::Answer {
            talk.voice = Voice::Ending;
            talk.heads.refused();
        }
    }
}

/// Ends the socket's sending side, whichever descriptor it is said through.
fn shut_down(stream: &TcpStream) -> io::Result<()> {
    let socket = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
    match socket.shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut talk = self.socket.talk();
        let heads = &mut talk.heads;
        heads.asked();
        if !heads.has_unread() {
            let before = buffer.filled().len();
            loop {
                ready!(self.socket.stream.poll_read_ready(context))?;
                match self.socket.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => {
                        self.socket.asks.store(true, Relaxed);
                        read?;
                        break;
                    }
                }
            }
            let passed = heads.read(&buffer.filled()[before..]);
            buffer.set_filled(before + passed);
            if passed > 0 || !heads.has_unread() {
                return Poll::Ready(Ok(()));
            }
        }
        buffer.put_slice(&heads.take(buffer.remaining()));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        {
            let mut talk = this.socket.talk();
            if talk.voice == Voice::Nobody {
                talk.refused = true;
                return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
            }
        }
        loop {
            match this.socket.stream.poll_write_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    let patience = this.patience;
                    let timer = this.reads_nothing.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    ready!(timer.as_mut().poll(context));
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")));
                }
            }
            match this.socket.stream.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    this.reads_nothing = None;
                    this.socket.asks.store(false, Relaxed);
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper has nothing left that it has not written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut talk = self.socket.talk();
        if talk.voice == Voice::Ending {
            talk.voice = Voice::Nobody;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket.talk().refused {
            // The last word is still to be said.
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(shut_down(&self.socket.stream))
    }
}
