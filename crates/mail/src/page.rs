//! The page: one file with its style and script in it, so that it works below any path.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use crate::rest::Used;

const PAGE: &str = include_str!("page.html");

pub(crate) async fn show(Used(mailbox): Used) -> Response {
    drop(mailbox);
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; frame-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    );
    let mut response = ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE.replace("{{nonce}}", &nonce)).into_response();
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
