//! The host's side of the edge's administration socket: HTTP over a Unix socket, one connection a call.
//!
//! The edge is a process of its own that outlives `ocore serve`; this is the only way in which anything else reaches it.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use ocore_model::{
    edge::{EdgeRefusal, EdgeStatus, RouteTraffic, RoutesApplied, Wanted},
    ids::InstanceId,
    route::RouteSnapshot,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::error::{HostError, Result};

/// A call that takes longer has failed; the edge answers from memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Before an edge that gives way is looked for again under its name.
const MOVED_PAUSE: Duration = Duration::from_millis(10);
/// More than a status of ten thousand instances.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

/// Talks to the edge of this server. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct EdgeClient {
    socket: PathBuf,
}

impl EdgeClient {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Puts a complete snapshot into force; the answer is the generation then in force. May run twice.
    ///
    /// `Fenced` when the edge has a newer generation; `Machine` when it does not answer or has other routes under the same generation.
    pub async fn apply_routes(&self, snapshot: &RouteSnapshot) -> Result<u64> {
        let (status, answer) = self.call(Method::PUT, "/routes", Some(snapshot)).await?;
        if status == StatusCode::CONFLICT {
            let refusal: EdgeRefusal = self.read(&answer)?;
            if refusal.generation > snapshot.generation {
                return Err(HostError::Fenced { held: snapshot.generation as i64, newest: refusal.generation as i64 });
            }
            return Err(HostError::machine(format!("the edge refused routes: {}", refusal.message)));
        }
        expect_ok(status, &answer)?;
        let applied: RoutesApplied = self.read(&answer)?;
        for sentence in &applied.left_out {
            tracing::error!(generation = applied.generation, "the edge left a host out: {sentence}");
        }
        if !applied.stored {
            tracing::warn!(generation = applied.generation, "the edge follows its new routes but could not store them; is its disk full?");
        }
        Ok(applied.generation)
    }

    /// The routes in force. Generation 0 without routes when it never had any.
    pub async fn routes(&self) -> Result<RouteSnapshot> {
        let (status, answer) = self.call(Method::GET, "/routes", None::<&()>).await?;
        expect_ok(status, &answer)?;
        self.read(&answer)
    }

    /// What passes through the edge, now.
    pub async fn status(&self) -> Result<EdgeStatus> {
        let (status, answer) = self.call(Method::GET, "/status", None::<&()>).await?;
        expect_ok(status, &answer)?;
        self.read(&answer)
    }

    /// The sleepers that were asked for after that sequence; waits some seconds for one, and answers with none when there was none.
    pub async fn wanted(&self, after: u64) -> Result<Wanted> {
        let (status, answer) = self.call(Method::GET, &format!("/wanted?after={after}"), None::<&()>).await?;
        expect_ok(status, &answer)?;
        self.read(&answer)
    }

    /// What the users of an instance got until now; `None` when the edge has no route to it and nothing of it under way.
    pub async fn traffic(&self, instance: InstanceId) -> Result<Option<RouteTraffic>> {
        let (status, answer) = self.call(Method::GET, &format!("/traffic/{instance}"), None::<&()>).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        expect_ok(status, &answer)?;
        self.read(&answer).map(Some)
    }

    /// The same of every instance that the edge has.
    pub async fn all_traffic(&self) -> Result<Vec<RouteTraffic>> {
        let (status, answer) = self.call(Method::GET, "/traffic", None::<&()>).await?;
        expect_ok(status, &answer)?;
        self.read(&answer)
    }

    async fn call(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<(StatusCode, Bytes)> {
        let call = async {
            loop {
                let answer = self.exchange(method.clone(), path, body).await?;
                // A newer edge took the socket's name over while we asked.
                if answer.0 != StatusCode::MISDIRECTED_REQUEST {
                    return Ok(answer);
                }
                tokio::time::sleep(MOVED_PAUSE).await;
            }
        };
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer,
            Err(_) => Err(HostError::machine(format!(
                "the edge did not answer at {} within {} seconds; look at its log and restart `ocore edge`",
                self.socket.display(),
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<(StatusCode, Bytes)> {
        let body = match body {
            Some(value) => {
                serde_json::to_vec(value).map_err(|source| HostError::machine_from("cannot write a request to the edge", source))?
            }
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "edge")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|source| HostError::machine_from("cannot write a request to the edge", source))?;

        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            HostError::machine_from(format!("the edge does not listen at {}; start it with `ocore edge`", self.socket.display()), source)
        })?;
        let broken = |source: hyper::Error| {
            HostError::machine_from(format!("the connection to the edge at {} broke", self.socket.display()), source)
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await.map_err(|source| HostError::Machine {
                summary: format!("the connection to the edge at {} broke", self.socket.display()),
                source: Some(source),
            })?;
            Ok((status, answer.to_bytes()))
        };
        // The connection is driven here, not in a task of its own: a call that is given up leaves nothing behind.
        tokio::pin!(connection, exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(source) => Err(broken(source)),
            },
        }
    }

    fn read<T: DeserializeOwned>(&self, answer: &Bytes) -> Result<T> {
        serde_json::from_slice(answer).map_err(|source| {
            HostError::machine_from(
                format!("the edge at {} speaks another version; restart `ocore edge` with this one", self.socket.display()),
                source,
            )
        })
    }
}

fn expect_ok(status: StatusCode, answer: &Bytes) -> Result<()> {
    if status.is_success() {
        return Ok(());
    }
    let message = serde_json::from_slice::<EdgeRefusal>(answer)
        .map_or_else(|_| String::from_utf8_lossy(answer).chars().take(500).collect(), |refusal| refusal.message);
    Err(HostError::machine(format!("the edge answered {status}: {message}")))
}
