//! Prometheus metrics: counters that the program keeps itself, and gauges read from the store and the host when somebody scrapes.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::State,
    http::{HeaderMap, Method, StatusCode, header},
    response::IntoResponse,
};
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use ocore_control::{Error, health};
use ocore_model::{deployment::DeploymentStatus, instance::InstanceStatus};

use crate::{AppState, authorized::has_metrics_token, edge_metrics, problem::Problem};

const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Samples are folded into their buckets after so many requests, so that a service nobody scrapes does not keep them all.
const UPKEEP_EVERY: u64 = 1024;

/// The process has one recorder: the `metrics` facade is global. `None` when the program installed another one before.
fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).ok()?;
            let handle = builder.install_recorder().ok()?;
            metrics::describe_counter!("ocore_http_requests_total", "Requests by method, route and status.");
            metrics::describe_histogram!("ocore_http_request_seconds", "Time until the head of the answer, by method and route.");
            metrics::describe_gauge!("ocore_deployments", "Deployments in the store by status.");
            metrics::describe_gauge!("ocore_instances", "Instances in the store by status.");
            metrics::describe_gauge!("ocore_sleep_freed_bytes", "Memory that the sleep of instances frees.");
            metrics::describe_gauge!("ocore_pool_bytes", "Size of the storage pool.");
            metrics::describe_gauge!("ocore_pool_available_bytes", "What is free in the storage pool.");
            Some(handle)
        })
        .as_ref()
}

/// Makes the recorder, so that nothing is counted into the void before the first request.
pub(crate) fn install() {
    recorder();
}

pub(crate) fn request(method: &Method, route: &str, status: StatusCode, elapsed: Duration) {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    // Any method name can be sent; only the known ones become labels.
    let method = match method.as_str() {
        known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let labels = [("method", method.clone()), ("route", route.to_owned()), ("status", status.as_u16().to_string())];
    counter!("ocore_http_requests_total", &labels).increment(1);
    histogram!("ocore_http_request_seconds", "method" => method, "route" => route.to_owned()).record(elapsed);
    if SEEN.fetch_add(1, Ordering::Relaxed) % UPKEEP_EVERY == UPKEEP_EVERY - 1
        && let Some(handle) = recorder()
    {
        handle.run_upkeep();
    }
}

/// `GET /metrics`. Bounded labels only: no tenant's names, and of ids only instances', a bounded number. What cannot be read at the moment is left out.
/// Takes the metrics token, from this machine too: the Odoos of all tenants run on it.
pub(crate) async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> Result<impl IntoResponse, Problem> {
    if !has_metrics_token(&headers, &state) {
        return Err(Error::unauthenticated(
            "metrics_token_required",
            "send `Authorization: Bearer` with the setting metrics.token, or with what the file metrics-token in oCore's home holds",
        )
        .into());
    }
    let handle = recorder().ok_or_else(|| Problem::from(Error::broken("the process has another metrics recorder")))?;
    let numbers = health::numbers(&state.control).await;
    // All words each time: a status that nothing has any more is 0, not what it was.
    if let Some(counts) = numbers.deployments {
        for status in DeploymentStatus::ALL {
            gauge!("ocore_deployments", "status" => status.as_str()).set(count_of(&counts, status.as_str()));
        }
    }
    if let Some(counts) = numbers.instances {
        for status in InstanceStatus::ALL {
            gauge!("ocore_instances", "status" => status.as_str()).set(count_of(&counts, status.as_str()));
        }
    }
    if let Some(freed) = numbers.freed_bytes {
        gauge!("ocore_sleep_freed_bytes").set(freed as f64);
    }
    if let Some(pool) = numbers.pool {
        gauge!("ocore_pool_bytes").set(pool.total_bytes as f64);
        gauge!("ocore_pool_available_bytes").set(pool.available_bytes as f64);
    }
    handle.run_upkeep();
    let mut text = handle.render();
    if let Some(edge) = numbers.edge {
        text.push_str(&edge_metrics::render(edge));
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

fn count_of(counts: &[(String, i64)], status: &str) -> f64 {
    counts.iter().find(|(word, _)| word == status).map_or(0.0, |(_, count)| *count as f64)
}
