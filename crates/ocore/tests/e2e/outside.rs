//! What is outside of oCore, and whom nothing of a copy may reach.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// An SMTP server outside of oCore: it takes everything and counts who came.
pub(crate) struct Outside {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    messages: Arc<Mutex<Vec<String>>>,
}

impl Outside {
    pub(crate) async fn open() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let outside = Self { address: listener.local_addr()?, connections: Arc::default(), messages: Arc::default() };
        let (connections, messages) = (Arc::clone(&outside.connections), Arc::clone(&outside.messages));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(receive(stream, Arc::clone(&messages)));
            }
        });
        Ok(outside)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn receive(stream: TcpStream, messages: Arc<Mutex<Vec<String>>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 outside\r\n").await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let answer = if line.starts_with("DATA") {
            stream.write_all(b"354 go on\r\n").await?;
            let mut message = String::new();
            while !message.ends_with("\r\n.\r\n") && stream.read_line(&mut message).await? > 0 {}
            messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
            "250 taken\r\n"
        } else {
            "250 go on\r\n"
        };
        stream.write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}
