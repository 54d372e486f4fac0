//! The edge as a process: opens its sockets, serves, and ends without cutting what is under way.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::Router;
use http::{HeaderMap, HeaderValue, header};
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
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    admin,
    client::ClientStream,
    config::EdgeConfig,
    crowd::{Crowd, Member},
    error::EdgeError,
    handover::{self, TakeOver},
    headers,
    metrics::Metrics,
    pages::{Form, Page},
    predecessor::Predecessor,
    proxy, refusal,
    routes::Routes,
    slots::Slot,
    snapshot_file::SnapshotFile,
    traffic::Traffic,
    wakes::Wakes,
    workers::{Carried, Workers},
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
    pub(crate) workers: Workers,
    pub(crate) metrics: Arc<Metrics>,
    /// Where it listens for the world.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Its administration under a name that stays its own, when the one that everybody knows goes to a newer edge.
    pub(crate) own_socket: PathBuf,
    /// Where a newer edge gets the sockets.
    pub(crate) handover_socket: PathBuf,
    /// The edge that this one took over from, while it finishes what it has begun.
    predecessor: Mutex<Option<Predecessor>>,
    /// Open client connections by address.
    crowd: Arc<Crowd>,
    /// How many sleepers may be woken.
    pub(crate) wakes: Wakes,
    /// Open client connections that are no websockets.
    connections: TaskTracker,
    /// Open websockets.
    pub(crate) tunnels: TaskTracker,
    /// Websockets that were opened; spreads the moments in which they are told to go.
    told: AtomicU64,
    /// Ends both at once.
    pub(crate) cut: CancellationToken,
    /// The routes do not change any more: nobody needs to wait for that.
    pub(crate) stopping: CancellationToken,
    /// A newer edge serves; this one finishes what it has begun.
    pub(crate) handed_over: CancellationToken,
}

impl Shared {
    pub(crate) fn predecessor(&self) -> Option<Predecessor> {
        self.lock_predecessor().clone()
    }

    /// A proxy of ours, which brings many clients.
    pub(crate) fn is_trusted(&self, address: IpAddr) -> bool {
        self.config.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// It did not answer. One that has ended is asked no more.
    pub(crate) fn lost_predecessor(&self, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            *self.lock_predecessor() = None;
        } else {
            tracing::warn!(%error, "the older edge, which finishes its requests, does not answer");
        }
    }

    fn lock_predecessor(&self) -> MutexGuard<'_, Option<Predecessor>> {
        self.predecessor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An edge that gives way ends its connections with the answers that it still gives: the clients' next ones reach the newer edge. It closes none
    /// that is idle, on which a request may be on its way.
    pub(crate) fn say_goodbye(&self, headers: &mut HeaderMap) {
        if self.handed_over.is_cancelled() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Ends when a websocket of this slot is to go elsewhere: its moment in the time over which all of them are told.
    pub(crate) fn told_to_go(&self, slot: Option<&Arc<Slot>>) -> impl Future<Output = ()> + Send + use<> {
        // The multiples of the golden ratio lie evenly, however many there are.
        let part = (self.told.fetch_add(1, Ordering::Relaxed) as f64 * 0.618_033_988_75).fract();
        let moment = self.config.websocket_spread.mul_f64(part);
        let (handed_over, left) = (self.handed_over.clone(), slot.map(|slot| slot.left.clone()));
        async move {
            match left {
                Some(left) => tokio::select! {
                    () = handed_over.cancelled() => {}
                    () = left.cancelled() => {}
                },
                None => handed_over.cancelled().await,
            }
            sleep(moment).await;
        }
    }
}

/// An edge whose sockets are open; connections wait in the kernel until [`Edge::serve`].
pub struct Edge {
    shared: Arc<Shared>,
    /// Ends the workers.
    threads: DropGuard,
    listeners: Vec<Arc<TcpListener>>,
    admin: Admin,
    handover: UnixListener,
    /// What an older edge gives us, and the name under which our administration socket waits until then.
    taken: Option<(TakeOver, PathBuf)>,
}

struct Admin {
    /// Under the name that everybody knows.
    public: UnixListener,
    own: UnixListener,
}

/// The runtime for an edge process of its own, beside its workers: takes connections, is administered, and writes to the disk.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().max_blocking_threads(4).enable_all().build()
}

