use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use ocore_model::route::RouteState;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, handshake::server},
};

use crate::support::{PATIENCE, TestEdge, Upstream, echoed, holding, request, route, serving};

/// A real websocket server that says its name and what it was asked, then echoes.
async fn websocket_server(name: &'static str) -> SocketAddr {
    websocket_server_at(name, "127.0.0.1:0".parse().unwrap()).await
}

async fn websocket_server_at(name: &'static str, address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut greeting = String::new();
                #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
                let look = |request: &server::Request, response: server::Response| {
                    let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
                    greeting = format!("{name} {} {} {}", request.uri(), header("x-forwarded-for"), header("host"));
                    Ok(response)
                };
                let mut socket = tokio_tungstenite::accept_hdr_async(stream, look).await.unwrap();
                socket.send(Message::text(greeting)).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
        }
    });
    address
}

async fn open(edge: &TestEdge, host: &str, path: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let mut handshake = format!("ws://{host}{path}").into_client_request().unwrap();
    handshake.headers_mut().insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
    client_async(handshake, stream).await.unwrap().0
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Message {
    tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_websocket_passes_both_ways_and_is_counted() {
    let odoo = websocket_server("http").await;
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], odoo);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;

    let mut socket = open(&edge, "shop.example", "/websocket?version=19.0-1").await;
    assert_eq!(next(&mut socket).await, Message::text("http /websocket?version=19.0-1 127.0.0.1 shop.example"));
    for round in 0..100 {
        socket.send(Message::text(format!("message {round}"))).await.unwrap();
        assert_eq!(next(&mut socket).await, Message::text(format!("message {round}")));
    }
    let large = Message::binary(vec![7; 3 * 1024 * 1024]);
    socket.send(large.clone()).await.unwrap();
    assert_eq!(next(&mut socket).await, large);
    edge.until(instance, |traffic| traffic.websockets == 1 && traffic.requests_in_flight == 0 && traffic.websockets_total == 1).await;

    socket.close(None).await.unwrap();
    drop(socket);
    edge.until(instance, |traffic| traffic.websockets == 0 && traffic.upstreams.iter().all(|upstream| upstream.websockets == 0)).await;
}

#[tokio::test]
async fn websockets_go_to_their_own_port_where_there_is_one() {
    let (http, gevent) = (Upstream::start("http").await, websocket_server("gevent").await);
    let long_polls = Upstream::start("gevent").await;
    let edge = TestEdge::start().await;
    let state = |websocket| RouteState::Serving { http: http.address, websocket: Some(websocket) };
    edge.apply(1, vec![route(&["shop.example"], state(gevent)), route(&["old.example"], state(long_polls.address))]).await;

    for path in ["/websocket", "/websocket/health"] {
        let mut socket = open(&edge, "shop.example", path).await;
        assert!(next(&mut socket).await.into_text().unwrap().starts_with("gevent "), "{path}");
    }
    for (path, upstream) in [
        ("/longpolling/poll", "gevent"),
        ("/websocket/peek_notifications", "gevent"),
        ("/websockets", "http"),
        ("/web/websocket", "http"),
        ("/", "http"),
    ] {
        assert_eq!(edge.get("old.example", path).await.json()["upstream"], upstream, "{path}");
    }
}

#[tokio::test]
async fn a_websocket_waits_for_a_port_that_opens_after_the_other_one() {
    let http = Upstream::start("http").await;
    // Kept by somebody who does not listen, so that nobody else gets it meanwhile.
    let port = tokio::net::TcpSocket::new_v4().unwrap();
    port.set_reuseaddr(true).unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let gevent = port.local_addr().unwrap();
    let edge = TestEdge::start().await;
    let route = route(&["shop.example"], RouteState::Serving { http: http.address, websocket: Some(gevent) });
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;

    let waits = async {
        let mut socket = open(&edge, "shop.example", "/websocket").await;
        assert!(next(&mut socket).await.into_text().unwrap().starts_with("gevent "));
    };
    let opens = async {
        edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;
        let refused = TcpStream::connect(gevent).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        websocket_server_at("gevent", gevent).await;
    };
    tokio::join!(waits, opens);
    // The other port is waited for by nobody: who finds it closed is told so.
    http.stop().await;
    assert_eq!(edge.get("shop.example", "/").await.status, 502);
}

