//! The API's own port, on real sockets: who says nothing is hung up on, what is no request gets an answer with words and an id.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use ocore_api::{AppState, Patience};
use ocore_testkit::Store;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

struct Port {
    address: SocketAddr,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    _store: Store,
}

impl Port {
    async fn open() -> Result<Self> {
        let store = Store::new().await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let patience = Patience { headers: Duration::from_millis(500), body_piece: Duration::from_millis(500) };
        let router = ocore_api::router(AppState { control: store.control.clone() });
        let serving = tokio::spawn(ocore_api::serve(listener, router, patience, stop.clone()));
        Ok(Self { address, stop, serving, _store: store })
    }

    /// Everything that comes back until the server hangs up.
    async fn say(&self, bytes: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(bytes).await?;
        let mut answer = Vec::new();
        // A reset after the answer is an end, too.
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        let _ = read.context("the server does not hang up")?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

fn problem(answer: &str) -> Result<(u64, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
    let body: Value = serde_json::from_str(body).with_context(|| answer.to_owned())?;
    let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).with_context(|| head.to_owned())?;
    assert_eq!(body["requestId"], id);
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    Ok((body["status"].as_u64().context("a status")?, body["code"].as_str().context("a code")?.to_owned()))
}

#[tokio::test]
async fn whoever_says_nothing_or_not_all_is_hung_up_on() -> Result<()> {
    let port = Port::open().await?;
    let asks = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    for bytes in ["", "GET / HTTP/1.1\r\nX: ", asks] {
        assert_eq!(port.say(bytes.as_bytes()).await?, "", "{bytes:?}");
    }
    // One that has had its answer and says no more.
    let answer = port.say(format!("{asks}\r\n").as_bytes()).await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Half a body, without a log-in.
    let half = "POST /api/auth/login HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"email\"";
    assert!(port.say(half.as_bytes()).await?.starts_with("HTTP/1.1 4"));
    Ok(())
}

#[tokio::test]
async fn what_is_no_request_gets_words_and_an_id() -> Result<()> {
    let port = Port::open().await?;
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(200_000));
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(500_000));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: a\r\n".repeat(300));
    for (bytes, expected) in [
        ("GET / HTTP/1.1\r\n\r\n", &["host_required"][..]),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &["host_required"]),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", &["host_required"]),
        ("hello\r\n\r\n", &["malformed_request"]),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", &["malformed_request"]),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", &["malformed_request"]),
        (long.as_str(), &["address_too_long", "headers_too_large"]),
        (large.as_str(), &["headers_too_large"]),
        (many.as_str(), &["headers_too_large"]),
    ] {
        let answer = port.say(bytes.as_bytes()).await?;
        let (status, code) = problem(&answer)?;
        assert!(expected.contains(&code.as_str()), "{:?} {status} {code}", bytes.get(..40));
    }
    // HTTP/1.0 needs no host, and is answered.
    assert!(port.say(b"GET /healthz HTTP/1.0\r\n\r\n").await?.contains("200 OK"));
    Ok(())
}

#[tokio::test]
async fn a_stop_lets_the_answer_under_way_end() -> Result<()> {
    let port = Port::open().await?;
    let mut stream = TcpStream::connect(port.address).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut first = [0; 15];
    stream.read_exact(&mut first).await?;
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    port.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), port.serving).await.context("it does not stop")??;
    Ok(())
}
