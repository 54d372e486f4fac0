//! What nobody needs any more goes: releases and sources that no instance and no open deployment has, the step logs of old deployments.

use chrono::Duration;
use ocore_host::ReleaseId;

use crate::{Control, Result, store};

/// How long the lines of a deployment's steps are kept. The steps themselves stay.
const STEP_LOG_DAYS: i64 = 30;

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let keep = store::reconcilers::needed_releases(&mut *control.pool.acquire().await?, control.server_id).await?;
    let keep: Vec<ReleaseId> = keep.into_iter().map(ReleaseId).collect();
    control.host.prune_releases(&keep).await?;
    let before = control.clock.now() - Duration::days(STEP_LOG_DAYS);
    let lines = store::steps::prune_lines(&mut *control.pool.acquire().await?, before).await?;
    Ok(if lines == 0 { Vec::new() } else { vec![format!("removed {lines} lines of old step logs")] })
}
