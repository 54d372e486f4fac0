//! One request from its headers to the last byte of its answer, and the one line that the log gets about it.
//!
//! The line has the path without its query: links that reset a password or share a document carry their secret there.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, StatusCode};

use crate::{metrics::Metrics, reconnects::ClientKey, slots::Slot, traffic::Passage};

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
    /// The slot that answers.
    pub(crate) slot: Option<Arc<Slot>>,
    /// Who opens a websocket.
    pub(crate) websocket_client: Option<ClientKey>,
    /// It waits for news as long as there are none: how long it takes says nothing about how quick anybody is.
    pub(crate) is_long_poll: bool,
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
            slot: None,
            websocket_client: None,
            is_long_poll: false,
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

    /// Odoo's answer has begun, this long after the whole request was passed on.
    pub(crate) fn answer(&mut self, status: StatusCode, after: Duration) {
        let latency = self.tells_latency().then_some(after);
        if let Some(slot) = &self.slot {
            slot.answered(status, latency);
        }
        self.count(status, latency.map(|latency| latency + self.held.unwrap_or_default()));
    }

    /// The edge answers itself.
    pub(crate) fn answer_without_odoo(&mut self, status: StatusCode) {
        if status.is_server_error()
            && let Some(passage) = &self.passage
        {
            passage.instance().count_edge_error();
            if self.held.is_some() {
                passage.instance().held.failed();
            }
        }
        self.count(status, self.tells_latency().then(|| self.started.elapsed()));
    }

    fn tells_latency(&self) -> bool {
        !self.is_long_poll && self.websocket_client.is_none()
    }

    fn count(&mut self, status: StatusCode, latency: Option<Duration>) {
        self.status = Some(status);
        let Some(passage) = &self.passage else { return };
        passage.instance().count_answer(status);
        if let Some(latency) = latency {
            passage.instance().latency.record(latency);
        }
    }

    /// The slot ended its answer before its end.
    pub(crate) fn broke_off(&mut self, trouble: String) {
        self.trouble = Some(trouble);
        if let Some(slot) = &self.slot {
            slot.broke_off();
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
            if let Some(client) = self.websocket_client {
                passage.instance().reconnects.opened(client);
            }
        }
    }

    /// The websocket ended, and not because its client wanted it. Where the route does not lead to its slot any more, a switch did it.
    pub(crate) fn was_closed(&self) {
        if let (Some(passage), Some(client), Some(slot)) = (&self.passage, self.websocket_client, &self.slot)
            && slot.left.is_cancelled()
        {
            passage.instance().reconnects.closed(client);
        }
    }
}

/// What can be made out of a head that could not be read.
pub(crate) struct Unread<'a> {
    pub(crate) method: &'a str,
    pub(crate) host: Option<&'a str>,
    /// Without its query.
    pub(crate) path: Option<&'a str>,
    pub(crate) trouble: &'a str,
}

/// A request that never became an [`Exchange`], because its head could not be read: the same line, and counted among the answers.
pub(crate) fn refused(metrics: &Metrics, client: IpAddr, request_id: &str, status: StatusCode, head: &Unread<'_>) {
    metrics.refused(status);
    tracing::info!(
        target: "ocore_edge::access",
        request_id,
        %client,
        method = head.method,
        host = head.host.unwrap_or_default(),
        path = head.path.unwrap_or_default(),
        status = status.as_u16(),
        outcome = "refused",
        trouble = head.trouble,
        "request"
    );
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
            None => {
                self.metrics.abandoned.increment(1);
                if let Some(passage) = &self.passage {
                    passage.instance().count_abandoned();
                }
            }
        }
        if let (Some(held), Some(passage)) = (self.held, &self.passage) {
            passage.instance().held.waits.record(held);
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
