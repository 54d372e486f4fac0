//! What several answers share.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What was done, in a sentence for a person.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Message {
    pub(crate) message: String,
}

impl Message {
    pub(crate) fn json(message: impl Into<String>) -> axum::Json<Self> {
        axum::Json(Self { message: message.into() })
    }
}

/// An answer to a call that began something: with where it is from now on.
pub(crate) fn begun(status: StatusCode, location: &str, body: impl Serialize) -> Response {
    at(location, (status, axum::Json(body)).into_response())
}

/// An answer with a `Location`, a path below the API's base.
pub(crate) fn at(location: &str, mut response: Response) -> Response {
    if let Ok(location) = HeaderValue::from_str(&format!("/api{location}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// In which order a list of what happened comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub(crate) enum ByTime {
    /// The newest first.
    #[default]
    #[serde(rename = "-createdAt")]
    NewestFirst,
    /// The oldest first.
    #[serde(rename = "createdAt")]
    OldestFirst,
}

impl ByTime {
    pub(crate) fn oldest_first(self) -> bool {
        self == Self::OldestFirst
    }
}

/// In which order a list of things with names comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, ToSchema)]
pub(crate) enum Sort {
    #[default]
    #[serde(rename = "createdAt")]
    OldestFirst,
    #[serde(rename = "-createdAt")]
    NewestFirst,
    #[serde(rename = "name")]
    ByName,
    #[serde(rename = "-name")]
    ByNameBackwards,
    /// What was changed last comes first.
    #[serde(rename = "-updatedAt")]
    ChangedLast,
}

impl Sort {
    /// Sorts a list that comes from the store with the oldest first.
    pub(crate) fn apply<T>(self, items: &mut [T], name: impl Fn(&T) -> &str, updated_at: impl Fn(&T) -> DateTime<Utc>) {
        match self {
            Self::OldestFirst => {}
            Self::NewestFirst => items.reverse(),
            Self::ByName => items.sort_by(|one, other| name(one).cmp(name(other))),
            Self::ByNameBackwards => items.sort_by(|one, other| name(other).cmp(name(one))),
            Self::ChangedLast => items.sort_by_key(|item| std::cmp::Reverse(updated_at(item))),
        }
    }
}

/// A permission as a word, for schemas: `manage:projects`.
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct PermissionWord(String);

impl utoipa::PartialSchema for PermissionWord {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let words = utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some("A right: `view` or `manage`, and what."))
            .enum_values(Some(ocore_model::permission::Permission::all().map(|permission| permission.to_string())));
        utoipa::openapi::Schema::from(words).into()
    }
}

impl ToSchema for PermissionWord {
    fn name() -> std::borrow::Cow<'static, str> {
        "PermissionWord".into()
    }
}

/// The words of a set of permissions.
pub(crate) fn permission_words(permissions: &ocore_model::permission::PermissionSet) -> Vec<String> {
    permissions.iter().map(|permission| permission.to_string()).collect()
}
