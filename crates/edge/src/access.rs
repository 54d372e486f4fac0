//! One request from its headers to the last byte of its answer, and the one line that the log gets about it.
//!
//! The line has the path without its query: links that reset a password or share a document carry their secret there.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, StatusCode};

use crate::{metrics::Metrics, traffic::Passage};

/// Lives as long as the exchange does; when it is dropped, the exchange is over, however it ended.
pub(crate) struct Exchange {
    metrics: Arc<Metrics>,
    started: Instant,
    method: Method,
    path: String,
    pub(crate) request_id: HeaderValue,
    pub(crate) peer: IpAddr,
    pub(crate) client: Option<IpAddr>,
    /// As the client wrote it.
    pub(crate) host: Option<String>,
    pub(crate) passage: Option<Passage>,
    status: Option<StatusCode>,
    is_websocket: bool,
    /// The answer was passed on to its end.
    complete: bool,
    bytes_sent: u64,
    /// How long it waited for its instance to serve again; `None`: it did not need to.
    pub(crate) held: Option<Duration>,
    /// What went wrong, for the operator.
    pub(crate) trouble: Option<String>,
}

impl Exchange {
    pub(crate) fn new(metrics: Arc<Metrics>, method: Method, path: &str, request_id: HeaderValue, peer: IpAddr) -> Self {
        Self {
            metrics,
            started: Instant::now(),
            method,
            path: path.to_owned(),
            request_id,
            peer,
            client: None,
            host: None,
            passage: None,
            status: None,
            is_websocket: false,
            complete: false,
            bytes_sent: 0,
            held: None,
            trouble: None,
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The status that the client gets.
    pub(crate) fn answer(&mut self, status: StatusCode) {
        self.status = Some(status);
        if let Some(passage) = &self.passage
            && status.is_server_error()
        {
            passage.instance().count_error();
        }
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.bytes_sent += bytes;
    }

    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    pub(crate) fn become_websocket(&mut self) {
        self.is_websocket = true;
        self.metrics.websockets_total.increment(1);
        if let Some(passage) = &mut self.passage {
            passage.become_websocket();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        let outcome = match (self.status, self.complete) {
            (None, _) => "abandoned",
            (Some(_), false) => "cut",
            (Some(_), true) if self.is_websocket => "websocket",
            (Some(_), true) => "answered",
        };
        match self.status {
            // A websocket's hours would drown the requests' milliseconds.
            Some(_) if self.is_websocket => {}
            Some(status) => self.metrics.answered(status, duration),
            None => self.metrics.abandoned.increment(1),
        }
        tracing::info!(
            target: "ocore_edge::access",
            request_id = self.request_id(),
            client = %self.client.unwrap_or(self.peer),
            method = %self.method,
            host = self.host.as_deref().unwrap_or_default(),
            path = self.path,
            status = self.status.map_or(0, |status| status.as_u16()),
            outcome,
            bytes = self.bytes_sent,
            milliseconds = duration.as_millis() as u64,
            held_milliseconds = self.held.map(|held| held.as_millis() as u64),
            instance = self.passage.as_ref().map(|passage| tracing::field::display(passage.instance().id())),
            trouble = self.trouble,
            "request"
        );
    }
}
