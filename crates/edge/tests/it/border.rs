//! What one instance's answers may do to the browsers of its neighbours, and how many sleepers strangers may wake.

use std::net::SocketAddr;

use ocore_edge::WakeLimits;
use ocore_model::route::{Route, RouteState};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{TestEdge, route, serving};

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

/// An Odoo of somebody's own making: it answers every request with these bytes and closes.
async fn answering(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes = bytes.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    address
}

async fn cookies(head: &str) -> (u16, Vec<String>) {
    let odoo = answering(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\nok")).await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["a.apps.example"], odoo)]).await;
    let answer = edge.get("a.apps.example", "/web/login").await;
    let cookies = answer.headers.get_all("set-cookie").iter().map(|cookie| String::from_utf8_lossy(cookie.as_bytes()).into_owned());
    (answer.status.as_u16(), cookies.collect())
}

#[tokio::test]
async fn a_cookie_for_all_of_the_base_domain_stays_with_the_host_that_set_it() {
    let (_, kept) = cookies("Set-Cookie: session_id=planted; Domain=apps.example; Path=/\r\n").await;
    assert_eq!(kept, ["session_id=planted; Path=/"]);
}

#[tokio::test]
async fn no_spelling_and_no_number_of_headers_gets_a_wider_cookie_through() {
    let long = format!("big={}; DOMAIN=apps.example", "x".repeat(8000));
    let head = format!(
        "set-cookie: a=1;domain=.apps.example\r\nSET-COOKIE: b=2; Domain=a.apps.example; Domain = \"apps.example\"\r\nSet-Cookie: c=3; Path=/; \tdOmAiN\t=\t.APPS.example.\t; \
         Secure\r\nSet-Cookie: {long}\r\nSet-Cookie: __Host-d=4; Secure; Path=/; Domain=apps.example\r\nSet-Cookie: e=5; Domain=b.apps.example\r\nSet-Cookie: own=6; \
         Domain=a.apps.example\r\nSet-Cookie: plain=7; HttpOnly\r\nSet-Cookie2: f=8; Domain=apps.example\r\nSet-Cookie: g=9; Domain=äpps.example\r\n"
    );
    let (status, kept) = cookies(&head).await;
    assert_eq!(status, 200);
    assert!(kept.iter().all(|cookie| !cookie.to_lowercase().contains("domain") || cookie == "own=6; Domain=a.apps.example"), "{kept:?}");
    let names: Vec<&str> = kept.iter().filter_map(|cookie| Some(cookie.split_once('=')?.0)).collect();
    assert_eq!(names, ["a", "b", "c", "big", "own", "plain", "g"], "what a browser refuses is not turned into what it takes");
}

#[tokio::test]
async fn a_folded_header_is_no_way_around() {
    for head in ["Set-Cookie: a=1;\r\n Domain=apps.example\r\n", "Set-Cookie: a=1; Domain=\r\n\tapps.example\r\n"] {
        let (status, kept) = cookies(head).await;
        assert_eq!((status, kept.len()), (502, 0), "hyper reads no folded header of an answer");
    }
}

#[tokio::test]
async fn no_interim_answer_no_trailer_and_no_handshake_carries_a_wider_cookie() {
    let cookie = "Set-Cookie: a=1; Domain=apps.example";
    let edge = TestEdge::start().await;
    let chunked = format!(
        "HTTP/1.1 103 Early Hints\r\n{cookie}\r\n\r\nHTTP/1.1 100 Continue\r\n{cookie}\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Set-Cookie\r\n\r\n2\r\nok\r\n0\r\n\
         {cookie}\r\n\r\n"
    );
    let upgrade = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n{cookie}\r\n\r\n"
    );
    edge.apply(1, vec![serving(&["a.apps.example"], answering(chunked).await), serving(&["ws.apps.example"], answering(upgrade).await)])
        .await;
    let answer = edge.raw(b"GET / HTTP/1.1\r\nHost: a.apps.example\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("ok"), "{answer}");
    assert!(!answer.to_lowercase().contains("cookie"), "{answer}");
    let handshake =
        b"GET / HTTP/1.1\r\nHost: ws.apps.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let answer = edge.raw(handshake).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.to_lowercase().contains("set-cookie: a=1\r\n") && !answer.contains("Domain"), "{answer}");
}

#[tokio::test]
async fn an_answer_clears_nothing_of_its_neighbours_and_gives_no_orders_to_a_proxy() {
    let head = "Clear-Site-Data: \"cookies\", \"storage\"\r\nClear-Site-Data: \"*\"\r\nX-Accel-Redirect: /secret\r\nX-Sendfile: /etc/shadow\r\nAlt-Svc: h2=\":1\"\r\n";
    let odoo = answering(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\nok")).await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["a.apps.example"], odoo)]).await;
    let answer = edge.get("a.apps.example", "/").await;
    assert_eq!(answer.header("clear-site-data"), "\"storage\"");
    for gone in ["x-accel-redirect", "x-sendfile", "alt-svc"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
}

/// Sleepers that show their page at once to who waits for them.
fn sleepers(count: usize) -> Vec<Route> {
    (0..count).map(|number| route(&[&format!("s{number}.apps.example")], RouteState::Asleep { seconds: 0 })).collect()
}

async fn ask(edge: &TestEdge, client: [u8; 4], sleeper: usize, more: &str) -> String {
    let (name, value) = BROWSER;
    let request = format!("GET /odoo HTTP/1.1\r\nHost: s{sleeper}.apps.example\r\n{name}: {value}\r\n{more}Connection: close\r\n\r\n");
    edge.raw_from(client, request.as_bytes()).await
}

#[tokio::test]
async fn one_client_wakes_a_few_sleepers_and_gets_a_page_that_says_when_it_may_wake_more() {
    let edge = TestEdge::start_with(|config| config.wakes = WakeLimits { per_client: 2, in_all: 100 }).await;
    let sleepers = sleepers(4);
    edge.apply(1, sleepers.clone()).await;
    let (crawler, colleague) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    for sleeper in 0..2 {
        assert!(ask(&edge, crawler, sleeper, "").await.contains("is waking up"));
    }
    let page = ask(&edge, crawler, 2, "").await;
    assert!(page.starts_with("HTTP/1.1 429") && page.contains("is asleep"), "{page}");
    let after: u32 = page.split("retry-after: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok()).unwrap();
    assert!((1..=30).contains(&after) && page.contains("http-equiv=\"refresh\""), "{page}");
    let wanted: Vec<bool> = edge.status().await.instances.iter().map(|traffic| traffic.wanted).collect();
    assert_eq!(wanted.iter().filter(|wanted| **wanted).count(), 2);
    // Not its fault: who waits for one that wakes already, and who is somebody else.
    assert!(ask(&edge, crawler, 0, "").await.contains("is waking up"));
    assert!(ask(&edge, colleague, 2, "").await.contains("is waking up"));
    // A program gets it in its own words.
    let program = b"GET /json HTTP/1.1\r\nHost: s3.apps.example\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
    let answer = edge.raw_from(crawler, program).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("\"code\":\"too_many_wakes\""), "{answer}");
}

#[tokio::test]
async fn many_clients_together_wake_no_more_than_the_server_bears() {
    let edge = TestEdge::start_with(|config| config.wakes = WakeLimits { per_client: 1, in_all: 3 }).await;
    edge.apply(1, sleepers(8)).await;
    let mut refused = 0;
    for client in 0..8_u8 {
        let answer = ask(&edge, [127, 0, 1, client + 1], client.into(), "").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: "), "{answer}");
        refused += usize::from(answer.contains("is asleep"));
    }
    assert_eq!(refused, 5);
    assert_eq!(edge.status().await.instances.iter().filter(|traffic| traffic.wanted).count(), 3);
}

#[tokio::test]
async fn behind_a_trusted_proxy_its_clients_count_and_a_header_of_anybody_else_does_not() {
    let edge = TestEdge::start_with(|config| {
        config.wakes = WakeLimits { per_client: 1, in_all: 100 };
        config.trusted_proxies = vec!["127.0.0.9".parse().unwrap()];
    })
    .await;
    edge.apply(1, sleepers(8)).await;
    let as_client = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let proxy = [127, 0, 0, 9];
    assert!(ask(&edge, proxy, 0, &as_client("203.0.113.1")).await.contains("is waking up"));
    assert!(ask(&edge, proxy, 1, &as_client("203.0.113.1")).await.starts_with("HTTP/1.1 429"));
    assert!(ask(&edge, proxy, 1, &as_client("203.0.113.2")).await.contains("is waking up"));
    // A proxy that does not say for whom it asks is not taken for one client.
    assert!(ask(&edge, proxy, 2, "").await.contains("is waking up"));
    assert!(ask(&edge, proxy, 3, "").await.contains("is waking up"));
    // A stranger stays the same, whomever it names.
    let stranger = [127, 0, 0, 5];
    assert!(ask(&edge, stranger, 4, &as_client("203.0.113.8")).await.contains("is waking up"));
    assert!(ask(&edge, stranger, 5, &as_client("203.0.113.9")).await.starts_with("HTTP/1.1 429"));
}
