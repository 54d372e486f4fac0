//! A snapshot: database and file store of an environment at one moment, kept.

use crate::state::{IllegalTransition, words};

words! {
    /// Why a snapshot was taken; decides how long it is kept.
    SnapshotKind, "snapshot kind" {
        /// By a deployment, of the data as they were before it.
        Automatic = "automatic",
        /// By a person. It goes when a person removes it.
        Manual = "manual",
        /// By a rollback, of what it took away.
        Safety = "safety",
        /// By a clone, of its source; not needed when the clone is made.
        Clone = "clone",
    }
}

words! {
    SnapshotStatus, "snapshot status" {
        /// It is being taken, or waits for it.
        Creating = "creating",
        Ready = "ready",
        /// There are no data behind it; its message says why.
        Failed = "failed",
        /// It goes. Once it is gone it is not shown any more.
        Removing = "removing",
    }
}

words! {
    /// What a deployment does when the data before an earlier one still cannot be kept as its snapshot. They are kept after the switch, when there
    /// is nothing to undo any more; so it is the next deployment that fails before it changes anything, or goes on and says so.
    FailurePolicy, "failure policy" {
        Fail = "fail",
        Continue = "continue",
    }
}

/// What can happen to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// The server has it whole: just taken, or found again.
    Taken,
    /// It could not be taken, or the server has lost it.
    Lost,
    RemovalRequested,
}

impl SnapshotStatus {
    pub fn next(self, event: SnapshotEvent) -> Result<Self, IllegalTransition> {
        use SnapshotEvent as Event;
        match (self, event) {
            (Self::Creating | Self::Failed | Self::Ready, Event::Taken) => Ok(Self::Ready),
            (Self::Creating | Self::Ready | Self::Failed, Event::Lost) => Ok(Self::Failed),
            (_, Event::RemovalRequested) => Ok(Self::Removing),
            (Self::Removing, Event::Taken | Event::Lost) => {
                Err(IllegalTransition { machine: "snapshot", from: self.as_str(), event: format!("{event:?}") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_removed_never_comes_back() {
        for event in [SnapshotEvent::Taken, SnapshotEvent::Lost] {
            assert!(SnapshotStatus::Removing.next(event).is_err(), "{event:?}");
        }
        for status in SnapshotStatus::ALL {
            assert_eq!(status.next(SnapshotEvent::RemovalRequested), Ok(SnapshotStatus::Removing));
        }
    }
}
