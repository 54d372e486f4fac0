//! `ETag`, `If-None-Match`, `If-Match`: whoever has an answer asks whether it is still the one, and whoever changes a thing says which state of it they have
//! seen. An `ETag` is the digest of the answer that GET gives at the same path.
//!
//! Between looking and changing nobody else who sends `If-Match` for that path comes in: of two editors who began with the same state, one is told.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use ocore_control::Error;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tower::ServiceExt;

use crate::{parameters, problem::Problem};

/// Paths share these locks by their hash.
const LOCKS: usize = 64;
/// What is larger is not ours to hold in memory.
const LARGEST: u64 = 64 << 20;

/// The API without conditions, to look at what a path shows now.
#[derive(Clone)]
pub(crate) struct Conditions {
    api: Router,
    locks: Arc<[Mutex<()>]>,
}

impl Conditions {
    pub(crate) fn new(api: Router) -> Self {
        Self { api, locks: (0..LOCKS).map(|_| Mutex::default()).collect() }
    }

    fn lock(&self, path: &str) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        #[expect(clippy::cast_possible_truncation, reason = "the rest of a division by a small number")]
        &self.locks[(hasher.finish() % LOCKS as u64) as usize]
    }

    /// What GET answers to a request.
    async fn look(&self, request: Request) -> Response {
        // Its error is impossible.
        self.api.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}

/// GET at the path of a request, by the same caller.
fn looking(request: &Request) -> Request {
    let mut uri = request.uri().path().to_owned();
    if let Some(organization) = parameters::organization(request.uri()) {
        let query = url::form_urlencoded::Serializer::new(String::new()).append_pair(parameters::ORGANIZATION, &organization).finish();
        uri = format!("{uri}?{query}");
    }
    let mut look = Request::builder().uri(uri).body(Body::empty()).unwrap_or_default();
    for (name, value) in request.headers() {
        let about_the_body = [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name);
        if !about_the_body && *name != header::IF_MATCH && *name != header::IF_NONE_MATCH {
            look.headers_mut().append(name, value.clone());
        }
    }
    if let Some(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
        look.extensions_mut().insert(*peer);
    }
    look
}

pub(crate) async fn conditional(State(conditions): State<Conditions>, request: Request, next: Next) -> Response {
    match *request.method() {
        Method::GET | Method::HEAD => {
            let wanted = request.headers().get_all(header::IF_NONE_MATCH).iter().cloned().collect::<Vec<_>>();
            tagged(next.run(request).await, &wanted).await
        }
        Method::PUT | Method::PATCH | Method::DELETE if request.headers().contains_key(header::IF_MATCH) => {
            let path = request.uri().path().to_owned();
            let _alone = conditions.lock(&path).lock().await;
            let look = looking(&request);
            let now = tagged(conditions.look(look).await, &[]).await;
            match unchanged(request.headers(), &now) {
                Ok(()) => next.run(request).await,
                Err(Refusal::Changed) => Problem::http(
                    StatusCode::PRECONDITION_FAILED,
                    "changed_meanwhile",
                    "it is not what If-Match says any more; GET it again, and make the change on that",
                )
                .into_response(),
                Err(Refusal::NothingToCompare) => {
                    Problem::from(Error::invalid("If-Match", "this path has no ETag to compare with; leave the header out")).into_response()
                }
                Err(Refusal::NotSeen) => now,
            }
        }
        _ => next.run(request).await,
    }
}

enum Refusal {
    Changed,
    NothingToCompare,
    /// The caller may not look, or there is nothing: the answer says so.
    NotSeen,
}

fn unchanged(headers: &HeaderMap, now: &Response) -> Result<(), Refusal> {
    if now.status() == StatusCode::METHOD_NOT_ALLOWED {
        return Err(Refusal::NothingToCompare);
    }
    if !now.status().is_success() {
        return Err(Refusal::NotSeen);
    }
    let tag = now.headers().get(header::ETAG).ok_or(Refusal::NothingToCompare)?;
    let wanted = headers.get_all(header::IF_MATCH).iter().cloned().collect::<Vec<_>>();
    if matches(&wanted, tag) { Ok(()) } else { Err(Refusal::Changed) }
}

/// A JSON answer with its tag; 304 without a body for whoever has it.
async fn tagged(response: Response, wanted: &[HeaderValue]) -> Response {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let size = response.body().size_hint().exact();
    if response.status() != StatusCode::OK
        || !is_json
        || response.headers().contains_key(header::ETAG)
        || size.is_none_or(|size| size > LARGEST)
    {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, LARGEST as usize).await else {
        return Problem::from(Error::broken("an answer that ended before it was whole")).into_response();
    };
    let tag = tag(&bytes);
    let known = matches(wanted, &tag);
    parts.headers.insert(header::ETAG, tag);
    if known {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_TYPE);
        parts.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(bytes))
}

fn tag(bytes: &Bytes) -> HeaderValue {
    let digest = Sha256::digest(bytes);
    let (first, _) = digest.split_at(16);
    let number = first.iter().fold(0_u128, |number, byte| (number << 8) | u128::from(*byte));
    HeaderValue::from_str(&format!("\"{number:032x}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Whether a list of tags has this one, or is `*`. A proxy that packs answers makes ours weak: that says nothing against it.
fn matches(wanted: &[HeaderValue], tag: &HeaderValue) -> bool {
    let tag = tag.to_str().unwrap_or_default();
    wanted
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|wanted| wanted == "*" || wanted.strip_prefix("W/").unwrap_or(wanted) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list() {
        let tag = tag(&Bytes::from_static(b"{}"));
        let text = tag.to_str().unwrap().to_owned();
        let matches_text = |wanted: &str| matches(&[wanted.parse().unwrap()], &tag);
        for wanted in [text.clone(), format!("W/{text}"), format!("\"a\", {text}"), "*".to_owned()] {
            assert!(matches_text(&wanted), "{wanted}");
        }
        for wanted in ["nope", "\"a\"", text.trim_matches('"'), ""] {
            assert!(!matches_text(wanted), "{wanted}");
        }
    }
}
