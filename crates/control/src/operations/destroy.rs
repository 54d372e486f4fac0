//! Destroys an instance: the route first, then everything on the server, then the rows.
//!
//! It only goes forward. When the server fails it, the instance stays `removing` with the reason, and the reconciler asks again.

use chrono::{DateTime, Utc};
use ocore_model::{ids::InstanceId, instance::InstanceStatus};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{
    engine::Outcome,
    saga::{Execution, Failure, Graph, NodeContext},
};
use crate::{Control, Error, Result, routes, store};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Parameters {}

pub(super) async fn parameters(control: &Control, instance: InstanceId) -> Result<Parameters, Failure> {
    store::deploy::live(&mut *control.pool.acquire().await?, instance).await?.ok_or(Error::NotFound { what: "instance" })?;
    Ok(Parameters {})
}

pub(super) fn graph() -> Graph {
    Graph::default().then("destroy::unroute", unroute).then("destroy::remove", remove)
}

/// From now on the instance's name leads nowhere.
async fn unroute(context: NodeContext) -> Result<(), Failure> {
    let (control, execution) = (context.control(), context.execution());
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    let held =
        store::deploy::set_status(&mut transaction, execution.instance, execution.generation, InstanceStatus::Removing, "", now).await?;
    if !held {
        return Err(Failure::fenced());
    }
    routes::raise(&mut transaction, execution.instance).await?;
    transaction.commit().await?;
    if let Err(error) = routes::apply(control).await {
        tracing::warn!(%error, "the edge has not taken the routes; the routes reconciler tries again");
    }
    Ok(())
}

/// Processes, data, users, ports.
async fn remove(context: NodeContext) -> Result<(), Failure> {
    let execution = context.execution();
    context.control().host.destroy_instance(execution.instance, execution.fence()).await?;
    Ok(())
}

pub(super) async fn settled(connection: &mut PgConnection, execution: &Execution, outcome: &Outcome, now: DateTime<Utc>) -> Result<()> {
    match outcome {
        Outcome::Succeeded => store::destroy::forget(connection, execution.instance, now).await,
        Outcome::Failed(failure) | Outcome::Stuck(failure, _) => {
            let message = format!("it could not be removed: {}", failure.message);
            store::deploy::set_status(connection, execution.instance, execution.generation, InstanceStatus::Removing, &message, now)
                .await?;
            store::destroy::set_environment_message(connection, execution.instance, &message, now).await
        }
    }
}