/// Runs an edge until `shutdown`, then lets the requests under way end within [`EdgeConfig::shutdown_timeout`]. Ends as well, in its own time, when a
/// newer edge has taken over.
///
/// Starts with the stored routes, so nobody else needs to be there.
pub async fn run(config: EdgeConfig, shutdown: CancellationToken) -> Result<(), EdgeError> {
    Edge::bind(config).await?.serve(shutdown).await
}

impl Edge {
    /// Opens all sockets, or gets them from the edge that serves ([`EdgeConfig::take_over`]), and loads the routes.
    pub async fn bind(config: EdgeConfig) -> Result<Self, EdgeError> {
        let mut taken = if config.take_over {
            TakeOver::ask(&config.admin_socket).await.map_err(EdgeError::Handover)?
        } else if admin::answers(&config.admin_socket).await {
            return Err(EdgeError::AlreadyRunning { socket: config.admin_socket });
        } else {
            None
        };
        let listeners = bind_all(&config.listen, taken.as_mut().map(|taken| &mut taken.listeners)).await?;
        let named = |kind: &str| {
            let mut name = config.admin_socket.as_os_str().to_owned();
            name.push(format!(".{kind}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]));
            PathBuf::from(name)
        };
        let (own_socket, handover_socket) = (named("own"), named("give"));
        if taken.is_none() {
            remove_dead_sockets(&config.admin_socket);
        }
        let public_socket = if taken.is_some() { named("next") } else { config.admin_socket.clone() };
        let admin = Admin { public: admin::listen(&public_socket)?, own: admin::listen(&own_socket)? };
        let handover = admin::listen(&handover_socket)?;
        let routes_file = |source| EdgeError::RoutesFile { path: config.routes_file.clone(), source };
        let file = SnapshotFile::open(&config.routes_file).map_err(routes_file)?;
        let traffic = Arc::new(Traffic::new(Arc::new(SystemClock), config.hold));
        let routes = match &taken {
            Some(taken) => Routes::follow(taken.snapshot.clone(), file, Arc::clone(&traffic)),
            None => Routes::load(file, Arc::clone(&traffic)).map_err(routes_file)?,
        };
        let metrics = Metrics::new().map_err(|error| EdgeError::Admin(io::Error::other(error)))?;
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let (workers, threads) = Workers::start(config.connect_timeout).map_err(EdgeError::Workers)?;
        let shared = Shared {
            workers,
            wakes: Wakes::new(config.wakes),
            config,
            routes,
            traffic,
            metrics: Arc::new(metrics),
            addresses,
            own_socket,
            handover_socket,
            predecessor: Mutex::new(taken.as_ref().map(|taken| Predecessor::new(&taken.predecessor))),
            crowd: Arc::default(),
            connections: TaskTracker::new(),
            tunnels: TaskTracker::new(),
            told: AtomicU64::new(0),
            cut: CancellationToken::new(),
            stopping: CancellationToken::new(),
            handed_over: CancellationToken::new(),
        };
        let taken = taken.map(|taken| (taken, public_socket));
        Ok(Self { shared: Arc::new(shared), threads, listeners, admin, handover, taken })
    }

    /// Where it listens; the ports that were asked for as 0 are real here.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.addresses
    }

    /// Serves until `shutdown` or until a newer edge has taken over, then lets the requests under way end.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), EdgeError> {
        let shared = Arc::clone(&self.shared);
        let outcome = self.serve_and_finish(shutdown).await;
        let _ = std::fs::remove_file(&shared.own_socket);
        let _ = std::fs::remove_file(&shared.handover_socket);
        outcome
    }

