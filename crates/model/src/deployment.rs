//! A deployment: one try to bring one commit live.

use serde::{Deserialize, Serialize};

use crate::state::{IllegalTransition, words};

words! {
    /// Where a deployment is. `Queued` and `Running` are open, the others are ends.
    DeploymentStatus, "deployment status" {
        Queued = "queued",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
        /// A later push to the same branch took its place before it changed anything.
        Superseded = "superseded",
    }
}

/// What can happen to a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentEvent {
    Claimed,
    Succeeded,
    Failed,
    Cancelled,
    Superseded,
}

impl DeploymentStatus {
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    pub fn next(self, event: DeploymentEvent) -> Result<Self, IllegalTransition> {
        use DeploymentEvent as Event;
        match (self, event) {
            (Self::Queued | Self::Running, Event::Claimed) => Ok(Self::Running),
            (Self::Running, Event::Succeeded) => Ok(Self::Succeeded),
            (Self::Queued | Self::Running, Event::Failed) => Ok(Self::Failed),
            (Self::Queued | Self::Running, Event::Cancelled) => Ok(Self::Cancelled),
            (Self::Queued | Self::Running, Event::Superseded) => Ok(Self::Superseded),
            _ => Err(IllegalTransition { machine: "deployment", from: self.as_str(), event: format!("{event:?}") }),
        }
    }
}

words! {
    /// What started a deployment.
    Trigger, "trigger" {
        Push = "push",
        Webhook = "webhook",
        Manual = "manual",
        Api = "api",
    }
}

words! {
    /// The nodes of a deployment, in the order in which they run.
    StepName, "deployment step" {
        /// The commit and its submodules, exported from the mirror.
        Checkout = "checkout",
        /// Which modules are installed, which are updated, on which data.
        Plan = "plan",
        /// The immutable release: source, Python environment, addons path.
        Build = "build",
        /// Database and file store aside by reflink, or fresh ones. The live ones are not touched after it.
        Copy = "copy",
        /// Odoo installs and updates modules in the new data set.
        Update = "update",
        /// The other slot's Odoo starts and is proven by real requests.
        Start = "start",
        /// The edge points to it.
        Switch = "switch",
        /// It answers through the edge; then the old slot is let go.
        Verify = "verify",
    }
}

words! {
    StepStatus, "step status" {
        Pending = "pending",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        /// The step had succeeded and was taken back, since a later one failed.
        Undone = "undone",
        /// The deployment ended before this step.
        Skipped = "skipped",
    }
}

/// What a deployment does to the data of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataMode {
    /// An empty database; modules are installed.
    Fresh,
    /// A copy of the live data; modules are updated.
    Keep,
}

/// Which modules a deployment installs and updates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModulePlan {
    pub data: DataMode,
    /// Technical names, sorted.
    pub install: Vec<String>,
    /// Technical names, sorted. Empty when nothing that Odoo loads has changed.
    pub update: Vec<String>,
    /// Why, in words, a line each.
    pub reasons: Vec<String>,
}
