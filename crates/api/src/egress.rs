//! What an environment may reach on the network, and what it tried.

use axum::{Json, extract::State};
use ocore_control::{
    authorization::{ManageEgress, ViewEgress},
    egress::{self, EgressPatch, EnvironmentEgress},
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    environments::TAG,
    extract::{FromPath, Input},
};

/// An environment's network policy, and what came of it.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Egress)]
pub(crate) struct EgressBody {
    /// It reaches only its database, its mail catcher and what is allowed. Never true for production.
    closed: bool,
    /// It is production, which is always open.
    production: bool,
    allow: Vec<Allowed>,
    /// The server refuses what is not allowed.
    enforced: bool,
    /// Why it does not, or not yet.
    problem: Option<String>,
    /// What was refused, the most frequent first. PostgreSQL's attempts count too. Counted anew when the server restarts.
    attempts: Vec<Attempt>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Allowed {
    /// As it was given: `<host>:<port>`.
    destination: String,
    /// What it means now.
    addresses: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Attempt {
    /// An address.
    destination: String,
    port: u16,
    /// `tcp` or `udp`
    protocol: String,
    packets: u64,
}

impl From<EnvironmentEgress> for EgressBody {
    fn from(found: EnvironmentEgress) -> Self {
        let allow = found.allow.into_iter().map(|(destination, addresses)| Allowed {
            destination: destination.to_string(),
            addresses: addresses.iter().map(|address| address.ip().to_string()).collect(),
        });
        let attempts = found.attempts.into_iter().map(|attempt| Attempt {
            destination: attempt.destination.ip().to_string(),
            port: attempt.destination.port(),
            protocol: attempt.protocol,
            packets: attempt.packets,
        });
        Self {
            closed: found.closed,
            production: found.production,
            allow: allow.collect(),
            enforced: found.enforced,
            problem: found.problem,
            attempts: attempts.collect(),
        }
    }
}

/// Get what an environment may reach
///
/// And what it tried: an attempt in a neutralized environment is something that neutralization has missed.
#[utoipa::path(get, path = "/environments/{id}/egress", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "As it is now", body = EgressBody)))]
pub(crate) async fn egress(
    Authorized(grant): Authorized<ViewEgress>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<EgressBody>, Problem> {
    Ok(Json(egress::show(&state.control, &grant, id.into()).await?.into()))
}

/// What is changed; what is not given stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateEgress {
    closed: Option<bool>,
    /// Places, `<host>:<port>`, that a closed environment may reach, TCP and UDP; they replace those that were allowed before. At most 50. None on
    /// the server itself.
    allow: Option<Vec<String>>,
}

/// Change what an environment may reach
///
/// Needs a right that only owners and admins have by default; each change is in the audit log. 409 `production_open` for a production
/// environment. A name is looked up now and every minute; an environment that may reach a name may ask the server's name servers.
#[utoipa::path(put, path = "/environments/{id}/egress", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = UpdateEgress, responses((status = 200, description = "As it is now", body = EgressBody)))]
pub(crate) async fn update_egress(
    Authorized(grant): Authorized<ManageEgress>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<UpdateEgress>,
) -> Result<Json<EgressBody>, Problem> {
    let patch = EgressPatch { closed: body.closed, allow: body.allow };
    Ok(Json(egress::update(&state.control, &grant, id.into(), patch).await?.into()))
}
