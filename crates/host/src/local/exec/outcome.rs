//! How a program ended, or why nobody knows.

use std::{io, process::ExitStatus, time::Duration};

use thiserror::Error;

use crate::error::{HostError, Result};

/// Why a program did not run to its end.
#[derive(Debug, Error)]
pub enum ExecError {
    #[error("`{program}` could not be started")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` took longer than {} s and was ended", limit.as_secs())]
    TimedOut { program: String, limit: Duration },
    #[error("nobody knows how `{program}` ended, since the process that it was forked from was killed at the same time; try it again")]
    Lost { program: String },
    #[error("`{program}` was cancelled")]
    Cancelled { program: String },
    #[error("the output of `{program}` could not be read")]
    Output {
        program: String,
        #[source]
        source: io::Error,
    },
}

impl From<ExecError> for HostError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Cancelled { .. } => Self::Cancelled,
            ExecError::Start { ref program, ref source } if source.kind() == io::ErrorKind::NotFound => {
                let summary = format!("the program `{program}`, or the directory it should run in, is not on this machine; install it");
                Self::machine_from(summary, error)
            }
            error => Self::machine_from(error.to_string(), error),
        }
    }
}

/// What a program left when it ended by itself.
#[derive(Debug)]
pub struct Finished {
    pub program: String,
    pub status: ExitStatus,
    /// From the beginning, up to the output limit.
    pub stdout: Vec<u8>,
    /// The end of it, up to the output limit.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text; what is not UTF-8 is replaced.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; what is not UTF-8 is replaced.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself when the exit code is 0; otherwise an error that starts with `attempt` ("the pool could not be mounted") and ends with the
    /// last line that the program wrote.
    pub fn expect_success(self, attempt: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let stderr = self.stderr_text();
        let stdout = self.stdout_text();
        let last = [&stderr, &stdout].into_iter().find_map(|text| text.lines().rev().find(|line| !line.trim().is_empty()));
        Err(HostError::machine(match last {
            Some(line) => format!("{attempt}: {}", line.trim()),
            None => format!("{attempt}: `{}` ended with {}", self.program, self.status),
        }))
    }
}
