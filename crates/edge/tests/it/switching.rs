use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
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
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&arrived);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                    count.fetch_add(1, Ordering::Relaxed);
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                    // The second request is read and not answered.
                    let _ = stream.read(&mut buffer).await;
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
    assert_eq!(arrived.load(Ordering::Relaxed), 50);
}

#[tokio::test]
async fn a_request_on_the_way_to_a_slot_that_just_stopped_finds_the_new_one() {
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
