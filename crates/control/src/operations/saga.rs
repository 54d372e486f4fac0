//! Sagas: how a node of an operation is written, and how steno runs one from its log.
//!
//! steno undoes a node whose action has succeeded, never one whose action has failed or was cut off half-way. Ours leave half-made things
//! behind when they fail, so what takes a node back stands in a node of its own *before* it ([`Graph::step`]): its action does nothing and
//! has always succeeded, its undo takes back whatever the node after it has done, be it all, half or nothing.

use std::{fmt, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use futures::FutureExt;
use ocore_host::{Fence, HostError};
use ocore_model::ids::{InstanceId, OperationId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use steno::{
    Action, ActionContext, ActionData, ActionError, ActionFunc, ActionRegistry, DagBuilder, Node, SagaDag, SagaName, SagaType,
    new_action_noop_undo,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Control, Error};

/// How often an undo is tried before its operation is stuck.
const UNDO_TRIES: usize = 4;
const UNDO_FIRST_DELAY: Duration = Duration::from_millis(500);

/// Our sagas, for steno.
#[derive(Debug)]
pub(super) struct Operations;

impl SagaType for Operations {
    type ExecContextType = Execution;
}

/// One run of an operation in this process, from its claim to its end.
pub(super) struct Execution {
    pub control: Control,
    pub id: OperationId,
    pub instance: InstanceId,
    /// Raised by the claim; every effect carries it.
    pub generation: i64,
    /// Somebody asked the operation to stop: nodes fail, and what was done is taken back.
    pub cancel: CancellationToken,
    /// This process goes, or has lost the operation to another: nothing more is done or recorded, and nothing is taken back.
    pub halt: CancellationToken,
    /// The nodes that run now.
    pub(super) nodes: TaskTracker,
}

impl fmt::Debug for Execution {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Execution").field("id", &self.id).field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Execution {
    pub(super) fn fence(&self) -> Fence {
        Fence { operation: self.id, generation: self.generation }
    }
}

/// Why a node failed, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub kind: FailureKind,
    /// One sentence for the person who asked.
    pub message: String,
    /// The part of a log that shows it; empty when the sentence says it all.
    #[serde(default)]
    pub excerpt: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FailureKind {
    /// What was asked for cannot be done as it is.
    Rejected,
    /// The server or oCore failed.
    Broken,
    Cancelled,
    Superseded,
    /// Another claim has taken over. Never recorded.
    Fenced,
}

impl Failure {
    pub(super) fn rejected(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Rejected, message: message.into(), excerpt: String::new() }
    }

    pub(super) fn broken(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Broken, message: message.into(), excerpt: String::new() }
    }

    /// Another claim has taken over: nothing of this run counts any more.
    pub(super) fn fenced() -> Self {
        Self { kind: FailureKind::Fenced, message: String::new(), excerpt: String::new() }
    }

    pub(super) fn cancelled() -> Self {
        Self { kind: FailureKind::Cancelled, message: "cancelled".to_owned(), excerpt: String::new() }
    }

    pub(super) fn superseded() -> Self {
        Self { kind: FailureKind::Superseded, message: "a later push took its place".to_owned(), excerpt: String::new() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let kind = match &error {
            HostError::Rejected { .. } => FailureKind::Rejected,
            HostError::Fenced { .. } => FailureKind::Fenced,
            HostError::Cancelled => FailureKind::Cancelled,
            HostError::NotFound { .. } | HostError::Machine { .. } => FailureKind::Broken,
        };
        if kind == FailureKind::Broken {
            tracing::warn!(error = %Chain(&error), "a call to the server's host failed");
        }
        Self { kind, message: error.to_string(), excerpt: error.excerpt().to_owned() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::Internal { context, .. } = &error {
            tracing::error!(context, error = %Chain(&error), "an operation failed inside oCore");
        }
        Self::broken(error.to_string())
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Error::from(error).into()
    }
}

/// An error with its sources, for the log.
pub(super) struct Chain<'a>(pub(super) &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(formatter, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// What a node sees: its execution, the operation's parameters, what the nodes before it gave.
pub(super) struct NodeContext {
    steno: ActionContext<Operations>,
}

impl NodeContext {
    pub(super) fn execution(&self) -> &Execution {
        self.steno.user_data()
    }

    pub(super) fn control(&self) -> &Control {
        &self.execution().control
    }

    pub(super) fn parameters<P: ActionData>(&self) -> Result<P, Failure> {
        self.steno.saga_params().map_err(unreadable)
    }

    /// What an earlier node gave. Asking for a node that does not stand before this one is a mistake in the graph.
    pub(super) fn output<T: DeserializeOwned + ActionData>(&self, node: &str) -> Result<T, Failure> {
        self.steno.lookup(node).map_err(unreadable)
    }
}

fn unreadable(error: ActionError) -> Failure {
    tracing::error!(%error, "an operation's own record cannot be read");
    Failure::broken("the record of this operation cannot be read by this version of oCore; ask for it again")
}

/// A registry of actions and a graph that grows together with it: an operation's file names each node once, its undo beside it.
pub(super) struct Graph {
    registry: ActionRegistry<Operations>,
    nodes: Vec<(&'static str, Node)>,
}

impl Default for Graph {
    fn default() -> Self {
        Self { registry: ActionRegistry::new(), nodes: Vec::new() }
    }
}

impl Graph {
    /// A node that leaves nothing to take back. `name` is unique among all operations' nodes: `deploy::build`.
    #[must_use]
    pub(super) fn then<Do, Doing, T>(mut self, name: &'static str, action: Do) -> Self
    where
        Do: Fn(NodeContext) -> Doing + Clone + Send + Sync + 'static,
        Doing: Future<Output = Result<T, Failure>> + Send + 'static,
        T: ActionData,
    {
        let action = new_action_noop_undo(name, move |steno| run(name, NodeContext { steno }, action.clone()));
        self.add(name, action);
        self
    }

    /// A node with what takes it back. The undo sees what came before the node, not what it gave.
    #[must_use]
    pub(super) fn step<Do, Doing, T, Undo, Undoing>(self, name: &'static str, action: Do, undo_name: &'static str, undo: Undo) -> Self
    where
        Do: Fn(NodeContext) -> Doing + Clone + Send + Sync + 'static,
        Doing: Future<Output = Result<T, Failure>> + Send + 'static,
        T: ActionData,
        Undo: Fn(Arc<NodeContext>) -> Undoing + Clone + Send + Sync + 'static,
        Undoing: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let mut graph = self;
        let guard = ActionFunc::new_action(
            undo_name,
            |_| async { Ok(()) },
            move |steno| take_back(undo_name, Arc::new(NodeContext { steno }), undo.clone()),
        );
        graph.add(undo_name, guard);
        graph.then(name, action)
    }

    /// Leaves out the nodes that are not wanted; their actions stay registered.
    #[must_use]
    pub(super) fn only(mut self, wanted: impl Fn(&str) -> bool) -> Self {
        self.nodes.retain(|(name, _)| wanted(name));
        self
    }

    fn add(&mut self, name: &'static str, action: Arc<dyn Action<Operations>>) {
        self.nodes.push((name, Node::action(name, name, &*action)));
        self.registry.register(action);
    }

    /// The actions by name, and the graph for these parameters: one node after the other.
    pub(super) fn build<P: Serialize>(self, name: &str, parameters: &P) -> Result<(Arc<ActionRegistry<Operations>>, Arc<SagaDag>), Error> {
        let mut builder = DagBuilder::new(SagaName::new(name));
        for (_, node) in self.nodes {
            builder.append(node);
        }
        let dag = builder.build().map_err(|error| Error::internal("building an operation's graph", error))?;
        let parameters = serde_json::to_value(parameters).map_err(|error| Error::internal("writing an operation's parameters", error))?;
        Ok((Arc::new(self.registry), Arc::new(SagaDag::new(dag, parameters))))
    }

    /// Only the actions, for a graph that was stored.
    pub(super) fn into_registry(self) -> Arc<ActionRegistry<Operations>> {
        Arc::new(self.registry)
    }
}

/// Runs a node's action once. When the process goes or has lost the operation, it never ends: then nothing is recorded, and whoever has the
/// operation next runs the node again.
async fn run<Do, Doing, T>(name: &'static str, context: NodeContext, action: Do) -> Result<T, ActionError>
where
    Do: Fn(NodeContext) -> Doing,
    Doing: Future<Output = Result<T, Failure>>,
{
    let halt = context.execution().halt.clone();
    let execution = ExecutionName { id: context.execution().id, generation: context.execution().generation };
    let node = context.execution().nodes.token();
    reach(name, "before").await;
    let result = if halt.is_cancelled() {
        Err(Failure::fenced())
    } else {
        AssertUnwindSafe(action(context)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(node = name, operation = %execution.id, "a node panicked");
            Err(Failure::broken("something went wrong inside oCore; the server's log has it"))
        })
    };
    reach(name, "after").await;
    drop(node);
    match result {
        Err(Failure { kind: FailureKind::Fenced, .. }) => halted(name, &execution, &halt).await,
        _ if halt.is_cancelled() => halted(name, &execution, &halt).await,
        Ok(output) => Ok(output),
        Err(failure) => {
            tracing::info!(node = name, operation = %execution.id, kind = ?failure.kind, message = failure.message, "a node failed");
            Err(ActionError::action_failed(failure))
        }
    }
}

/// Runs a node's undo until it goes through, a bounded number of times.
async fn take_back<Undo, Undoing>(name: &'static str, context: Arc<NodeContext>, undo: Undo) -> Result<(), anyhow::Error>
where
    Undo: Fn(Arc<NodeContext>) -> Undoing,
    Undoing: Future<Output = Result<(), Failure>>,
{
    let halt = context.execution().halt.clone();
    let execution = ExecutionName { id: context.execution().id, generation: context.execution().generation };
    let node = context.execution().nodes.token();
    reach(name, "before").await;
    let once = || {
        let (context, halt, undo) = (context.clone(), halt.clone(), &undo);
        async move {
            if halt.is_cancelled() {
                return Err(Failure::fenced());
            }
            AssertUnwindSafe(undo(context)).catch_unwind().await.unwrap_or_else(|_| Err(Failure::broken("the undo panicked")))
        }
    };
    let result = once
        .retry(ExponentialBuilder::default().with_min_delay(UNDO_FIRST_DELAY).with_factor(3.0).with_max_times(UNDO_TRIES - 1))
        .when(|failure| failure.kind != FailureKind::Fenced && !halt.is_cancelled())
        .notify(|failure, delay| tracing::warn!(node = name, operation = %execution.id, message = failure.message, ?delay, "an undo failed; it is tried again"))
        .await;
    reach(name, "after").await;
    drop(node);
    match result {
        Err(Failure { kind: FailureKind::Fenced, .. }) => halted(name, &execution, &halt).await,
        _ if halt.is_cancelled() => halted(name, &execution, &halt).await,
        Ok(()) => Ok(()),
        Err(failure) => {
            tracing::error!(node = name, operation = %execution.id, message = failure.message, "an undo failed for good");
            Err(anyhow::anyhow!("{}", failure.message))
        }
    }
}

struct ExecutionName {
    id: OperationId,
    generation: i64,
}

async fn halted(name: &str, execution: &ExecutionName, halt: &CancellationToken) -> ! {
    halt.cancel();
    tracing::info!(node = name, operation = %execution.id, generation = execution.generation, "left to whoever takes the operation over");
    std::future::pending().await
}

/// The failpoints around a node: `deploy::before_build`, and `deploy::after_build` when its effect is there and its record is not.
async fn reach(name: &'static str, place: &str) {
    failpoint(|| name.replacen("::", &format!("::{place}_"), 1)).await;
}

/// A failpoint: `return` ends the process there as `kill -9` would, `pause` and `sleep` hold the operation there, and nothing else.
#[cfg(feature = "failpoints")]
pub(crate) async fn failpoint(name: impl FnOnce() -> String) {
    fn evaluate(point: &str) {
        fail::fail_point!(point, |_| std::process::abort());
    }
    let name = name();
    // What holds it blocks its thread; the runtime's own go on.
    let _ = tokio::task::spawn_blocking(move || evaluate(&name)).await;
}

#[cfg(not(feature = "failpoints"))]
#[allow(clippy::unused_async, reason = "the same signature as with failpoints")]
pub(crate) async fn failpoint(_name: impl FnOnce() -> String) {}
