//! An edge, servers to put behind it, and clients that say exactly what they mean.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, body::Body, extract::Request, response::IntoResponse};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use ocore_edge::{Edge, EdgeConfig, EdgeError};
use ocore_host::EdgeClient;
use ocore_model::{
    edge::{EdgeStatus, InstanceTraffic},
    ids::InstanceId,
    route::{Route, RouteSnapshot, RouteState},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Whatever waits for something that must come waits at most so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running edge with its own directory; both end with it.
pub(crate) struct TestEdge {
    pub(crate) address: SocketAddr,
    pub(crate) admin: EdgeClient,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), EdgeError>>,
    _stop: DropGuard,
}

impl TestEdge {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(adjust: impl FnOnce(&mut EdgeConfig)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), adjust).await
    }

    /// In the directory of one that ran before.
    pub(crate) async fn start_in(directory: tempfile::TempDir, adjust: impl FnOnce(&mut EdgeConfig)) -> Self {
        let mut config =
            EdgeConfig::new(vec!["127.0.0.1:0".parse().unwrap()], directory.path().join("edge.sock"), directory.path().join("routes.json"));
        adjust(&mut config);
        let admin = EdgeClient::new(config.admin_socket.clone());
        let edge = Edge::bind(config).await.unwrap();
        let address = edge.addresses()[0];
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(edge.serve(shutdown.clone()));
        Self { address, admin, directory, _stop: shutdown.clone().drop_guard(), shutdown, task }
    }

    /// Stops it and gives its directory for another.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.directory
    }

    pub(crate) async fn apply(&self, generation: u64, routes: Vec<Route>) {
        assert_eq!(self.admin.apply_routes(&RouteSnapshot { generation, routes }).await.unwrap(), generation);
    }

    pub(crate) async fn get(&self, host: &str, path: &str) -> Answer {
        self.send(request("GET", host, path, &[], "")).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(&self, request: http::Request<Full<Bytes>>) -> Answer {
        Client::connect(self.address).await.send(request).await.unwrap()
    }

    /// One request to the administration socket.
    pub(crate) async fn administer(&self, request: http::Request<Full<Bytes>>) -> Answer {
        let stream = tokio::net::UnixStream::connect(self.directory.path().join("edge.sock")).await.unwrap();
        Client::over(stream).await.send(request).await.unwrap()
    }

    /// Bytes in, everything that comes back until the connection is closed.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        self.raw_from([127, 0, 0, 1], bytes).await
    }

    /// The same as a client with that address.
    pub(crate) async fn raw_from(&self, client: impl Into<IpAddr>, bytes: &[u8]) -> String {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((client, 0).into()).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is an end, too.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the edge keeps the connection open");
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) async fn status(&self) -> EdgeStatus {
        self.admin.status().await.unwrap()
    }

    /// Polls until the instance's traffic is as wanted.
    pub(crate) async fn until(&self, instance: InstanceId, wanted: impl Fn(&InstanceTraffic) -> bool) {
        let reached = async {
            loop {
                let status = self.status().await;
                if status.instances.iter().any(|traffic| traffic.instance_id == instance && wanted(traffic)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "the traffic never came to what was wanted: {:?}", self.status().await);
    }
}

/// A keep-alive connection to an edge.
pub(crate) struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    /// The edge has not ended it.
    pub(crate) async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub(crate) async fn send(&mut self, request: http::Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) fn request(method: &str, host: &str, path: &str, headers: &[(&str, &str)], body: &str) -> http::Request<Full<Bytes>> {
    let mut builder = http::Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

pub(crate) fn serving(hosts: &[&str], http: SocketAddr) -> Route {
    route(hosts, RouteState::Serving { http, websocket: None })
}

/// For a minute.
pub(crate) fn holding() -> RouteState {
    RouteState::Holding { message: "Updating sale_extra".to_owned(), until: chrono::Utc::now() + Duration::from_mins(1), seconds: 60 }
}

pub(crate) fn route(hosts: &[&str], state: RouteState) -> Route {
    Route { instance_id: InstanceId::new(), hosts: hosts.iter().map(ToString::to_string).collect(), title: "The shop".to_owned(), state }
}

/// A server behind the edge. It answers every path with what it was asked, as JSON, except `/stream`, `/hold` and `/fail`.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// `METHOD path` of every request, in order.
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    /// Bytes of bodies that arrived.
    pub(crate) received: Arc<AtomicU64>,
    /// Lets `/hold` answer, and `/stream` go on: one item each.
    pub(crate) go: Arc<tokio::sync::Semaphore>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Upstream {
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(name: &'static str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::new(AtomicU64::new(0));
        let go = Arc::new(tokio::sync::Semaphore::new(0));
        let (record, count, gate) = (Arc::clone(&seen), Arc::clone(&received), Arc::clone(&go));
        let answer = move |request: Request| {
            let (record, count, gate) = (Arc::clone(&record), Arc::clone(&count), Arc::clone(&gate));
            async move {
                record.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
                match request.uri().path() {
                    "/fail" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                    "/stream" => stream(gate).into_response(),
                    "/hold" => {
                        gate.acquire().await.unwrap().forget();
                        name.into_response()
                    }
                    _ => echo(name, request, &count).await.into_response(),
                }
            }
        };
        let stop = CancellationToken::new();
        let ended = stop.clone();
        let server = axum::serve(listener, Router::new().fallback(answer)).with_graceful_shutdown(ended.cancelled_owned());
        let task = tokio::spawn(async move { server.await.unwrap() });
        Self { address, seen, received, go, stop, task }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Closes the port and every connection, idle ones at once.
    pub(crate) async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        self.task.await.unwrap();
        self.address
    }
}

async fn echo(name: &str, request: Request, count: &AtomicU64) -> Json<Value> {
    let (head, body) = request.into_parts();
    let mut length = 0u64;
    let mut first = Vec::new();
    let mut frames = body.into_data_stream();
    while let Some(Ok(frame)) = frames.next().await {
        length += frame.len() as u64;
        count.fetch_add(frame.len() as u64, Ordering::Relaxed);
        if first.len() < 1024 {
            first.extend_from_slice(&frame);
        }
    }
    first.truncate(1024);
    let headers: Vec<(String, String)> =
        head.headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect();
    Json(json!({
        "upstream": name,
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "headers": headers,
        "length": length,
        "body": String::from_utf8_lossy(&first),
    }))
}

/// Server-sent events, one for each permit.
fn stream(gate: Arc<tokio::sync::Semaphore>) -> impl IntoResponse {
    let events = futures::stream::unfold(0u64, move |number| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Some((Ok::<_, std::convert::Infallible>(format!("data: {number}\n\n")), number + 1))
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events))
}

/// The values of a header in the upstream's echo.
pub(crate) fn echoed<'a>(echo: &'a Value, name: &str) -> Vec<&'a str> {
    echo["headers"].as_array().unwrap().iter().filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap()).collect()
}

