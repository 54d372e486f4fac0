//! What can go wrong in the catcher.

use std::{io, path::PathBuf};

use thiserror::Error;

pub(crate) type Result<T, E = MailError> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum MailError {
    #[error("another mail catcher listens at {}; `ocore stop` ends it", .socket.display())]
    AlreadyRunning { socket: PathBuf },
    #[error("the mail catcher's socket {} cannot be opened: {source}", .socket.display())]
    Socket { socket: PathBuf, source: io::Error },
    #[error("the mail catcher's administration ended: {0}")]
    Admin(io::Error),
    #[error("{} cannot be used: {source}", .path.display())]
    Storage { path: PathBuf, source: io::Error },
    /// The message was not kept; its sender keeps it.
    #[error("the disk of the mail catcher is full")]
    Full,
    #[error("the mail catcher stops")]
    Stopping,
}

impl MailError {
    pub(crate) fn storage(path: impl Into<PathBuf>, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) {
            return Self::Full;
        }
        Self::Storage { path: path.into(), source }
    }
}
