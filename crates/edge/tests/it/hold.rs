//! Requests of an instance that comes back in a moment: held, bounded, released in their order.

use std::{net::SocketAddr, time::Duration};

use chrono::Utc;
use futures::StreamExt;
use ocore_edge::HoldLimits;
use ocore_model::{
    edge::InstanceTraffic,
    route::{Route, RouteState},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::support::{Answer, Client, EdgeProcess, PATIENCE, TestEdge, Upstream, holding, request, route, serving};

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

/// An edge that holds the shop's requests, with generation 1.
async fn holding_edge(limits: HoldLimits) -> (TestEdge, Route) {
    let edge = TestEdge::start_with(|config| config.hold = limits).await;
    let route = route(&["shop.example"], holding());
    edge.apply(1, vec![route.clone()]).await;
    (edge, route)
}

/// Sends a request on a connection of its own, and returns once the edge holds `held` in all.
async fn send(edge: &TestEdge, route: &Route, held: u64, method: &str, path: &str, body: &str) -> JoinHandle<Answer> {
    let request = request(method, "shop.example", path, &[("content-type", "application/json")], body);
    let address = edge.address;
    let answer = tokio::spawn(async move { Client::connect(address).await.send(request).await.unwrap() });
    until_held(edge, route, held).await;
    answer
}

async fn until_held(edge: &TestEdge, route: &Route, held: u64) {
    edge.until(route.instance_id, |traffic| traffic.held == held).await;
}

fn serve(route: &Route, http: SocketAddr) -> Vec<Route> {
    vec![Route { state: RouteState::Serving { http, websocket: None }, ..route.clone() }]
}

fn traffic(edge: &ocore_model::edge::EdgeStatus, route: &Route) -> InstanceTraffic {
    edge.instances.iter().find(|traffic| traffic.instance_id == route.instance_id).cloned().unwrap()
}

#[tokio::test]
async fn held_requests_go_to_the_new_slot_in_the_order_of_their_arrival() {
    let green = Upstream::start("green").await;
    let (edge, route) = holding_edge(HoldLimits { release_window: 1, ..HoldLimits::default() }).await;
    let mut answers = Vec::new();
    for number in 0..12 {
        let (method, body) = if number % 2 == 0 { ("GET", "") } else { ("POST", "{\"jsonrpc\": \"2.0\"}") };
        answers.push(send(&edge, &route, number + 1, method, &format!("/{number}"), body).await);
    }
    assert!(green.seen().is_empty());
    let status = traffic(&edge.status().await, &route);
    assert_eq!((status.held, status.held_total, status.requests_in_flight), (12, 12, 12));
    assert!(status.upstreams.is_empty(), "who waits is on no slot");

    edge.apply(2, serve(&route, green.address)).await;
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["target"], format!("/{number}"));
        assert_eq!(answer.json()["body"], if number % 2 == 0 { "" } else { "{\"jsonrpc\": \"2.0\"}" });
    }
    // With a window of one the first is answered before the second and third go: the rest may overtake each other only side by side.
    let seen = green.seen();
    assert_eq!(seen[0], "GET /0");
    assert_eq!(seen.len(), 12);
    for (place, line) in seen.iter().enumerate() {
        let number: usize = line.rsplit('/').next().unwrap().parse().unwrap();
        assert!(number.abs_diff(place) <= place, "{seen:?}");
    }
    edge.until(route.instance_id, |traffic| traffic.held == 0 && traffic.requests_in_flight == 0).await;
    let metrics = edge.administer(request("GET", "edge", "/metrics", &[], "")).await.text();
    for line in [
        "ocore_edge_held 0",
        "ocore_edge_held_total 12",
        "ocore_edge_held_seconds_count 12",
        "ocore_edge_hold_ends_total{outcome=\"released\"} 12",
        "ocore_edge_hold_overflows_total 0",
    ] {
        assert!(metrics.lines().any(|metric| metric == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_slot_that_has_just_started_gets_a_few_at_first_and_more_with_each_answer() {
    let green = Upstream::start("green").await;
    let (edge, route) = holding_edge(HoldLimits { release_window: 2, ..HoldLimits::default() }).await;
    let mut answers = Vec::new();
    for number in 1..=9 {
        answers.push(send(&edge, &route, number, "GET", "/hold", "").await);
    }
    edge.apply(2, serve(&route, green.address)).await;
    // Two are there and not answered: nobody else goes, and who comes now waits behind the others.
    until_held(&edge, &route, 7).await;
    answers.push(send(&edge, &route, 8, "GET", "/hold", "").await);
    for (answered, held) in [(1, 6), (2, 4), (3, 2), (4, 0)] {
        green.go.add_permits(1);
        until_held(&edge, &route, held).await;
        let arrived = async {
            while green.seen().len() < 10 - usize::try_from(held).unwrap() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.unwrap_or_else(|_| panic!("after {answered} answers: {:?}", green.seen()));
    }
    green.go.add_permits(100);
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    // The gate is open again: nobody waits behind somebody who is not there.
    assert_eq!(edge.get("shop.example", "/").await.status, 200);
    assert_eq!(traffic(&edge.status().await, &route).held_total, 10);
}

#[tokio::test]
async fn who_finds_no_place_gets_a_page_or_a_problem_at_once() {
    let green = Upstream::start("green").await;
    let (edge, route) = holding_edge(HoldLimits { requests: 2, websockets: 0, ..HoldLimits::default() }).await;
    let held = [send(&edge, &route, 1, "GET", "/first", "").await, send(&edge, &route, 2, "POST", "/second", "{}").await];

    let page = edge.send(request("GET", "shop.example", "/odoo", &[BROWSER], "")).await;
    assert_eq!((page.status.as_u16(), page.header("retry-after")), (503, "5"));
    assert!(page.text().contains("Updating sale_extra") && page.text().contains("http-equiv=\"refresh\""), "{}", page.text());
    let problem = edge.send(request("POST", "shop.example", "/jsonrpc", &[("content-type", "application/json")], "{}")).await;
    assert_eq!((problem.status.as_u16(), problem.header("retry-after")), (503, "5"));
    assert_eq!((problem.header("content-type"), problem.json()["code"].as_str()), ("application/problem+json", Some("updating")));
    let handshake = "GET /websocket HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n";
    let websocket = edge.raw(handshake.as_bytes()).await;
    assert!(websocket.starts_with("HTTP/1.1 503 ") && websocket.contains("retry-after: 5"), "{websocket}");

    edge.apply(2, serve(&route, green.address)).await;
    for answer in held {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let metrics = edge.administer(request("GET", "edge", "/metrics", &[], "")).await.text();
    assert!(metrics.contains("ocore_edge_hold_overflows_total 3\n"), "{metrics}");
}

#[tokio::test]
async fn bodies_are_bounded_and_stay_with_their_clients() {
    let green = Upstream::start("green").await;
    let (edge, route) = holding_edge(HoldLimits { body_bytes: 100_000, ..HoldLimits::default() }).await;
    let body = "x".repeat(60_000);
    let first = send(&edge, &route, 1, "POST", "/upload", &body).await;
    let second = edge.send(request("POST", "shop.example", "/upload", &[], &body)).await;
    assert_eq!(second.status, 503);
    // What announces no length counts as a whole receive buffer; what waits to be asked for counts nothing.
    let chunked = edge
        .raw(b"POST / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    assert!(chunked.starts_with("HTTP/1.1 503 "), "{chunked}");
    let mut asking = TcpStream::connect(edge.address).await.unwrap();
    asking
        .write_all(
            b"POST /asking HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 90000\r\n\r\n",
        )
        .await
        .unwrap();
    until_held(&edge, &route, 2).await;
    let mut buffer = [0; 1024];
    assert_eq!(asking.try_read(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody asks for a held body");

    edge.apply(2, serve(&route, green.address)).await;
    assert_eq!(first.await.unwrap().json()["length"], 60_000);
    let length = tokio::time::timeout(PATIENCE, asking.read(&mut buffer)).await.expect("nobody asks for the body").unwrap();
    assert_eq!(&buffer[..length], b"HTTP/1.1 100 Continue\r\n\r\n");
    asking.write_all(&vec![b'x'; 90_000]).await.unwrap();
    let mut answer = String::new();
    asking.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"length\":90000"), "{answer}");
}

#[tokio::test]
async fn held_uploads_take_no_memory() {
    const UPLOADS: usize = 24;
    const SIZE: usize = 8 * 1024 * 1024;
    let green = Upstream::start("green").await;
    let directory = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(directory.path());
    let admin = ocore_host::EdgeClient::new(directory.path().join("edge.sock"));
    let mut routes = ocore_model::route::RouteSnapshot { generation: 1, routes: vec![route(&["shop.example"], holding())] };
    admin.apply_routes(&routes).await.unwrap();
    let address = edge.address;
    let uploads: Vec<_> = (0..UPLOADS)
        .map(|_| {
            tokio::spawn(async move {
                let body = String::from_utf8(vec![b'x'; SIZE]).unwrap();
                let upload = request("POST", "shop.example", "/upload", &[], &body);
                Client::connect(address).await.send(upload).await.unwrap().json()["length"].clone()
            })
        })
        .collect();
    let held = async {
        while admin.status().await.unwrap().instances.iter().map(|traffic| traffic.held).sum::<u64>() < UPLOADS as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("the uploads are not held");
    routes.generation = 2;
    routes.routes = serve(&routes.routes[0], green.address);
    admin.apply_routes(&routes).await.unwrap();
    for upload in uploads {
        assert_eq!(upload.await.unwrap(), SIZE);
    }
    let peak = edge.peak_memory();
    assert!(peak < 64 * 1024 * 1024, "{UPLOADS} uploads of {SIZE} bytes were held with {peak} bytes");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let green = Upstream::start("green").await;
    let (edge, route) = holding_edge(HoldLimits { requests: 3, ..HoldLimits::default() }).await;
    for sent in [
        "GET /gone HTTP/1.1\r\nHost: shop.example\r\n\r\n".to_owned(),
        "GET /gone HTTP/1.1\r\nHost: shop.example\r\n\r\nGET /gone HTTP/1.1\r\nHost: shop.example\r\n\r\n".to_owned(),
        "POST /gone HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1000000\r\n\r\nthe beginning".to_owned(),
        format!("POST /gone HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 200000\r\n\r\n{}", "x".repeat(200_000)),
        "POST /gone HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned(),
    ] {
        for reset in [false, true] {
            // An orderly end stands behind what was sent before it, and nobody takes that from the client.
            if sent.len() > 100_000 && !reset {
                continue;
            }
            let mut stream = TcpStream::connect(edge.address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            until_held(&edge, &route, 1).await;
            if reset {
                stream.set_zero_linger().unwrap();
            }
            drop(stream);
            until_held(&edge, &route, 0).await;
        }
    }
    let stays = send(&edge, &route, 1, "GET", "/stays", "").await;
    edge.apply(2, serve(&route, green.address)).await;
    assert_eq!(stays.await.unwrap().status, 200);
    assert_eq!(green.seen(), ["GET /stays"]);
    let metrics = edge.administer(request("GET", "edge", "/metrics", &[], "")).await.text();
    assert!(metrics.contains("ocore_edge_hold_ends_total{outcome=\"abandoned\"} 9\n"), "{metrics}");
}

#[tokio::test]
async fn nobody_waits_longer_than_the_hold_or_than_one_may() {
    let edge = TestEdge::start().await;
    let state =
        |until: Duration, seconds| RouteState::Holding { message: "Updating sale_extra".to_owned(), until: Utc::now() + until, seconds };
    for (generation, (until, seconds, held)) in
        (1..).zip([(Duration::from_mins(10), 1, 1), (Duration::from_secs(1), 600, 1), (Duration::ZERO, 600, 0)])
    {
        let route = route(&["shop.example"], state(until, seconds));
        edge.apply(generation, vec![route.clone()]).await;
        let page = edge.send(request("GET", "shop.example", "/odoo", &[BROWSER], "")).await;
        assert_eq!((page.status.as_u16(), page.header("retry-after")), (503, "5"), "{route:?}");
        assert!(page.text().contains("Updating sale_extra"), "{}", page.text());
        assert_eq!(traffic(&edge.status().await, &route).held_total, held, "{route:?}");
    }
    // The hold that is over gives the page at once, a new one holds again.
    let green = Upstream::start("green").await;
    let again = route(&["shop.example"], holding());
    edge.apply(4, vec![again.clone()]).await;
    let held = send(&edge, &again, 1, "GET", "/", "").await;
    edge.apply(5, serve(&again, green.address)).await;
    assert_eq!(held.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_hold_that_ends_without_a_slot_gives_everybody_the_page() {
    let (edge, route) = holding_edge(HoldLimits::default()).await;
    let held = [send(&edge, &route, 1, "GET", "/", "").await, send(&edge, &route, 2, "POST", "/", "{}").await];
    edge.apply(2, vec![Route { state: RouteState::Failed { message: "It died".to_owned() }, ..route.clone() }]).await;
    for answer in held {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str()), (502, Some("failed")));
    }
    edge.apply(3, vec![route.clone()]).await;
    let held = send(&edge, &route, 1, "GET", "/", "").await;
    edge.apply(4, vec![]).await;
    assert_eq!(held.await.unwrap().status, 404, "the instance was removed");
}

#[tokio::test]
async fn requests_under_way_end_on_the_old_slot_and_websockets_end_with_it() {
    let (blue, green) = (Upstream::start("blue").await, Upstream::start("green").await);
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], blue.address);
    edge.apply(1, vec![route.clone()]).await;
    let address = edge.address;
    let under_way =
        tokio::spawn(async move { Client::connect(address).await.send(request("POST", "shop.example", "/hold", &[], "")).await.unwrap() });
    let on_blue = |traffic: &InstanceTraffic| {
        traffic.upstreams.iter().find(|upstream| upstream.http == blue.address).map_or(0, |upstream| upstream.requests_in_flight)
    };
    edge.until(route.instance_id, |traffic| on_blue(traffic) == 1).await;
    edge.apply(2, vec![Route { state: holding(), ..route.clone() }]).await;
    let held = send(&edge, &route, 1, "POST", "/", "{}").await;
    // The one under way is all that keeps the old slot, and it ends there.
    edge.until(route.instance_id, |traffic| on_blue(traffic) == 1 && traffic.requests_in_flight == 2).await;
    blue.go.add_permits(1);
    assert_eq!(under_way.await.unwrap().text(), "blue");
    edge.until(route.instance_id, |traffic| on_blue(traffic) == 0).await;
    blue.stop().await;
    edge.apply(3, serve(&route, green.address)).await;
    assert_eq!(held.await.unwrap().json()["upstream"], "green");
}

/// Takes one request and breaks off without an answer once it is told to.
async fn broken_server() -> (SocketAddr, tokio::sync::mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await.unwrap();
            if sender.send(stream).await.is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

#[tokio::test]
async fn what_may_be_sent_again_outlives_a_slot_that_dies_under_it() {
    let green = Upstream::start("green").await;
    let (dying, mut taken) = broken_server().await;
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], dying);
    edge.apply(1, vec![route.clone()]).await;
    let address = edge.address;
    let send = |method: &'static str| {
        tokio::spawn(async move { Client::connect(address).await.send(request(method, "shop.example", "/", &[], "")).await.unwrap() })
    };
    let (get, post) = (send("GET"), send("POST"));
    let open = [taken.recv().await.unwrap(), taken.recv().await.unwrap()];
    edge.apply(2, vec![Route { state: holding(), ..route.clone() }]).await;
    drop(open);
    assert_eq!(post.await.unwrap().status, 502, "it may have been carried out");
    until_held(&edge, &route, 1).await;
    edge.apply(3, serve(&route, green.address)).await;
    let answer = get.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json()["upstream"].as_str()), (200, Some("green")));
    assert_eq!(green.seen(), ["GET /"]);
}

#[tokio::test]
async fn a_slot_that_refuses_connections_costs_nothing_while_the_route_holds() {
    let green = Upstream::start("green").await;
    let blue = Upstream::start("blue").await.stop().await;
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], blue);
    edge.apply(1, vec![route.clone()]).await;
    assert_eq!(edge.get("shop.example", "/").await.status, 502, "it still leads there");
    edge.apply(2, vec![Route { state: holding(), ..route.clone() }]).await;
    let held = send(&edge, &route, 1, "POST", "/", "whole").await;
    // Released to a slot that is not there, held again, then served: the body was not touched.
    edge.apply(3, serve(&route, blue)).await;
    let answer = held.await.unwrap();
    assert_eq!(answer.status, 502);
    edge.apply(4, vec![Route { state: holding(), ..route.clone() }]).await;
    let held = send(&edge, &route, 1, "POST", "/", "whole").await;
    edge.apply(5, serve(&route, green.address)).await;
    assert_eq!(held.await.unwrap().json()["body"], "whole");
}

