//! A deployment: one try to bring one commit live.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    environment::Stage,
    ids::{EnvironmentId, ImportId, InstanceId, SnapshotId},
    plan::{Change, Way},
    state::{IllegalTransition, words},
};

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
        /// Somebody cloned another environment into this one.
        Clone = "clone",
        /// Somebody went back to a snapshot.
        Rollback = "rollback",
        /// Somebody brought in the data of an Odoo that ran elsewhere.
        Import = "import",
    }
}

words! {
    /// The nodes of a deployment, in the order in which they run. Which of them one has follows from where its data come from
    /// ([`DataOrigin::steps`]).
    StepName, "deployment step" {
        /// The commit and its submodules, exported from the mirror.
        Checkout = "checkout",
        /// The data of the environment that is cloned, at one moment, while it serves.
        Snapshot = "snapshot",
        /// Which modules are installed, which are updated, on which data.
        Plan = "plan",
        /// The immutable release: source, Python environment, addons path.
        Build = "build",
        /// The update on a throw-away copy of the live data, where the project wants that.
        Rehearse = "rehearse",
        /// Database and file store aside by reflink, or fresh ones. The live ones are not touched after it.
        Copy = "copy",
        /// Odoo installs and updates modules in the new data set.
        Update = "update",
        /// A raw copy is made harmless, checked and reported on.
        Neutralize = "neutralize",
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

/// Where the data come from that a deployment brings its commit live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DataOrigin {
    /// An empty database; modules are installed.
    Fresh,
    /// A copy of what is live in the instance; modules are updated. With nothing live, a clone of the environment that this one was cloned
    /// from, or a fresh database.
    Live,
    /// A snapshot, with the release that ran on it. Nothing is updated.
    Snapshot {
        snapshot: SnapshotId,
        /// The instance whose data it holds. Another's are made harmless, unless the target is production.
        of: InstanceId,
    },
    /// The live data of another environment, at the moment when the deployment runs.
    Environment {
        environment: EnvironmentId,
        /// What is taken of it then; removed when the deployment has ended.
        snapshot: SnapshotId,
    },
    /// A backup that came from elsewhere.
    Import { import: ImportId },
}

impl DataOrigin {
    /// Whether the data come into the instance as a raw copy, which is made harmless before anybody reaches it.
    pub fn is_raw(self, instance: InstanceId, stage: Stage) -> bool {
        match self {
            Self::Fresh | Self::Live => false,
            Self::Snapshot { of, .. } => of != instance && stage != Stage::Production,
            // There is no clone into production.
            Self::Environment { .. } => true,
            Self::Import { .. } => stage != Stage::Production,
        }
    }

    /// The steps of a deployment with data from here, in their order.
    pub fn steps(self, instance: InstanceId, stage: Stage) -> Vec<StepName> {
        let is_raw = self.is_raw(instance, stage);
        let needed = |step: StepName| match step {
            StepName::Checkout | StepName::Plan | StepName::Update => !matches!(self, Self::Snapshot { .. }),
            StepName::Snapshot => matches!(self, Self::Environment { .. }),
            StepName::Rehearse => matches!(self, Self::Live),
            StepName::Neutralize => is_raw,
            StepName::Build | StepName::Copy | StepName::Start | StepName::Switch | StepName::Verify => true,
        };
        StepName::ALL.iter().copied().filter(|step| needed(*step)).collect()
    }

    /// What the modules find.
    pub fn mode(self) -> DataMode {
        match self {
            Self::Fresh => DataMode::Fresh,
            Self::Live | Self::Snapshot { .. } | Self::Environment { .. } | Self::Import { .. } => DataMode::Keep,
        }
    }
}

/// What a deployment's modules find in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataMode {
    /// Nothing; they are installed.
    Fresh,
    /// Data; they are updated.
    Keep,
}

/// Which modules a deployment installs and updates, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModulePlan {
    pub data: DataMode,
    /// Technical names, sorted.
    pub install: Vec<String>,
    /// Technical names, sorted: those whose data have changed. Empty when nothing that Odoo loads into its database has.
    pub update: Vec<String>,
    /// Modules that have another name now, by the earlier one: what the database has of it belongs to the later one.
    #[serde(default)]
    pub renames: BTreeMap<String, String>,
    /// Modules that neither the repository nor Odoo has, so that the Python packages have to bring them. Sorted.
    #[serde(default)]
    pub packaged: Vec<String>,
    /// The installed modules of the repository that Odoo updates with them, since they depend on them. Sorted.
    #[serde(default)]
    pub dependants: Vec<String>,
    #[serde(default = "Way::unknown")]
    pub way: Way,
    /// Why, in words, a line each.
    pub reasons: Vec<String>,
    /// What has changed in which module, the weightiest first within each.
    #[serde(default)]
    pub changes: Vec<Change>,
}

/// So many modules are named in one line.
const NAMED: usize = 8;

/// `a, b and 3 more`
fn some(names: &[String]) -> String {
    match names.len().checked_sub(NAMED) {
        Some(more) if more > 0 => format!("{} and {more} more", names[..NAMED].join(", ")),
        _ => names.join(", "),
    }
}

impl ModulePlan {
    /// The plan in one line.
    pub fn summary(&self) -> String {
        let parts = [("updates", &self.update), ("installs", &self.install)];
        let parts: Vec<String> =
            parts.into_iter().filter(|(_, names)| !names.is_empty()).map(|(verb, names)| format!("{verb} {}", some(names))).collect();
        let what = if parts.is_empty() {
            match self.way {
                Way::Nothing => "no module has changed".to_owned(),
                _ => "other code on the same data, nothing to install or update".to_owned(),
            }
        } else {
            parts.join("; ")
        };
        match self.data {
            DataMode::Fresh => format!("a fresh database: {what}"),
            DataMode::Keep => format!("{}: {what}", self.way.in_words()),
        }
    }

    /// The plan in words: its reasons, then what has changed, the weightiest first.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.reasons.clone();
        for way in Way::ALL.iter().rev() {
            let asked = self.changes.iter().filter(|change| change.way == *way);
            lines.extend(asked.map(|change| format!("[{}] {change}", way.in_words())));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_has_the_steps_that_its_data_need() {
        let (own, other) = (InstanceId::new(), InstanceId::new());
        let words = |origin: DataOrigin, stage| {
            let words: Vec<&str> = origin.steps(own, stage).into_iter().map(StepName::as_str).collect();
            words.join(" ")
        };
        let usual = "checkout plan build copy update start switch verify";
        assert_eq!(words(DataOrigin::Fresh, Stage::Production), usual);
        assert_eq!(words(DataOrigin::Live, Stage::Development), "checkout plan build rehearse copy update start switch verify");
        let back = DataOrigin::Snapshot { snapshot: SnapshotId::new(), of: own };
        assert_eq!(words(back, Stage::Development), "build copy start switch verify");
        let across = DataOrigin::Snapshot { snapshot: SnapshotId::new(), of: other };
        assert_eq!(words(across, Stage::Staging), "build copy neutralize start switch verify");
        assert_eq!(words(across, Stage::Production), "build copy start switch verify");
        let clone = DataOrigin::Environment { environment: EnvironmentId::new(), snapshot: SnapshotId::new() };
        assert_eq!(words(clone, Stage::Staging), "checkout snapshot plan build copy update neutralize start switch verify");
        let import = DataOrigin::Import { import: ImportId::new() };
        assert_eq!(words(import, Stage::Production), usual);
        assert_eq!(words(import, Stage::Staging), "checkout plan build copy update neutralize start switch verify");
    }
}
