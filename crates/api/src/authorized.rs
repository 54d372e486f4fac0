//! From a request to a grant: a handler that takes `Authorized<ManageProjects>` cannot run without that right, and its signature says so.

use axum::{extract::FromRequestParts, http::request::Parts};
use ocore_control::authorization::{Grant, Right};

use crate::{AppState, problem::Problem};

/// The caller has the right `R` in the organization that the request names (or their only one).
pub struct Authorized<R: Right>(pub Grant<R>);

impl<R: Right> FromRequestParts<AppState> for Authorized<R> {
    type Rejection = Problem;

    async fn from_request_parts(_parts: &mut Parts, _state: &AppState) -> Result<Self, Self::Rejection> {
        unimplemented!()
    }
}

/// The id of the request that is being answered, if one is.
pub fn current_request_id() -> Option<String> {
    None
}
