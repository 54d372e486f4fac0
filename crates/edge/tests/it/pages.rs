use std::net::SocketAddr;

use ocore_model::route::RouteState;
use tokio::net::TcpListener;

use crate::support::{TestEdge, request, route, serving};

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn each_state_has_its_page_for_people_and_its_words_for_programs() {
    let edge = TestEdge::start().await;
    edge.apply(
        1,
        vec![
            route(&["building.example"], RouteState::Building { message: "Installing 14 modules".to_owned() }),
            route(&["updating.example"], RouteState::Updating { message: "Updating sale_extra".to_owned() }),
            route(&["stopped.example"], RouteState::Stopped),
            route(&["failed.example"], RouteState::Failed { message: "The module shop has a syntax error".to_owned() }),
            serving(&["unreachable.example"], closed_port().await),
        ],
    )
    .await;
    for (host, status, code, reloads, words) in [
        ("building.example", 503, "building", true, "Installing 14 modules"),
        ("updating.example", 503, "updating", true, "Updating sale_extra"),
        ("stopped.example", 503, "stopped", false, "The shop is stopped"),
        ("failed.example", 502, "failed", false, "The shop could not be started"),
        ("unreachable.example", 502, "unreachable", true, "The shop does not answer"),
        ("unknown.example", 404, "unknown_host", false, "unknown.example"),
    ] {
        let page = edge.send(request("GET", host, "/odoo/sales", &[BROWSER], "")).await;
        assert_eq!(page.status, status, "{host}");
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        assert_eq!(page.header("cache-control"), "no-store");
        assert!(page.text().contains(words), "{host}: {}", page.text());
        assert_eq!(page.text().contains("http-equiv=\"refresh\""), reloads, "{host}");
        assert!(page.text().contains(page.header("x-request-id")));
        assert_eq!(page.header("retry-after"), if reloads && status == 503 { "5" } else { "" }, "{host}");

        let problem = edge.send(request("POST", host, "/jsonrpc", &[("content-type", "application/json")], "{}")).await;
        assert_eq!(problem.header("content-type"), "application/problem+json");
        assert_eq!(problem.status, status);
        assert_eq!(problem.json()["code"], code);
        assert_eq!(problem.json()["requestId"], problem.header("x-request-id"));

        let text = edge.send(request("GET", host, "/", &[("accept", "*/*")], "")).await;
        assert_eq!(text.header("content-type"), "text/plain; charset=utf-8");
        for said in [page.text(), problem.text(), text.text()] {
            assert!(!said.contains("syntax error"), "the reason is for members: {said}");
        }
        assert!(text.text().contains(words), "{host}: {}", text.text());
    }
    let failed = edge.status().await.instances.iter().map(|instance| instance.errors_total).sum::<u64>();
    assert_eq!(failed, 5 * 3);
}

#[tokio::test]
async fn a_websocket_to_a_route_that_does_not_serve_gets_a_plain_answer() {
    let edge = TestEdge::start().await;
    edge.apply(1, vec![route(&["updating.example"], RouteState::Updating { message: String::new() })]).await;
    let handshake = "GET /websocket HTTP/1.1\r\nHost: updating.example\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n";
    let answer = edge.raw(handshake.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}
