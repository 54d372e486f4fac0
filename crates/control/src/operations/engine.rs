//! The engine: claims operations, runs their sagas, ends them.
//!
//! The queue brings ids; a claim decides in one transaction whether this process runs the operation now: it is queued or its worker is dead,
//! its instance is free, and none that was asked for earlier is open. The claim raises the instance's generation, which everything that the
//! operation does carries: whoever held it before is refused from then on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ocore_model::{
    ids::{DeploymentId, OperationId},
    operation::{OperationEvent, OperationStatus},
};
use steno::{ActionError, SagaDag, SagaId, SagaNodeEvent, SagaNodeEventType, SagaNodeId, SagaResult, SecClient};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    OperationKind, SCHEMA_VERSION,
    pulse::{Heard, Pulse},
    queue,
    saga::{Execution, Failure, FailureKind},
    saga_store::{OperationLog, node_number},
    sweeper,
};
use crate::{
    Control, Error, Result,
    store::{self, operations::OperationRow},
};

/// How long a stopping engine waits for its nodes to notice.
const GRACE: Duration = Duration::from_secs(10);

/// How an operation ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Succeeded,
    /// And everything is taken back.
    Failed(Failure),
    /// And taking it back failed too, with this sentence.
    Stuck(Failure, String),
}

impl Outcome {
    fn status(&self) -> OperationStatus {
        match self {
            Self::Succeeded => OperationStatus::Succeeded,
            Self::Failed(_) => OperationStatus::Failed,
            Self::Stuck(..) => OperationStatus::Stuck,
        }
    }

    fn error(&self) -> Option<String> {
        match self {
            Self::Succeeded => None,
            Self::Failed(failure) => Some(failure.message.clone()),
            Self::Stuck(failure, undo) => Some(format!("{}; taking it back failed too: {undo}", failure.message)),
        }
    }
}