#[tokio::test]
async fn websockets_wait_apart_and_are_opened_on_the_new_slot() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let green = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                futures::SinkExt::send(&mut socket, "green".into()).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    let (edge, route) = holding_edge(HoldLimits { requests: 0, websockets: 1, ..HoldLimits::default() }).await;
    let address = edge.address;
    let open = || async move {
        let stream = TcpStream::connect(address).await.unwrap();
        tokio_tungstenite::client_async("ws://shop.example/websocket", stream).await
    };
    let waiting = tokio::spawn(open());
    until_held(&edge, &route, 1).await;
    assert!(open().await.unwrap_err().to_string().contains("503"), "the second one finds no place");
    edge.apply(2, serve(&route, green)).await;
    let (mut socket, _) = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    let greeting = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(greeting.into_text().unwrap(), "green");
    edge.until(route.instance_id, |traffic| traffic.websockets == 1 && traffic.held == 0).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let green = Upstream::start("green").await;
    let (edge, route) = holding_edge(HoldLimits::default()).await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream
        .write_all(
            b"GET /1 HTTP/1.1\r\nHost: shop.example\r\n\r\nPOST /2 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello\
              GET /3 HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    until_held(&edge, &route, 1).await;
    edge.apply(2, serve(&route, green.address)).await;
    let mut answers = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answers)).await.unwrap().unwrap();
    assert_eq!(green.seen(), ["GET /1", "POST /2", "GET /3"]);
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert!(answers.contains("\"body\":\"hello\""));
}

