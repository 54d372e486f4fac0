//! What several answers share.

use serde::Serialize;
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

/// The words of a set of permissions.
pub(crate) fn permission_words(permissions: &ocore_model::permission::PermissionSet) -> Vec<String> {
    permissions.iter().map(|permission| permission.to_string()).collect()
}
