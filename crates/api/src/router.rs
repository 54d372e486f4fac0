//! The table of contents of the API. Every route is registered with its OpenAPI description in one call, so that the two cannot drift apart.

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::AppState;

#[derive(OpenApi)]
#[openapi(info(title = "oCore", description = "A self-hosted control plane for Odoo."), servers((url = "/api")))]
struct Document;

/// Everything below `/api`, with its document.
fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
}

/// The whole HTTP service.
pub fn router(state: AppState) -> Router {
    let (api, _document) = api().split_for_parts();
    Router::new().nest("/api", api).with_state(state)
}

/// The OpenAPI 3.1 document, for `ocore openapi` and the contract test.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().into_openapi()
}