    async fn serve_and_finish(self, shutdown: CancellationToken) -> Result<(), EdgeError> {
        let Self { shared, threads: _threads, listeners, admin, handover, taken } = self;
        // One token for this edge's own tasks: they end when we are asked to, and when one of them fails.
        let stop = shutdown.child_token();
        let mut tasks: JoinSet<Result<(), EdgeError>> = JoinSet::new();
        let administer = |listener: UnixListener, router: Router| {
            let stop = stop.clone();
            async move { axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await.map_err(EdgeError::Admin) }
        };
        tasks.spawn(administer(admin.public, admin::public_router(Arc::clone(&shared))));
        tasks.spawn(administer(admin.own, admin::router(Arc::clone(&shared))));
        let accepting = stop.child_token();
        let slots = Arc::new(Semaphore::new(shared.config.connection_limit));
        let accept_all = |tasks: &mut JoinSet<_>| {
            for listener in &listeners {
                tasks.spawn(accept(Arc::clone(&shared), Arc::clone(listener), Arc::clone(&slots), accepting.clone(), stop.clone()));
            }
        };
        match taken {
            None => accept_all(&mut tasks),
            Some((mut taken, public_socket)) => {
                let taking = async {
                    taken.go(&shared, &public_socket).await?;
                    accept_all(&mut tasks);
                    taken.serving(&shared, &public_socket).await
                };
                if let Err(error) = taking.await {
                    let _ = std::fs::remove_file(&public_socket);
                    return Err(EdgeError::Handover(error));
                }
                tracing::info!("took over from an older edge");
            }
        }
        tasks.spawn(upkeep(Arc::clone(&shared), stop.clone()));
        tracing::info!(addresses = ?shared.addresses, generation = shared.routes.generation(), "the edge serves");

        let mut outcome = Ok(());
        tokio::select! {
            () = stop.cancelled() => {}
            () = handover::give_way(&shared, handover, &listeners, stop.clone()) => {}
            Some(ended) = tasks.join_next() => outcome = ended.unwrap_or_else(|error| Err(EdgeError::Admin(io::Error::other(error)))),
        }
        accepting.cancel();
        drop(listeners);
        if shared.handed_over.is_cancelled() {
            leave(&shared, &stop).await;
        } else {
            // Removed before the ports are free: afterwards the name may be another edge's.
            let _ = std::fs::remove_file(&shared.config.admin_socket);
        }
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        shared.stopping.cancel();
        finish(&shared).await;
        outcome
    }
}

/// A newer edge serves: what was begun here ends here, by the routes that the newer one passes on.
async fn leave(shared: &Shared, stop: &CancellationToken) {
    shared.routes.give_file_away();
    let (requests, websockets) = shared.traffic.open();
    tracing::info!(requests, websockets, "a newer edge has taken over; what is under way ends here");
    shared.connections.close();
    shared.tunnels.close();
    let ended = async {
        shared.connections.wait().await;
        shared.tunnels.wait().await;
    };
    tokio::select! {
        () = ended => {}
        () = stop.cancelled() => {}
        () = sleep(shared.config.handover_timeout) => {}
    }
}

/// Removes what edges that were killed left beside the administration socket.
fn remove_dead_sockets(admin_socket: &Path) {
    let (Some(directory), Some(name)) = (admin_socket.parent(), admin_socket.file_name()) else { return };
    let prefix = format!("{}.", name.to_string_lossy());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) && std::os::unix::net::UnixStream::connect(entry.path()).is_err() {
            let _ = std::fs::remove_file(entry.path());
        }
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

