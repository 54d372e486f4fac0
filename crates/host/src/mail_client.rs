//! The host's side of the mail catcher's socket: HTTP over a Unix socket, one connection a call.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use ocore_model::{
    ids::InstanceId,
    mail::{MailboxSpec, MailboxStatus},
};
use tokio::net::UnixStream;

use crate::{
    api::MailStream,
    error::{HostError, Result},
};

/// Removing a full mailbox takes the disk a moment.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

/// Talks to the mail catcher of this server. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct MailClient {
    socket: PathBuf,
}

impl MailClient {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// A connection that speaks HTTP.
    pub async fn connect(&self) -> Result<MailStream> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            HostError::machine_from(
                format!("the mail catcher does not listen at {}; `ocore serve` starts it", self.socket.display()),
                source,
            )
        })?;
        Ok(Box::new(stream))
    }

    pub async fn mailboxes(&self) -> Result<Vec<MailboxStatus>> {
        let answer = self.call(Method::GET, "/mailboxes".to_owned(), Vec::new()).await?;
        serde_json::from_slice(&answer)
            .map_err(|source| HostError::machine_from("the mail catcher speaks another version; restart it", source))
    }

    /// Makes a mailbox, or changes its port or user. May run twice.
    pub async fn put(&self, instance: InstanceId, spec: &MailboxSpec) -> Result<()> {
        let body =
            serde_json::to_vec(spec).map_err(|source| HostError::machine_from("cannot write a request to the mail catcher", source))?;
        self.call(Method::PUT, format!("/mailboxes/{instance}"), body).await.map(drop)
    }

    /// Removes a mailbox with its messages. Absent is done.
    pub async fn remove(&self, instance: InstanceId) -> Result<()> {
        self.call(Method::DELETE, format!("/mailboxes/{instance}"), Vec::new()).await.map(drop)
    }

    async fn call(&self, method: Method, path: String, body: Vec<u8>) -> Result<Bytes> {
        match tokio::time::timeout(CALL_TIMEOUT, self.exchange(method, &path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(HostError::machine(format!("the mail catcher did not answer within {} seconds", CALL_TIMEOUT.as_secs()))),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "mail")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|source| HostError::machine_from("cannot write a request to the mail catcher", source))?;
        let broken = |source: hyper::Error| HostError::machine_from("the connection to the mail catcher broke", source);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?)).await.map_err(broken)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await.map_err(|source| HostError::Machine {
                summary: "the connection to the mail catcher broke".to_owned(),
                source: Some(source),
            })?;
            let answer = answer.to_bytes();
            if status.is_success() {
                return Ok(answer);
            }
            Err(HostError::machine(format!(
                "the mail catcher answered {status}: {}",
                String::from_utf8_lossy(&answer).chars().take(500).collect::<String>()
            )))
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
}
