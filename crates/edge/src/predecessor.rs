//! The older edge that finishes what it has begun: it follows the same routes, and what it still carries is part of what this server's edge carries.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use ocore_model::{
    edge::{EdgeStatus, InstanceTraffic},
    route::RouteSnapshot,
};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// It answers from memory.
const LIMIT: Duration = Duration::from_secs(2);
/// More than a status of ten thousand instances.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct Predecessor {
    socket: PathBuf,
}

impl Predecessor {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Where it gives its sockets away.
    pub(crate) async fn handover_socket(&self) -> io::Result<PathBuf> {
        self.ask(Method::GET, "/handover", Bytes::new()).await
    }

    /// What it still carries.
    pub(crate) async fn status(&self) -> io::Result<EdgeStatus> {
        self.ask(Method::GET, "/status", Bytes::new()).await
    }

    /// Lets it follow the routes in force; what it holds may go on then.
    pub(crate) async fn follow(&self, snapshot: &RouteSnapshot) -> io::Result<()> {
        let body = Bytes::from(serde_json::to_vec(snapshot)?);
        self.ask::<serde_json::Value>(Method::PUT, "/routes", body).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> io::Result<T> {
        let request =
            Request::builder().method(method).uri(path).header(header::HOST, "edge").body(Full::new(body)).map_err(io::Error::other)?;
        let exchange = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            let answer = async {
                let answer = sender.send_request(request).await.map_err(io::Error::other)?;
                let status = answer.status();
                let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await.map_err(io::Error::other)?.to_bytes();
                if !status.is_success() {
                    return Err(io::Error::other(format!("it answered {status}: {}", String::from_utf8_lossy(&body))));
                }
                Ok(serde_json::from_slice(&body)?)
            };
            tokio::pin!(connection, answer);
            tokio::select! {
                biased;
                answer = &mut answer => answer,
                ended = &mut connection => match ended {
                    Ok(()) => answer.await,
                    Err(error) => Err(io::Error::other(error)),
                },
            }
        };
        tokio::time::timeout(LIMIT, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// Adds to a status what an older edge of the same server still carries. What was in all, each counts for itself.
pub(crate) fn add(status: &mut EdgeStatus, older: EdgeStatus) {
    status.connections += older.connections;
    for other in older.instances {
        match status.instances.iter_mut().find(|instance| instance.instance_id == other.instance_id) {
            Some(instance) => add_instance(instance, &other),
            None => {
                status.instances.push(InstanceTraffic { requests_total: 0, errors_total: 0, websockets_total: 0, held_total: 0, ..other });
            }
        }
    }
    status.instances.sort_by_key(|instance| instance.instance_id);
}

fn add_instance(instance: &mut InstanceTraffic, other: &InstanceTraffic) {
    instance.requests_in_flight += other.requests_in_flight;
    instance.websockets += other.websockets;
    instance.held += other.held;
    instance.wanted |= other.wanted;
    instance.last_request_at = instance.last_request_at.max(other.last_request_at);
    for upstream in &other.upstreams {
        match instance.upstreams.iter_mut().find(|known| known.http == upstream.http) {
            Some(known) => {
                known.requests_in_flight += upstream.requests_in_flight;
                known.websockets += upstream.websockets;
            }
            None => instance.upstreams.push(upstream.clone()),
        }
    }
}
