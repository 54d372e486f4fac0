//! An edge gives way to a newer one under load, and either may be killed at any moment.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use ocore_host::EdgeClient;
use ocore_model::{
    edge::EdgeStatus,
    ids::InstanceId,
    route::{Route, RouteSnapshot, RouteState},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, EdgeProcess, PATIENCE, Upstream, holding, request, route, serving};

/// Clients that ask again and again, and whatever they did not get.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    /// Half of them keep their connection as long as the edge does.
    fn start(edge: SocketAddr, count: usize) -> Self {
        let (stop, answered, mut clients) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), JoinSet::new());
        for number in 0..count {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            clients.spawn(async move {
                let mut failures = Vec::new();
                let mut kept: Option<Client> = None;
                while !stop.load(Relaxed) {
                    if let Some(client) = &mut kept
                        && !client.is_open().await
                    {
                        kept = None;
                    }
                    let mut client = match kept.take() {
                        Some(client) => client,
                        None => match TcpStream::connect(edge).await {
                            Ok(stream) => Client::over(stream).await,
                            Err(error) => {
                                failures.push(format!("{number}: no connection: {error}"));
                                continue;
                            }
                        },
                    };
                    let (method, body) = if number % 3 == 0 { ("POST", "{}") } else { ("GET", "") };
                    match client.send(request(method, "shop.example", "/web", &[], body)).await {
                        Ok(answer) if answer.status == 200 => {
                            answered.fetch_add(1, Relaxed);
                        }
                        other => failures.push(format!("{number}: {other:?}")),
                    }
                    kept = (number % 2 == 0).then_some(client);
                }
                failures
            });
        }
        Self { stop, answered, clients }
    }

    /// Waits until so many more were answered.
    async fn go_on(&self, count: u64) {
        let until = self.answered.load(Relaxed) + count;
        let reached = async {
            while self.answered.load(Relaxed) < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("nobody is answered any more");
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.clients.join_all().await.concat()
    }
}

/// A server of websockets that only listen.
async fn websockets() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    address
}

/// A page that keeps a websocket open and opens another one when it is told to go; says each opening, and how the one before ended.
fn tab(edge: SocketAddr) -> mpsc::UnboundedReceiver<Option<u16>> {
    let (said, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut end = None;
        loop {
            let stream = TcpStream::connect(edge).await.unwrap();
            let mut socket = tokio_tungstenite::client_async("ws://chat.example/websocket", stream).await.unwrap().0;
            if said.send(end).is_err() {
                return;
            }
            end = None;
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Close(Some(frame)) = message {
                    end = Some(u16::from(frame.code));
                }
            }
        }
    });
    heard
}

fn client(directory: &Path) -> EdgeClient {
    EdgeClient::new(directory.join("edge.sock"))
}

