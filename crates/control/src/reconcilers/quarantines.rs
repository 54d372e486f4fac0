//! Copies in quarantine go when somebody wants that, when their time is over, when a later deployment went well, and when no row knows them. What a
//! question has left running that a crash cut off is stopped.

use std::collections::BTreeSet;

use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::InstanceStatus,
    quarantine::QuarantineStatus,
};

use crate::{Control, Result, store};

pub(crate) const NAME: &str = "quarantines";

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    // First the world, then the rows: a row is there before its copy is set aside.
    let aside = control.host.quarantined().await?;
    let expired = store::quarantines::expire(&mut *control.pool.acquire().await?, control.server_id, control.clock.now()).await?;
    let rows = store::quarantines::of_server(&mut *control.pool.acquire().await?, control.server_id).await?;
    let known: BTreeSet<(InstanceId, DataSetId)> = rows.iter().map(|row| (row.instance_id, row.data_set_id)).collect();
    for row in rows.iter().filter(|row| row.status == QuarantineStatus::Removing) {
        control.host.remove_quarantined(row.instance_id, row.data_set_id).await?;
        store::quarantines::forget(&mut *control.pool.acquire().await?, row.instance_id, row.data_set_id).await?;
        let why = if expired.contains(&row.instance_id) { "its time is over" } else { "nobody needs it any more" };
        changes.push(format!("removed the copy in quarantine of environment {}: {why}", row.environment_id));
    }
    let lost = aside.iter().filter(|copy| !known.contains(&(copy.instance, copy.data_set)));
    for copy in lost {
        // An instance that the store does not know is left alone with all that is in it.
        let row = store::deploy::live(&mut *control.pool.acquire().await?, copy.instance).await?;
        if row.is_some_and(|row| row.status != InstanceStatus::Removing) {
            control.host.remove_quarantined(copy.instance, copy.data_set).await?;
            changes.push(format!("removed a copy in quarantine of instance {} that nobody knows", copy.instance));
        }
    }
    let left = control.host.rest_quarantined().await?;
    if left > 0 {
        changes.push(format!("stopped {left} databases in quarantine that nobody asks anything"));
    }
    Ok(changes)
}
