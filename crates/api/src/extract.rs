//! Extractors for what comes in: bodies, path parameters, query strings, the client's address. What does not fit is a problem that names
//! the field.
//!
//! A body's type says `#[serde(deny_unknown_fields)]`: a field that oCore does not know is refused (422, with the field's name) and never
//! dropped in silence, since it is a slip of the pen or meant for another version.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, FromRequest, FromRequestParts, OptionalFromRequest, Path, Query, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use ocore_control::{Error, accounts::Client};
use ocore_model::network::client_behind;
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use crate::{AppState, problem::Problem};

const FORWARDED_FOR: &str = "x-forwarded-for";

/// A JSON body. 415 when it is not sent as JSON, 400 when it is not JSON, 413 when it is too large, 422 when it does not fit `T`.
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Self::Rejection> {
        if !is_json(request.headers()) {
            return Err(json_required());
        }
        let bytes = Bytes::from_request(request, state).await.map_err(unreadable)?;
        parse(&bytes).map(Self)
    }
}

/// A JSON body that need not be there: `None` when the request says no content type.
impl<T: DeserializeOwned> OptionalFromRequest<AppState> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Option<Self>, Self::Rejection> {
        if !request.headers().contains_key(header::CONTENT_TYPE) {
            return Ok(None);
        }
        <Self as FromRequest<AppState>>::from_request(request, state).await.map(Some)
    }
}

fn json_required() -> Problem {
    Problem::http(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "json_required",
        "send the body as JSON, with the header content-type: application/json",
    )
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let malformed =
        |error: &dyn std::fmt::Display| Problem::http(StatusCode::BAD_REQUEST, "malformed_json", format!("the body is not JSON: {error}"));
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if !inner.is_data() {
            return malformed(&inner);
        }
        // serde_json adds "at line 1 column 5": the field's name says it better.
        let message = inner.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        let field = field_of(&path, &message);
        Error::invalid(field, message).into()
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

/// The field that a message of serde is about: the path to it, and the name that only the message has.
fn field_of(path: &str, message: &str) -> String {
    let path = if path == "." { "" } else { path };
    let named = ["missing field `", "unknown field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))
        .and_then(|rest| rest.split('`').next())
        .unwrap_or_default();
    match (path, named) {
        ("", "") => "body".to_owned(),
        ("", named) => named.to_owned(),
        (path, "") => path.to_owned(),
        (path, named) if path == named || path.ends_with(&format!(".{named}")) => path.to_owned(),
        (path, named) => format!("{path}.{named}"),
    }
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
            Err(rejection) => Err(Error::invalid("path", rejection.body_text()).into()),
        }
    }
}

/// The query string. What does not fit is 422.
pub(crate) struct FromQuery<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for FromQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &AppState) -> Result<Self, Self::Rejection> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                let (field, message) = text.split_once(": ").unwrap_or(("query", text));
                Err(Error::invalid(field_of(field, message), message).into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape is used")]
    struct Body {
        odoo_version: String,
        #[serde(default)]
        mappings: Vec<Mapping>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape is used")]
    struct Mapping {
        priority: i32,
    }

    fn field(body: &str) -> String {
        match parse::<Body>(body.as_bytes()).unwrap_err() {
            Problem::Control(Error::Invalid { fields }) => fields[0].field.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_input_that_does_not_fit_names_its_field() {
        assert_eq!(field("{}"), "odooVersion");
        assert_eq!(field(r#"{"odooVersion": 19}"#), "odooVersion");
        assert_eq!(field(r#"{"odooVersion": "19.0", "colour": 1}"#), "colour");
        assert_eq!(field(r#"{"odooVersion": "19.0", "mappings": [{"priority": "x"}]}"#), "mappings[0].priority");
        assert_eq!(field(r#"{"odooVersion": "19.0", "mappings": [{"priority": 1, "more": 2}]}"#), "mappings[0].more");
        assert_eq!(field("[]"), "body");
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for body in ["", "{", "{} x"] {
            match parse::<serde_json::Value>(body.as_bytes()).unwrap_err() {
                Problem::Http { code, .. } => assert_eq!(code, "malformed_json", "{body}"),
                other @ Problem::Control(_) => panic!("{other:?}"),
            }
        }
    }
}
