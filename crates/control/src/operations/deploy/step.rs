//! What stands around each node: its step's row and log, and how its undo runs.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable};
use futures::future::BoxFuture;
use ocore_host::{Fence, LogSink, Progress};
use ocore_model::deployment::{StepName, StepStatus};
use steno::ActionData;

use super::{Parameters, prove, release::Planned};
use crate::{
    Control, Error, Result,
    operations::saga::{Failure, FailureKind, NodeContext, failpoint},
    reconcilers::Quiet,
    routes,
    steps::StepLog,
    store,
};

/// One run of one step: what its function needs, and the step's row and log around it.
pub(super) struct Step {
    pub(super) context: NodeContext,
    pub(super) parameters: Parameters,
    log: Arc<dyn LogSink>,
    /// It has begun before, in a process that died or lost the operation.
    pub(super) again: bool,
    /// The new slot works beside the live one, on its data. Not known before the plan is made.
    pub(super) beside: bool,
    /// What runs is what would be started: it goes on, under the new commit's name.
    pub(super) same: bool,
}

/// What the plan decided, for a step, or for the node after the last one: `beside` and `same`.
fn decided(context: &NodeContext, parameters: &Parameters, step: Option<StepName>) -> Result<(bool, bool), Failure> {
    let has_plan = parameters.origin.steps(parameters.instance, parameters.stage).contains(&StepName::Plan);
    if !has_plan || step.is_some_and(|step| step <= StepName::Plan) {
        return Ok((false, false));
    }
    let planned = context.output::<Planned>("deploy::plan")?;
    Ok((planned.beside, planned.same))
}

impl Step {
    pub(super) fn control(&self) -> &Control {
        self.context.control()
    }

    pub(super) fn fence(&self) -> Fence {
        self.context.execution().fence()
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { log: self.log.clone(), cancel: self.context.execution().cancel.clone() }
    }

    /// Of what is live, which is not cancelled any more: it stops only with the process.
    pub(super) fn progress_of_live(&self) -> Progress {
        Progress { cancel: self.context.execution().halt.clone(), ..self.progress() }
    }

    /// Whether the deployment has this step.
    pub(super) fn has(&self, step: StepName) -> bool {
        self.parameters.origin.steps(self.parameters.instance, self.parameters.stage).contains(&step)
    }

