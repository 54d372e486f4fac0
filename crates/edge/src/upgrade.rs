//! Websockets: the handshake goes through like any request, then both connections become one tunnel. When its slot is left, the client is told to
//! open another one, between two frames of Odoo's.
//!
//! No other protocol is switched to: an `Upgrade: h2c` would open a way past everything that the edge checks.

use std::{pin::pin, time::Duration};

use http::{HeaderMap, HeaderValue, Method, Request, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio_util::sync::CancellationToken;

use crate::{access::Exchange, frames::Frames};

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
/// A close frame with Odoo's own code for an end of a websocket that nobody shall notice: its pages open another one without the delay that they
/// keep to otherwise (`WEBSOCKET_CLOSE_CODES.KEEP_ALIVE_TIMEOUT` in bus/static/src/workers/websocket_worker.js).
const GO: [u8; 4] = [0x88, 2, 0x0f, 0xa2];
const BUFFER_SIZE: usize = 8 * 1024;
/// What the slower direction gets once the other has ended, so that a close frame still arrives.
const CLOSING_LIMIT: Duration = Duration::from_secs(2);

/// RFC 6455, 4.1.
pub(crate) fn is_websocket_handshake<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET && request.version() == Version::HTTP_11 && asks_for_websocket(request.headers())
}

pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &header::CONNECTION, "upgrade") && has_token(headers, &header::UPGRADE, "websocket")
}

/// Puts back what went with the hop-by-hop headers.
pub(crate) fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, UPGRADE);
    headers.insert(header::UPGRADE, WEBSOCKET);
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// Carries bytes both ways until one side ends, the client is `told` to go, or `cut`; the exchange is over with it.
pub(crate) async fn tunnel(
    client: OnUpgrade,
    upstream: OnUpgrade,
    mut exchange: Exchange,
    told: impl Future<Output = ()>,
    cut: CancellationToken,
) {
    let both = async { tokio::try_join!(client, upstream) };
    let (client, upstream) = match both.await {
        Ok(both) => both,
        Err(error) => {
            exchange.trouble = Some(format!("the websocket was not opened: {error}"));
            return;
        }
    };
    let (client_read, client_write) = split(TokioIo::new(client));
    let (upstream_read, upstream_write) = split(TokioIo::new(upstream));
    let up = carry(client_read, upstream_write);
    let down = carry_frames(upstream_read, client_write, told);
    tokio::pin!(up, down);
    let ended = tokio::select! {
        sent = &mut up => match sent {
            Ok(_) => tokio::time::timeout(CLOSING_LIMIT, down).await.ok(),
            Err(error) => Some(Err(error)),
        },
        received = &mut down => match received {
            Ok(bytes) => {
                exchange.was_closed();
                // Nothing goes up that anybody would read, so how that ends says nothing.
                let _ = tokio::time::timeout(CLOSING_LIMIT, up).await;
                Some(Ok(bytes))
            }
            Err(error) => {
                exchange.was_closed();
                Some(Err(error))
            }
        },
        () = cut.cancelled() => {
            exchange.trouble = Some("the edge stops".to_owned());
            return;
        }
    };
    match ended {
        Some(Ok(bytes)) => exchange.sent(bytes),
        Some(Err(error)) => exchange.trouble = Some(format!("the websocket broke: {error}")),
        None => exchange.trouble = Some("Odoo did not close its side of the websocket".to_owned()),
    }
    exchange.complete();
}

/// Copies to the end and passes the end on. `copy` flushes whenever its source pauses.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<u64> {
    let bytes = copy(&mut from, &mut to).await?;
    to.shutdown().await?;
    Ok(bytes)
}

/// The same for Odoo's side, frame by frame: whoever is told to go hears it after the frame that is on its way. What Odoo says afterwards is
/// not passed on; the client asks for it with its next websocket.
async fn carry_frames(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    told: impl Future<Output = ()>,
) -> std::io::Result<u64> {
    let mut told = pin!(told);
    let (mut frames, mut goes, mut bytes) = (Frames::default(), false, 0);
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        if goes && frames.is_between() {
            to.write_all(&GO).await?;
            break;
        }
        let count = tokio::select! {
            read = from.read(&mut buffer) => read?,
            () = told.as_mut(), if !goes => {
                goes = true;
                continue;
            }
        };
        let Some(passed) = buffer.get(..count).filter(|passed| !passed.is_empty()) else { break };
        to.write_all(passed).await?;
        frames.pass(passed);
        bytes += count as u64;
    }
    to.shutdown().await?;
    Ok(bytes)
}
