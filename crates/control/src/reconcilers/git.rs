//! Git's part: branches that a crash left unrecorded, webhooks that wait for their fetch, mirrors that are to be packed.

use crate::{Control, Result, git};

pub(super) async fn branches(control: &Control) -> Result<Vec<String>> {
    git::reconcile(control).await?;
    Ok(Vec::new())
}

pub(super) async fn webhooks(control: &Control) -> Result<Vec<String>> {
    git::process_deliveries(control).await?;
    Ok(Vec::new())
}

pub(super) async fn mirrors(control: &Control) -> Result<Vec<String>> {
    git::maintain(control).await?;
    Ok(Vec::new())
}
