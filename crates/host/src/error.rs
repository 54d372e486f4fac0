//! What can go wrong on a server, in words for the person whose deployment it was.

use thiserror::Error;

pub type Result<T, E = HostError> = std::result::Result<T, E>;

/// A failed host call. `Display` is one sentence that a developer understands; the source, when there is one, is for the operator.
#[derive(Debug, Error)]
pub enum HostError {
    /// The user's input or code is at fault: the sentence says what to change. Trying again without a change fails again.
    #[error("{summary}")]
    Rejected {
        summary: String,
        /// The part of a log that shows it; empty when the sentence says it all.
        excerpt: String,
    },
    /// A newer claim has taken over; whoever holds the older fence stops at once and undoes nothing.
    #[error("a newer operation (generation {newest}) has taken over from generation {held}")]
    Fenced { held: i64, newest: i64 },
    /// Somebody asked for it to stop.
    #[error("cancelled")]
    Cancelled,
    /// There is no such instance, data set, release or source on this server.
    #[error("{what} {id} is not on this server")]
    NotFound { what: &'static str, id: String },
    /// The machine lacks something (disk, memory, a program, a right). The sentence says what an operator does about it.
    #[error("{summary}")]
    Machine {
        summary: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl HostError {
    pub fn rejected(summary: impl Into<String>) -> Self {
        Self::Rejected { summary: summary.into(), excerpt: String::new() }
    }

    pub fn machine(summary: impl Into<String>) -> Self {
        Self::Machine { summary: summary.into(), source: None }
    }

    pub fn machine_from(summary: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Machine { summary: summary.into(), source: Some(Box::new(source)) }
    }

    /// The log excerpt that shows the failure; empty when there is none.
    pub fn excerpt(&self) -> &str {
        match self {
            Self::Rejected { excerpt, .. } => excerpt,
            _ => "",
        }
    }
}
