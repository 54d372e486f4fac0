use std::time::Duration;

use crate::support::{TestEdge, Upstream, access_log_of, request, serving};

/// What each attempt may lead to at most; nothing hidden inside a body ever becomes a request of its own.
#[tokio::test]
async fn a_request_hidden_in_another_never_reaches_odoo() {
    let hidden = "GET /hidden HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let host = "Host: shop.example\r\n";
    let attempts = [
        ("two lengths", format!("POST /a HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello{hidden}")),
        ("a list of lengths", format!("POST /a HTTP/1.1\r\n{host}Content-Length: 5, 6\r\n\r\nhello{hidden}")),
        ("a signed length", format!("POST /a HTTP/1.1\r\n{host}Content-Length: +5\r\n\r\nhello{hidden}")),
        ("a hexadecimal length", format!("POST /a HTTP/1.1\r\n{host}Content-Length: 0x5\r\n\r\nhello{hidden}")),
        ("a length beyond all numbers", format!("POST /a HTTP/1.1\r\n{host}Content-Length: 99999999999999999999\r\n\r\n{hidden}")),
        ("an unknown coding", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("chunked not last", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n{hidden}")),
        (
            "chunked, then not",
            format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        ("chunked in HTTP/1.0", format!("POST /a HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("space before the colon", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("a folded header", format!("POST /a HTTP/1.1\r\n{host}X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("a folded coding", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("a NUL in a header", format!("POST /a HTTP/1.1\r\n{host}X: a\0b\r\n\r\n{hidden}")),
        ("a bare CR in a header", format!("POST /a HTTP/1.1\r\n{host}X: a\rTransfer-Encoding: chunked\r\n\r\n{hidden}")),
        ("two hosts", format!("GET /a HTTP/1.1\r\n{host}Host: other.example\r\n\r\n{hidden}")),
        ("no host", format!("GET /a HTTP/1.1\r\n\r\n{hidden}")),
        ("HTTP/0.9", format!("GET /a\r\n{hidden}")),
        ("HTTP/2.0 in clear", format!("GET /a HTTP/2.0\r\n{host}\r\n{hidden}")),
        ("no chunk size", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n\r\n{hidden}")),
        (
            "a chunk size that is none",
            format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "a chunk size that wraps",
            format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "a chunk that ends too early",
            format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n{hidden}"),
        ),
        ("chunks of another name", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: x, chunkedx\r\n\r\n0\r\n\r\n{hidden}")),
        ("a vertical tab before the coding", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("a coding in quotes", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n{hidden}")),
        ("a header before the host that is folded", format!("POST /a HTTP/1.1\r\n X: y\r\n{host}Content-Length: 0\r\n\r\n{hidden}")),
        ("a header without a name", format!("POST /a HTTP/1.1\r\n{host}: y\r\n\r\n{hidden}")),
        ("a host with a user", format!("GET /a HTTP/1.1\r\nHost: user@shop.example\r\n\r\n{hidden}")),
        ("a host with a path", format!("GET /a HTTP/1.1\r\nHost: shop.example/x\r\n\r\n{hidden}")),
        ("a host with a port that is none", format!("GET /a HTTP/1.1\r\nHost: shop.example:80a\r\n\r\n{hidden}")),
        ("a host with two ports", format!("GET /a HTTP/1.1\r\nHost: shop.example:80:81\r\n\r\n{hidden}")),
        ("a list of hosts", format!("GET /a HTTP/1.1\r\nHost: shop.example, other.example\r\n\r\n{hidden}")),
        ("a negative chunk size", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n{hidden}")),
        (
            "a chunk size in C's words",
            format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "a chunk extension without an end",
            format!(
                "POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5;{}\r\nhello\r\n0\r\n\r\n{hidden}",
                "x".repeat(64 * 1024)
            ),
        ),
        (
            "a chunk extension with a bare LF",
            format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5;x\nhello\r\n0\r\n\r\n{hidden}"),
        ),
        ("a chunk with a bare LF", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n{hidden}")),
    ];
    for (name, attempt) in attempts {
        let answer = edge.raw(attempt.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.").count(), usize::from(!answer.is_empty()), "{name}: more than one answer: {answer}");
        assert!(answer.is_empty() || answer.contains(" 400 ") || answer.contains(" 505 "), "{name}: {answer}");
        assert!(!shop.seen().iter().any(|seen| seen.contains("hidden")), "{name}: {:?}", shop.seen());
    }
}

#[tokio::test]
async fn length_and_chunks_together_are_read_as_chunks_and_end_the_connection() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    for framing in ["Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"] {
        let attempt = format!(
            "POST /a HTTP/1.1\r\nHost: shop.example\r\n{framing}\r\n5\r\nhello\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: shop.example\r\n\r\n"
        );
        let answer = edge.raw(attempt.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"body\":\"hello\""), "{answer}");
        assert!(!answer.contains("[\"content-length\""), "Odoo gets one framing: {answer}");
    }
    assert_eq!(shop.seen(), ["POST /a", "POST /a"]);
}

#[tokio::test]
async fn a_length_named_hop_by_hop_still_delimits_the_body() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let answer =
        edge.raw(b"POST /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close, content-length\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(answer.contains("\"body\":\"hello\"") && answer.contains("[\"content-length\",\"5\"]"), "{answer}");
    let trailers = edge
        .raw(
            b"POST /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nTrailer: x-forwarded-for\r\nTransfer-Encoding: chunked\r\n\r\n\
              5\r\nhello\r\n0\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n",
        )
        .await;
    assert!(trailers.contains("\"body\":\"hello\"") && !trailers.contains("203.0.113.9"), "{trailers}");
    assert_eq!(shop.seen(), ["POST /a", "POST /a"]);
}

#[tokio::test]
async fn methods_and_targets_that_are_no_web_request_are_refused() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    for (line, status) in [("CONNECT shop.example:443", 405), ("TRACE /", 405), ("OPTIONS *", 400), ("GET shop.example", 400)] {
        let answer = edge.raw(format!("{line} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
    }
    let body_in_handshake =
        "GET /websocket HTTP/1.1\r\nHost: shop.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello";
    let answer = edge.raw(body_in_handshake.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(shop.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn headers_beyond_the_limits_are_refused() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| {
        config.header_size_limit = 8 * 1024;
        config.header_count_limit = 20;
    })
    .await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let with = |headers: &str| format!("GET /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{headers}\r\n");
    let fits = edge.raw(with(&format!("Cookie: {}\r\n", "x".repeat(7000))).as_bytes()).await;
    assert!(fits.starts_with("HTTP/1.1 200 "), "{fits}");
    let large = edge.raw(with(&format!("Cookie: {}\r\n", "x".repeat(9000))).as_bytes()).await;
    assert!(large.starts_with("HTTP/1.1 431 "), "{large}");
    let many = edge.raw(with(&"X: y\r\n".repeat(30)).as_bytes()).await;
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    assert_eq!(shop.seen().len(), 1);
}

/// What today's servers accept for the sake of old clients may be accepted: with one reading, on both sides of the edge.
#[tokio::test]
async fn what_is_read_leniently_is_read_once() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let host = "Host: shop.example\r\nConnection: close\r\n";
    let attempts = [
        ("lines that end with a bare LF", "POST /a HTTP/1.1\nHost: shop.example\nConnection: close\nContent-Length: 5\n\nhello".to_owned()),
        ("empty lines before it", format!("\r\n\r\nPOST /a HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\nhello")),
        ("the same length twice", format!("POST /a HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello")),
        ("a chunk extension", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n")),
        ("a coding in capitals", format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n")),
        ("a body that is a request", format!("POST /a HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n{hidden}", hidden.len())),
        ("an old client", "POST /a HTTP/1.0\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello".to_owned()),
    ];
    for (name, attempt) in attempts {
        let answer = edge.raw(attempt.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.").count() - usize::from(name == "a body that is a request"), 1, "{name}: {answer}");
        assert!(!shop.seen().iter().any(|seen| seen.contains("hidden")), "{name}: {:?}", shop.seen());
        let is_whole = answer.contains("\"length\":5") || answer.contains(&format!("\"length\":{}", hidden.len()));
        assert!(answer.contains(" 400 ") || (answer.contains(" 200 ") && is_whole), "{name}: {answer}");
    }
}

/// A handshake that Odoo refuses stays a request: what follows it on the connection is read as the next request, by the edge.
#[tokio::test]
async fn a_handshake_that_is_refused_opens_no_tunnel() {
    let (shop, other) = (Upstream::start("shop").await, Upstream::start("other").await);
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address), serving(&["other.example"], other.address)]).await;
    let handshake =
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let answer = edge
        .raw(
            format!(
                "GET /websocket HTTP/1.1\r\nHost: shop.example\r\n{handshake}\r\n\
                 GET /web/database/manager HTTP/1.1\r\nHost: shop.example\r\n\r\n\
                 GET /after HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n"
            )
            .as_bytes(),
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(" 404 "), "{answer}");
    assert_eq!((shop.seen(), other.seen()), (vec!["GET /websocket".to_owned()], vec!["GET /after".to_owned()]));
}

#[tokio::test]
async fn the_address_of_an_absolute_target_is_the_only_host() {
    let (shop, other) = (Upstream::start("shop").await, Upstream::start("other").await);
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address), serving(&["other.example"], other.address)]).await;
    for target in ["http://user@shop.example/a", "http://shop.example:x/a", "http://shop.example@other.example/a", "//shop.example/a"] {
        let answer = edge.raw(format!("GET {target} HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n").as_bytes()).await;
        let is_path = target.starts_with("//");
        assert!(answer.starts_with("HTTP/1.1 400 ") || (is_path && answer.starts_with("HTTP/1.1 200 ")), "{target}: {answer}");
    }
    assert_eq!(shop.seen(), Vec::<String>::new());
}

/// hyper answers these itself, and nobody would ever see that somebody tries.
#[tokio::test]
async fn what_cannot_be_read_is_logged_and_counted() {
    let client = [127, 0, 0, 77];
    let log = access_log_of(client);
    let edge = TestEdge::start_with(|config| config.header_timeout = Duration::from_millis(200)).await;
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\nHost : shop.example\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200)), 431),
        ("GET / HTTP/1.1\r\nHost: shop.ex".to_owned(), 408),
    ] {
        let answer = edge.raw_from(client, bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    let metrics = edge.administer(request("GET", "edge", "/metrics", &[], "")).await.text();
    assert!(metrics.contains("ocore_edge_requests_total{status=\"4xx\"} 3\n"), "{metrics}");
    edge.stop().await;
    let lines = log();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, status) in lines.iter().zip([400, 431, 408]) {
        assert!(line.contains(&format!("status={status} ")) && line.contains("outcome=\"refused\" "), "{line}");
        assert!(line.contains("request_id=\"0"), "{line}");
    }
}
