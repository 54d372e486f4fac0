//! The space that an organization's environments and snapshots need: what each owns alone and what it shares with others.

use std::collections::BTreeMap;

use ocore_host::Usage;
use ocore_model::ids::{EnvironmentId, InstanceId, SnapshotId};

use crate::{
    Control, Result,
    authorization::{Grant, ViewSnapshots},
    store,
};

/// The space behind one environment or snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceOf<Id> {
    pub id: Id,
    pub name: String,
    /// Of a snapshot: the environment that it is of. Of an environment: itself.
    pub environment_id: EnvironmentId,
    pub environment_name: String,
    pub usage: Usage,
}

/// Everything of one organization on this server. No other tenant's numbers are in it but in the pool's totals, which every user of the server
/// sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// What is live in them, and the data sets that their deployments work in.
    pub environments: Vec<SpaceOf<EnvironmentId>>,
    pub snapshots: Vec<SpaceOf<SnapshotId>>,
    /// What is alone behind one of them, summed. What two of them share between them is in no one's own, so removing all would free more.
    pub exclusive_bytes: u64,
    pub pool_total_bytes: u64,
    pub pool_available_bytes: u64,
}

/// Reads the file system's maps: seconds for large pools.
pub async fn of_organization(control: &Control, grant: &Grant<ViewSnapshots>) -> Result<Space> {
    let report = control.host.space().await?;
    let mut connection = control.pool.acquire().await?;
    let instances: BTreeMap<InstanceId, Usage> = report.instances.into_iter().collect();
    let kept: BTreeMap<SnapshotId, Usage> = report.snapshots.into_iter().collect();
    let environments = store::environments::list(&mut connection, grant).await?;
    let environments: Vec<_> = environments
        .into_iter()
        .filter_map(|environment| {
            Some(SpaceOf {
                id: environment.id,
                name: environment.name.clone(),
                environment_id: environment.id,
                environment_name: environment.name,
                usage: *instances.get(&environment.instance_id)?,
            })
        })
        .collect();
    let snapshots = store::snapshots::list(&mut connection, grant).await?;
    let snapshots: Vec<_> = snapshots
        .into_iter()
        .filter_map(|snapshot| {
            Some(SpaceOf {
                id: snapshot.id,
                name: snapshot.name,
                environment_id: snapshot.environment_id,
                environment_name: snapshot.environment_name,
                usage: *kept.get(&snapshot.id)?,
            })
        })
        .collect();
    let exclusive = environments.iter().map(|one| one.usage).chain(snapshots.iter().map(|one| one.usage));
    Ok(Space {
        exclusive_bytes: exclusive.map(|usage| usage.exclusive_bytes).sum(),
        environments,
        snapshots,
        pool_total_bytes: report.pool_total_bytes,
        pool_available_bytes: report.pool_available_bytes,
    })
}
