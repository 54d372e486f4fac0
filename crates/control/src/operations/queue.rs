//! The queue: apalis on PostgreSQL carries the ids of operations from whoever asked to a worker. The only file that knows apalis.
//!
//! What it carries is a hint, not the truth: the `operations` table decides in [`super::engine`] whether a carried id is run. So a job may
//! be carried twice, late or never (the sweeper pushes it again), and every job ends well as soon as it has been looked at.
//!
//! What apalis 1.0.0 needs from us (read in its source, docs/decisions/0004-operations.md):
//! - An error of the database ends its worker, and with it every future that the worker drives. So it is started again here, and the work
//!   itself runs in tasks of the engine's.
//! - A worker that registers under a name which another connection of the pool has registered before is refused: each start has a new name.
//! - Its own listener ends silently with its connection: [`super::pulse`] listens and wakes the worker through a channel.
//! - A wake that comes while it fetches is swallowed, and with its own strategies nothing wakes it after that: [`Wakes`] looks again.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use apalis::prelude::*;
use apalis_postgres::{Config, PgTask, PostgresStorage};
use futures::StreamExt;
use ocore_model::ids::OperationId;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tokio::{sync::watch, time::Sleep};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Error, Result};

const QUEUE: &str = "ocore::operations";
/// The notification that the queue's table sends for each new job.
pub(super) const CHANNEL: &str = "apalis::job::insert";
/// After a wake the queue is looked at once more after each of these: a fetch that was under way may have begun before the job was there.
const LOOK_AGAIN: [Duration; 3] = [Duration::from_millis(30), Duration::from_millis(300), Duration::from_secs(2)];
/// Between two looks without a wake.
const POLL: Duration = Duration::from_mins(1);
const HEARTBEAT: Duration = Duration::from_mins(1);
/// Between two starts of a worker that an error has ended.
const RESTART: Duration = Duration::from_secs(1);

/// What travels.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct RunOperation {
    id: OperationId,
}

/// Pushes an operation's id in the caller's transaction; the worker is woken by the commit.
pub(super) async fn push(connection: &mut PgConnection, id: OperationId) -> Result<()> {
    let job = serde_json::to_vec(&RunOperation { id }).map_err(|error| Error::internal("writing a job", error))?;
    let task: PgTask = TaskBuilder::new(job).max_attempts(1).build();
    apalis_postgres::queries::push_tasks(connection, QUEUE, vec![task])
        .await
        .map_err(|error| Error::internal("pushing an operation to the queue", error))
}

/// Forgets jobs that have been carried and workers that have been gone for a day.
pub(super) async fn prune(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "delete from apalis.jobs where job_type = $1
             and (done_at < now() - interval '1 hour' or (status <> 'Pending' and lock_at < now() - interval '1 day'))",
        QUEUE,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "delete from apalis.workers where worker_type = $1 and last_seen < now() - interval '1 day'
             and not exists (select 1 from apalis.jobs where jobs.lock_by = workers.id)",
        QUEUE,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// When the worker looks for jobs: when it is woken, and a few times after that.
struct Wakes {
    signals: WatchStream<u64>,
    /// How many of the looks after the last wake have been taken.
    looked: usize,
    next: Pin<Box<Sleep>>,
}

impl Wakes {
    fn new(wakes: watch::Receiver<u64>) -> Self {
        Self { signals: WatchStream::from_changes(wakes), looked: 0, next: Box::pin(tokio::time::sleep(LOOK_AGAIN[0])) }
    }
}

impl PollStrategy for Wakes {
    fn poll_drive(&mut self, context: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        let mut due = false;
        // Each is polled until it waits, so that both will wake us.
        while let Poll::Ready(Some(_)) = self.signals.poll_next_unpin(context) {
            (due, self.looked) = (true, 0);
            self.next.set(tokio::time::sleep(LOOK_AGAIN[0]));
        }
        while self.next.as_mut().poll(context).is_ready() {
            (due, self.looked) = (true, self.looked + 1);
            self.next.set(tokio::time::sleep(LOOK_AGAIN.get(self.looked).copied().unwrap_or(POLL)));
        }
        if due { Poll::Ready(Some(())) } else { Poll::Pending }
    }
}

/// Hands every id that comes to `handle`, until `shutdown`. `wakes` changes when there may be a job. A call of `handle` may be dropped at
/// any moment and must leave the work running.
pub(super) async fn work<Handle, Handled>(
    pool: PgPool,
    process: Uuid,
    wakes: watch::Receiver<u64>,
    handle: Handle,
    shutdown: CancellationToken,
) where
    Handle: Fn(OperationId) -> Handled + Send + Sync + 'static,
    Handled: Future<Output = ()> + Send + 'static,
{
    let handle = Arc::new(handle);
    let mut start = 0_u64;
    while !shutdown.is_cancelled() {
        start += 1;
        let run = tokio::spawn(run_worker(pool.clone(), format!("{process}/{start}"), wakes.clone(), handle.clone(), shutdown.clone()));
        match run.await {
            Ok(Ok(())) if shutdown.is_cancelled() => return,
            Ok(Ok(())) => tracing::warn!("the queue's worker has ended; it is started again"),
            Ok(Err(error)) => tracing::warn!(%error, "the queue's worker has failed; it is started again"),
            Err(error) => tracing::error!(%error, "the queue's worker has panicked; it is started again"),
        }
        tokio::select! {
            () = tokio::time::sleep(RESTART) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn run_worker<Handle, Handled>(
    pool: PgPool,
    name: String,
    wakes: watch::Receiver<u64>,
    handle: Arc<Handle>,
    shutdown: CancellationToken,
) -> std::result::Result<(), WorkerError>
where
    Handle: Fn(OperationId) -> Handled + Send + Sync + 'static,
    Handled: Future<Output = ()> + Send + 'static,
{
    let config = Config::default().queue(QUEUE).batch_size(16).heartbeat_interval(HEARTBEAT);
    let backend = PostgresStorage::<RunOperation>::new(&pool).with_config(config).poll_with_strategy(Wakes::new(wakes));
    let worker = WorkerBuilder::new(name).backend(backend).build(move |job: RunOperation| {
        let handle = handle.clone();
        async move {
            handle(job.id).await;
            Ok::<(), BoxDynError>(())
        }
    });
    let mut events = worker.stream().boxed();
    // A job is handed over at once, so that there is none in the middle of anything when this is dropped.
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => drop(event?),
                None => return Ok(()),
            },
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}
