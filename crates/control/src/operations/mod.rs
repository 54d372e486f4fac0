//! Operations: what a person asked for, with an end and an undo. Each is a steno saga in a file of its own; apalis carries their ids; the
//! `operations` table is the truth (docs/decisions/0004-operations.md).

mod control;
mod deploy;
mod destroy;
mod engine;
pub(crate) mod plan;
mod pulse;
mod queue;
mod saga;
mod saga_store;
mod sweeper;
mod template;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use ocore_model::{
    ids::{DeploymentId, EnvironmentId, InstanceId, OperationId, OrganizationId},
    instance::ControlAction,
    operation::OperationStatus,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use steno::{ActionRegistry, SagaDag};

pub use engine::{Engine, Injection};
pub(crate) use saga::failpoint;

use self::{
    engine::Outcome,
    saga::{Execution, Failure, Operations},
};
use crate::{
    Control, Error, Result,
    store::{self, operations::OperationRow},
};

/// Of the graphs below. Raise it when a node's name, place or output changes: operations of another version are unwound, not resumed, so
/// the undo nodes of the version before must stay registered.
pub const SCHEMA_VERSION: i32 = 4;

/// How long requests are held for an update that was rehearsed like this.
pub(crate) fn expected_hold(rehearsal: &ocore_model::rehearsal::Rehearsal) -> std::time::Duration {
    deploy::hold_after(rehearsal)
}

/// What an operation does, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OperationKind {
    /// Brings a deployment's commit live.
    Deploy { deployment_id: DeploymentId },
    /// Starts, stops or restarts the instance's live slot.
    Control { action: ControlAction },
    /// Tears an instance down: processes, data, users, ports, route; then its environment's row becomes `deleted`.
    Destroy,
}

impl OperationKind {
    fn read(row: &OperationRow) -> Result<Self> {
        serde_json::from_value(row.parameters.clone()).map_err(|error| Error::internal("reading an operation", error))
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Deploy { .. } => "deploy",
            Self::Control { .. } => "control",
            Self::Destroy => "destroy",
        }
    }

    fn registry(&self) -> Arc<ActionRegistry<Operations>> {
        match self {
            Self::Deploy { .. } => deploy::nodes(),
            Self::Control { .. } => control::graph(),
            Self::Destroy => destroy::graph(),
        }
        .into_registry()
    }

    /// The graph with its parameters, fixed now and for the whole run: nobody else changes the instance while it is held.
    async fn graph(&self, control: &Control, row: &OperationRow) -> Result<(Arc<ActionRegistry<Operations>>, Arc<SagaDag>), Failure> {
        Ok(match self {
            Self::Deploy { deployment_id } => {
                let parameters = deploy::parameters(control, *deployment_id).await?;
                deploy::graph(&parameters).build(self.word(), &parameters)?
            }
            Self::Control { action } => {
                control::graph().build(self.word(), &control::parameters(control, row.instance_id, *action).await?)?
            }
            Self::Destroy => destroy::graph().build(self.word(), &destroy::parameters(control, row.instance_id).await?)?,
        })
    }

    /// In the transaction of the claim.
    async fn claimed(&self, connection: &mut PgConnection, _row: &OperationRow, now: DateTime<Utc>) -> Result<()> {
        match self {
            Self::Deploy { deployment_id } => store::deploy::start(connection, *deployment_id, now).await,
            Self::Control { .. } | Self::Destroy => Ok(()),
        }
    }

    async fn must_stop(&self, execution: &Execution) -> Result<bool> {
        match self {
            Self::Deploy { deployment_id } => deploy::must_stop(&mut *execution.control.pool.acquire().await?, *deployment_id).await,
            Self::Control { .. } | Self::Destroy => Ok(false),
        }
    }

    /// In the transaction that ends the operation.
    async fn settled(&self, connection: &mut PgConnection, execution: &Execution, outcome: &Outcome, now: DateTime<Utc>) -> Result<()> {
        match self {
            Self::Deploy { deployment_id } => deploy::settled(connection, execution, *deployment_id, outcome, now).await,
            Self::Control { action } => control::settled(connection, execution, *action, outcome, now).await,
            Self::Destroy => destroy::settled(connection, execution, outcome, now).await,
        }
    }

    /// After that transaction. A crash in between is made good by the reconcilers.
    async fn after(&self, control: &Control, execution: &Execution, _outcome: &Outcome) {
        if let Err(error) = crate::routes::refresh(control, execution.instance).await {
            tracing::warn!(%error, "the edge has not taken the routes; the routes reconciler tries again");
        }
    }
}

/// Writes an operation in the caller's transaction, and a deployment's steps with it. The engine hears of it by the commit. Operations of one
/// instance run one after the other, in the order of this call. Destroying drops what is queued on the instance and stops what runs.
pub async fn enqueue(
    connection: &mut PgConnection,
    organization: OrganizationId,
    instance: InstanceId,
    kind: OperationKind,
) -> Result<OperationId> {
    let id = OperationId::new();
    let deployment_id = match &kind {
        OperationKind::Deploy { deployment_id } => Some(*deployment_id),
        OperationKind::Control { .. } | OperationKind::Destroy => None,
    };
    let parameters = serde_json::to_value(&kind).map_err(|error| Error::internal("writing an operation", error))?;
    if kind == OperationKind::Destroy {
        clear_the_way(connection, instance).await?;
    }
    let new = store::operations::NewOperation {
        id,
        kind: kind.word(),
        organization_id: organization,
        instance_id: instance,
        deployment_id,
        parameters: &parameters,
        schema_version: SCHEMA_VERSION,
    };
    store::operations::insert(connection, new).await?;
    if let Some(deployment) = deployment_id {
        deploy::draw(connection, deployment).await?;
    }
    push_next(connection, instance).await?;
    Ok(id)
}

