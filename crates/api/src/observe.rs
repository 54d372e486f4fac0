//! What is known of every request: its id, a line in the log, its place in the metrics.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::HeaderValue,
    middleware::Next,
    response::Response,
};
use tracing::Instrument;

use crate::{metrics, request_id};

/// Wraps the whole service. The path in the log is the route's template: ids are in the fields of what the use cases log.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let id = request_id::choose(request.headers());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", %method, %route, request_id = %id);
    let started = Instant::now();
    let answer = request_id::scope(id.clone(), async move {
        let response = next.run(request).await;
        let elapsed = started.elapsed();
        let status = response.status();
        if route == "/healthz" || route == "/metrics" || route == "/readyz" {
            tracing::trace!(status = status.as_u16(), milliseconds = elapsed.as_millis(), "answered");
        } else {
            tracing::debug!(status = status.as_u16(), milliseconds = elapsed.as_millis(), "answered");
        }
        metrics::request(&method, &route, status, elapsed);
        response
    });
    let mut response = answer.instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(request_id::HEADER, value);
    }
    response
}
