use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ocore_model::route::RouteState;

use crate::support::{Client, TestEdge, Upstream, request, serving};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_routes_switch_between_two_slots() {
    const REQUESTS: usize = 1000;
    const CONNECTIONS: usize = 16;
    let (blue, green) = (Upstream::start("blue").await, Upstream::start("green").await);
    let edge = TestEdge::start().await;
    let mut route = serving(&["shop.example"], blue.address);
    edge.apply(1, vec![route.clone()]).await;

    let left = Arc::new(AtomicUsize::new(REQUESTS));
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (address, left) = (edge.address, Arc::clone(&left));
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                let mut by_slot = [0usize; 2];
                while let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
                    let (method, body) = if number % 3 == 0 { ("POST", "{\"jsonrpc\": \"2.0\"}") } else { ("GET", "") };
                    let answer = client.send(request(method, "shop.example", "/web", &[], body)).await.expect("a connection broke");
                    assert_eq!(answer.status, 200);
                    by_slot[usize::from(answer.json()["upstream"] == "green")] += 1;
                }
                by_slot
            })
        })
        .collect();
    let mut generation = 1;
    while left.load(Ordering::Relaxed) > 0 {
        generation += 1;
        let http = if generation % 2 == 0 { green.address } else { blue.address };
        route.state = RouteState::Serving { http, websocket: None };
        edge.apply(generation, vec![route.clone()]).await;
    }
    let mut answered = [0usize; 2];
    for client in clients {
        let by_slot = client.await.unwrap();
        answered[0] += by_slot[0];
        answered[1] += by_slot[1];
    }
    assert_eq!(answered[0] + answered[1], REQUESTS);
    assert!(generation > 2, "there was no switch");
    edge.until(route.instance_id, |traffic| traffic.requests_in_flight == 0 && traffic.requests_total == REQUESTS as u64).await;
}

#[tokio::test]
async fn a_slot_that_was_started_again_answers_at_once() {
    let edge = TestEdge::start().await;
    let mut shop = Upstream::start("shop").await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let mut client = Client::connect(edge.address).await;
    for _ in 0..20 {
        // Leaves a kept connection behind each time, which the restart closes.
        for (method, body) in [("GET", ""), ("POST", "{}"), ("GET", ""), ("DELETE", "")] {
            let answer = client.send(request(method, "shop.example", "/", &[], body)).await.unwrap();
            assert_eq!(answer.status, 200, "{method}");
        }
        let address = shop.stop().await;
        shop = Upstream::start_at("shop", address).await;
    }
}

/// A server that closes a kept connection exactly when the next request arrives on it.
#[tokio::test]
async fn only_what_may_be_sent_twice_rides_on_a_kept_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let first = Arc::new(Mutex::new(Vec::new()));
    let second = Arc::new(Mutex::new(Vec::new()));
    let (firsts, seconds) = (Arc::clone(&first), Arc::clone(&second));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (firsts, seconds) = (Arc::clone(&firsts), Arc::clone(&seconds));
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let method = |bytes: &[u8]| String::from_utf8_lossy(bytes).split(' ').next().unwrap_or_default().to_owned();
                let length = stream.read(&mut buffer).await.unwrap();
                firsts.lock().unwrap().push(method(&buffer[..length]));
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await.unwrap();
                if !buffer.starts_with(b"HEAD") {
                    stream.write_all(b"ok").await.unwrap();
                }
                // The second request is read and not answered.
                if let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    seconds.lock().unwrap().push(method(&buffer[..length]));
                }
            });
        }
    });
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], address)]).await;
    for round in 0..10 {
        for (method, body) in [("GET", ""), ("POST", "once"), ("HEAD", ""), ("PUT", "once"), ("DELETE", "")] {
            let answer = edge.send(request(method, "shop.example", "/", &[], body)).await;
            assert_eq!(answer.status, 200, "{method} in round {round}");
        }
    }
    assert_eq!(first.lock().unwrap().len(), 50, "each was answered once");
    let second = second.lock().unwrap();
    assert!(!second.is_empty(), "no connection was kept");
    assert!(second.iter().all(|method| ["GET", "HEAD"].contains(&method.as_str())), "{second:?}");
}

#[tokio::test]
async fn a_request_under_way_stays_on_its_slot_and_is_counted_there() {
    let edge = TestEdge::start().await;
    let (blue, green) = (Upstream::start("blue").await, Upstream::start("green").await);
    let mut route = serving(&["shop.example"], blue.address);
    let instance = route.instance_id;
    edge.apply(1, vec![route.clone()]).await;
    let held = {
        let request = request("GET", "shop.example", "/hold", &[], "");
        let address = edge.address;
        tokio::spawn(async move { Client::connect(address).await.send(request).await.unwrap() })
    };
    edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;
    route.state = RouteState::Serving { http: green.address, websocket: None };
    edge.apply(2, vec![route]).await;
    // The old slot is not empty yet, new requests go to the new one.
    assert_eq!(edge.get("shop.example", "/").await.json()["upstream"], "green");
    let on_blue = |traffic: &ocore_model::edge::InstanceTraffic| {
        traffic.upstreams.iter().find(|upstream| upstream.http == blue.address).map_or(0, |upstream| upstream.requests_in_flight)
    };
    edge.until(instance, |traffic| on_blue(traffic) == 1).await;
    blue.go.add_permits(1);
    assert_eq!(held.await.unwrap().text(), "blue");
    edge.until(instance, |traffic| on_blue(traffic) == 0).await;
}

/// A port that neither accepts nor refuses: its queue is full.
async fn deaf_port() -> (std::net::SocketAddr, (tokio::net::TcpListener, Vec<tokio::net::TcpStream>)) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    (address, (listener, waiting))
}

#[tokio::test]
async fn a_request_that_cannot_reach_a_slot_finds_the_one_that_took_its_place() {
    let (deaf, _held) = deaf_port().await;
    let green = Upstream::start("green").await;
    let edge = TestEdge::start_with(|config| config.connect_timeout = Duration::from_secs(1)).await;
    let mut route = serving(&["shop.example"], deaf);
    let instance = route.instance_id;
    edge.apply(1, vec![route.clone()]).await;
    assert_eq!(edge.get("shop.example", "/").await.status, 502);

    let address = edge.address;
    let on_the_way =
        tokio::spawn(async move { Client::connect(address).await.send(request("POST", "shop.example", "/", &[], "{}")).await.unwrap() });
    edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;
    route.state = RouteState::Serving { http: green.address, websocket: None };
    edge.apply(2, vec![route]).await;
    let answer = on_the_way.await.unwrap();
    assert_eq!(answer.json()["upstream"], "green");
    edge.until(instance, |traffic| traffic.requests_in_flight == 0 && traffic.upstreams.len() == 1).await;
}
