//! The edge as a process: opens its sockets, serves, and ends without cutting what is under way.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ocore_model::clock::SystemClock;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    runtime::Runtime,
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin, client::ClientStream, config::EdgeConfig, error::EdgeError, metrics::Metrics, pool::Pool, proxy, routes::Routes,
    snapshot_file::SnapshotFile, traffic::Traffic,
};

/// hyper's own default, which it holds on the stack.
const DEFAULT_HEADER_COUNT: usize = 100;
/// What one client connection may buffer; headers must fit.
const BUFFER_SIZE: usize = 64 * 1024;
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// When the machine has no descriptors left, connections wait in the kernel meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every part of one edge uses.
pub(crate) struct Shared {
    pub(crate) config: EdgeConfig,
    pub(crate) routes: Routes,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where it listens for the world.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Open client connections that are no websockets.
    connections: TaskTracker,
    /// Open websockets.
    pub(crate) tunnels: TaskTracker,
    /// Ends both at once.
    pub(crate) cut: CancellationToken,
    /// The routes do not change any more: nobody needs to wait for that.
    pub(crate) stopping: CancellationToken,
}

/// An edge whose sockets are open; connections wait in the kernel until [`Edge::serve`].
pub struct Edge {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    admin: UnixListener,
}

/// The runtime for an edge process of its own: two workers, few threads for the disk.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(4).thread_name("ocore-edge").enable_all().build()
}

/// Runs an edge until `shutdown`, then lets the requests under way end within [`EdgeConfig::shutdown_timeout`].
///
/// Starts with the stored routes, so nobody else needs to be there.
pub async fn run(config: EdgeConfig, shutdown: CancellationToken) -> Result<(), EdgeError> {
    Edge::bind(config).await?.serve(shutdown).await
}

impl Edge {
    /// Opens all sockets and loads the stored routes.
    pub async fn bind(config: EdgeConfig) -> Result<Self, EdgeError> {
        let listeners = bind_all(&config.listen).await?;
        let admin = admin::listen(&config.admin_socket).await?;
        let routes_file = |source| EdgeError::RoutesFile { path: config.routes_file.clone(), source };
        let file = SnapshotFile::open(&config.routes_file).map_err(routes_file)?;
        let traffic = Arc::new(Traffic::new(Arc::new(SystemClock), config.hold));
        let routes = Routes::load(file, Arc::clone(&traffic)).map_err(routes_file)?;
        let metrics = Metrics::new().map_err(|error| EdgeError::Admin(io::Error::other(error)))?;
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let shared = Shared {
            pool: Arc::new(Pool::new(config.connect_timeout)),
            config,
            routes,
            traffic,
            metrics: Arc::new(metrics),
            addresses,
            connections: TaskTracker::new(),
            tunnels: TaskTracker::new(),
            cut: CancellationToken::new(),
            stopping: CancellationToken::new(),
        };
        Ok(Self { shared: Arc::new(shared), listeners, admin })
    }

    /// Where it listens; the ports that were asked for as 0 are real here.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.addresses
    }

    /// Serves until `shutdown`, then lets the requests under way end.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), EdgeError> {
        let Self { shared, listeners, admin } = self;
        // One token for this edge's own tasks: they end when we are asked to, and when one of them fails.
        let stop = shutdown.child_token();
        let slots = Arc::new(Semaphore::new(shared.config.connection_limit));
        let mut tasks: JoinSet<Result<(), EdgeError>> = JoinSet::new();
        for listener in listeners {
            tasks.spawn(accept(Arc::clone(&shared), listener, Arc::clone(&slots), stop.clone()));
        }
        tasks.spawn(upkeep(Arc::clone(&shared), stop.clone()));
        let router = admin::router(Arc::clone(&shared));
        let admin_stop = stop.clone();
        tasks.spawn(async move {
            axum::serve(admin, router).with_graceful_shutdown(admin_stop.cancelled_owned()).await.map_err(EdgeError::Admin)
        });
        tracing::info!(addresses = ?shared.addresses, generation = shared.routes.generation(), "the edge serves");

        let mut outcome = Ok(());
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = tasks.join_next() => outcome = ended.unwrap_or_else(|error| Err(EdgeError::Admin(io::Error::other(error)))),
        }
        // Removed before the ports are free: afterwards the name may be another edge's.
        let _ = std::fs::remove_file(&shared.config.admin_socket);
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        shared.stopping.cancel();
        finish(&shared).await;
        outcome
    }
}

/// Lets requests end, then cuts websockets, which never would by themselves and open again by themselves.
async fn finish(shared: &Shared) {
    let (requests, websockets) = shared.traffic.open();
    tracing::info!(requests, websockets, "the edge stops; requests under way may end");
    shared.connections.close();
    if timeout(shared.config.shutdown_timeout, shared.connections.wait()).await.is_err() {
        let (requests, _) = shared.traffic.open();
        tracing::warn!(limit = ?shared.config.shutdown_timeout, requests, "requests did not end in time and are cut");
    }
    shared.cut.cancel();
    shared.connections.wait().await;
    shared.tunnels.close();
    shared.tunnels.wait().await;
}

/// Opens every address; one that this machine's network does not have is left out when another works.
async fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, EdgeError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    let mut left_out = None;
    for &address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(source) if address.is_ipv6() && is_missing(&source) => {
                tracing::warn!(%address, error = %source, "this machine has no such address; the edge does not listen there");
                left_out = Some(EdgeError::Listen { address, source });
            }
            Err(source) => return Err(EdgeError::Listen { address, source }),
        }
    }
    if listeners.is_empty() { Err(left_out.unwrap_or(EdgeError::NoAddress)) } else { Ok(listeners) }
}

fn is_missing(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no kind of its own.
    error.kind() == io::ErrorKind::AddrNotAvailable || error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(97)
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, slots: Arc<Semaphore>, stop: CancellationToken) -> Result<(), EdgeError> {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.header_timeout)
        .max_header_size(shared.config.header_size_limit)
        .max_buf_size(BUFFER_SIZE.max(shared.config.header_size_limit * 2));
    if shared.config.header_count_limit != DEFAULT_HEADER_COUNT {
        server.max_headers(shared.config.header_count_limit);
    }
    let next = async || {
        // The semaphore is never closed.
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = listener.accept().await?;
        Ok::<_, io::Error>((slot, stream, peer))
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = next() => accepted,
        };
        let (slot, stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = serve_connection(&shared, &server, stream, peer, stop.clone());
        shared.connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
}

/// One client connection, from its first request to its last. `stop` lets the request under way end.
fn serve_connection(
    shared: &Arc<Shared>,
    server: &http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let counted = shared.traffic.connection();
    let cut = shared.cut.clone();
    // Only a socket that is already gone refuses this.
    let _ = stream.set_nodelay(true);
    let shared = Arc::clone(shared);
    let (stream, client) = ClientStream::new(stream);
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, client) = (Arc::clone(&shared), client.clone());
        async move { Ok::<_, Infallible>(proxy::handle(shared, request, peer.ip(), client).await) }
    });
    let connection = server.serve_connection(TokioIo::new(stream), service).with_upgrades();
    async move {
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = cut.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a client connection ended");
        }
        drop(counted);
    }
}

async fn upkeep(shared: Arc<Shared>, stop: CancellationToken) -> Result<(), EdgeError> {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        shared.pool.sweep();
        shared.metrics.fold();
        shared.routes.store_if_needed().await;
    }
}
