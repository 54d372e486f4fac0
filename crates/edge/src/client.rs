//! One client's socket, shared so that who waits for something else learns that the client has gone.
//!
//! hyper reads a connection only when it has use for the bytes: while a request with an unread body waits, it would never see the end of it.

use std::{
    io,
    net::Shutdown,
    os::fd::AsFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// The socket as hyper uses it.
pub(crate) struct ClientStream(Arc<TcpStream>);

/// The same socket, only to be watched.
#[derive(Clone)]
pub(crate) struct Client(Arc<TcpStream>);

impl ClientStream {
    pub(crate) fn new(stream: TcpStream) -> (Self, Client) {
        let stream = Arc::new(stream);
        (Self(Arc::clone(&stream)), Client(stream))
    }
}

impl Client {
    /// Ends when the client has closed the connection or its side of it, also while what it sent is still unread. An orderly end behind more
    /// than the kernel takes of an unread body arrives only after it; a reset arrives at once.
    pub(crate) async fn gone(&self) {
        loop {
            // Nobody asked the kernel for urgent data, so the end of what can be read is all that this can mean.
            match self.0.ready(Interest::PRIORITY).await {
                Ok(ready) if !ready.is_read_closed() => tokio::task::yield_now().await,
                _ => return,
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|_| ())),
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
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
        let socket = std::net::TcpStream::from(self.0.as_fd().try_clone_to_owned()?);
        Poll::Ready(match socket.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
            _ => Ok(()),
        })
    }
}
