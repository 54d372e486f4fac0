//! Asks an Odoo whether it answers.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// More than Odoo's log-in page ever has, in bytes.
pub(super) const PAGE_LIMIT: u64 = 1024 * 1024;
/// More than any bundle of scripts ever has, in bytes.
pub(super) const BUNDLE_LIMIT: u64 = 64 * 1024 * 1024;

/// What came of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody listens, or the connection broke off.
    Nothing,
    /// The page is longer than [`PAGE_LIMIT`].
    Endless,
    Status(StatusCode),
}

impl Answer {
    /// A page, or the way to one: Odoo has its database and renders.
    pub(super) fn is_good(self) -> bool {
        matches!(self, Self::Status(status) if status.is_success() || status.is_redirection())
    }
}

/// One request that Odoo can only answer with its database. Waits as long as Odoo takes, up to `patience`.
pub(super) async fn login_page(address: SocketAddr, patience: Duration) -> Answer {
    match tokio::time::timeout(patience, get(address, "/web/login", PAGE_LIMIT)).await {
        Ok(Page::Whole(got)) => Answer::Status(got.status),
        Ok(Page::Endless) => Answer::Endless,
        Ok(Page::Nothing) | Err(_) => Answer::Nothing,
    }
}

/// The answer to one request.
pub(super) struct Got {
    pub(super) status: StatusCode,
    /// Where it leads, as it is written.
    pub(super) location: Option<String>,
    /// Empty where nobody wants it.
    pub(super) body: Vec<u8>,
}

pub(super) enum Page {
    /// Nobody listens, or the connection broke off.
    Nothing,
    /// It goes on behind the limit. Nothing more of it was read.
    Endless,
    Whole(Got),
}

/// Asks for a page that has at most `limit` bytes, of which none are kept. There is no deadline: the caller has one.
pub(super) async fn get(address: SocketAddr, path: &str, limit: u64) -> Page {
    exchange(address, path, limit, false).await.unwrap_or(Page::Nothing)
}

/// The same, and keeps what it answers.
pub(super) async fn read(address: SocketAddr, path: &str, limit: u64) -> Page {
    exchange(address, path, limit, true).await.unwrap_or(Page::Nothing)
}

async fn exchange(address: SocketAddr, path: &str, limit: u64, keep: bool) -> Option<Page> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(path).header(header::HOST, address.to_string()).body(Empty::<Bytes>::new()).ok()?;
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok()).map(str::to_owned);
        let mut got = Got { status: response.status(), location, body: Vec::new() };
        // To the end: an Odoo whose client goes away in the middle logs that.
        let mut body = response.into_body();
        let mut length = 0_u64;
        while let Some(frame) = body.frame().await {
            let frame = frame.ok()?;
            let Some(piece) = frame.data_ref() else { continue };
            length += piece.len() as u64;
            if length > limit {
                return Some(Page::Endless);
            }
            if keep {
                got.body.extend_from_slice(piece);
            }
        }
        Some(Page::Whole(got))
    };
    tokio::pin!(exchange);
    tokio::select! {
        got = &mut exchange => got,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers one request with this head, and then with one byte again and again, as long as anybody takes them.
    async fn endless(head: &'static str) -> (SocketAddr, tokio::task::JoinHandle<u64>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut sent = 0;
            // Also a chunk: its length in hexadecimal digits, its bytes.
            let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            while stream.write_all(piece.as_bytes()).await.is_ok() {
                sent += piece.len() as u64;
            }
            sent
        });
        (address, served)
    }

    #[tokio::test]
    async fn a_page_without_end_is_let_go() {
        for head in [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n",
        ] {
            let (address, served) = endless(head).await;
            assert_eq!(login_page(address, Duration::from_secs(30)).await, Answer::Endless, "{head}");
            let sent = served.await.unwrap();
            assert!(sent < 16 * PAGE_LIMIT, "{sent} bytes went out for {head}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_no_answer() {
        let (address, served) = endless("HTTP/1.1 200 OK\r\nX-Long: ").await;
        assert_eq!(login_page(address, Duration::from_secs(30)).await, Answer::Nothing);
        assert!(served.await.unwrap() < 16 * PAGE_LIMIT);
    }
}