async fn until(directory: &Path, wanted: impl Fn(&EdgeStatus) -> bool) {
    let reached = async {
        loop {
            let status = client(directory).status().await.unwrap();
            if wanted(&status) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("the edge never came to what was wanted");
}

fn in_flight(status: &EdgeStatus, instance: InstanceId) -> u64 {
    status.instances.iter().find(|traffic| traffic.instance_id == instance).map_or(0, |traffic| traffic.requests_in_flight)
}

async fn ask(edge: SocketAddr, path: &'static str) -> u16 {
    Client::connect(edge).await.send(request("GET", "shop.example", path, &[], "")).await.unwrap().status.as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_newer_edges_take_over_under_load_and_no_request_fails() {
    let directory = tempfile::tempdir().unwrap();
    let shop = Upstream::start("shop").await;
    let (shop_route, chat_route) = (serving(&["shop.example"], shop.address), serving(&["chat.example"], websockets().await));
    let (instance, chat) = (shop_route.instance_id, chat_route.instance_id);
    let mut edges = vec![EdgeProcess::start(directory.path())];
    let address = edges[0].address;
    client(directory.path()).apply_routes(&RouteSnapshot { generation: 1, routes: vec![shop_route, chat_route] }).await.unwrap();
    let load = Load::start(address, 8);
    let mut tabs: Vec<_> = (0..10).map(|_| tab(address)).collect();
    for tab in &mut tabs {
        assert_eq!(tab.recv().await.unwrap(), None);
    }

    for round in 0..3 {
        let long_poll = tokio::spawn(ask(address, "/hold"));
        let (body, chunks) = mpsc::unbounded_channel();
        let upload = tokio::spawn(async move {
            let chunks = tokio_stream::wrappers::UnboundedReceiverStream::new(chunks);
            let body = StreamBody::new(chunks.map(|chunk: Bytes| Ok::<_, std::convert::Infallible>(Frame::data(chunk))));
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let upload = http::Request::post("/upload").header("host", "shop.example").body(body).unwrap();
            let answer = sender.send_request(upload).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            serde_json::from_slice::<serde_json::Value>(&answer).unwrap()["length"].as_u64().unwrap()
        });
        body.send(Bytes::from_static(b"hello")).unwrap();
        until(directory.path(), |status| in_flight(status, instance) >= 2).await;
        load.go_on(200).await;

        let newer = EdgeProcess::take_over(directory.path());
        assert_eq!(newer.address, address);
        until(directory.path(), |status| status.pid == newer.pid()).await;
        load.go_on(200).await;
        // What the older one still carries is seen at the newer one, so nobody stops a slot under it.
        let status = client(directory.path()).status().await.unwrap();
        assert!(in_flight(&status, instance) >= 2, "round {round}: {status:?}");
        body.send(Bytes::from_static(b" world")).unwrap();
        drop(body);
        shop.go.add_permits(1);
        assert_eq!((long_poll.await.unwrap(), upload.await.unwrap()), (200, 11), "round {round}");
        for tab in &mut tabs {
            assert_eq!(
                tokio::time::timeout(PATIENCE, tab.recv()).await.unwrap().unwrap(),
                Some(4002),
                "told to go, as Odoo's pages know it"
            );
        }
        edges.last_mut().unwrap().ended().await;
        edges.push(newer);
        until(directory.path(), |status| status.instances.iter().any(|traffic| traffic.instance_id == chat && traffic.websockets == 10))
            .await;
    }
    assert_eq!(load.end().await, Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.iter().filter(|name| name.to_string_lossy().starts_with("edge.sock")).count(), 3, "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_edge_dies_while_they_change_the_other_one_serves() {
    let directory = tempfile::tempdir().unwrap();
    let shop = Upstream::start("shop").await;
    let route = serving(&["shop.example"], shop.address);
    let older = EdgeProcess::start(directory.path());
    let address = older.address;
    client(directory.path()).apply_routes(&RouteSnapshot { generation: 1, routes: vec![route.clone()] }).await.unwrap();
    let load = Load::start(address, 8);

    // Killed before it is ready: the older one goes on, and its routes change as ever.
    drop(EdgeProcess::hang_while_taking_over(directory.path()));
    load.go_on(200).await;
    client(directory.path()).apply_routes(&RouteSnapshot { generation: 2, routes: vec![route.clone()] }).await.unwrap();
    assert_eq!(client(directory.path()).status().await.unwrap().pid, older.pid());

    // One that is there to take over, and an older one that is killed as soon as it has given way.
    let newer = EdgeProcess::take_over(directory.path());
    until(directory.path(), |status| status.pid == newer.pid()).await;
    assert_eq!(load.end().await, Vec::<String>::new());
    drop(older);
    let load = Load::start(address, 8);
    load.go_on(200).await;
    assert_eq!(client(directory.path()).routes().await.unwrap().generation, 2);
    client(directory.path()).apply_routes(&RouteSnapshot { generation: 3, routes: vec![route] }).await.unwrap();
    assert_eq!(load.end().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_older_edge_holds_goes_on_by_the_newer_ones_routes() {
    let directory = tempfile::tempdir().unwrap();
    let shop = Upstream::start("shop").await;
    let held = route(&["shop.example"], holding());
    let asleep = route(&["nap.example"], RouteState::Asleep { seconds: 60 });
    let (instance, sleeper) = (held.instance_id, asleep.instance_id);
    let mut older = EdgeProcess::start(directory.path());
    let address = older.address;
    client(directory.path()).apply_routes(&RouteSnapshot { generation: 1, routes: vec![held.clone(), asleep.clone()] }).await.unwrap();
    let waiting = tokio::spawn(ask(address, "/web"));
    let sleepy = tokio::spawn(async move {
        Client::connect(address).await.send(request("POST", "nap.example", "/", &[], "{}")).await.unwrap().status.as_u16()
    });
    until(directory.path(), |status| status.instances.iter().all(|traffic| traffic.held == 1)).await;

    let newer = EdgeProcess::take_over(directory.path());
    until(directory.path(), |status| status.pid == newer.pid()).await;
    let status = client(directory.path()).status().await.unwrap();
    assert!(status.instances.iter().any(|traffic| traffic.instance_id == instance && traffic.held == 1), "{status:?}");
    // The control plane hears of the sleeper again.
    assert_eq!(client(directory.path()).wanted(0).await.unwrap().instances, [sleeper]);
    let leads = |route: &Route| Route { state: RouteState::Serving { http: shop.address, websocket: None }, ..route.clone() };
    client(directory.path()).apply_routes(&RouteSnapshot { generation: 2, routes: vec![leads(&held), leads(&asleep)] }).await.unwrap();
    assert_eq!((waiting.await.unwrap(), sleepy.await.unwrap()), (200, 200));
    older.ended().await;
}

#[tokio::test]
async fn a_second_edge_is_refused_unless_it_is_to_take_over() {
    let edge = crate::support::TestEdge::start().await;
    let config = ocore_edge::EdgeConfig::new(
        vec!["127.0.0.1:0".parse().unwrap()],
        edge.directory.path().join("edge.sock"),
        edge.directory.path().join("routes.json"),
    );
    assert!(matches!(ocore_edge::Edge::bind(config).await, Err(ocore_edge::EdgeError::AlreadyRunning { .. })));
}
