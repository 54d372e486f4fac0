//! Extractors for what comes in: bodies, path parameters, query strings, the client's address. What does not fit is a problem that names
//! the field.
//!
//! A body's type says `#[serde(deny_unknown_fields)]`: a field that oCore does not know is refused (422, with the field's name) and never
//! dropped in silence, since it is a slip of the pen or meant for another version.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::{
    body::Bytes,
    extract::{
        ConnectInfo, FromRequest, FromRequestParts, OptionalFromRequest, Path, Query, RawPathParams, Request, rejection::BytesRejection,
    },
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use ocore_control::{Error, accounts::Client};
use ocore_model::network::client_behind;
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{AppState, json, parameters, problem::Problem};

/// From the end of the headers to the end of a JSON body.
const BODY_WITHIN: Duration = Duration::from_secs(60);
const FORWARDED_FOR: &str = "x-forwarded-for";

/// A JSON body. 415 when it is not sent as JSON, 400 when it is not JSON, 413 when it is too large, 422 when it does not fit `T`.
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Self::Rejection> {
        if !is_json(request.headers()) {
            return Err(json_required());
        }
        json::parse(&whole(request, state).await?).map(Self)
    }
}

/// A JSON body that need not be there: `None` when there is none, or `null`.
impl<T: DeserializeOwned> OptionalFromRequest<AppState> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Option<Self>, Self::Rejection> {
        let (named, json) = (request.headers().contains_key(header::CONTENT_TYPE), is_json(request.headers()));
        let bytes = whole(request, state).await?;
        if bytes.is_empty() && (json || !named) {
            return Ok(None);
        }
        if !json {
            return Err(json_required());
        }
        json::parse::<Option<T>>(&bytes).map(|value| value.map(Self))
    }
}

/// A body to its end, which comes in time or not at all.
async fn whole(request: Request, state: &AppState) -> Result<Bytes, Problem> {
    let late = |_| Problem::http(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not come in time");
    tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, state)).await.map_err(late)?.map_err(unreadable)
}

fn json_required() -> Problem {
    Problem::http(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "json_required",
        "send the body as JSON, with the header content-type: application/json",
    )
}

fn unreadable(rejection: BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::http(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than the API takes");
    }
    Problem::http(StatusCode::BAD_REQUEST, "unreadable_body", "the body ended before it was whole")
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let media_type = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media_type == "application/json" || (media_type.starts_with("application/") && media_type.ends_with("+json"))
    })
}

/// Path parameters: one value, or a tuple or struct of several. What does not fit, such as an id that is not a UUID, is 422.
pub(crate) struct FromPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<AppState> for FromPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Self::Rejection> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => {
                let Ok(parameters) = RawPathParams::from_request_parts(parts, state).await else {
                    return Err(Error::invalid("path", "it is not UTF-8 behind its percent signs").into());
                };
                let unfit = parameters.iter().find(|(name, value)| is_id(name) && value.parse::<Uuid>().is_err());
                Err(match unfit {
                    Some((name, _)) => Error::invalid(name, "an id is a UUID, such as 0198c5a2-7d3e-7c11-9f6b-3a5f0c2d1e4b"),
                    None => Error::invalid("path", rejection.body_text()),
                }
                .into())
            }
        }
    }
}

fn is_id(parameter: &str) -> bool {
    parameter == "id" || parameter.ends_with("Id")
}

/// The query string. What does not fit is 422. [`crate::parameters`] has refused the parameters that the operation does not have, and takes care of those
/// that all have.
pub(crate) struct FromQuery<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for FromQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &AppState) -> Result<Self, Self::Rejection> {
        match Query::<T>::try_from_uri(&parameters::own(&parts.uri)) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                let (field, message) = text.split_once(": ").unwrap_or(("", text));
                Err(Error::invalid(json::field_of(field, message), json::plainly(message)).into())
            }
        }
    }
}

/// The name of what is to be removed, typed by the person who wants that.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Confirmation {
    /// Its slug (of an environment: its instance's); what has a production in it goes only with it
    pub(crate) confirm: Option<String>,
}

/// From where a request comes: the client's address, behind whatever proxies are trusted, and what it calls itself.
pub(crate) struct Peer(pub(crate) Client);

impl FromRequestParts<AppState> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Self::Rejection> {
        // Without the peer's address all clients are one, and share what one may.
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |info| info.ip());
        // A line that is no text is kept as one that cannot be read: without it, what stands before it would be believed in its place.
        let forwarded_for = parts.headers.get_all(FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or_default());
        let address = Some(client_behind(peer, forwarded_for, &state.control.settings.trusted_proxies));
        let user_agent = parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        Ok(Self(Client { address, user_agent }))
    }
}