/// What a test has steno do to every operation of an engine.
#[derive(Debug, Clone, Copy)]
pub enum Injection {
    /// The node fails instead of running.
    Fail(&'static str),
    /// The undo of the node fails instead of running.
    FailUndo(&'static str),
    /// The node's action and undo run twice in a row.
    Repeat(&'static str),
}

/// A running engine. Dropping it does not stop it; its `shutdown` token does, and then [`Engine::stopped`] waits.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) control: Control,
    pub(super) worker: Uuid,
    in_hand: Mutex<HashMap<OperationId, InHand>>,
    /// One for each deployment that may run at a time.
    permits: Semaphore,
    pub(super) halt: CancellationToken,
    tasks: TaskTracker,
    nodes: TaskTracker,
    injections: Vec<Injection>,
}

/// An operation that this process looks at, waits with or runs.
struct InHand {
    deployment: Option<DeploymentId>,
    cancel: CancellationToken,
    /// Somebody brought it again meanwhile.
    again: bool,
}

enum Claim {
    Taken(Box<OperationRow>),
    /// Another one has the instance, or a living worker has the operation.
    NotYet,
    /// It has ended.
    Ended,
}

impl Engine {
    /// Starts to work. Operations of dead workers, this process's former self among them, go on at once.
    pub async fn start(control: Control, shutdown: CancellationToken) -> Result<Self> {
        Self::start_with(control, shutdown, Vec::new()).await
    }

    /// As [`Engine::start`], with what a test wants to see go wrong.
    pub async fn start_with(control: Control, shutdown: CancellationToken, injections: Vec<Injection>) -> Result<Self> {
        let worker = Uuid::new_v4();
        let (wakes, woken) = watch::channel(0);
        let (heard, hears) = mpsc::unbounded_channel();
        let pulse = Pulse::new(control.pool.clone(), worker, wakes, heard);
        let listener = pulse.connect().await?;
        let engine = Self {
            inner: Arc::new(Inner {
                permits: Semaphore::new(control.settings.parallel_operations.max(1)),
                in_hand: Mutex::new(HashMap::new()),
                halt: shutdown.child_token(),
                tasks: TaskTracker::new(),
                nodes: TaskTracker::new(),
                control,
                worker,
                injections,
            }),
        };
        sweeper::retry_stuck(&engine.inner.control).await?;
        let inner = &engine.inner;
        // The pulse outlives the nodes: while one of them still ends, nobody else may take its operation.
        let nodes_ended = CancellationToken::new();
        inner.tasks.spawn(pulse.beat(listener, nodes_ended.clone()));
        inner.tasks.spawn(sweeper::run(inner.clone(), hears));
        let handler = inner.clone();
        inner.tasks.spawn(queue::work(
            inner.control.pool.clone(),
            worker,
            woken,
            move |id| {
                let inner = handler.clone();
                async move { inner.take(id) }
            },
            inner.halt.clone(),
        ));
        let ending = inner.clone();
        inner.tasks.spawn(async move {
            ending.halt.cancelled().await;
            ending.nodes.close();
            if tokio::time::timeout(GRACE, ending.nodes.wait()).await.is_err() {
                tracing::warn!("some steps of operations did not stop in time; the next start takes them over");
            }
            nodes_ended.cancel();
        });
        inner.tasks.close();
        tracing::info!(%worker, "the operations engine works");
        Ok(engine)
    }

    /// Waits until nothing of the engine runs any more, after its shutdown token was cancelled. Interrupted operations go on at the next start.
    pub async fn stopped(&self) {
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    /// Looks at an operation and runs it when it may run, in a task of its own.
    pub(super) fn take(self: &Arc<Self>, id: OperationId) {
        if self.halt.is_cancelled() {
            return;
        }
        {
            let mut in_hand = self.in_hand();
            if let Some(there) = in_hand.get_mut(&id) {
                there.again = true;
                return;
            }
            in_hand.insert(id, InHand { deployment: None, cancel: self.halt.child_token(), again: false });
        }
        let inner = self.clone();
        self.tasks.spawn(
            async move {
                loop {
                    let next = match inner.carry(id).await {
                        Ok(next) => next,
                        Err(error) => {
                            tracing::error!(error = %super::saga::Chain(&error), "an operation could not be carried on; the sweeper brings it again");
                            None
                        }
                    };
                    if let Some(next) = next {
                        inner.take(next);
                    }
                    let mut in_hand = inner.in_hand();
                    match in_hand.get_mut(&id) {
                        Some(there) if there.again && !inner.halt.is_cancelled() => there.again = false,
                        _ => {
                            in_hand.remove(&id);
                            return;
                        }
                    }
                }
            }
            .instrument(tracing::info_span!(parent: None, "operation", %id)),
        );
    }

    fn in_hand(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, InHand>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_in_hand(&self, id: OperationId) -> bool {
        self.in_hand().contains_key(&id)
    }

    /// The deployments that this process waits with or runs.
    pub(super) fn deployments_in_hand(&self) -> Vec<DeploymentId> {
        self.in_hand().values().filter_map(|there| there.deployment).collect()
    }

    /// Asks the operation of a deployment to stop.
    pub(super) fn cancel(&self, deployment: DeploymentId) {
        for there in self.in_hand().values() {
            if there.deployment == Some(deployment) {
                there.cancel.cancel();
            }
        }
    }

    /// Runs an operation to its end if it can be claimed. Gives the next one of the same instance.
    async fn carry(self: &Arc<Self>, id: OperationId) -> Result<Option<OperationId>> {
        let Some(row) = store::operations::find(&mut *self.control.pool.acquire().await?, id).await? else {
            return Ok(None);
        };
        if row.status.is_end() || row.status == OperationStatus::Stuck {
            return Ok(None);
        }
        let cancel = {
            let mut in_hand = self.in_hand();
            let Some(there) = in_hand.get_mut(&id) else { return Ok(None) };
            there.deployment = row.deployment_id;
            there.cancel.clone()
        };
        // Deployments wait for their turn before the claim: what waits can still be superseded, and holds nothing.
        let _permit = if row.deployment_id.is_some() {
            tokio::select! {
                permit = self.permits.acquire() => permit.ok(),
                () = self.halt.cancelled() => return Ok(None),
            }
        } else {
            None
        };
        match self.claim(&row).await? {
            Claim::Taken(row) => {
                let instance = row.instance_id;
                self.run(*row, cancel).await?;
                if self.halt.is_cancelled() {
                    return Ok(None);
                }
                store::operations::next_of_instance(&mut *self.control.pool.acquire().await?, instance).await
            }
            Claim::NotYet | Claim::Ended => Ok(None),
        }
    }

    async fn claim(&self, seen: &OperationRow) -> Result<Claim> {
        let now = self.control.clock.now();
        let mut transaction = self.control.pool.begin().await?;
        let Some(instance) = store::operations::lock_instance(&mut transaction, seen.instance_id).await? else {
            return Ok(Claim::Ended);
        };
        let Some(mut row) = store::operations::lock(&mut transaction, seen.id).await? else {
            return Ok(Claim::Ended);
        };
        if row.status.next(OperationEvent::Claimed).is_err() {
            return Ok(Claim::Ended);
        }
        let kind = OperationKind::read(&row)?;
        if row.status == OperationStatus::Running {
            // Ours and not in hand: its task died. Another's: it is ours when that one is dead.
            let alive = match row.claimed_by {
                Some(worker) if worker != self.worker => !store::operations::is_dead(&mut transaction, worker).await?,
                _ => false,
            };
            if alive {
                return Ok(Claim::NotYet);
            }
        } else {
            let held = instance.operation_id.is_some_and(|holder| holder != row.id);
            // What is stuck cannot be harmed any more by tearing its instance down.
            let over_stuck = instance.operation_status == Some(OperationStatus::Stuck) && kind == OperationKind::Destroy;
            if held && !over_stuck {
                return Ok(Claim::NotYet);
            }
            if store::operations::is_behind_another(&mut transaction, row.instance_id, row.id).await? {
                return Ok(Claim::NotYet);
            }
        }
        row.generation = store::operations::claim(&mut transaction, row.id, row.instance_id, self.worker, now).await?;
        kind.claimed(&mut transaction, &row, now).await?;
        transaction.commit().await?;
        tracing::info!(kind = kind.word(), generation = row.generation, resumed = row.dag.is_some(), "claimed");
        Ok(Claim::Taken(Box::new(row)))
    }

    async fn run(&self, row: OperationRow, cancel: CancellationToken) -> Result<()> {
        let kind = OperationKind::read(&row)?;
        let halt = self.halt.child_token();
        let execution = Arc::new(Execution {
            control: self.control.clone(),
            id: row.id,
            instance: row.instance_id,
            generation: row.generation,
            // A cancelled token may be handed down, a halted one must be: so the nodes' token hangs on both.
            cancel: joined(&halt, &cancel),
            halt: halt.clone(),
            nodes: self.nodes.clone(),
        });
        let _ended = execution.cancel.clone().drop_guard();
        if kind.must_stop(&execution).await? {
            execution.cancel.cancel();
        }
        let log = Arc::new(OperationLog { pool: self.control.pool.clone(), id: row.id, generation: row.generation, halt: halt.clone() });
        let outcome = match self.start_saga(&row, &kind, &execution, &log).await? {
            Begun::Running(sec, ended) => {
                let result = tokio::select! {
                    result = ended => result,
                    () = halt.cancelled() => return Ok(()),
                };
                drop(sec);
                outcome(result)
            }
            Begun::Ended(outcome) => outcome,
        };
        self.settle(&kind, &execution, outcome).await
    }

    async fn start_saga(
        &self,
        row: &OperationRow,
        kind: &OperationKind,
        execution: &Arc<Execution>,
        log: &Arc<OperationLog>,
    ) -> Result<Begun> {
        let saga: SagaId = row.id.to_string().parse().map_err(|error| Error::internal("naming a saga", error))?;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let Some(dag) = row.dag.clone() else {
            let (registry, dag) = match kind.graph(&self.control, row).await {
                Ok(graph) => graph,
                Err(failure) => return Ok(Begun::Ended(Outcome::Failed(failure))),
            };
            let sec = steno::sec(logger, log.clone());
            let created = sec.saga_create(saga, execution.clone(), dag.clone(), registry).await;
            let ended = created.map_err(|error| broken("beginning an operation", &error))?;
            self.inject(&sec, saga, &dag).await?;
            sec.saga_start(saga).await.map_err(|error| broken("starting an operation", &error))?;
            return Ok(Begun::Running(sec, Box::pin(ended)));
        };
        let events = store::operations::events(&mut *self.control.pool.acquire().await?, row.id).await?;
        let mut events = events
            .into_iter()
            .map(serde_json::from_value)
            .collect::<std::result::Result<Vec<SagaNodeEvent>, _>>()
            .map_err(|error| Error::internal("reading the log of an operation", error))?;
        if row.schema_version != SCHEMA_VERSION {
            match unwinding(saga, &dag, &events)? {
                Unwind::NothingDone => return Ok(Begun::Ended(Outcome::Failed(of_another_version()))),
                Unwind::After(more) => {
                    for event in more {
                        if !log.write(&event).await? {
                            execution.halt.cancel();
                            return Err(Error::broken("another claim has taken over"));
                        }
                        events.push(event);
                    }
                }
            }
        }
        let sec = steno::sec(logger, log.clone());
        let parsed: SagaDag =
            serde_json::from_value(dag.clone()).map_err(|error| Error::internal("reading the graph of an operation", error))?;
        let ended = match sec.saga_resume(saga, execution.clone(), dag, kind.registry(), events).await {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "an operation's log does not fit this version of oCore");
                let failure = of_another_version();
                return Ok(Begun::Ended(Outcome::Stuck(failure, "its log does not fit this version of oCore".to_owned())));
            }
        };
        self.inject(&sec, saga, &parsed).await?;
        sec.saga_start(saga).await.map_err(|error| broken("resuming an operation", &error))?;
        Ok(Begun::Running(sec, Box::pin(ended)))
    }

    async fn inject(&self, sec: &SecClient, saga: SagaId, dag: &SagaDag) -> Result<()> {
        for injection in &self.injections {
            let (Injection::Fail(node) | Injection::FailUndo(node) | Injection::Repeat(node)) = injection;
            let Ok(index) = dag.get_index(node) else { continue };
            let injected = match injection {
                Injection::Fail(_) => sec.saga_inject_error(saga, index).await,
                Injection::FailUndo(_) => sec.saga_inject_error_undo(saga, index).await,
                Injection::Repeat(_) => {
                    let twice = std::num::NonZeroU32::MIN.saturating_add(1);
                    sec.saga_inject_repeat(saga, index, steno::RepeatInjected { action: twice, undo: twice }).await
                }
            };
            injected.map_err(|error| broken("injecting into an operation", &error))?;
        }
        Ok(())
    }

    /// Writes the end, and what it means for the deployment and the instance, in one transaction.
    async fn settle(&self, kind: &OperationKind, execution: &Execution, outcome: Outcome) -> Result<()> {
        let now = self.control.clock.now();
        let mut transaction = self.control.pool.begin().await?;
        store::operations::lock_instance(&mut transaction, execution.instance).await?;
        let error = outcome.error();
        let completed = store::operations::complete(
            &mut transaction,
            execution.id,
            execution.instance,
            execution.generation,
            outcome.status(),
            error.as_deref(),
            now,
        )
        .await?;
        if !completed {
            tracing::warn!("another claim has taken the operation over; its end is not ours to write");
            return Ok(());
        }
        kind.settled(&mut transaction, execution, &outcome, now).await?;
        transaction.commit().await?;
        tracing::info!(kind = kind.word(), status = %outcome.status(), error, "ended");
        kind.after(&self.control, execution, &outcome).await;
        Ok(())
    }

    /// Every operation here that should stop: looks at the rows again. For signals that were missed.
    pub(super) async fn look_for_stops(&self) -> Result<()> {
        for deployment in self.deployments_in_hand() {
            if super::deploy::must_stop(&mut *self.control.pool.acquire().await?, deployment).await? {
                self.cancel(deployment);
            }
        }
        Ok(())
    }

    pub(super) async fn hear(&self, heard: Heard) -> Result<()> {
        match heard {
            Heard::Stop(deployment) => {
                if super::deploy::must_stop(&mut *self.control.pool.acquire().await?, deployment).await? {
                    self.cancel(deployment);
                }
                Ok(())
            }
            Heard::Resync => self.look_for_stops().await,
        }
    }
}

enum Begun {
    Running(SecClient, futures::future::BoxFuture<'static, SagaResult>),
    Ended(Outcome),
}

/// A token that is cancelled when either of two is.
fn joined(parent: &CancellationToken, other: &CancellationToken) -> CancellationToken {
    let joined = parent.child_token();
    let (follower, other) = (joined.clone(), other.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = other.cancelled() => follower.cancel(),
            () = follower.cancelled() => {}
        }
    });
    joined
}

fn outcome(result: SagaResult) -> Outcome {
    match result.kind {
        Ok(_) => Outcome::Succeeded,
        Err(error) => {
            let failure = failure_of(error.error_source);
            match error.undo_failure {
                None => Outcome::Failed(failure),
                Some((node, steno::UndoActionError::PermanentFailure { source_error })) => {
                    let message = source_error.get("message").and_then(|message| message.as_str()).unwrap_or("the undo failed");
                    Outcome::Stuck(failure, format!("{}: {message}", node.as_ref()))
                }
            }
        }
    }
}

fn failure_of(error: ActionError) -> Failure {
    match error {
        ActionError::InjectedError => Failure::broken("an error was injected by a test"),
        other => other.convert::<Failure>().unwrap_or_else(|error| {
            tracing::error!(%error, "an operation failed in a way that its log cannot tell");
            Failure::broken("something went wrong inside oCore; the server's log has it")
        }),
    }
}

fn of_another_version() -> Failure {
    Failure {
        kind: FailureKind::Broken,
        message: "oCore was upgraded while this ran, and it was taken back; ask for it again".to_owned(),
        excerpt: String::new(),
    }
}

fn broken(doing: &str, error: &anyhow::Error) -> Error {
    Error::broken(format!("{doing}: {error:#}"))
}

/// What makes an interrupted saga unwind instead of going on.
#[derive(Debug)]
enum Unwind {
    NothingDone,
    /// These events, after those that are there.
    After(Vec<SagaNodeEvent>),
}

/// The nodes of our graphs stand in one line, so there is one place to fail: the node that was interrupted, or the first that never began.
fn unwinding(saga: SagaId, dag: &serde_json::Value, events: &[SagaNodeEvent]) -> Result<Unwind> {
    let dag: SagaDag = serde_json::from_value(dag.clone()).map_err(|error| Error::internal("reading the graph of an operation", error))?;
    let of_node = |index: usize| events.iter().filter(move |event| node_number(event) as usize == index);
    let failed = |index: usize| SagaNodeEvent {
        saga_id: saga,
        node_id: SagaNodeId::from(index as u32),
        event_type: SagaNodeEventType::Failed(ActionError::action_failed(of_another_version())),
    };
    if events.iter().any(|event| matches!(event.event_type, SagaNodeEventType::Failed(_) | SagaNodeEventType::UndoStarted)) {
        return Ok(Unwind::After(Vec::new()));
    }
    let mut begun = false;
    for node in dag.get_nodes() {
        let index = node.index().index();
        if of_node(index).any(|event| matches!(event.event_type, SagaNodeEventType::Succeeded(_))) {
            begun = true;
            continue;
        }
        if of_node(index).next().is_some() {
            return Ok(Unwind::After(vec![failed(index)]));
        }
        if !begun {
            return Ok(Unwind::NothingDone);
        }
        let started = SagaNodeEvent { event_type: SagaNodeEventType::Started, ..failed(index) };
        return Ok(Unwind::After(vec![started, failed(index)]));
    }
    Ok(Unwind::After(Vec::new()))
}