/// Opens every address that an older edge does not give; one that this machine's network does not have is left out when another works.
async fn bind_all(addresses: &[SocketAddr], given: Option<&mut Vec<TcpListener>>) -> Result<Vec<Arc<TcpListener>>, EdgeError> {
    let mut given = given.map(std::mem::take).unwrap_or_default();
    let mut listeners = Vec::with_capacity(addresses.len());
    let mut left_out = None;
    for &address in addresses {
        let is_it = |has: SocketAddr| has.ip() == address.ip() && (address.port() == 0 || has.port() == address.port());
        if let Some(index) = given.iter().position(|listener| listener.local_addr().is_ok_and(is_it)) {
            listeners.push(Arc::new(given.swap_remove(index)));
            continue;
        }
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(Arc::new(listener)),
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

/// Takes connections until `accepting` is cancelled; `stop` ends those that it took.
async fn accept(
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    slots: Arc<Semaphore>,
    accepting: CancellationToken,
    stop: CancellationToken,
) -> Result<(), EdgeError> {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.header_timeout)
        // Twice what is allowed: what is a little too large gets an answer with our words, and not hyper's bare one.
        .max_header_size(shared.config.header_size_limit * 2)
        .max_buf_size(BUFFER_SIZE.max(shared.config.header_size_limit * 4));
    if shared.config.header_count_limit != DEFAULT_HEADER_COUNT {
        server.max_headers(shared.config.header_count_limit);
    }
    let server = Arc::new(server);
    let next = async || {
        // The semaphore is never closed.
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = listener.accept().await?;
        Ok::<_, io::Error>((slot, stream, peer))
    };
    loop {
        let accepted = tokio::select! {
            () = accepting.cancelled() => return Ok(()),
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
        let address = peer.ip().to_canonical();
        let limit = if shared.is_trusted(address) { usize::MAX } else { shared.config.connections_per_client };
        let Some(member) = shared.crowd.enter(address, limit) else {
            shared.metrics.crowded_out.increment(1);
            turn_away(stream, address, limit);
            continue;
        };
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%peer, %error, "a connection could not be given to a worker");
                continue;
            }
        };
        let carried = shared.workers.carry();
        let handle = carried.handle().clone();
        let connection = serve_connection(Arc::clone(&shared), Arc::clone(&server), stream, peer, member, carried, stop.clone());
        let connection = async move {
            connection.await;
            drop(slot);
        };
        shared.connections.spawn_on(connection, &handle);
    }
}

/// Says why, as far as the kernel takes it without anybody waiting: this client must not cost anything.
fn turn_away(stream: TcpStream, address: IpAddr, limit: usize) {
    let request_id = headers::new_request_id();
    tracing::info!(client = %address, limit, request_id, "a client has too many connections");
    let _ = stream.try_write(&Page::too_many_connections(limit).bytes(Form::Text, &request_id, false));
}

/// One client connection, from its first request to its last, on its worker. `stop` lets the request under way end.
async fn serve_connection(
    shared: Arc<Shared>,
    server: Arc<http1::Builder>,
    stream: std::net::TcpStream,
    peer: SocketAddr,
    member: Member,
    carried: Carried,
    stop: CancellationToken,
) {
    let _counted = shared.traffic.connection();
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%peer, %error, "a connection could not be taken by a worker");
            return;
        }
    };
    // Only a socket that is already gone refuses this.
    let _ = stream.set_nodelay(true);
    let ours = Arc::clone(&shared);
    let (stream, client) = ClientStream::new(stream, shared.config.write_timeout, member);
    let last = client.clone();
    let pool = Arc::clone(carried.pool());
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, pool, client) = (Arc::clone(&shared), Arc::clone(&pool), client.clone());
        let answering = client.begins(proxy::what_follows(&request));
        async move { Ok::<_, Infallible>(proxy::handle(shared, pool, request, peer.ip(), client).await.map(|body| body.during(answering))) }
    });
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = ours.cut.cancelled() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        refusal::part(&ours, &last, peer.ip().to_canonical(), &error).await;
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
        shared.workers.sweep();
        shared.metrics.fold();
        shared.routes.store_if_needed().await;
    }
}
