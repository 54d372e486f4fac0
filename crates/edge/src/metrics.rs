//! The edge's own metrics, in Prometheus' text form. No label names an instance or a host: their number has no bound. Per-instance counts
//! are in the status.

use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::traffic::Traffic;

/// Seconds.
const DURATION_BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0];

pub(crate) struct Metrics {
    handle: PrometheusHandle,
    requests: [Counter; 5],
    duration: Histogram,
    connections: Gauge,
    requests_in_flight: Gauge,
    websockets: Gauge,
    routes: Gauge,
    generation: Gauge,
    held: Gauge,
    pub(crate) hold: HoldMetrics,
    pub(crate) websockets_total: Counter,
    pub(crate) abandoned: Counter,
    pub(crate) retries: Counter,
    pub(crate) connect_failures: Counter,
    pub(crate) broken_answers: Counter,
    pub(crate) answer_timeouts: Counter,
    pub(crate) snapshots_refused: Counter,
    pub(crate) crowded_out: Counter,
    pub(crate) wakes_refused: Counter,
}

/// What became of the requests and handshakes that had to wait.
pub(crate) struct HoldMetrics {
    pub(crate) held_total: Counter,
    pub(crate) seconds: Histogram,
    pub(crate) released: Counter,
    pub(crate) overflowed: Counter,
    pub(crate) timed_out: Counter,
    pub(crate) dismissed: Counter,
    pub(crate) abandoned: Counter,
}

impl HoldMetrics {
    fn new() -> Self {
        describe_gauge!("ocore_edge_held", "Requests and websocket handshakes that wait for their instance to serve again");
        describe_counter!("ocore_edge_held_total", "Requests and websocket handshakes that had to wait");
        describe_histogram!("ocore_edge_held_seconds", "How long they waited");
        describe_counter!(
            "ocore_edge_hold_ends_total",
            "Ends of waiting: released, timed out, dismissed with a page, abandoned by the client"
        );
        describe_counter!("ocore_edge_hold_overflows_total", "Requests that found no place to wait");
        let end = |outcome| counter!("ocore_edge_hold_ends_total", "outcome" => outcome);
        Self {
            held_total: counter!("ocore_edge_held_total"),
            seconds: histogram!("ocore_edge_held_seconds"),
            released: end("released"),
            overflowed: counter!("ocore_edge_hold_overflows_total"),
            timed_out: end("timed_out"),
            dismissed: end("dismissed"),
            abandoned: end("abandoned"),
        }
    }
}

impl Metrics {
    /// Records for this edge only; nothing global is installed, so that several edges fit in one process.
    pub(crate) fn new() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new().set_buckets(&DURATION_BUCKETS)?.build_recorder();
        let handle = recorder.handle();
        Ok(metrics::with_local_recorder(&recorder, || {
            describe_counter!("ocore_edge_requests_total", "Requests that were answered, by the class of the status");
            describe_histogram!("ocore_edge_request_seconds", "From the request's headers to the last byte of its answer");
            describe_gauge!("ocore_edge_connections", "Open client connections");
            describe_gauge!("ocore_edge_requests_in_flight", "Requests whose answer has not been passed on completely");
            describe_gauge!("ocore_edge_websockets", "Open websockets");
            describe_gauge!("ocore_edge_routes", "Routes in force");
            describe_gauge!("ocore_edge_routes_generation", "Generation of the routes in force");
            describe_counter!("ocore_edge_websockets_total", "Websockets that were opened");
            describe_counter!("ocore_edge_requests_abandoned_total", "Requests whose client went away before the answer");
            describe_counter!("ocore_edge_retries_total", "Requests sent again because a kept connection turned out to be closed");
            describe_counter!("ocore_edge_upstream_failures_total", "Requests that Odoo did not answer, by what went wrong");
            describe_counter!("ocore_edge_connections_refused_total", "Connections beyond what one client address may have");
            describe_counter!("ocore_edge_wakes_refused_total", "Requests for a sleeper that was not woken, since too many were");
            describe_counter!("ocore_edge_snapshots_refused_total", "Route snapshots that were refused");
            Self {
                handle,
                requests: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| counter!("ocore_edge_requests_total", "status" => class)),
                duration: histogram!("ocore_edge_request_seconds"),
                connections: gauge!("ocore_edge_connections"),
                requests_in_flight: gauge!("ocore_edge_requests_in_flight"),
                websockets: gauge!("ocore_edge_websockets"),
                routes: gauge!("ocore_edge_routes"),
                generation: gauge!("ocore_edge_routes_generation"),
                held: gauge!("ocore_edge_held"),
                hold: HoldMetrics::new(),
                websockets_total: counter!("ocore_edge_websockets_total"),
                abandoned: counter!("ocore_edge_requests_abandoned_total"),
                retries: counter!("ocore_edge_retries_total"),
                connect_failures: counter!("ocore_edge_upstream_failures_total", "kind" => "connect"),
                broken_answers: counter!("ocore_edge_upstream_failures_total", "kind" => "broken"),
                answer_timeouts: counter!("ocore_edge_upstream_failures_total", "kind" => "timeout"),
                snapshots_refused: counter!("ocore_edge_snapshots_refused_total"),
                crowded_out: counter!("ocore_edge_connections_refused_total"),
                wakes_refused: counter!("ocore_edge_wakes_refused_total"),
            }
        }))
    }

    pub(crate) fn answered(&self, status: StatusCode, duration: Duration) {
        self.refused(status);
        self.duration.record(duration.as_secs_f64());
    }

    /// An answer to what could not be read: it took no time that would tell anything.
    pub(crate) fn refused(&self, status: StatusCode) {
        if let Some(counter) = self.requests.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            counter.increment(1);
        }
    }

    pub(crate) fn render(&self, traffic: &Traffic, routes: usize, generation: u64) -> String {
        let (requests, websockets) = traffic.open();
        self.connections.set(traffic.connections() as f64);
        self.requests_in_flight.set(requests as f64);
        self.websockets.set(websockets as f64);
        self.routes.set(routes as f64);
        self.generation.set(generation as f64);
        self.held.set(traffic.held() as f64);
        self.handle.render()
    }

    /// Folds the recorded durations; without it they would pile up until somebody looks.
    pub(crate) fn fold(&self) {
        self.handle.run_upkeep();
    }
}