/// Tells the engine that there may be work for an instance; [`enqueue`] has done so already. Never fails the caller: the sweeper finds what a
/// wake missed.
pub async fn wake(control: &Control, instance: InstanceId) {
    let pushed = async { push_next(&mut *control.pool.acquire().await?, instance).await };
    if let Err(error) = pushed.await {
        tracing::warn!(%error, %instance, "the engine could not be woken; the sweeper does it");
    }
}

async fn push_next(connection: &mut PgConnection, instance: InstanceId) -> Result<()> {
    if let Some(next) = store::operations::next_of_instance(connection, instance).await? {
        queue::push(connection, next).await?;
    }
    Ok(())
}

/// Ends every open deployment of an environment that has changed nothing yet, in favour of `newer`. Call it in the transaction that enqueues
/// `newer`. Returns those that it ended; one that is already changing something is left alone and `newer` waits for it.
pub async fn supersede(connection: &mut PgConnection, environment: EnvironmentId, newer: DeploymentId) -> Result<Vec<DeploymentId>> {
    let now = database_now(connection).await?;
    let mut superseded = Vec::new();
    for (operation, deployment) in store::operations::lock_unchanging_of_environment(connection, environment, newer).await? {
        if !store::deploy::supersede(connection, deployment, newer, now).await? {
            continue;
        }
        if store::operations::drop_queued(connection, operation, "superseded", now).await? {
            store::steps::close(connection, deployment, now).await?;
        } else {
            ask_to_stop(connection, deployment).await?;
        }
        superseded.push(deployment);
    }
    Ok(superseded)
}

/// What came of asking a deployment to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancellation {
    /// It had not begun; it is cancelled.
    Done,
    /// It runs and stops as soon as its step can; then it takes back what it has done.
    Asked,
    /// It has ended already.
    TooLate,
}

/// Cancels a deployment, in the caller's transaction. Asking again changes nothing. A deployment that is already live when it hears of it
/// ends as succeeded.
pub async fn cancel(connection: &mut PgConnection, deployment: DeploymentId) -> Result<Cancellation> {
    let now = database_now(connection).await?;
    let Some((operation, _, status)) = store::operations::lock_of_deployment(connection, deployment).await? else {
        return Ok(Cancellation::TooLate);
    };
    store::deploy::request_cancel(connection, deployment, now).await?;
    if status == OperationStatus::Queued && store::operations::drop_queued(connection, operation, "cancelled", now).await? {
        store::deploy::end(connection, deployment, &store::deploy::End::cancelled(), now).await?;
        store::steps::close(connection, deployment, now).await?;
        return Ok(Cancellation::Done);
    }
    ask_to_stop(connection, deployment).await?;
    Ok(Cancellation::Asked)
}

/// Lets an operation that is stuck try its undo again. Also done at each start of the engine.
pub async fn retry_undo(control: &Control, id: OperationId) -> Result<()> {
    let mut transaction = control.pool.begin().await?;
    let Some(seen) = store::operations::find(&mut transaction, id).await? else {
        return Err(Error::NotFound { what: "operation" });
    };
    store::operations::lock_instance(&mut transaction, seen.instance_id).await?;
    let Some(row) = store::operations::lock(&mut transaction, id).await? else {
        return Err(Error::NotFound { what: "operation" });
    };
    row.status.next(ocore_model::operation::OperationEvent::UndoRetried)?;
    store::operations::forget_failed_undo(&mut transaction, id).await?;
    queue::push(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(())
}

/// An instance that is torn down needs no deployment any more.
async fn clear_the_way(connection: &mut PgConnection, instance: InstanceId) -> Result<()> {
    let now = database_now(connection).await?;
    for (operation, deployment) in store::operations::queued_of_instance(connection, instance).await? {
        store::operations::drop_queued(connection, operation, "the instance is removed", now).await?;
        if let Some(deployment) = deployment {
            store::deploy::end(connection, deployment, &store::deploy::End::cancelled(), now).await?;
            store::steps::close(connection, deployment, now).await?;
        }
    }
    for deployment in store::deploy::request_cancel_of_instance(connection, instance, now).await? {
        ask_to_stop(connection, deployment).await?;
    }
    Ok(())
}

async fn ask_to_stop(connection: &mut PgConnection, deployment: DeploymentId) -> Result<()> {
    sqlx::query!("select pg_notify($1, $2)", pulse::CHANNEL, deployment.to_string()).fetch_one(connection).await?;
    Ok(())
}

async fn database_now(connection: &mut PgConnection) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar!(r#"select now() as "now!""#).fetch_one(connection).await?)
}
