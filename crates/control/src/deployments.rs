//! Deployments: their list, their detail, following one live.

use std::pin::Pin;

use futures::Stream;
use ocore_model::{
    deployment::{DeploymentStatus, StepName, StepStatus},
    ids::DeploymentId,
};

use crate::{Control, Result};

/// One thing that a follower of a deployment sees.
#[derive(Debug, Clone)]
pub enum Progress {
    /// The deployment's own state changed.
    Status { status: DeploymentStatus, message: Option<String>, excerpt: Option<String> },
    /// A step's state changed.
    Step { name: StepName, status: StepStatus, summary: String, duration_ms: Option<i64> },
    /// A line of a step's log.
    Line { step: StepName, text: String },
}

/// Progress with its place in the stream; a follower that comes back says the last one it saw and misses nothing.
#[derive(Debug, Clone)]
pub struct ProgressEvent {
    pub cursor: Cursor,
    pub progress: Progress,
}

/// Positions in the two growing tables behind a deployment's stream. Text form `<event>.<line>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    pub event: i64,
    pub line: i64,
}

/// Everything of a deployment after `cursor`, then what comes, until it has ended. Lives on NOTIFY with a slow poll behind it.
pub fn follow(_control: &Control, _deployment: DeploymentId, _after: Cursor) -> Pin<Box<dyn Stream<Item = Result<ProgressEvent>> + Send>> {
    unimplemented!()
}
