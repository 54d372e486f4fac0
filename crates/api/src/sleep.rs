//! When an environment sleeps, and whether it does.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use ocore_control::{
    authorization::{ManageEnvironments, ViewEnvironments},
    sleep::{self, EnvironmentSleep},
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
    json,
};

/// When an environment sleeps, and whether it does.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Sleep)]
pub(crate) struct SleepBody {
    /// Its own rule, in minutes without a request; 0: never; null: that of its stage.
    own_minutes: Option<i32>,
    /// What holds for it; null: it never sleeps.
    after_minutes: Option<u64>,
    /// Whether a scheduled action that is due wakes it.
    wakes_for_scheduled_actions: bool,
    /// When the next one of a sleeper is due, whether it is woken for it or not; null while it is awake, and when it has none.
    next_scheduled_action_at: Option<DateTime<Utc>>,
    /// Null while it is awake.
    asleep_since: Option<DateTime<Utc>>,
    /// The memory that its sleep frees.
    freed_bytes: Option<i64>,
}

impl From<EnvironmentSleep> for SleepBody {
    fn from(found: EnvironmentSleep) -> Self {
        let EnvironmentSleep { own_minutes, after_minutes, wakes_for_actions, asleep_since, next_action_at, freed_bytes } = found;
        Self {
            own_minutes,
            after_minutes,
            wakes_for_scheduled_actions: wakes_for_actions,
            next_scheduled_action_at: next_action_at,
            asleep_since,
            freed_bytes,
        }
    }
}

/// Get when an environment sleeps
///
/// One that nobody used for that long rests whole, Odoo and its database; the next request, a push or an injected mail wakes it, and where
/// that is wanted a scheduled action that is due. Requests wait for it. Production never sleeps. `POST /instances/{id}/control` with `sleep` and `start` does it by hand.
#[utoipa::path(get, path = "/environments/{id}/sleep", operation_id = "environments_sleep", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "As it is now", body = SleepBody)))]
pub(crate) async fn show(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<SleepBody>, Problem> {
    Ok(Json(sleep::show(&state.control, &grant, id.into()).await?.into()))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateSleep {
    /// 1 to 10080 minutes without a request; 0: never; null: what its stage does; absent: as before.
    #[expect(clippy::option_option, reason = "left out, null and a value are three things")]
    #[serde(default, deserialize_with = "json::given")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 10080)]
    own_minutes: Option<Option<i32>>,
    /// Whether a scheduled action that is due wakes it, for five minutes when nobody asks for it meanwhile; absent: as before.
    #[serde(default)]
    wakes_for_scheduled_actions: Option<bool>,
}

/// Change when an environment sleeps
///
/// 409 `production_awake` for a production environment.
#[utoipa::path(put, path = "/environments/{id}/sleep", operation_id = "environments_update_sleep", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment")), request_body = UpdateSleep,
    responses((status = 200, description = "As it is now", body = SleepBody)))]
pub(crate) async fn update(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<UpdateSleep>,
) -> Result<Json<SleepBody>, Problem> {
    Ok(Json(sleep::update(&state.control, &grant, id.into(), body.own_minutes, body.wakes_for_scheduled_actions).await?.into()))
}
