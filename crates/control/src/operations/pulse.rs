//! The pulse of a process: one connection to the store that says that this process lives and hears what others say.
//!
//! It holds an advisory lock under the worker's id. PostgreSQL frees it in the moment when the process dies (or its connection does), so that
//! others know at once that its operations are without a worker; a lease would have to run out first. The same connection listens: for jobs,
//! and for deployments that are to stop.

use std::time::Duration;

use ocore_model::ids::DeploymentId;
use sqlx::{PgPool, postgres::PgListener};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::queue;
use crate::{Result, store};

/// Notifications about deployments that are to stop; the payload is the deployment's id.
pub(super) const CHANNEL: &str = "ocore_operations";
/// A connection that is silent for this long is asked whether it still lives.
const CHECK: Duration = Duration::from_secs(15);
const RECONNECT: Duration = Duration::from_millis(500);

/// What is heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// A deployment is to stop.
    Stop(DeploymentId),
    /// Notifications may have been missed: look at everything.
    Resync,
}

pub(super) struct Pulse {
    pool: PgPool,
    worker: Uuid,
    wakes: watch::Sender<u64>,
    heard: mpsc::UnboundedSender<Heard>,
}

impl Pulse {
    pub(super) fn new(pool: PgPool, worker: Uuid, wakes: watch::Sender<u64>, heard: mpsc::UnboundedSender<Heard>) -> Self {
        Self { pool, worker, wakes, heard }
    }

    /// Takes the lock and begins to listen. Nothing may be claimed before.
    pub(super) async fn connect(&self) -> Result<PgListener> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.ignore_pool_close_event(true);
        listener.eager_reconnect(false);
        listener.listen_all([queue::CHANNEL, CHANNEL]).await?;
        sqlx::query("select pg_advisory_lock($1)").bind(store::operations::lock_key(self.worker)).execute(&mut listener).await?;
        Ok(listener)
    }

    /// Beats until `shutdown`. Without its connection others may take this process's operations; the generations keep it from harm.
    pub(super) async fn beat(self, first: PgListener, shutdown: CancellationToken) {
        let mut listener = Some(first);
        while !shutdown.is_cancelled() {
            let connected = match listener.take() {
                Some(listener) => Ok(listener),
                None => self.connect().await,
            };
            match connected {
                Ok(mut connected) => {
                    self.wake();
                    let _ = self.heard.send(Heard::Resync);
                    tokio::select! {
                        () = self.listen(&mut connected) => tracing::warn!("the pulse has lost its connection to the store"),
                        () = shutdown.cancelled() => {}
                    }
                    // A connection that goes back to the pool would take the lock with it.
                    let _ = sqlx::query("select pg_advisory_unlock_all()").execute(&mut connected).await;
                }
                Err(error) => tracing::warn!(%error, "the pulse cannot reach the store"),
            }
            tokio::select! {
                () = tokio::time::sleep(RECONNECT) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Returns when the connection is lost.
    async fn listen(&self, listener: &mut PgListener) {
        loop {
            match tokio::time::timeout(CHECK, listener.try_recv()).await {
                Ok(Ok(Some(notification))) if notification.channel() == queue::CHANNEL => self.wake(),
                Ok(Ok(Some(notification))) => {
                    let _ = self.heard.send(notification.payload().parse().map_or(Heard::Resync, Heard::Stop));
                }
                Ok(Ok(None) | Err(_)) => return,
                Err(_) => {
                    if sqlx::query("select 1").execute(&mut *listener).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn wake(&self) {
        self.wakes.send_modify(|wakes| *wakes = wakes.wrapping_add(1));
    }
}
