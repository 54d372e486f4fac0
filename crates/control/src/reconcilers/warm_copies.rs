//! Productions are cloned and updated while people wait: most of what their file stores cost a copy is done before.

use std::sync::Arc;

use ocore_host::{HostError, Progress};
use tokio_util::sync::CancellationToken;

use super::Quiet;
use crate::{Control, Result, store};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let sources = store::instances::kept_warm(&mut *control.pool.acquire().await?, control.server_id).await?;
    let mut failed = None;
    for (instance, data_set) in sources {
        let progress = Progress { log: Arc::new(Quiet), cancel: CancellationToken::new() };
        match control.host.keep_copy_warm(instance, data_set, progress).await {
            // Somebody needs it now; it is made again.
            Ok(()) | Err(HostError::Cancelled) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(Vec::new()), |error| Err(error.into()))
}