#[tokio::test]
async fn an_edge_that_starts_again_still_holds_and_one_that_stops_sends_nobody_into_silence() {
    let green = Upstream::start("green").await;
    let (edge, route) = holding_edge(HoldLimits::default()).await;
    let held = send(&edge, &route, 1, "POST", "/", "{}").await;
    let directory = edge.stop().await;
    let answer = held.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "5"));

    let edge = TestEdge::start_in(directory, |_| {}).await;
    let held = send(&edge, &route, 1, "POST", "/", "{}").await;
    // Another instance's change in between disturbs nobody.
    let other = serving(&["blog.example"], green.address);
    edge.apply(2, vec![route.clone(), other.clone()]).await;
    assert_eq!(edge.get("blog.example", "/").await.status, 200);
    assert_eq!(traffic(&edge.status().await, &route).held, 1);
    let mut routes = serve(&route, green.address);
    routes.push(other);
    edge.apply(3, routes).await;
    assert_eq!(held.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_holds_come_and_go() {
    const CONNECTIONS: usize = 16;
    const HOLDS: u64 = 60;
    let (blue, green) = (Upstream::start("blue").await, Upstream::start("green").await);
    let edge = TestEdge::start().await;
    let mut route = serving(&["shop.example"], blue.address);
    edge.apply(1, vec![route.clone()]).await;
    let done = tokio_util::sync::CancellationToken::new();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let (address, done) = (edge.address, done.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                let mut answered = 0u64;
                while !done.is_cancelled() {
                    let (method, body) = if number % 2 == 0 { ("POST", "{\"jsonrpc\": \"2.0\"}") } else { ("GET", "") };
                    let answer = client.send(request(method, "shop.example", "/web", &[], body)).await.expect("a connection broke");
                    assert_eq!(answer.status, 200);
                    assert_eq!(answer.json()["body"], body);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    for hold in 1..=HOLDS {
        route.state = holding();
        edge.apply(hold * 2, vec![route.clone()]).await;
        // The old slot becomes empty, as it has to before it is stopped.
        edge.until(route.instance_id, |traffic| traffic.upstreams.iter().all(|upstream| upstream.requests_in_flight == 0)).await;
        edge.until(route.instance_id, |traffic| traffic.held > 0).await;
        let http = if hold % 2 == 0 { blue.address } else { green.address };
        route.state = RouteState::Serving { http, websocket: None };
        edge.apply(hold * 2 + 1, vec![route.clone()]).await;
    }
    done.cancel();
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    let seen = (blue.seen().len() + green.seen().len()) as u64;
    assert_eq!(seen, answered, "each was carried out once");
    edge.until(route.instance_id, |traffic| traffic.requests_in_flight == 0 && traffic.held == 0 && traffic.errors_total == 0).await;
}