#[tokio::test]
async fn when_the_route_moves_websockets_are_told_to_go_and_land_on_the_new_slot() {
    let (blue, green) = (websocket_server("blue").await, websocket_server("green").await);
    let edge = TestEdge::start_with(|config| config.websocket_spread = std::time::Duration::from_millis(200)).await;
    let mut route = serving(&["shop.example"], blue);
    let instance = route.instance_id;
    edge.apply(1, vec![route.clone()]).await;
    let mut sockets = Vec::new();
    for _ in 0..5 {
        let mut socket = open(&edge, "shop.example", "/websocket").await;
        assert!(next(&mut socket).await.into_text().unwrap().starts_with("blue "));
        sockets.push(socket);
    }

    route.state = RouteState::Serving { http: green, websocket: None };
    edge.apply(2, vec![route]).await;
    let on = |traffic: &ocore_model::edge::InstanceTraffic, http: SocketAddr| {
        traffic.upstreams.iter().find(|upstream| upstream.http == http).map_or(0, |upstream| upstream.websockets)
    };
    for socket in &mut sockets {
        let Message::Close(Some(frame)) = next(socket).await else { panic!("not told to go") };
        assert_eq!(u16::from(frame.code), 4002, "Odoo's pages open another one at once");
        *socket = open(&edge, "shop.example", "/websocket").await;
        assert!(next(socket).await.into_text().unwrap().starts_with("green "));
    }
    edge.until(instance, |traffic| on(traffic, blue) == 0 && on(traffic, green) == 5).await;
    let seen = edge.admin.traffic(instance).await.unwrap().unwrap().websockets;
    assert_eq!((seen.closed_by_switch, seen.gaps.count()), (5, 5));
}

#[tokio::test]
async fn websockets_stay_with_a_slot_that_rests_until_another_one_serves() {
    let (blue, green) = (websocket_server("blue").await, websocket_server("green").await);
    let edge = TestEdge::start_with(|config| config.websocket_spread = std::time::Duration::from_millis(10)).await;
    let mut route = serving(&["shop.example"], blue);
    let serving = route.state.clone();
    let mut generation = 0;
    let mut apply = async |state: RouteState| {
        generation += 1;
        route.state = state;
        edge.apply(generation, vec![route.clone()]).await;
    };
    apply(serving.clone()).await;
    let mut socket = open(&edge, "shop.example", "/websocket").await;
    assert!(next(&mut socket).await.into_text().unwrap().starts_with("blue "));
    // Held, and the same one again, as after an update that came to nothing.
    for state in [holding(), serving, holding()] {
        apply(state).await;
        socket.send("still here".into()).await.unwrap();
        assert_eq!(next(&mut socket).await.into_text().unwrap(), "still here");
    }
    apply(RouteState::Serving { http: green, websocket: None }).await;
    let Message::Close(Some(frame)) = next(&mut socket).await else { panic!("not told to go") };
    assert_eq!(u16::from(frame.code), 4002);
    let mut socket = open(&edge, "shop.example", "/websocket").await;
    assert!(next(&mut socket).await.into_text().unwrap().starts_with("green "));
    // Where nothing holds and nothing serves, it goes at once.
    apply(RouteState::Updating { message: String::new() }).await;
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
}

#[tokio::test]
async fn no_other_protocol_is_switched_to() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let h2c = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA")];
    let echo = edge.send(request("GET", "shop.example", "/", &h2c, "")).await.json();
    for gone in ["upgrade", "connection", "http2-settings"] {
        assert!(echoed(&echo, gone).is_empty(), "{gone}");
    }
    // A handshake that Odoo does not take is answered like any request.
    let refused = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
    let answer = edge.send(request("GET", "shop.example", "/web", &refused, "")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(echoed(&answer.json(), "upgrade"), ["websocket"]);
}
