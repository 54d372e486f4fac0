use std::time::Duration;

use ocore_edge::EdgeError;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Client, PATIENCE, TestEdge, Upstream, request, serving};

fn hold(edge: &TestEdge) -> tokio::task::JoinHandle<Result<crate::support::Answer, hyper::Error>> {
    let address = edge.address;
    tokio::spawn(async move { Client::connect(address).await.send(request("GET", "shop.example", "/hold", &[], "")).await })
}

#[tokio::test]
async fn an_edge_that_stops_lets_requests_end_and_takes_no_new_ones() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], shop.address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;
    let held = hold(&edge);
    let mut idle = TcpStream::connect(edge.address).await.unwrap();
    edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;

    edge.shutdown.cancel();
    // The idle connection is closed, the port as well.
    let mut buffer = [0; 16];
    assert_eq!(tokio::time::timeout(PATIENCE, idle.read(&mut buffer)).await.unwrap().unwrap(), 0);
    let refused = async {
        while TcpStream::connect(edge.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("the port stays open");
    assert!(!held.is_finished() && !edge.task.is_finished());
    shop.go.add_permits(1);
    assert_eq!(held.await.unwrap().unwrap().status, 200);
    let ended: Result<(), EdgeError> = tokio::time::timeout(PATIENCE, edge.task).await.unwrap().unwrap();
    ended.unwrap();
    assert!(!edge.directory.path().join("edge.sock").exists());
}

#[tokio::test]
async fn requests_that_do_not_end_in_time_are_cut() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.shutdown_timeout = Duration::from_millis(200)).await;
    let route = serving(&["shop.example"], shop.address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;
    let held = hold(&edge);
    edge.until(instance, |traffic| traffic.requests_in_flight == 1).await;
    edge.shutdown.cancel();
    tokio::time::timeout(PATIENCE, edge.task).await.unwrap().unwrap().unwrap();
    assert!(held.await.unwrap().is_err());
}

#[tokio::test]
async fn open_websockets_do_not_hold_a_stop() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(_)) = futures::StreamExt::next(&mut socket).await {}
            });
        }
    });
    let edge = TestEdge::start().await;
    let route = serving(&["shop.example"], address);
    let instance = route.instance_id;
    edge.apply(1, vec![route]).await;
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://shop.example/websocket", stream).await.unwrap();
    edge.until(instance, |traffic| traffic.websockets == 1).await;
    edge.shutdown.cancel();
    tokio::time::timeout(PATIENCE, edge.task).await.unwrap().unwrap().unwrap();
    let end = tokio::time::timeout(PATIENCE, futures::StreamExt::next(&mut socket)).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let shop = Upstream::start("shop").await;
    let edge = TestEdge::start_with(|config| config.connection_limit = 2).await;
    edge.apply(1, vec![serving(&["shop.example"], shop.address)]).await;
    let (first, mut second) = (Client::connect(edge.address).await, Client::connect(edge.address).await);
    assert_eq!(second.send(request("GET", "shop.example", "/", &[], "")).await.unwrap().status, 200);
    let mut third = TcpStream::connect(edge.address).await.unwrap();
    third.write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").await.unwrap();
    drop(first);
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, third.read_to_string(&mut answer)).await.expect("the third never got its turn").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
