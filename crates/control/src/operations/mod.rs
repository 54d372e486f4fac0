//! Operations: what a person asked for, with an end and an undo. Each is a steno saga in a file of its own; apalis carries their ids; the
//! `operations` table is the truth.

use ocore_model::ids::{DeploymentId, InstanceId, OperationId, OrganizationId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::{Control, Result};

/// What an operation does, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OperationKind {
    /// Brings a deployment's commit live.
    Deploy { deployment_id: DeploymentId },
    /// Starts, stops or restarts the instance's live slot.
    Control { action: ocore_model::instance::ControlAction },
    /// Tears an instance down: processes, data, users, ports, route; then its environment's row becomes `deleted`.
    Destroy,
}

/// Writes an operation in the caller's transaction. After the commit the caller wakes the engine with [`wake`]; a crash in between is
/// found by the sweeper.
pub async fn enqueue(
    _connection: &mut PgConnection,
    _organization: OrganizationId,
    _instance: InstanceId,
    _kind: OperationKind,
) -> Result<OperationId> {
    unimplemented!()
}

/// Tells the engine that there is work for an instance. Never fails the caller: the sweeper finds what a wake missed.
pub async fn wake(_control: &Control, _instance: InstanceId) {
    unimplemented!()
}
