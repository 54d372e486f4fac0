//! An instance that sleeps: who asks for it waits, the host hears of it at once, a forgotten tab wakes nobody.

use std::time::{Duration, Instant};

use ocore_model::{
    edge::Wanted,
    route::{Route, RouteState},
};

use crate::support::{Client, TestEdge, Upstream, request, route};

const ASLEEP: RouteState = RouteState::Asleep { seconds: 30 };
const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

async fn sleeping_edge() -> (TestEdge, Route) {
    let edge = TestEdge::start().await;
    let route = route(&["shop.example"], ASLEEP);
    edge.apply(1, vec![route.clone()]).await;
    (edge, route)
}

async fn wanted(edge: &TestEdge, after: u64) -> Wanted {
    let answer = edge.administer(request("GET", "edge", &format!("/wanted?after={after}"), &[], "")).await;
    serde_json::from_value(answer.json()).unwrap()
}

#[tokio::test]
async fn a_request_waits_for_a_sleeper_and_the_host_hears_of_it_once() {
    let (edge, route) = sleeping_edge().await;
    let odoo = Upstream::start("odoo").await;
    let address = edge.address;
    let ask = || {
        let request = request("POST", "shop.example", "/jsonrpc", &[("content-type", "application/json")], "{}");
        tokio::spawn(async move { Client::connect(address).await.send(request).await.unwrap() })
    };
    let (first, one) = tokio::join!(wanted(&edge, 0), std::future::ready(ask()));
    assert_eq!(first.instances, [route.instance_id]);
    let other = ask();
    edge.until(route.instance_id, |traffic| traffic.held == 2 && traffic.wanted).await;
    assert_eq!(wanted(&edge, 0).await, first, "who has not heard it yet hears it");

    let awake = Route { state: RouteState::Serving { http: odoo.address, websocket: None }, ..route.clone() };
    edge.apply(2, vec![awake]).await;
    for answer in [one, other] {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    edge.until(route.instance_id, |traffic| !traffic.wanted && traffic.held == 0).await;

    // It falls asleep again: the next one who asks is a new one.
    edge.apply(3, vec![route.clone()]).await;
    let _third = ask();
    let second = wanted(&edge, first.sequence).await;
    assert_eq!(second.instances, [route.instance_id]);
    assert!(second.sequence > first.sequence);
    // An edge that was started again counts from the beginning, and who asks it with an old number hears all.
    assert_eq!(wanted(&edge, 1_000_000).await.instances, [route.instance_id]);
}

#[tokio::test]
async fn a_person_sees_after_two_seconds_that_it_wakes_up() {
    let (edge, route) = sleeping_edge().await;
    let begin = Instant::now();
    let answer = Client::connect(edge.address).await.send(request("GET", "shop.example", "/odoo", &[BROWSER], "")).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("is waking up"), "{}", answer.text());
    edge.until(route.instance_id, |traffic| traffic.wanted && traffic.held == 0).await;
}

#[tokio::test]
async fn a_forgotten_tab_that_tries_its_websocket_wakes_nobody() {
    let (edge, route) = sleeping_edge().await;
    let handshake = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let answer = Client::connect(edge.address).await.send(request("GET", "shop.example", "/websocket", &handshake, "")).await.unwrap();
    assert_eq!(answer.status, 503);
    // Nor is it a use that would keep it awake.
    edge.until(route.instance_id, |traffic| !traffic.wanted && traffic.held == 0 && traffic.last_request_at.is_none()).await;
}
