//! The administration socket: how the host puts routes into force, sees what passes and hears who is wanted. Only who may open the socket file
//! reaches it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path as Segment, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use ocore_model::{
    edge::{EdgeRefusal, EdgeStatus, RouteTraffic, Wanted},
    ids::InstanceId,
    route::RouteSnapshot,
};
use tokio::net::{UnixListener, UnixStream};

use crate::{error::EdgeError, predecessor, server::Shared};

/// More than the routes of a hundred thousand instances.
const SNAPSHOT_SIZE_LIMIT: usize = 64 * 1024 * 1024;
/// Who asks for sleepers that are wanted gets an answer after this, with or without any; below the patience of who asks.
const WANTED_WAIT: Duration = Duration::from_secs(5);

/// What everybody asks: at a name that goes to a newer edge, so that who still comes here after that is sent there.
pub(crate) fn public_router(shared: Arc<Shared>) -> Router {
    router(Arc::clone(&shared)).layer(middleware::from_fn(move |request: Request, next: Next| {
        let shared = Arc::clone(&shared);
        async move {
            let answer = if shared.handed_over.is_cancelled() { None } else { Some(next.run(request).await) };
            // What was said to us while we handed over may not have come along.
            match answer {
                Some(answer) if !shared.handed_over.is_cancelled() => answer,
                _ => {
                    let message = "a newer edge has taken over; ask again".to_owned();
                    (StatusCode::MISDIRECTED_REQUEST, Json(EdgeRefusal { message, generation: shared.routes.generation() })).into_response()
                }
            }
        }
    }))
}

/// The same at a name that is this edge's to its end, for the one that took over from it.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/routes", get(routes).put(put_routes))
        .route("/status", get(status))
        .route("/traffic", get(all_traffic))
        .route("/traffic/{instance}", get(traffic))
        .route("/wanted", get(wanted))
        .route("/metrics", get(metrics))
        .route("/handover", get(handover))
        .route("/healthz", get(healthz))
        .layer(DefaultBodyLimit::max(SNAPSHOT_SIZE_LIMIT))
        .with_state(shared)
}

/// Whether somebody listens there.
pub(crate) async fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// Opens a socket with mode 0600 under its name at once, in the place of one that a dead edge left.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener, EdgeError> {
    let open = || -> io::Result<UnixListener> {
        if let Some(directory) = socket.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut fresh = socket.as_os_str().to_owned();
        fresh.push(".new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&fresh, socket)?;
        Ok(listener)
    };
    open().map_err(|source| EdgeError::AdminSocket { socket: socket.to_owned(), source })
}

async fn routes(State(shared): State<Arc<Shared>>) -> Json<RouteSnapshot> {
    Json((*shared.routes.snapshot()).clone())
}

async fn put_routes(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let refuse = |status: StatusCode, message: String| {
        shared.metrics.snapshots_refused.increment(1);
        tracing::warn!(%status, message, "a route snapshot was refused");
        (status, Json(EdgeRefusal { message, generation: shared.routes.generation() })).into_response()
    };
    let snapshot: RouteSnapshot = match serde_json::from_slice(&body) {
        Ok(snapshot) => snapshot,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("this is no route snapshot: {error}")),
    };
    match shared.routes.apply(snapshot).await {
        Ok(applied) => {
            shared.workers.keep_only(&shared.routes.addresses());
            if let Some(older) = shared.predecessor()
                && let Err(error) = older.follow(&shared.routes.snapshot()).await
            {
                shared.lost_predecessor(&error);
            }
            Json(applied).into_response()
        }
        Err(error) => refuse(StatusCode::CONFLICT, error.to_string()),
    }
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<EdgeStatus> {
    let mut status = EdgeStatus {
        pid: std::process::id(),
        generation: shared.routes.generation(),
        started_at: shared.traffic.started_at(),
        listen: shared.addresses.clone(),
        connections: shared.traffic.connections(),
        unknown_host_requests: shared.traffic.unknown_host_requests(),
        instances: shared.routes.traffic(),
    };
    if let Some(older) = shared.predecessor() {
        match older.status().await {
            Ok(older) => predecessor::add(&mut status, older),
            Err(error) => shared.lost_predecessor(&error),
        }
    }
    Json(status)
}

/// Where a newer edge gets the sockets.
async fn handover(State(shared): State<Arc<Shared>>) -> Json<PathBuf> {
    Json(shared.handover_socket.clone())
}

async fn all_traffic(State(shared): State<Arc<Shared>>) -> Json<Vec<RouteTraffic>> {
    Json(shared.routes.traffic_of_all())
}

async fn traffic(State(shared): State<Arc<Shared>>, Segment(instance): Segment<InstanceId>) -> Response {
    let Some(traffic) = shared.routes.traffic_of(instance) else {
        let message = format!("the edge has no route to {instance}");
        return (StatusCode::NOT_FOUND, Json(EdgeRefusal { message, generation: shared.routes.generation() })).into_response();
    };
    Json(traffic).into_response()
}

#[derive(serde::Deserialize)]
struct After {
    after: u64,
}

/// Waits for a sleeper that is wanted.
async fn wanted(State(shared): State<Arc<Shared>>, Query(After { after }): Query<After>) -> Json<Wanted> {
    tokio::select! {
        wanted = shared.traffic.wanted_after(after) => Json(wanted),
        () = tokio::time::sleep(WANTED_WAIT) => Json(Wanted { sequence: after, instances: Vec::new() }),
        () = shared.handed_over.cancelled() => Json(Wanted { sequence: after, instances: Vec::new() }),
        () = shared.stopping.cancelled() => Json(Wanted { sequence: after, instances: Vec::new() }),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let snapshot = shared.routes.snapshot();
    let text = shared.metrics.render(&shared.traffic, snapshot.routes.len(), snapshot.generation);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn healthz() -> &'static str {
    "ok\n"
}
