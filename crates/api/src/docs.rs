//! The OpenAPI document and a page to browse it. All assets are in the binary: nothing is fetched from elsewhere.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use bytes::Bytes;
use ocore_control::Error;
use utoipa_swagger_ui::Config;

use crate::{AppState, problem::Problem};

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
    // Swagger UI would send the document's address to a validator on the Internet.
    Arc::new(Config::from("../openapi.json").validator_url("none").try_it_out_enabled(true).display_request_duration(true).filter(true))
});

pub(crate) fn routes(document: &serde_json::Value) -> Router<AppState> {
    let json = Bytes::from(serde_json::to_vec(document).unwrap_or_default());
    Router::new()
        .route("/openapi.json", get(async move || ([(header::CONTENT_TYPE, "application/json")], json.clone())))
        .route("/docs", get(async || Redirect::permanent("docs/")))
        .route("/docs/", get(async || page("")))
        .route("/docs/{*path}", get(async |Path(path): Path<String>| page(&path)))
}

fn page(path: &str) -> Result<Response, Problem> {
    match utoipa_swagger_ui::serve(path, CONFIG.clone()) {
        Ok(Some(file)) => {
            let security = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";
            Ok((
                StatusCode::OK,
                [
                    (header::CONTENT_TYPE, file.content_type.as_str()),
                    (header::CONTENT_SECURITY_POLICY, security),
                    // The same for everybody, and as old as the program.
                    (header::CACHE_CONTROL, "max-age=3600"),
                ],
                file.bytes.into_owned(),
            )
                .into_response())
        }
        Ok(None) => Err(Error::NotFound { what: "page" }.into()),
        Err(error) => Err(Error::broken(format!("the documentation page: {error}")).into()),
    }
}
