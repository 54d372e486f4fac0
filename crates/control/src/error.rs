//! The one error of the control plane, by kind. It knows no HTTP; `ocore-api` gives each kind its status in one place.

use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with one field of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// As the caller wrote it, camelCase, nested with dots.
    pub field: String,
    /// What is wrong and what to give instead.
    pub message: String,
}

/// A use case that did not end well. `Display` is for the caller and never holds the source.
#[derive(Debug, Error)]
pub enum Error {
    /// Not there, or not the caller's: the two cannot be told apart from outside.
    #[error("there is no such {what}")]
    NotFound { what: &'static str },
    /// Who the caller is, is not known.
    #[error("{message}")]
    Unauthenticated { code: &'static str, message: String },
    /// The caller is known and may not.
    #[error("{message}")]
    Forbidden { code: &'static str, message: String },
    /// The call leaves open what it means; the message lists what it may say.
    #[error("{message}")]
    Ambiguous { code: &'static str, message: String },
    /// The thing's state does not allow it now.
    #[error("{message}")]
    Conflict { code: &'static str, message: String },
    /// The input breaks rules.
    #[error("{}", describe(.fields))]
    Invalid { fields: Vec<FieldError> },
    /// Something that it needs is away for the moment; the same call may go through later.
    #[error("{message}")]
    Unavailable { code: &'static str, message: String },
    /// Too many of these calls in too short a time.
    #[error("too many attempts; try again in {retry_after_seconds} s")]
    TooMany { retry_after_seconds: u64 },
    /// Our fault. The context is for the log only.
    #[error("something went wrong inside oCore; the log of the server has it under this request's id")]
    Internal {
        context: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

fn describe(fields: &[FieldError]) -> String {
    fields.iter().map(|field| format!("{}: {}", field.field, field.message)).collect::<Vec<_>>().join("; ")
}

impl Error {
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { fields: vec![FieldError { field: field.into(), message: message.into() }] }
    }

    pub fn unauthenticated(code: &'static str, message: impl Into<String>) -> Self {
        Self::Unauthenticated { code, message: message.into() }
    }

    pub fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::Forbidden { code, message: message.into() }
    }

    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::Conflict { code, message: message.into() }
    }

    pub fn internal(context: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Internal { context: context.into(), source: Some(Box::new(source)) }
    }

    /// For whoever asked for something that was done later: what the server said is theirs to know, and what else went wrong inside is not.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Self::Internal { source: Some(source), .. } if source.is::<ocore_host::HostError>() => source.to_string(),
            error => error.to_string(),
        }
    }

    /// A state of the store that our own rules exclude.
    pub fn broken(context: impl Into<String>) -> Self {
        Self::Internal { context: context.into(), source: None }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => Self::Unavailable {
                code: "store_unavailable",
                message: "the control plane's database cannot be reached; try again in a moment".to_owned(),
            },
            other => Self::internal("a query of the store", other),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for Error {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::internal("the migrations of the store", error)
    }
}

impl From<ocore_model::state::IllegalTransition> for Error {
    fn from(error: ocore_model::state::IllegalTransition) -> Self {
        Self::conflict("illegal_transition", error.to_string())
    }
}

impl From<ocore_host::HostError> for Error {
    fn from(error: ocore_host::HostError) -> Self {
        use ocore_host::HostError;
        match error {
            HostError::Rejected { summary, .. } => Self::conflict("rejected", summary),
            HostError::NotFound { what, .. } => Self::NotFound { what },
            other => Self::internal("a call to the server's host", other),
        }
    }
}
