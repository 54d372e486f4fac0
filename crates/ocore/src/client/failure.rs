//! How a command ends: exit codes that scripts can use.
//!
//! 0 done; 1 it was tried and failed (a deployment, say); 2 the command or its input is wrong; 3 not logged in or not allowed; 4 there is
//! no such thing; 5 the server cannot be reached or is not ready.

use std::fmt;

use serde::Deserialize;

/// A problem that the API answered with.
#[derive(Debug, Clone, Deserialize)]
pub struct ApiProblem {
    pub status: u16,
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default, rename = "requestId")]
    pub request_id: Option<String>,
    #[serde(default)]
    pub errors: Vec<FieldProblem>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct FieldProblem {
    pub field: String,
    pub message: String,
}

/// Why a client command failed.
#[derive(Debug)]
pub enum Failure {
    Problem(ApiProblem),
    /// No answer at all.
    Unreachable {
        url: String,
        reason: String,
    },
    /// Nobody is logged in.
    LoggedOut,
    /// What was asked for was done and did not succeed.
    Unsuccessful(String),
    /// A name that matches nothing, or several things.
    Selection(String),
    /// Input that cannot be right.
    Usage(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(problem) if problem.errors.is_empty() => {
                formatter.write_str(if problem.detail.is_empty() { &problem.code } else { &problem.detail })?;
                match &problem.request_id {
                    Some(id) if problem.status >= 500 => write!(formatter, " (request {id})"),
                    _ => Ok(()),
                }
            }
            Self::Problem(problem) => {
                let fields: Vec<String> = problem.errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
                formatter.write_str(&fields.join("\n"))
            }
            Self::Unreachable { url, reason } => write!(formatter, "no oCore answers at {url}: {reason}"),
            Self::LoggedOut => formatter.write_str("you are not logged in; run `ocore login`, or give --api-key"),
            Self::Unsuccessful(message) | Self::Selection(message) | Self::Usage(message) => formatter.write_str(message),
        }
    }
}

impl std::error::Error for Failure {}

/// The exit code for an error of any command.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Failure>() {
        Some(Failure::Problem(problem)) => match problem.status {
            401 | 403 => 3,
            404 => 4,
            502..=504 => 5,
            400..=499 => 2,
            _ => 1,
        },
        Some(Failure::LoggedOut) => 3,
        Some(Failure::Selection(_)) => 4,
        Some(Failure::Unreachable { .. }) => 5,
        Some(Failure::Usage(_)) => 2,
        Some(Failure::Unsuccessful(_)) | None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_scripts_what_kind_of_failure_it_was() {
        let problem = |status| {
            Failure::Problem(ApiProblem { status, code: String::new(), detail: String::new(), request_id: None, errors: Vec::new() })
        };
        for (failure, code) in [
            (problem(401), 3),
            (problem(403), 3),
            (problem(404), 4),
            (problem(409), 2),
            (problem(422), 2),
            (problem(500), 1),
            (problem(503), 5),
            (Failure::LoggedOut, 3),
            (Failure::Unsuccessful(String::new()), 1),
        ] {
            assert_eq!(exit_code(&anyhow::Error::new(failure)), code);
        }
        assert_eq!(exit_code(&anyhow::anyhow!("anything else").context("more")), 1);
    }
}