/// The body of an [`EdgeProcess`]: this test binary again, with a directory in its environment.
#[tokio::test]
#[ignore = "started by other tests"]
async fn an_edge_process() {
    let Some(directory) = std::env::var_os("OCORE_TEST_EDGE_DIRECTORY").map(PathBuf::from) else { return };
    let mut config = EdgeConfig::new(vec!["127.0.0.1:0".parse().unwrap()], directory.join("edge.sock"), directory.join("routes.json"));
    config.take_over = std::env::var_os("OCORE_TEST_EDGE_TAKES_OVER").is_some();
    config.websocket_spread = Duration::from_millis(500);
    let edge = Edge::bind(config).await.unwrap();
    println!("serving at {}", edge.addresses()[0]);
    // One that is to be killed before it is ready.
    if std::env::var_os("OCORE_TEST_EDGE_HANGS").is_some() {
        std::future::pending::<()>().await;
    }
    edge.serve(CancellationToken::new()).await.unwrap();
}

/// An edge in a process of its own; killed as `kill -9` does when it is dropped.
pub(crate) struct EdgeProcess {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Open to its end: it says a word then.
    output: BufReader<std::process::ChildStdout>,
}

impl EdgeProcess {
    pub(crate) fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[])
    }

    /// One that takes over from the one that runs.
    pub(crate) fn take_over(directory: &Path) -> Self {
        Self::start_with(directory, &["OCORE_TEST_EDGE_TAKES_OVER"])
    }

    /// One that gets the sockets and never becomes ready.
    pub(crate) fn hang_while_taking_over(directory: &Path) -> Self {
        Self::start_with(directory, &["OCORE_TEST_EDGE_TAKES_OVER", "OCORE_TEST_EDGE_HANGS"])
    }

    fn start_with(directory: &Path, switches: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support::an_edge_process", "--ignored", "--nocapture"])
            .env("OCORE_TEST_EDGE_DIRECTORY", directory)
            .envs(switches.iter().map(|switch| (switch, "1")))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self { child, address: "0.0.0.0:0".parse().unwrap(), output };
        process.address = (&mut process.output)
            .lines()
            .find_map(|line| line.unwrap().split_once("serving at ").map(|(_, address)| address.parse().unwrap()))
            .expect("the process ended before it served");
        process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) {
        let ended = async {
            while self.child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the process does not end");
    }

    /// The most that it had in memory at once, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for EdgeProcess {
    fn drop(&mut self) {
        // One that has ended already is no failure.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// The lines of the access log of all edges of this process: `name=value` of each field.
#[derive(Clone, Default)]
struct AccessLog(Arc<Mutex<Vec<String>>>);

/// Looks up what the access log says about a client, which should be of one test only. Lines before the first call are not kept.
pub(crate) fn access_log_of(client: [u8; 4]) -> impl Fn() -> Vec<String> {
    static LOG: LazyLock<AccessLog> = LazyLock::new(|| {
        let log = AccessLog::default();
        tracing::subscriber::set_global_default(log.clone()).unwrap();
        log
    });
    let (log, client) = (&*LOG, format!("client={} ", IpAddr::from(client)));
    move || log.0.lock().unwrap().iter().filter(|line| line.contains(&client)).cloned().collect()
}

impl tracing::Subscriber for AccessLog {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "ocore_edge::access"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            line.push_str(&[field.name(), "=", &format!("{value:?}"), " "].concat());
        });
        self.0.lock().unwrap().push(line);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
