//! The API's own port. Whoever connects has a bounded time to say what they want, says for which host, and gets an answer with an id and words, also to what is
//! no HTTP.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderMap, Request, StatusCode, Version, header, uri::Authority},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tower_http::timeout::TimeoutBody;
use uuid::Uuid;

use crate::problem::{Problem, ProblemBody};

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the connection, or the last answer, to the end of a request's headers.
    pub headers: Duration,
    /// Between two pieces of a body.
    pub body_piece: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        // Git is silent for a while when it packs a large repository.
        Self { headers: Duration::from_secs(30), body_piece: Duration::from_secs(300) }
    }
}

/// Of request line and headers together.
const HEADERS_LIMIT: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` is cancelled and the answers under way have ended; streams that do not end are the caller's to cut.
pub async fn serve(listener: TcpListener, router: Router, patience: Patience, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(connection(stream, peer, router.clone(), patience, stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, patience: Patience, stop: CancellationToken) {
    // Only a socket that is already gone refuses this.
    let _ = stream.set_nodelay(true);
    let stream = Worded::new(stream);
    let answered = stream.answered.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        answered.store(true, Ordering::Relaxed);
        let router = router.clone();
        async move { answer(request, peer, router, patience.body_piece).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .max_buf_size(HEADERS_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection ended early");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    router: Router,
    body_piece: Duration,
) -> Result<Response, std::convert::Infallible> {
    if !names_one_host(request.version(), request.headers()) {
        let id = crate::request_id::choose(request.headers());
        let problem = Problem::http(StatusCode::BAD_REQUEST, "host_required", "a request names one host, in one header Host (RFC 9112)");
        let mut response = crate::request_id::scope(id.clone(), async { problem.into_response() }).await;
        if let Ok(id) = id.parse() {
            response.headers_mut().insert(crate::request_id::HEADER, id);
        }
        return Ok(response);
    }
    let mut request = request.map(|body| Body::new(TimeoutBody::new(body_piece, body)));
    request.extensions_mut().insert(ConnectInfo(peer));
    router.oneshot(request).await
}

fn names_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.is_empty() || host.to_str().is_ok_and(|host| host.parse::<Authority>().is_ok()),
        (None, _) => version < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

/// A client's connection on which the HTTP library's own refusals of a first request (400, 414, 431, without a word) get a problem and an id.
struct Worded {
    stream: TcpStream,
    /// A request has reached us: what is written from then on is ours.
    answered: Arc<AtomicBool>,
    /// Written in the place of a refusal, and how much of it has gone.
    refusal: Option<(Vec<u8>, usize)>,
}

impl Worded {
    fn new(stream: TcpStream) -> Self {
        Self { stream, answered: Arc::default(), refusal: None }
    }
}

impl AsyncRead for Worded {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Worded {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, answered, refusal } = self.get_mut();
        if !answered.load(Ordering::Relaxed) && refusal.is_none() {
            *refusal = worded(bytes).map(|worded| (worded, 0));
        }
        let Some((words, gone)) = refusal else { return Pin::new(stream).poll_write(context, bytes) };
        while *gone < words.len() {
            let written = ready!(Pin::new(&mut *stream).poll_write(context, &words[*gone..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *gone += written;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.answered.load(Ordering::Relaxed) {
            return Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, buffers);
        }
        let first = buffers.iter().find(|buffer| !buffer.is_empty()).map_or(&[][..], |buffer| buffer);
        self.poll_write(context, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The same refusal with a problem as its body; `None` when this is not the head of one.
fn worded(head: &[u8]) -> Option<Vec<u8>> {
    let status = head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    let (status, code, detail) = match status {
        b"400" => (StatusCode::BAD_REQUEST, "malformed_request", "this is not HTTP, or not as RFC 9112 has it"),
        b"414" => (StatusCode::URI_TOO_LONG, "address_too_long", "the address is longer than the API takes"),
        b"431" => {
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "there are more headers, or larger ones, than the API takes")
        }
        _ => return None,
    };
    let id = Uuid::now_v7().to_string();
    tracing::info!(status = status.as_u16(), request_id = id, "refused what is no request");
    let title = status.canonical_reason().unwrap_or_default().to_owned();
    let body = serde_json::to_vec(&ProblemBody {
        kind: format!("urn:ocore:problem:{code}"),
        title: title.clone(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        code: code.to_owned(),
        request_id: Some(id.clone()),
        errors: Vec::new(),
    })
    .ok()?;
    let mut answer = format!(
        "HTTP/1.1 {} {title}\r\ncontent-type: application/problem+json\r\nx-content-type-options: nosniff\r\ncache-control: no-store\r\n\
         x-request-id: {id}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        status.as_u16(),
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    Some(answer)
}