    pub(super) fn say(&self, text: &str) {
        self.log.line(text);
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence")]
    pub(super) fn held(&self, held: bool) -> Result<(), Failure> {
        if held { Ok(()) } else { Err(Failure::fenced()) }
    }

    /// Requests wait at the edge from here on, and those that the live slot has begun to answer end, for a bounded time. To be called once the
    /// store says that the live slot rests, before it is paused. Without an edge the deployment is as good.
    pub(super) async fn hold_requests(&self) {
        if let Err(error) = routes::apply(self.control()).await {
            return self.say(&format!("the edge does not hold requests during the update: {error}"));
        }
        let http = self.parameters.live.as_ref().and_then(|live| live.http.as_deref()?.parse().ok());
        if let Some(http) = http {
            let since = Instant::now();
            prove::drain_to_rest(self.control(), self.parameters.instance, http).await;
            self.say(&format!("requests are held; those on their way were answered within {:.2} s", since.elapsed().as_secs_f64()));
        }
    }
}

/// Makes a function the node after the last step: it has no row, since the deployment is live, and cannot fail.
pub(super) fn last<Do, Doing>(action: Do) -> impl Fn(NodeContext) -> BoxFuture<'static, Result<(), Failure>> + Clone + Send + Sync + 'static
where
    Do: Fn(Arc<Step>) -> Doing + Clone + Send + Sync + 'static,
    Doing: Future<Output = Result<(), Failure>> + Send + 'static,
{
    move |context| {
        let action = action.clone();
        Box::pin(async move {
            let parameters: Parameters = context.parameters()?;
            let (beside, same) = decided(&context, &parameters, None)?;
            action(Arc::new(Step { context, parameters, log: Arc::new(Quiet), again: false, beside, same })).await
        })
    }
}

/// Makes a step's function a node's action: its row says that it runs, how it ended and when; its log is complete before it ends.
pub(super) fn step<Do, Doing, T>(
    name: StepName,
    action: Do,
) -> impl Fn(NodeContext) -> BoxFuture<'static, Result<T, Failure>> + Clone + Send + Sync + 'static
where
    Do: Fn(Arc<Step>) -> Doing + Clone + Send + Sync + 'static,
    Doing: Future<Output = Result<(T, String), Failure>> + Send + 'static,
    T: ActionData,
{
    move |context| {
        let action = action.clone();
        Box::pin(async move {
            let parameters: Parameters = context.parameters()?;
            let deployment = parameters.deployment;
            let (beside, same) = decided(&context, &parameters, Some(name))?;
            let control = context.control().clone();
            let cancel = context.execution().cancel.clone();
            // What is live is not cancelled any more.
            if cancel.is_cancelled() && name != StepName::Verify {
                return Err(Failure::cancelled());
            }
            let begun = persistently(|| async {
                store::steps::begin(&mut *control.pool.acquire().await?, deployment, name, control.clock.now()).await
            })
            .await?;
            let log = Arc::new(StepLog::start(control.pool.clone(), deployment, begun.id));
            let halt = context.execution().halt.clone();
            let result = action(Arc::new(Step { context, parameters, log: log.clone(), again: begun.again, beside, same })).await;
            failpoint(|| format!("deploy::{name}")).await;
            log.flush().await;
            let (status, summary, result) = match result {
                Err(failure) if failure.kind == FailureKind::Fenced => return Err(failure),
                _ if halt.is_cancelled() => return Err(Failure::fenced()),
                Ok((output, summary)) => (StepStatus::Succeeded, summary, Ok(output)),
                Err(failure) => (StepStatus::Failed, failure.message.clone(), Err(failure)),
            };
            persistently(|| async {
                store::steps::end(&mut *control.pool.acquire().await?, begun.id, status, &summary, control.clock.now()).await
            })
            .await?;
            result
        })
    }
}

/// One run of an undo. It is not cancelled; it stops only with the process.
pub(super) struct UndoStep {
    pub(super) context: Arc<NodeContext>,
    pub(super) parameters: Parameters,
    /// As of [`Step`].
    pub(super) beside: bool,
    pub(super) same: bool,
}

impl UndoStep {
    pub(super) fn control(&self) -> &Control {
        self.context.control()
    }

    pub(super) fn fence(&self) -> Fence {
        self.context.execution().fence()
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { log: Arc::new(Quiet), cancel: self.context.execution().halt.clone() }
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence")]
    pub(super) fn held(&self, held: bool) -> Result<(), Failure> {
        if held { Ok(()) } else { Err(Failure::fenced()) }
    }
}

/// Makes a function a node's undo, and marks the steps that it takes back.
pub(super) fn undo<Undo, Undoing>(
    steps: &'static [StepName],
    action: Undo,
) -> impl Fn(Arc<NodeContext>) -> BoxFuture<'static, Result<(), Failure>> + Clone + Send + Sync + 'static
where
    Undo: Fn(Arc<UndoStep>) -> Undoing + Clone + Send + Sync + 'static,
    Undoing: Future<Output = Result<(), Failure>> + Send + 'static,
{
    move |context| {
        let action = action.clone();
        Box::pin(async move {
            let parameters: Parameters = context.parameters()?;
            let deployment = parameters.deployment;
            let control = context.control().clone();
            let (beside, same) = decided(&context, &parameters, steps.first().copied())?;
            action(Arc::new(UndoStep { context, parameters, beside, same })).await?;
            for name in steps {
                store::steps::mark_undone(&mut *control.pool.acquire().await?, deployment, *name).await?;
            }
            Ok(())
        })
    }
}

/// Waits out a store that is away for a while.
pub(super) async fn persistently<Call, Calling, T>(call: Call) -> Result<T>
where
    Call: FnMut() -> Calling,
    Calling: Future<Output = Result<T>>,
{
    call.retry(
        ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_max_delay(Duration::from_secs(5)).with_max_times(30),
    )
    .when(|error| matches!(error, Error::Unavailable { .. }))
    .await
}
