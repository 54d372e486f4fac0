//! An operation: something that a person asked for, with an end and an undo.

use crate::state::{IllegalTransition, words};

words! {
    /// Where an operation is.
    OperationStatus, "operation status" {
        Queued = "queued",
        /// A worker has it, or had it and died; then another takes over.
        Running = "running",
        Succeeded = "succeeded",
        /// It ended without its effect, and everything that it had done is taken back.
        Failed = "failed",
        /// Taking back failed. It keeps its instance until its undo has gone through.
        Stuck = "stuck",
    }
}

/// What can happen to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationEvent {
    /// A worker takes it, for the first time or from a dead one.
    Claimed,
    Succeeded,
    Failed,
    UndoFailed,
    /// Somebody asked for another try of its undo.
    UndoRetried,
}

impl OperationStatus {
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    pub fn next(self, event: OperationEvent) -> Result<Self, IllegalTransition> {
        use OperationEvent as Event;
        match (self, event) {
            (Self::Queued | Self::Running, Event::Claimed) | (Self::Stuck, Event::UndoRetried) => Ok(Self::Running),
            (Self::Running, Event::Succeeded) => Ok(Self::Succeeded),
            (Self::Queued | Self::Running, Event::Failed) => Ok(Self::Failed),
            (Self::Running, Event::UndoFailed) => Ok(Self::Stuck),
            _ => Err(IllegalTransition { machine: "operation", from: self.as_str(), event: format!("{event:?}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_leads_out_of_an_end() {
        let events = [
            OperationEvent::Claimed,
            OperationEvent::Succeeded,
            OperationEvent::Failed,
            OperationEvent::UndoFailed,
            OperationEvent::UndoRetried,
        ];
        for status in OperationStatus::ALL.iter().copied().filter(|status| status.is_end()) {
            for event in events {
                assert!(status.next(event).is_err(), "{status} on {event:?}");
            }
        }
        assert_eq!(OperationStatus::Stuck.next(OperationEvent::UndoRetried), Ok(OperationStatus::Running));
    }
}
