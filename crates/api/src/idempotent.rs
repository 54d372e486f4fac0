//! `Idempotency-Key`: a call that starts something is carried out once, however often it is sent with the same key. The header is taken where the document
//! says so.

use std::{collections::HashSet, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{MatchedPath, OriginalUri, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use ocore_control::{
    Control, Error,
    idempotency::{self, Begun, Caller, Claim, StoredAnswer},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tracing::Instrument;

use crate::{
    AppState,
    authorized::{identity, scope_of},
    mail,
    problem::{self, Problem},
    request_id,
};

pub(crate) const HEADER: &str = "Idempotency-Key";
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// What a kept answer says beside its body; the rest is made anew for each.
const KEPT_HEADERS: &[HeaderName] = &[header::CONTENT_TYPE, header::LOCATION];
const LARGEST_ANSWER: usize = 1 << 20;

#[derive(Clone)]
pub(crate) struct Once {
    state: AppState,
    /// Path templates whose POST takes the header.
    paths: Arc<HashSet<String>>,
}

impl Once {
    pub(crate) fn new(state: AppState, document: &Value) -> Self {
        let base = document["servers"][0]["url"].as_str().unwrap_or_default();
        let takes = |operation: &Value| {
            let reference = "#/components/parameters/IdempotencyKey";
            operation["parameters"].as_array().into_iter().flatten().any(|parameter| parameter["$ref"] == reference)
        };
        let paths = document["paths"].as_object().into_iter().flatten();
        let paths = paths.filter(|(_, item)| takes(&item["post"])).map(|(path, _)| format!("{base}{path}")).collect();
        Self { state, paths: Arc::new(paths) }
    }
}

pub(crate) async fn once(State(once): State<Once>, request: Request, next: Next) -> Response {
    let template = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if request.method() != Method::POST || !request.headers().contains_key(HEADER) || !once.paths.contains(template) {
        return next.run(request).await;
    }
    carry_out(&once.state, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn carry_out(state: &AppState, request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let key = parts.headers.get(HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let identity = identity(&parts, state).await?;
    // A call about no organization, or about one that is not the caller's: its handler says what is wrong.
    let scope = scope_of(&identity, &parts, state).await.ok();
    let too_large =
        |_| Problem::http(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than the API takes, or broke off");
    let body = to_bytes(body, mail::INJECT_LIMIT).await.map_err(too_large)?;
    let caller = Caller::new(&identity, scope.as_ref());
    let claim = match idempotency::begin(&state.control, &caller, &key, &digest(&parts, &body)).await? {
        Begun::New(claim) => claim,
        Begun::Replay(answer) => return Ok(replay(answer)),
    };
    // Whether the caller waits for the answer or not, it is kept.
    let control = state.control.clone();
    let id = request_id::current_request_id().unwrap_or_default();
    let call = async move {
        let request = Request::from_parts(parts, Body::from(body));
        let response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(problem::from_panic);
        settle(&control, claim, response).await
    };
    let call = tokio::spawn(request_id::scope(id, call.in_current_span()));
    Ok(call.await.map_err(|error| Error::internal("a call with an idempotency key", error))?)
}

/// Keeps an answer, or gives the key back when the call was refused and did nothing.
async fn settle(control: &Control, claim: Claim, response: Response) -> Response {
    let status = response.status();
    if status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE {
        if let Err(error) = idempotency::release(control, claim).await {
            tracing::warn!(%error, "an idempotency key is not given back");
        }
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_ANSWER).await else {
        return Problem::from(Error::broken("an answer that is too large to be kept")).into_response();
    };
    let headers = KEPT_HEADERS.iter().filter_map(|name| Some((name.to_string(), parts.headers.get(name)?.to_str().ok()?.to_owned())));
    let answer = StoredAnswer { status: status.as_u16(), headers: headers.collect(), body: body.to_vec() };
    if let Err(error) = idempotency::answer(control, claim, &answer).await {
        tracing::warn!(%error, "the answer to a call with an idempotency key is not kept");
    }
    Response::from_parts(parts, Body::from(body))
}

fn replay(answer: StoredAnswer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// What the call is: the same key for another one is a mistake.
fn digest(parts: &Parts, body: &Bytes) -> Vec<u8> {
    let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri);
    let mut digest = Sha256::new();
    for part in [parts.method.as_str(), uri.path(), uri.query().unwrap_or_default()] {
        digest.update(part);
        digest.update([0]);
    }
    digest.update(body);
    digest.finalize().to_vec()
}
