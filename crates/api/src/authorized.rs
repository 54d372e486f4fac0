//! From a request to its caller: a handler that takes `Authorized<ManageProjects>` cannot run without that right, and its signature says so.
//!
//! A program sends `Authorization: Bearer` with an access token or an API key; a browser has a cookie that log-in set. A cookie goes along
//! with every request that any page makes, so with a cookie a request that changes something must come from a page of oCore itself.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
};
use ocore_control::{
    Error,
    accounts::{self, Identity, Person},
    authorization::{Grant, Right, Scope},
    secrets::same_token,
};

use crate::{AppState, cookies, problem::Problem};

/// Chooses among several organizations.
pub(crate) const ORGANIZATION_HEADER: &str = "x-org-slug";

/// The caller has the right `R` in the organization that the request names (or their only one).
pub(crate) struct Authorized<R: Right>(pub(crate) Grant<R>);

impl<R: Right> FromRequestParts<AppState> for Authorized<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self(scope(parts, state).await?.grant::<R>()?))
    }
}

/// The caller in the organization that the request names, whatever they may do there.
pub(crate) struct InOrganization(pub(crate) Scope);

impl FromRequestParts<AppState> for InOrganization {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self(scope(parts, state).await?))
    }
}

/// Any authenticated caller, for what belongs to nobody's organization.
pub(crate) struct Caller(pub(crate) Identity);

impl FromRequestParts<AppState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self(identity(parts, state).await?))
    }
}

/// A person in their session; an API key is refused.
pub(crate) struct SignedIn(pub(crate) Person);

impl FromRequestParts<AppState> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self(identity(parts, state).await?.person()?))
    }
}

async fn scope(parts: &Parts, state: &AppState) -> Result<Scope, Problem> {
    let identity = identity(parts, state).await?;
    let slug = match parts.headers.get(ORGANIZATION_HEADER) {
        Some(value) => Some(value.to_str().map_err(|_| Error::NotFound { what: "organization" })?),
        None => None,
    };
    Ok(identity.scope(slug)?)
}

async fn identity(parts: &Parts, state: &AppState) -> Result<Identity, Problem> {
    let token = presented_token(&parts.method, &parts.headers, state)?;
    Ok(accounts::identify(&state.control, &token).await?)
}

/// Whether the request has the token of the installation's metrics, which whoever watches over it has.
pub(crate) fn has_metrics_token(headers: &HeaderMap, state: &AppState) -> bool {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.split_once(' '));
    let expected = state.control.settings.metrics_token.expose();
    !expected.is_empty()
        && bearer.is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && same_token(token.trim().as_bytes(), expected))
}

/// A websocket is opened by GET, so a page of somebody else could open one with the cookie: browsers do not ask first.
pub(crate) fn upgrade_from_our_own_page(headers: &HeaderMap, state: &AppState) -> Result<(), Problem> {
    if headers.contains_key(header::UPGRADE) && !headers.contains_key(header::AUTHORIZATION) {
        from_our_own_page(headers, state)?;
    }
    Ok(())
}

fn presented_token(method: &Method, headers: &HeaderMap, state: &AppState) -> Result<String, Problem> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let token = value.to_str().ok().and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, token) = token.ok_or_else(|| {
            Error::unauthenticated("authentication_required", "the header Authorization is not `Bearer` with an access token or an API key")
        })?;
        return Ok(token.trim().to_owned());
    }
    if let Some(token) = cookies::access_token(headers, &state.control.settings) {
        if !method.is_safe() {
            from_our_own_page(headers, state)?;
        }
        return Ok(token);
    }
    Err(Error::unauthenticated("authentication_required", "log in, or send `Authorization: Bearer` with an access token or an API key")
        .into())
}

/// Refuses a request that a browser makes for a page of somebody else. Browsers say where a request comes from in `Sec-Fetch-Site`, older
/// ones in `Origin`; what says neither did not come from a page that may use the cookie.
pub(crate) fn from_our_own_page(headers: &HeaderMap, state: &AppState) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let same_origin = match text("sec-fetch-site") {
        Some(site) => site == "same-origin",
        None => match text("origin") {
            Some(origin) => {
                let host = text("host").unwrap_or_default();
                origin == state.control.settings.public_url
                    || origin.split_once("://").is_some_and(|(_, authority)| !host.is_empty() && authority.eq_ignore_ascii_case(host))
            }
            None => false,
        },
    };
    if same_origin {
        return Ok(());
    }
    Err(Problem::http(
        StatusCode::FORBIDDEN,
        "cross_site_request",
        "with a cookie, only a page of this oCore may do this; a program sends `Authorization: Bearer`",
    ))
}
