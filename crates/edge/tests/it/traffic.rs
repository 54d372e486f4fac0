//! What a deployment is judged by: which slot answered what, how quickly, who waited, who lost a websocket.

use std::time::Duration;

use futures::StreamExt;
use ocore_model::{
    edge::RouteTraffic,
    ids::InstanceId,
    route::{Route, RouteState},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;

use crate::support::{Client, PATIENCE, TestEdge, Upstream, holding, request, route, serving};

async fn traffic(edge: &TestEdge, instance: InstanceId) -> RouteTraffic {
    edge.admin.traffic(instance).await.unwrap().unwrap()
}

fn leads_to(route: &Route, http: std::net::SocketAddr) -> Route {
    Route { state: RouteState::Serving { http, websocket: None }, ..route.clone() }
}

#[tokio::test]
async fn each_colour_is_told_apart_and_what_happened_in_between_is_a_difference() {
    let (blue, green) = (Upstream::start("blue").await, Upstream::start("green").await);
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], blue.address);
    let instance = route.instance_id;
    edge.apply(3, vec![route.clone()]).await;
    for path in ["/", "/web", "/fail"] {
        edge.get("shop.example", path).await;
    }
    edge.send(request("POST", "shop.example", "/web", &[], "{}")).await;
    let before = traffic(&edge, instance).await;
    let [slot] = before.slots.as_slice() else { panic!("{before:?}") };
    assert_eq!((slot.http, slot.since_generation, slot.until_generation), (blue.address, 3, None));
    assert_eq!((slot.answers, slot.server_errors, slot.failures(), slot.latency.count()), (4, 1, 1, 4));
    assert_eq!((before.requests, before.answers, before.edge_errors), (4, [0, 3, 0, 0, 1], 0));
    assert!(before.latency.quantile(0.5).unwrap() > Duration::from_micros(64) && before.latency.longest() >= slot.latency.longest());

    edge.apply(4, vec![leads_to(&route, green.address)]).await;
    edge.get("shop.example", "/").await;
    let during = traffic(&edge, instance).await.since(&before);
    assert_eq!((during.requests, during.answers, during.latency.count()), (1, [0, 1, 0, 0, 0], 1));
    let told: Vec<_> = during.slots.iter().map(|slot| (slot.http, slot.until_generation, slot.answers, slot.failures())).collect();
    assert_eq!(told, [(blue.address, Some(4), 0, 0), (green.address, None, 1, 0)]);
    assert_eq!(during.current().unwrap().since_generation, 4);

    // A slot that is not there is its own failure, and the edge's answer.
    let green = green.stop().await;
    assert_eq!(edge.get("shop.example", "/").await.status, 502);
    let after = traffic(&edge, instance).await.since(&during);
    assert_eq!((after.edge_errors, after.current().unwrap().connect_failures, after.current().unwrap().http), (1, 1, green));

    assert_eq!(edge.admin.all_traffic().await.unwrap().len(), 1);
    edge.apply(5, Vec::new()).await;
    assert!(edge.admin.traffic(instance).await.unwrap().is_none(), "what is gone is gone from here");
}

#[tokio::test]
async fn who_had_to_wait_and_in_vain_is_counted() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.hold.requests = 1).await;
    let held = route(&["shop.example"], holding());
    let instance = held.instance_id;
    let ask = |path: &'static str| {
        let address = edge.address;
        tokio::spawn(async move { Client::connect(address).await.send(request("GET", "shop.example", path, &[], "")).await.unwrap() })
    };
    edge.apply(1, vec![held.clone()]).await;
    let waiting = ask("/");
    edge.until(instance, |traffic| traffic.held == 1).await;
    assert_eq!(traffic(&edge, instance).await.held.now, 1);
    assert_eq!(ask("/").await.unwrap().status, 503);
    edge.apply(2, vec![leads_to(&held, shop.address)]).await;
    assert_eq!(waiting.await.unwrap().status, 200);

    edge.apply(3, vec![held.clone()]).await;
    let in_vain = ask("/");
    edge.until(instance, |traffic| traffic.held == 1).await;
    edge.apply(4, vec![Route { state: RouteState::Stopped, ..held.clone() }]).await;
    assert_eq!(in_vain.await.unwrap().status, 503);
    edge.until(instance, |traffic| traffic.requests_in_flight == 0).await;

    let seen = traffic(&edge, instance).await;
    assert_eq!((seen.held.now, seen.held.requests, seen.held.failed, seen.held.turned_away), (0, 2, 1, 1));
    assert_eq!((seen.held.waits.count(), seen.edge_errors, seen.answers), (2, 2, [0, 1, 0, 0, 2]));
    assert!(seen.latency.longest() >= seen.held.waits.longest(), "a user waits for all of it");
    assert_eq!(seen.current(), None);
}

#[tokio::test]
async fn odoo_is_not_slow_where_its_client_is() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], shop.address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    let head = "POST /upload HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let began = std::time::Instant::now();
    while shop.received.load(std::sync::atomic::Ordering::Relaxed) < 5 || began.elapsed() < Duration::from_millis(300) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"world").await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
    let seen = traffic(&edge, instance).await;
    assert_eq!(seen.latency.count(), 1);
    assert!(seen.latency.longest().unwrap() + Duration::from_millis(250) < began.elapsed(), "{:?}", seen.latency);
}

/// A server whose websockets end when it is dropped.
async fn websockets() -> (std::net::SocketAddr, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    (address, tasks)
}

async fn open(edge: &TestEdge) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(edge.address).await.unwrap();
    tokio_tungstenite::client_async("ws://shop.example/websocket", stream).await.unwrap().0
}

async fn end(socket: &mut WebSocketStream<TcpStream>) {
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the websocket stays open");
}

#[tokio::test]
async fn the_gap_between_a_clients_websockets_is_measured() {
    let ((blue, blue_runs), (green, _green_runs)) = (websockets().await, websockets().await);
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], blue);
    let instance = route.instance_id;
    edge.apply(1, vec![route.clone()]).await;
    let mut socket = open(&edge).await;
    let mut gone_by_itself = open(&edge).await;
    edge.until(instance, |traffic| traffic.websockets == 2).await;
    gone_by_itself.close(None).await.unwrap();
    edge.until(instance, |traffic| traffic.websockets == 1).await;

    edge.apply(2, vec![leads_to(&route, green)]).await;
    drop(blue_runs);
    end(&mut socket).await;
    edge.until(instance, |traffic| traffic.websockets == 0).await;
    let _again = open(&edge).await;
    edge.until(instance, |traffic| traffic.websockets == 1).await;
    let seen = traffic(&edge, instance).await.websockets;
    assert_eq!((seen.now, seen.opened, seen.closed_by_switch, seen.gaps.count()), (1, 3, 1, 1));
    assert!(seen.gaps.longest().unwrap() > Duration::ZERO);
}
