//! The table of contents of the API. Every route is registered with its OpenAPI description in one call, so that the two cannot drift apart.

use axum::{Router, extract::DefaultBodyLimit, middleware, routing::get};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

use crate::{AppState, docs, document, git, health, metrics, observe, problem, repositories};

/// The API takes no larger body. (A push is not a call of the API.)
const BODY_LIMIT: usize = 1 << 20;

/// Everything below `/api`, with its document. One line a path.
fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(document::skeleton()).merge(repositories::routes())
}

/// The whole HTTP service. Serve it with the peers' addresses (`into_make_service_with_connect_info::<SocketAddr>()`): log-ins are counted by
/// them.
pub fn router(state: AppState) -> Router {
    metrics::install();
    let (api, document) = api().split_for_parts();
    let document = document::complete(document);
    let api = api.merge(docs::routes(&document)).layer(DefaultBodyLimit::max(BODY_LIMIT));
    Router::new()
        .nest("/api", api)
        .nest("/git", git::routes())
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(CatchPanicLayer::custom(problem::from_panic))
        .layer(middleware::from_fn(observe::observe))
        .with_state(state)
}

/// The OpenAPI 3.1 document, for `ocore openapi` and the contract test.
pub fn openapi() -> utoipa::openapi::OpenApi {
    document::complete(api().into_openapi())
}
