//! Asks an Odoo whether it answers.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What came of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody listens, or the connection broke off.
    Nothing,
    Status(StatusCode),
}

impl Answer {
    /// A page, or the way to one: Odoo has its database and renders.
    pub(super) fn is_good(self) -> bool {
        matches!(self, Self::Status(status) if status.is_success() || status.is_redirection())
    }
}

/// One request that Odoo can only answer with its database. Waits as long as Odoo takes, up to `patience`.
pub(super) async fn login_page(address: SocketAddr, patience: Duration) -> Answer {
    tokio::time::timeout(patience, get(address, "/web/login"))
        .await
        .ok()
        .flatten()
        .map_or(Answer::Nothing, |got| Answer::Status(got.status))
}

/// The answer to one request.
pub(super) struct Got {
    pub(super) status: StatusCode,
    /// Where it leads, as it is written.
    pub(super) location: Option<String>,
}

/// `None` when nobody listens, or the connection broke off.
pub(super) async fn get(address: SocketAddr, path: &str) -> Option<Got> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(path).header(header::HOST, address.to_string()).body(Empty::<Bytes>::new()).ok()?;
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok()).map(str::to_owned);
        let got = Got { status: response.status(), location };
        // To the end: an Odoo whose client goes away in the middle logs that.
        response.into_body().collect().await.ok()?;
        Some(got)
    };
    tokio::pin!(exchange);
    tokio::select! {
        got = &mut exchange => got,
        _ = connection => exchange.await,
    }
}
