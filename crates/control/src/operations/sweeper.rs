//! The sweeper: finds what no signal brought. Operations that a crash left unqueued, operations whose worker is dead, deployments that are to
//! stop, jobs that have been carried long ago.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use super::{engine::Inner, pulse::Heard, queue};
use crate::{Control, Result, store};

/// While another process has operations: how soon its death is noticed.
const WATCHFUL: Duration = Duration::from_millis(500);
const CALM: Duration = Duration::from_secs(15);
const PRUNE: Duration = Duration::from_mins(10);

/// Sweeps at once, then regularly, and answers what the pulse hears.
pub(super) async fn run(engine: Arc<Inner>, mut hears: mpsc::UnboundedReceiver<Heard>) {
    let mut next_sweep = Instant::now();
    let mut next_prune = Instant::now() + PRUNE;
    loop {
        tokio::select! {
            () = engine.halt.cancelled() => return,
            () = tokio::time::sleep_until(next_sweep) => {
                let pause = match sweep(&engine).await {
                    Ok(pause) => pause,
                    Err(error) => {
                        tracing::warn!(%error, "operations cannot be swept");
                        CALM
                    }
                };
                next_sweep = Instant::now() + pause;
            }
            heard = hears.recv() => {
                let Some(heard) = heard else { return };
                if let Err(error) = engine.hear(heard).await {
                    tracing::warn!(%error, "a signal to stop cannot be followed yet; the next sweep does");
                }
            }
            () = tokio::time::sleep_until(next_prune) => {
                next_prune = Instant::now() + PRUNE;
                let pruned = async { queue::prune(&mut *engine.control.pool.acquire().await?).await };
                if let Err(error) = pruned.await {
                    tracing::warn!(%error, "old jobs cannot be removed from the queue");
                }
            }
        }
    }
}

/// Pushes what nobody has. Returns the pause until the next sweep.
async fn sweep(engine: &Inner) -> Result<Duration> {
    engine.look_for_stops().await?;
    let mut connection = engine.control.pool.acquire().await?;
    for id in store::operations::waiting(&mut connection).await? {
        if !engine.has_in_hand(id) {
            tracing::debug!(operation = %id, "an operation waits without a worker");
            queue::push(&mut connection, id).await?;
        }
    }
    let mut pause = CALM;
    for (id, worker) in store::operations::running(&mut connection).await? {
        if engine.has_in_hand(id) {
            continue;
        }
        let dead = match worker {
            Some(worker) if worker != engine.worker => {
                let mut transaction = engine.control.pool.begin().await?;
                store::operations::is_dead(&mut transaction, worker).await?
            }
            _ => true,
        };
        if dead {
            tracing::info!(operation = %id, "the worker of an operation is dead; it is taken over");
            queue::push(&mut connection, id).await?;
        }
        pause = WATCHFUL;
    }
    Ok(pause)
}

/// Lets undoing be tried again for every operation where it had failed. At each start.
pub(super) async fn retry_stuck(control: &Control) -> Result<()> {
    let stuck = store::operations::stuck(&mut *control.pool.acquire().await?).await?;
    for id in stuck {
        super::retry_undo(control, id).await?;
    }
    Ok(())
}
