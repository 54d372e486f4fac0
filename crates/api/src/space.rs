//! Space: what environments and snapshots need alone, and what they share.

use axum::{Extension, extract::State, response::Response};
use ocore_control::{
    authorization::ViewSnapshots,
    space::{self, SpaceOf},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    large::{LargeRead, LargeReads, body_of},
};

/// The organization's space on this server, as the file system tells it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Space)]
pub(crate) struct SpaceBody<'a> {
    /// What is live in each, and what its deployments work with.
    environments: Vec<SpaceOfBody<'a>>,
    snapshots: Vec<SpaceOfBody<'a>>,
    /// The sum of what each owns alone. What some of them share only with each other comes on top of it when all of those go.
    exclusive_bytes: u64,
    /// Of the whole pool, which all organizations of the server share.
    pool_total_bytes: u64,
    pool_available_bytes: u64,
}

/// The space behind one environment or snapshot.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SpaceOf)]
pub(crate) struct SpaceOfBody<'a> {
    id: Uuid,
    name: &'a str,
    environment_id: Uuid,
    environment_name: &'a str,
    /// What its files refer to, shared or not.
    referenced_bytes: u64,
    /// What would come free if it alone were removed.
    exclusive_bytes: u64,
    shared_bytes: u64,
}

impl<'a> SpaceOfBody<'a> {
    fn new<Id: Copy + Into<Uuid>>(space: &'a SpaceOf<Id>) -> Self {
        Self {
            id: space.id.into(),
            name: &space.name,
            environment_id: space.environment_id.into(),
            environment_name: &space.environment_name,
            referenced_bytes: space.usage.referenced_bytes,
            exclusive_bytes: space.usage.exclusive_bytes,
            shared_bytes: space.usage.referenced_bytes.saturating_sub(space.usage.exclusive_bytes),
        }
    }
}

/// Show the space that is used
///
/// Of the caller's organization: for each environment and each snapshot what it owns alone and what it shares. Reads the file system's maps, which
/// takes seconds for large pools; those who ask at the same moment share one reading.
#[utoipa::path(get, path = "/space", tag = "Snapshots",
    responses((status = 200, description = "The numbers of this moment", body = SpaceBody<'static>)))]
pub(crate) async fn show(
    Authorized(grant): Authorized<ViewSnapshots>,
    State(state): State<AppState>,
    Extension(reads): Extension<LargeReads>,
) -> Result<Response, Problem> {
    reads
        .answer(LargeRead::Space { organization: grant.organization_id }, async || {
            let space = space::of_organization(&state.control, &grant).await?;
            body_of(&SpaceBody {
                environments: space.environments.iter().map(SpaceOfBody::new).collect(),
                snapshots: space.snapshots.iter().map(SpaceOfBody::new).collect(),
                exclusive_bytes: space.exclusive_bytes,
                pool_total_bytes: space.pool_total_bytes,
                pool_available_bytes: space.pool_available_bytes,
            })
        })
        .await
}
