use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{EdgeProcess, PATIENCE, TestEdge, Upstream, request, serving};
use ocore_host::EdgeClient;
use ocore_model::route::{RouteSnapshot, RouteState};

#[tokio::test]
async fn events_pass_one_by_one_as_they_come() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], shop.address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;

    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    let mut text = String::new();
    for number in 0..5 {
        // The next event is made only now, so whatever arrives was not held back for more.
        shop.go.add_permits(1);
        let arrived = async {
            while !text.contains(&format!("data: {number}\n\n")) {
                let mut buffer = [0; 4096];
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0);
                text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.expect("an event is held back");
        assert!(!text.contains(&format!("data: {}", number + 1)));
    }
    edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;
    drop(stream);
    edge.until(instance, |traffic| traffic.requests_in_flight == 0).await;
}

#[tokio::test]
async fn a_large_upload_passes_without_being_held() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 2048;
    let shop = Upstream::start("shop").await;
    let directory = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(directory.path());
    let snapshot = RouteSnapshot { generation: 1, routes: vec![serving(&["shop.example"], shop.address)] };
    EdgeClient::new(directory.path().join("edge.sock")).apply_routes(&snapshot).await.unwrap();
    for chunked in [false, true] {
        let chunk = Bytes::from(vec![b'x'; CHUNK]);
        let body = StreamBody::new(futures::stream::iter(
            std::iter::repeat_n(chunk, CHUNKS).map(|chunk| Ok::<_, std::convert::Infallible>(Frame::data(chunk))),
        ));
        let stream = TcpStream::connect(edge.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut upload = http::Request::builder().method("POST").uri("/web/binary/upload").header("host", "shop.example");
        if !chunked {
            upload = upload.header("content-length", CHUNK * CHUNKS);
        }
        let answer = sender.send_request(upload.body(body).unwrap()).await.unwrap();
        let echo: serde_json::Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(echo["length"], CHUNK * CHUNKS);
    }
    let peak = edge.peak_memory();
    assert!(peak < 64 * 1024 * 1024, "256 MiB went through, {peak} bytes were held");
}

#[tokio::test]
async fn a_body_arrives_while_the_client_still_sends() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
    let arrived = async {
        while shop.received.load(Ordering::Relaxed) < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived).await.expect("the body is held back");
    stream.write_all(b"6\r\n world\r\n0\r\n\r\n").await.unwrap();
    let mut buffer = vec![0; 4096];
    let count = stream.read(&mut buffer).await.unwrap();
    assert!(String::from_utf8_lossy(&buffer[..count]).starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_get_with_a_body_of_unknown_length_keeps_it() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let answer = edge
        .raw(b"GET /x HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    assert!(answer.contains("\"body\":\"hello\""), "{answer}");
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused_announced_or_not() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.body_size_limit = 1024).await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;

    let fits = edge.send(request("POST", "shop.example", "/", &[], &"x".repeat(1024))).await;
    assert_eq!(fits.json()["length"], 1024);
    let body = "x".repeat(1025);
    let announced = edge.raw(format!("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1025\r\n\r\n{body}").as_bytes()).await;
    assert!(announced.starts_with("HTTP/1.1 413 "), "{announced}");
    assert!(announced.contains("1 KiB at most"), "{announced}");
    let body = format!("401\r\n{}\r\n0\r\n\r\n", "x".repeat(0x401));
    let unannounced =
        edge.raw(format!("POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}").as_bytes()).await;
    assert!(unannounced.starts_with("HTTP/1.1 413 "), "{unannounced}");
}

#[tokio::test]
async fn clients_that_stop_within_a_request_are_let_go() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| {
        config.body_timeout = Duration::from_millis(200);
        config.header_timeout = Duration::from_millis(200);
    })
    .await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let in_body = edge.raw(b"POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 10\r\n\r\nhello").await;
    assert!(in_body.starts_with("HTTP/1.1 408 "), "{in_body}");
    let in_headers = edge.raw(b"GET / HTTP/1.1\r\nHost: shop.ex").await;
    assert!(in_headers.starts_with("HTTP/1.1 408 "), "{in_headers}");
    assert_eq!(edge.get("shop.example", "/").await.status, 200);
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.response_timeout = Duration::from_millis(200)).await;
    let route = serving(&["shop.example"], shop.address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;
    assert_eq!(edge.get("shop.example", "/hold").await.status, 504);
    edge.until(instance, |traffic| traffic.requests_in_flight == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_out() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], shop.address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(b"GET /hold HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;
    drop(stream);
    edge.until(instance, |traffic| traffic.requests_in_flight == 0).await;
}

#[tokio::test]
async fn an_answer_without_a_length_passes_to_its_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end").await.unwrap();
        }
    });
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], address)]).await;
    let answer = edge.get("shop.example", "/").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "until the end"));
    let old = edge.raw(b"GET / HTTP/1.0\r\nHost: shop.example\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 ") && old.ends_with("\r\n\r\nuntil the end"), "{old}");
}

/// Sends far more than any socket buffer holds before it looks at the answer, as browsers do.
#[tokio::test]
async fn a_client_that_still_sends_gets_the_answer_that_says_why() {
    let edge = TestEdge::start_with(|config| config.body_size_limit = 1024 * 1024).await;
    edge.apply(1, vec![crate::support::route(&["shop.example"], RouteState::Stopped)]).await;
    let shop = Upstream::start("shop").await;
    for (generation, route, status) in
        [(2, crate::support::route(&["shop.example"], RouteState::Stopped), 503), (3, serving(&["shop.example"], shop.address), 413)]
    {
        edge.apply(generation, vec![route]).await;
        for framing in ["Content-Length: 33554432\r\n", "Transfer-Encoding: chunked\r\n"] {
            let mut stream = TcpStream::connect(edge.address).await.unwrap();
            stream.write_all(format!("POST / HTTP/1.1\r\nHost: shop.example\r\n{framing}\r\n").as_bytes()).await.unwrap();
            let chunked = framing.starts_with('T');
            for _ in 0..32 {
                if chunked {
                    stream.write_all(b"100000\r\n").await.unwrap();
                }
                stream.write_all(&vec![b'x'; 1024 * 1024]).await.unwrap();
                if chunked {
                    stream.write_all(b"\r\n").await.unwrap();
                }
            }
            if chunked {
                stream.write_all(b"0\r\n\r\n").await.unwrap();
            }
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{framing}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_before_it_sends() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.body_size_limit = 1024).await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let asks = |length: usize| format!("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n");
    let refused = edge.raw(asks(1025).as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");

    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(asks(5).as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..count]), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let count = stream.read(&mut buffer).await.unwrap();
    assert!(String::from_utf8_lossy(&buffer[..count]).starts_with("HTTP/1.1 200 "));
}
