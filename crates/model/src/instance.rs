//! An instance: one Odoo with its data and its two slots.

use crate::state::{IllegalTransition, words};

words! {
    /// One of the two places where an instance's Odoo can run; a deployment starts the one that does not serve.
    Color, "color" {
        Blue = "blue",
        Green = "green",
    }
}

impl Color {
    pub fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }
}

words! {
    /// What the instance's Odoo does now.
    InstanceStatus, "instance status" {
        /// Nothing has been deployed to it yet.
        Creating = "creating",
        Running = "running",
        /// Somebody stopped it. Data and configuration stay.
        Stopped = "stopped",
        /// Nobody used it: its Odoo and its cluster rest, and the first request wakes them.
        Asleep = "asleep",
        Restarting = "restarting",
        /// It should run and does not.
        Failed = "failed",
        Removing = "removing",
        Deleted = "deleted",
    }
}

words! {
    /// What a person can ask of an instance's Odoo.
    ControlAction, "control action" {
        Start = "start",
        Stop = "stop",
        Restart = "restart",
        /// As a stop, but the next request starts it again.
        Sleep = "sleep",
    }
}

/// What can happen to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceEvent {
    /// A deployment is live, or a start or restart ended well.
    Started,
    Stopped,
    FellAsleep,
    RestartRequested,
    /// The first deployment failed, or Odoo died and does not come back.
    Broke,
    RemovalRequested,
    Removed,
}

impl InstanceStatus {
    pub fn next(self, event: InstanceEvent) -> Result<Self, IllegalTransition> {
        use InstanceEvent as Event;
        let next = match (self, event) {
            (Self::Deleted, _)
            | (Self::Removing, Event::Started | Event::Stopped | Event::FellAsleep | Event::RestartRequested | Event::Broke)
            | (Self::Creating, Event::Stopped | Event::FellAsleep | Event::RestartRequested) => None,
            (_, Event::Started) => Some(Self::Running),
            (_, Event::Stopped) => Some(Self::Stopped),
            (_, Event::FellAsleep) => Some(Self::Asleep),
            (_, Event::RestartRequested) => Some(Self::Restarting),
            (_, Event::Broke) => Some(Self::Failed),
            (_, Event::RemovalRequested) => Some(Self::Removing),
            (Self::Removing, Event::Removed) => Some(Self::Deleted),
            (_, Event::Removed) => None,
        };
        next.ok_or_else(|| IllegalTransition { machine: "instance", from: self.as_str(), event: format!("{event:?}") })
    }
}
