//! The log of one saga, for steno: each event is durable before steno goes on, or steno does not go on.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use ocore_model::ids::OperationId;
use sqlx::PgPool;
use steno::{SagaCachedState, SagaCreateParams, SagaId, SagaNodeEvent, SecStore};
use tokio_util::sync::CancellationToken;

use crate::{Result, store};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Writes for one claim of one operation; once another claim has taken over, it writes nothing more.
pub(super) struct OperationLog {
    pub(super) pool: PgPool,
    pub(super) id: OperationId,
    pub(super) generation: i64,
    pub(super) halt: CancellationToken,
}

impl fmt::Debug for OperationLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OperationLog").field("id", &self.id).field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl OperationLog {
    /// False when another claim has taken over.
    pub(super) async fn write(&self, event: &SagaNodeEvent) -> Result<bool> {
        let json = serde_json::to_value(event).map_err(|error| crate::Error::internal("writing an event of an operation", error))?;
        let mut connection = self.pool.acquire().await?;
        let node = i64::from(node_number(event));
        store::operations::record_event(&mut connection, self.id, self.generation, node, event.event_type.label(), &json).await
    }
}

/// The number of an event's node in its graph.
pub(super) fn node_number(event: &SagaNodeEvent) -> u32 {
    // steno shows it only as text.
    event.node_id.to_string().parse().unwrap_or(u32::MAX)
}

#[async_trait]
impl SecStore for OperationLog {
    async fn saga_create(&self, parameters: SagaCreateParams) -> Result<(), anyhow::Error> {
        let mut connection = self.pool.acquire().await?;
        if store::operations::set_dag(&mut connection, self.id, self.generation, &parameters.dag).await? {
            return Ok(());
        }
        self.halt.cancel();
        anyhow::bail!("another claim has taken over")
    }

    async fn record_event(&self, event: SagaNodeEvent) {
        let mut delay = FIRST_RETRY;
        while !self.halt.is_cancelled() {
            match self.write(&event).await {
                Ok(true) => return,
                Ok(false) => {
                    tracing::warn!(operation = %self.id, generation = self.generation, "another claim has taken the operation over");
                    self.halt.cancel();
                }
                Err(error) => {
                    tracing::error!(operation = %self.id, %error, ?delay, "an event of an operation cannot be written; it is tried again");
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = self.halt.cancelled() => {}
                    }
                    delay = (delay * 2).min(LAST_RETRY);
                }
            }
        }
        // steno must not go on from an event that is not durable.
        std::future::pending::<()>().await;
    }

    /// The engine writes the end itself, in one transaction with what it means.
    async fn saga_update(&self, _id: SagaId, _update: SagaCachedState) {}
}
