//! From a request to its caller: a handler that takes `Authorized<ManageProjects>` cannot run without that right, and its signature says so.
//!
//! A program sends `Authorization: Bearer` with an access token or an API key; a browser has a cookie that log-in set. A cookie goes along
//! with every request that any page makes, so with a cookie a request that changes something must come from a page of oCore itself.

use axum::{
    extract::{FromRequestParts, OriginalUri},
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
};
use ocore_control::{
    Error,
    accounts::{self, Identity, Person, Thing},
    authorization::{Grant, Right, Scope},
    secrets::same_token,
};

use uuid::Uuid;

use crate::{AppState, cookies, parameters, problem::Problem};

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

/// The caller in the organization that the request is about: the one that it names, else the one that has the thing of the path, else their only one.
pub(crate) async fn scope(parts: &Parts, state: &AppState) -> Result<Scope, Problem> {
    let identity = identity(parts, state).await?;
    scope_of(&identity, parts, state).await
}

pub(crate) async fn scope_of(identity: &Identity, parts: &Parts, state: &AppState) -> Result<Scope, Problem> {
    let not_there = || Error::NotFound { what: "organization" };
    let header = parts.headers.get(ORGANIZATION_HEADER).map(|value| value.to_str().map_err(|_| not_there())).transpose()?;
    let query = parameters::organization(&parts.uri);
    if let (Some(header), Some(query)) = (header, &query)
        && header != query
    {
        return Err(
            Error::invalid(parameters::ORGANIZATION, "the header X-Org-Slug names another organization; send one of the two").into()
        );
    }
    let named = header.or(query.as_deref());
    if let (None, true, Some((thing, id))) = (named, identity.belongs_to_several(), thing_of(parts)) {
        return Ok(accounts::scope_of(&state.control, identity, thing, id).await?);
    }
    Ok(identity.scope(named)?)
}

/// The thing whose id stands in the path, behind the name of its kind.
fn thing_of(parts: &Parts) -> Option<(Thing, Uuid)> {
    let path = parts.extensions.get::<OriginalUri>().map_or(parts.uri.path(), |uri| uri.path());
    let mut segments = path.strip_prefix("/api/").unwrap_or(path).split('/').filter(|segment| !segment.is_empty());
    let thing = match segments.next()? {
        "api-keys" => Thing::ApiKey,
        "deployments" => Thing::Deployment,
        "environments" => Thing::Environment,
        "exports" => Thing::Export,
        "imports" => Thing::Import,
        "instances" => Thing::Instance,
        "invitations" => Thing::Invitation,
        "members" => Thing::Member,
        "projects" => Thing::Project,
        "roles" => Thing::Role,
        "snapshots" => Thing::Snapshot,
        _ => return None,
    };
    Some((thing, segments.next()?.parse().ok()?))
}

pub(crate) async fn identity(parts: &Parts, state: &AppState) -> Result<Identity, Problem> {
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
