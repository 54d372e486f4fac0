//! For tests of this crate and of those above it: a host in a temporary directory that takes all it has made with it.

use std::{path::PathBuf, sync::Arc};

use ocore_model::ids::OperationId;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Fence, LogSink, Progress},
    error::Result,
    local::{LocalHost, LocalHostConfig, purge},
};

/// A home in a temporary directory. When dropped, also by a test that fails, everything that came from it goes: processes, users, mounts,
/// control groups, files. Hosts that were opened on it must not be used after that.
pub struct Sandbox {
    config: LocalHostConfig,
    directory: tempfile::TempDir,
}

impl Sandbox {
    /// Copies are plain ones here, which takes less time to set up than a pool with reflinks.
    pub fn new() -> std::io::Result<Self> {
        Self::with(|config| config.pool.image = None)
    }

    /// A pool on an XFS image of that size in bytes; mkfs.xfs makes none below 300 MiB.
    pub fn with_image(bytes: u64) -> std::io::Result<Self> {
        Self::with(|config| {
            config.pool.image_size = bytes;
            config.pool.image_size_limit = bytes;
        })
    }

    /// With anything else changed in the configuration.
    pub fn with(change: impl FnOnce(&mut LocalHostConfig)) -> std::io::Result<Self> {
        // Short: sockets below it have at most 107 bytes. Open: the users of instances pass through.
        let directory =
            tempfile::Builder::new().prefix("oc-").permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711)).tempdir_in("/srv")?;
        let mut config = LocalHostConfig::new(directory.path().join("home"));
        change(&mut config);
        Ok(Self { config, directory })
    }

    pub fn config(&self) -> &LocalHostConfig {
        &self.config
    }

    pub fn home(&self) -> PathBuf {
        self.config.home.clone()
    }

    /// The temporary directory around the home.
    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// A host on this home; the second one finds what the first one made.
    pub async fn host(&self) -> Result<Arc<LocalHost>> {
        LocalHost::open(self.config.clone()).await.map(Arc::new)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let config = self.config.clone();
        // A test's own runtime may be going down, and nothing may block in it.
        let purged = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(purge(&config)))
        });
        match purged.join() {
            Ok(Ok(Ok(()))) => {}
            outcome => tracing::error!(?outcome, home = %self.config.home.display(), "a test's home could not be removed"),
        }
    }
}

/// A claim's fence of an operation of its own.
pub fn fence(generation: i64) -> Fence {
    Fence { operation: OperationId::new(), generation }
}

/// Keeps all lines.
#[derive(Debug, Default)]
pub struct Lines(std::sync::Mutex<Vec<String>>);

impl Lines {
    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl LogSink for Lines {
    fn line(&self, text: &str) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(text.to_owned());
    }
}

/// A progress that nobody cancels, and its lines.
pub fn progress() -> (Progress, Arc<Lines>) {
    let lines = Arc::new(Lines::default());
    (Progress { log: lines.clone(), cancel: CancellationToken::new() }, lines)
}
