//! An environment: one branch of a project at one stage.

use crate::state::{IllegalTransition, words};

words! {
    /// How far a branch has come. The contract calls it `environmentType`.
    Stage, "stage" {
        Production = "production",
        Staging = "staging",
        Development = "development",
    }
}

words! {
    /// What a push to the environment's branch does.
    CommitBehavior, "commit behavior" {
        /// Counts the commits and waits for somebody to build them.
        DoNothing = "do_nothing",
        /// Makes a fresh database from the new commit; the old one serves until the new one is good.
        CreateNewBuild = "create_new_build",
        /// Updates the running instance and keeps its data.
        UpdatePreviousBuild = "update_previous_build",
    }
}

impl CommitBehavior {
    /// What a new environment of that stage does, as an Odoo developer expects: data that matters is kept.
    pub fn default_for(stage: Stage) -> Self {
        match stage {
            Stage::Production | Stage::Staging => Self::UpdatePreviousBuild,
            Stage::Development => Self::CreateNewBuild,
        }
    }
}

words! {
    /// Where the environment itself is in its life. Whether its Odoo runs is the instance's status.
    EnvironmentStatus, "environment status" {
        Active = "active",
        /// Somebody asked for its deletion; its instance is being torn down.
        Removing = "removing",
        /// Its instance and data are gone; the row stays for the history.
        Deleted = "deleted",
    }
}

/// What can happen to an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvironmentEvent {
    DeletionRequested,
    TornDown,
}

impl EnvironmentStatus {
    pub fn next(self, event: EnvironmentEvent) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Active | Self::Removing, EnvironmentEvent::DeletionRequested) => Ok(Self::Removing),
            (Self::Removing, EnvironmentEvent::TornDown) => Ok(Self::Deleted),
            _ => Err(IllegalTransition { machine: "environment", from: self.as_str(), event: format!("{event:?}") }),
        }
    }
}
