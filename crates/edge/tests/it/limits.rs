//! What one client may cost, and what it hears when it wants more.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Client, PATIENCE, TestEdge, Upstream, request, serving};

/// The id that the log has, too.
fn request_id(answer: &str) -> &str {
    let (_, rest) = answer.split_once("x-request-id: ").unwrap_or_else(|| panic!("no id: {answer}"));
    rest.lines().next().unwrap()
}

#[tokio::test]
async fn headers_beyond_the_limit_get_a_431_with_an_id() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.header_size_limit = 8 * 1024).await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let with =
        |cookie: usize| format!("GET /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nCookie: {}\r\n\r\n", "x".repeat(cookie));
    assert!(edge.raw(with(7000).as_bytes()).await.starts_with("HTTP/1.1 200 "));
    let answer = edge.raw(with(9000).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("8 KiB") && answer.contains(request_id(&answer)), "{answer}");
    let answer = edge.raw(with(100_000).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let long = edge.raw(format!("GET /{} HTTP/1.1\r\nHost: shop.example\r\n\r\n", "x".repeat(9000)).as_bytes()).await;
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
    assert_eq!(shop.seen().len(), 1);
}

#[tokio::test]
async fn a_host_has_its_own_limit_for_bodies() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| {
        config.body_size_limit = 1024;
        config.body_size_limits.insert("big.example".to_owned(), 4096);
    })
    .await;
    edge.apply(1, vec![serving(&["shop.example", "big.example"], shop.address)]).await;
    for (host, length, status) in [("shop.example", 1025, 413), ("big.example", 4096, 200), ("big.example", 4097, 413)] {
        let answer = edge.send(request("POST", host, "/", &[], &"x".repeat(length))).await;
        assert_eq!(answer.status, status, "{host} {length}");
        let chunks = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length));
        let chunked = format!("POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let answer = edge.raw(chunked.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && !request_id(&answer).is_empty(), "{host} {length}: {answer}");
    }
}

#[tokio::test]
async fn headers_that_do_not_end_get_a_408_and_idle_connections_just_end() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.header_timeout = Duration::from_millis(200)).await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let answer = edge.raw(b"GET / HTTP/1.1\r\nHost: shop.ex").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && !request_id(&answer).is_empty(), "{answer}");
    assert_eq!(edge.raw(b"").await, "", "nobody asked anything");
    let answered = edge.raw(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await;
    assert_eq!(answered.matches("HTTP/1.1 ").count(), 1, "{answered}");
    // Also when it is not the connection's first request.
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    let mut buffer = vec![0; 4096];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    stream.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    let mut second = String::new();
    stream.read_to_string(&mut second).await.unwrap();
    assert!(second.contains("HTTP/1.1 408 "), "{second}");
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.connections_per_client = 3).await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(edge.address).await;
        assert_eq!(client.send(request("GET", "shop.example", "/", &[], "")).await.unwrap().status, 200);
        clients.push(client);
    }
    let mut turned_away = String::new();
    TcpStream::connect(edge.address).await.unwrap().read_to_string(&mut turned_away).await.unwrap();
    assert!(turned_away.starts_with("HTTP/1.1 429 ") && turned_away.contains("3 connections"), "{turned_away}");
    assert!(!request_id(&turned_away).is_empty());
    // Another address is another client.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = Client::over(socket.connect(edge.address).await.unwrap()).await;
    assert_eq!(other.send(request("GET", "shop.example", "/", &[], "")).await.unwrap().status, 200);
    // Who leaves makes room.
    clients.pop();
    let again = async {
        loop {
            let mut client = Client::connect(edge.address).await;
            if client.send(request("GET", "shop.example", "/", &[], "")).await.is_ok_and(|answer| answer.status == 200) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("a place is lost");
}

#[tokio::test]
async fn a_trusted_proxy_may_bring_as_many_as_it_has() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| {
        config.connections_per_client = 1;
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(edge.address).await;
        assert_eq!(client.send(request("GET", "shop.example", "/", &[], "")).await.unwrap().status, 200);
        clients.push(client);
    }
}

/// Five hundred connections that send headers, bodies, or read answers as slowly as they can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_slow_clients_starve_nobody() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let mut slow = Vec::new();
    for number in 0..500 {
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        let beginning: &[u8] = match number % 3 {
            0 => b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: b\r\n",
            1 => b"POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1000000\r\n\r\nx",
            _ => b"G",
        };
        stream.write_all(beginning).await.unwrap();
        slow.push(stream);
    }
    for _ in 0..3 {
        for stream in &mut slow {
            stream.write_all(b"x").await.unwrap();
        }
        let answer = tokio::time::timeout(PATIENCE, edge.get("shop.example", "/")).await.expect("nobody else is answered");
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go() {
    let edge = TestEdge::start_with(|config| config.write_timeout = Duration::from_millis(300)).await;
    // Answers with more than all buffers on the way take.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 256 << 20);
                stream.write_all(head.as_bytes()).await.unwrap();
                let block = vec![b'x'; 1 << 20];
                while stream.write_all(&block).await.is_ok() {}
            });
        }
    });
    let route = serving(&["shop.example"], address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;
    edge.until(instance, |traffic| traffic.requests_in_flight == 0).await;
}
