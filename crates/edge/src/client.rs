//! One client's socket, shared so that who waits for something else learns that the client has gone.
//!
//! hyper reads a connection only when it has use for the bytes: while a request with an unread body waits, it would never see the end of it.

use std::{
    io,
    net::Shutdown,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use crate::crowd::Member;

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
    /// Its place among the connections of its client, also when it has become a websocket.
    _member: Member,
}

impl Socket {
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
        let socket = Arc::new(Socket { stream, asks: AtomicBool::new(false), _member: member });
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
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.stream.poll_read_ready(context))?;
            match self.socket.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    self.socket.asks.store(true, Relaxed);
                    return Poll::Ready(read);
                }
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
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

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Ends the socket's sending side, whichever descriptor it is said through.
        let socket = std::net::TcpStream::from(self.socket.stream.as_fd().try_clone_to_owned()?);
        Poll::Ready(match socket.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
            _ => Ok(()),
        })
    }
}
