//! HTTP in and out: the router, the extractors that turn a request into a grant, thin handlers, wire types, problem details, the OpenAPI
//! document, server-sent events.
//!
//! Owns no rule of the product: a handler parses, calls one use case of `ocore-control`, and writes the answer.

mod accounts;
mod api_keys;
mod audit;
mod authorized;
mod branches;
mod clones;
mod coalesce;
mod conditional;
mod cookies;
mod deployments;
mod docs;
mod document;
mod edge_metrics;
mod egress;
mod environments;
mod events;
mod exports;
mod extract;
mod git;
mod headers;
mod health;
mod idempotent;
mod imports;
mod instances;
mod json;
mod large;
mod mail;
mod members;
mod metrics;
mod neutralizations;
mod observe;
mod organizations;
mod parameters;
mod pipeline;
mod plans;
mod problem;
mod projects;
mod quarantines;
mod reports;
mod repositories;
mod request_id;
mod roles;
mod rollbacks;
mod router;
mod servers;
mod service;
mod sleep;
mod snapshots;
mod space;
mod wire;

pub use problem::{Problem, ProblemBody};
pub use router::{openapi, router};
pub use service::{Patience, serve};

/// What every handler gets.
#[derive(Clone)]
pub struct AppState {
    pub control: ocore_control::Control,
}
