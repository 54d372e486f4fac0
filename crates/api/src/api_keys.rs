//! API keys of the organization.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use chrono::{DateTime, Utc};
use ocore_control::{
    api_keys::{self, NewApiKey},
    authorization::{ManageApiKeys, ViewApiKeys},
};
use ocore_model::ids::{ApiKeyId, UserId};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;

use crate::{
    AppState,
    authorized::Authorized,
    extract::{FromPath, Input},
    problem::Problem,
    wire::{Message, begun, permission_words},
};

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateApiKey {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Words such as `manage:instances`; no more than the caller has.
    #[schema(value_type = Vec<crate::wire::PermissionWord>)]
    #[schema(min_items = 1)]
    permissions: Vec<String>,
    /// Never when left out; with an API key as caller no later than that one, and when left out with it.
    expires_at: Option<DateTime<Utc>>,
}

/// A key for programs.
#[skip_serializing_none]
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApiKey {
    #[schema(value_type = Uuid)]
    id: ApiKeyId,
    name: String,
    /// Its first characters.
    prefix: String,
    /// What it is limited to. It never has more than its maker has at the moment of its use.
    #[schema(value_type = Vec<crate::wire::PermissionWord>)]
    permissions: Vec<String>,
    /// Its maker.
    #[schema(value_type = Uuid)]
    user_id: UserId,
    user_email: String,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    /// To the minute.
    last_used_at: Option<DateTime<Utc>>,
}

/// A new key. `key` is shown this once.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreatedApiKey {
    #[serde(flatten)]
    api_key: ApiKey,
    key: String,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApiKeys {
    api_keys: Vec<ApiKey>,
    total: usize,
}

impl From<api_keys::ApiKey> for ApiKey {
    fn from(key: api_keys::ApiKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            prefix: key.prefix,
            permissions: permission_words(&key.permissions),
            user_id: key.user_id,
            user_email: key.user_email,
            created_at: key.created_at,
            expires_at: key.expires_at,
            last_used_at: key.last_used_at,
        }
    }
}

/// List API keys.
#[utoipa::path(get, path = "/api-keys", tag = "API keys", responses((status = 200, description = "Those that have not been revoked, newest first.", body = ApiKeys)))]
pub(crate) async fn list(State(state): State<AppState>, Authorized(grant): Authorized<ViewApiKeys>) -> Result<Json<ApiKeys>, Problem> {
    let api_keys: Vec<ApiKey> = api_keys::list(&state.control, &grant).await?.into_iter().map(Into::into).collect();
    let total = api_keys.len();
    Ok(Json(ApiKeys { api_keys, total }))
}

/// Make an API key.
///
/// It belongs to the caller and the organization, and is shown once. One that is made with another key ends with that, when it expires or is revoked.
#[utoipa::path(post, path = "/api-keys", tag = "API keys", request_body = CreateApiKey,
    responses((status = 201, description = "The key, readable this once.", body = CreatedApiKey)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageApiKeys>,
    Input(body): Input<CreateApiKey>,
) -> Result<Response, Problem> {
    let new = NewApiKey { name: body.name, permissions: body.permissions, expires_at: body.expires_at };
    let created = api_keys::create(&state.control, &grant, new).await?;
    let location = format!("/api-keys/{}", created.key.id);
    Ok(begun(StatusCode::CREATED, &location, CreatedApiKey { api_key: created.key.into(), key: created.plaintext }))
}

/// Revoke an API key.
///
/// One's own; those of others with `manage:members`. The keys that were made with it end too.
#[utoipa::path(delete, path = "/api-keys/{id}", tag = "API keys", params(("id" = Uuid, Path)),
    responses((status = 200, description = "It opens nothing any more.", body = Message)))]
pub(crate) async fn revoke(
    State(state): State<AppState>,
    Authorized(grant): Authorized<ManageApiKeys>,
    FromPath(id): FromPath<ApiKeyId>,
) -> Result<Json<Message>, Problem> {
    api_keys::revoke(&state.control, &grant, id).await?;
    Ok(Message::json("the API key is revoked"))
}
