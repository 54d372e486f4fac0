//! Snapshots are kept by rules, and rows and server say the same.
//!
//! What no person made or pinned goes when it is older than the environment's `retentionDays`; the newest automatic one of each environment
//! stays, however old. The last one of a production that was removed stays for 30 days. A clone's becomes the clone's data, or goes when the clone has ended otherwise. Those of a deleted environment go. What is pinned stays, and so does what a
//! deployment brings to life.
//!
//! A snapshot on the server that the store does not know is reported and left alone: it may be all that there is after the store was lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use ocore_host::{Fence, HostError, Progress, ReleaseId, TakeSnapshot};
use ocore_model::{
    environment::EnvironmentStatus,
    ids::{EnvironmentId, OperationId, SnapshotId},
    instance::InstanceStatus,
    snapshot::{SnapshotKind, SnapshotStatus},
};

use super::{Quiet, snapshot_work};
use crate::{
    Control, Result,
    store::{self, snapshots::Snapshot},
};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    // First the world, then the rows: what is taken in between is in the rows before it is missed on the server, and is looked for once more.
    let mut there = on_server(control).await?;
    let rows = store::snapshots::list_of_server(&mut *control.pool.acquire().await?, control.server_id).await?;
    if rows.iter().any(|row| row.status == SnapshotStatus::Ready && !there.contains_key(&row.id)) {
        there.extend(on_server(control).await?);
    }
    let mut changes = unknown(control, &rows, &there).await?;
    let mut retention = BTreeMap::new();
    for environment in rows.iter().map(|row| row.environment_id).collect::<BTreeSet<_>>() {
        let mut connection = control.pool.acquire().await?;
        if let Some(settings) = store::snapshot_settings::of_environment(&mut connection, environment).await? {
            retention.insert(environment, TimeDelta::days(settings.retention_days.into()));
        }
    }
    let whole = there.keys().copied().collect();
    let mut failed = None;
    for (row, decision) in decide(&rows, &whole, &retention, control.clock.now()) {
        match carry_out(control, row, decision, &there).await {
            Ok(change) => changes.extend(change),
            // The others are no worse for it.
            Err(error) => {
                tracing::warn!(snapshot = %row.id, %error, "a snapshot could not be looked after; it is tried again");
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(changes), Err)
}

async fn carry_out(
    control: &Control,
    row: &Snapshot,
    decision: Decision,
    there: &BTreeMap<SnapshotId, ocore_host::Snapshot>,
) -> Result<Option<String>> {
    let now = control.clock.now();
    match decision {
        Decision::Ready => {
            let Some(taken) = there.get(&row.id) else { return Ok(None) };
            let found = store::snapshots::set_ready(&mut *control.pool.acquire().await?, taken, now).await?;
            Ok(found.then(|| format!("found the snapshot {} of {} on the server", row.name, row.environment_name)))
        }
        Decision::Fail(why) => {
            let failed = store::snapshots::set_failed(&mut *control.pool.acquire().await?, row.id, why, now).await?;
            Ok(failed.then(|| format!("the snapshot {} of {} has no data: {why}", row.name, row.environment_name)))
        }
        Decision::Retire => retire(control, row).await,
        Decision::Remove(why) => remove(control, row.id, why).await,
    }
}

async fn on_server(control: &Control) -> Result<BTreeMap<SnapshotId, ocore_host::Snapshot>> {
    Ok(control.host.snapshots().await?.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect())
}

/// Snapshots on the server without a row: removed ones go again, the others are left alone.
async fn unknown(control: &Control, rows: &[Snapshot], there: &BTreeMap<SnapshotId, ocore_host::Snapshot>) -> Result<Vec<String>> {
    let known: BTreeSet<SnapshotId> = rows.iter().map(|row| row.id).collect();
    let unknown: Vec<SnapshotId> = there.keys().copied().filter(|id| !known.contains(id)).collect();
    if unknown.is_empty() {
        return Ok(Vec::new());
    }
    let mut connection = control.pool.acquire().await?;
    // Asked anew: what is taken since the rows were read has one.
    let ids: Vec<_> = unknown.iter().map(|id| id.as_uuid()).collect();
    let removed = store::snapshots::removed_among(&mut connection, &ids).await?;
    let mut changes = Vec::new();
    for id in unknown {
        if removed.contains(&id) {
            control.host.remove_snapshot(id).await?;
            changes.push(format!("removed the snapshot {id} from the server once more"));
        } else if store::snapshots::read(&mut connection, id).await?.is_none() {
            tracing::warn!(snapshot = %id, "a snapshot on this server is unknown to the store; it is left alone");
        }
    }
    Ok(changes)
}

/// What is to be done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// The server has it whole.
    Ready,
    Fail(&'static str),
    /// Its data set is still to become it.
    Retire,
    Remove(&'static str),
}

const CUT_OFF: &str = "the deployment that was taking it ended before it was whole";
const LOST: &str = "the server does not have it any more";

fn decide<'a>(
    rows: &'a [Snapshot],
    whole: &BTreeSet<SnapshotId>,
    retention: &BTreeMap<EnvironmentId, TimeDelta>,
    now: DateTime<Utc>,
) -> Vec<(&'a Snapshot, Decision)> {
    let mut newest: BTreeMap<EnvironmentId, &Snapshot> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.kind == SnapshotKind::Automatic && row.status == SnapshotStatus::Ready) {
        let newer = newest.get(&row.environment_id).is_none_or(|other| (other.taken_at, other.id) < (row.taken_at, row.id));
        if newer {
            newest.insert(row.environment_id, row);
        }
    }
    let decision = |row: &Snapshot| {
        let is_whole = whole.contains(&row.id);
        let made = row.maker_status.is_some_and(ocore_model::deployment::DeploymentStatus::is_end);
        let old = |since: Option<DateTime<Utc>>| {
            retention.get(&row.environment_id).is_some_and(|days| since.unwrap_or(row.created_at) + *days < now)
        };
        let kept = row.kept_until.is_some_and(|until| until > now);
        if row.environment_status == EnvironmentStatus::Deleted
            && !row.pinned
            && !kept
            && row.status != SnapshotStatus::Removing
            && !row.in_use
        {
            // One that a deployment still makes goes when that has ended.
            let making = row.status == SnapshotStatus::Creating && row.maker_status.is_some() && !made;
            return (!making).then_some(Decision::Remove("its environment was deleted"));
        }
        match row.status {
            // Another reconciler takes what a person asked for, and removes.
            SnapshotStatus::Creating if !made => None,
            SnapshotStatus::Removing => None,
            SnapshotStatus::Creating | SnapshotStatus::Failed if is_whole => Some(Decision::Ready),
            SnapshotStatus::Creating if row.retires => Some(Decision::Retire),
            SnapshotStatus::Creating => Some(Decision::Fail(CUT_OFF)),
            SnapshotStatus::Failed => old(None).then_some(Decision::Remove("it had failed long ago")),
            // It has become the copy, or soon does.
            SnapshotStatus::Ready if row.kind == SnapshotKind::Clone && !made => None,
            SnapshotStatus::Ready if !is_whole && (row.kind != SnapshotKind::Clone || row.pinned) => Some(Decision::Fail(LOST)),
            SnapshotStatus::Ready if row.pinned || kept || row.in_use => None,
            SnapshotStatus::Ready => match row.kind {
                SnapshotKind::Manual => None,
                SnapshotKind::Clone => Some(Decision::Remove("the clone is made")),
                SnapshotKind::Automatic if newest.get(&row.environment_id).is_some_and(|newest| newest.id == row.id) => None,
                SnapshotKind::Automatic | SnapshotKind::Safety => {
                    old(row.taken_at).then_some(Decision::Remove("it is older than the environment keeps them"))
                }
            },
        }
    };
    rows.iter().filter_map(|row| Some((row, decision(row)?))).collect()
}

/// The data set that was live before becomes the snapshot, when the deployment that should have seen to it could not. One that is live again, or
/// still, is none.
async fn retire(control: &Control, row: &Snapshot) -> Result<Option<String>> {
    let intended = store::reconcilers::intended(&mut *control.pool.acquire().await?, control.server_id).await?;
    let Some(instance) = intended.into_iter().find(|instance| instance.id == row.instance_id) else { return Ok(None) };
    if instance.operation_id.is_some() {
        return Ok(None);
    }
    if matches!(instance.status, InstanceStatus::Removing | InstanceStatus::Deleted) {
        let mut connection = control.pool.acquire().await?;
        store::snapshots::set_failed(&mut connection, row.id, "its instance was removed", control.clock.now()).await?;
        return Ok(None);
    }
    if instance.active_data_set_id == Some(row.data_set_id) {
        store::snapshots::withdraw(&mut *control.pool.acquire().await?, row.id).await?;
        return Ok(Some(format!("forgot a snapshot of {} whose data are live again", row.environment_name)));
    }
    let taken = store::reconcilers::take_if_free(&mut *control.pool.acquire().await?, instance.id, instance.generation).await?;
    let Some(generation) = taken else { return Ok(None) };
    let fence = Fence { operation: OperationId::new(), generation };
    let request = TakeSnapshot {
        snapshot: row.id,
        instance: row.instance_id,
        data_set: row.data_set_id,
        release: row.release.clone().map(ReleaseId),
    };
    let progress = Progress { log: Arc::new(Quiet), cancel: tokio_util::sync::CancellationToken::new() };
    let kept = control.host.retire_data_set(request, fence, progress).await;
    let mut connection = control.pool.acquire().await?;
    match kept {
        Ok(taken) => {
            store::snapshots::set_ready(&mut connection, &taken, control.clock.now()).await?;
            Ok(Some(format!("kept the data of {} before its last deployment as {}", row.environment_name, row.name)))
        }
        Err(HostError::NotFound { .. }) => {
            store::snapshots::set_failed(&mut connection, row.id, LOST, control.clock.now()).await?;
            Ok(None)
        }
        Err(error) => {
            store::snapshots::set_owed(&mut connection, row.id, &error.to_string(), control.clock.now()).await?;
            Err(error.into())
        }
    }
}

/// Has a snapshot removed, unless somebody has pinned it or needs it by now.
async fn remove(control: &Control, id: SnapshotId, why: &str) -> Result<Option<String>> {
    let mut transaction = control.pool.begin().await?;
    let row = store::snapshots::lock(&mut transaction, id).await?;
    let Some(row) = row.filter(|row| {
        let kept = row.pinned || row.kept_until.is_some_and(|until| until > control.clock.now());
        !kept && !row.in_use && row.status != SnapshotStatus::Removing
    }) else {
        return Ok(None);
    };
    store::snapshots::set_removing(&mut transaction, id, why, control.clock.now()).await?;
    transaction.commit().await?;
    control.signals.wake(snapshot_work::NAME);
    Ok(Some(format!("the {} snapshot {} of {} goes: {why}", row.kind, row.name, row.environment_name)))
}

#[cfg(test)]
mod tests {
    use ocore_model::{
        deployment::DeploymentStatus,
        environment::Stage,
        ids::{DataSetId, DeploymentId, InstanceId, OrganizationId, ProjectId, ServerId},
    };

    use super::*;

    fn row(environment: EnvironmentId, kind: SnapshotKind, taken_at: DateTime<Utc>) -> Snapshot {
        Snapshot {
            id: SnapshotId::new(),
            organization_id: OrganizationId::new(),
            project_id: ProjectId::new(),
            environment_id: environment,
            environment_name: "main".to_owned(),
            environment_status: EnvironmentStatus::Active,
            environment_stage: Stage::Staging,
            instance_id: InstanceId::new(),
            server_id: ServerId::new(),
            name: "kept".to_owned(),
            kind,
            status: SnapshotStatus::Ready,
            message: String::new(),
            pinned: false,
            kept_until: None,
            data_set_id: DataSetId::new(),
            retires: false,
            deployment_id: None,
            commit_sha: None,
            branch: "main".to_owned(),
            stage: Stage::Staging,
            release: None,
            odoo_version: "19.0".parse().unwrap(),
            admin_password: None,
            made_by_deployment_id: None,
            maker_status: None,
            standing: Some("own".to_owned()),
            postgres_version: None,
            database_bytes: None,
            file_store_bytes: None,
            file_store_files: None,
            modules_count: None,
            live: None,
            shares_blocks: None,
            seconds: None,
            damaged_files: Vec::new(),
            taken_at: Some(taken_at),
            verify_requested_at: None,
            verified_at: None,
            verification: None,
            created_by: None,
            created_by_name: None,
            created_at: taken_at,
            updated_at: taken_at,
            in_use: false,
        }
    }

    struct Case {
        rows: Vec<Snapshot>,
        absent: BTreeSet<SnapshotId>,
        environment: EnvironmentId,
        now: DateTime<Utc>,
    }

    impl Case {
        fn new() -> Self {
            let now = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
            Self { rows: Vec::new(), absent: BTreeSet::new(), environment: EnvironmentId::new(), now }
        }

        fn add(&mut self, kind: SnapshotKind, days_old: i64, change: impl FnOnce(&mut Snapshot)) -> SnapshotId {
            let mut row = row(self.environment, kind, self.now - TimeDelta::days(days_old));
            change(&mut row);
            let id = row.id;
            self.rows.push(row);
            id
        }

        fn decided(&self) -> BTreeMap<SnapshotId, Decision> {
            let whole = self.rows.iter().map(|row| row.id).filter(|id| !self.absent.contains(id)).collect();
            let retention = BTreeMap::from([(self.environment, TimeDelta::days(7))]);
            decide(&self.rows, &whole, &retention, self.now).into_iter().map(|(row, decision)| (row.id, decision)).collect()
        }
    }

    #[test]
    fn old_automatic_ones_go_but_the_newest_and_what_is_pinned_used_or_made_by_hand_stays() {
        let mut case = Case::new();
        let old = case.add(SnapshotKind::Automatic, 20, |_| {});
        let safety = case.add(SnapshotKind::Safety, 8, |_| {});
        case.add(SnapshotKind::Safety, 6, |_| {});
        case.add(SnapshotKind::Automatic, 19, |row| row.pinned = true);
        case.add(SnapshotKind::Automatic, 18, |row| row.in_use = true);
        case.add(SnapshotKind::Manual, 400, |_| {});
        let newest = case.add(SnapshotKind::Automatic, 17, |_| {});
        let why = Decision::Remove("it is older than the environment keeps them");
        assert_eq!(case.decided(), BTreeMap::from([(old, why), (safety, why)]));
        // A newer one takes the place of the newest.
        case.add(SnapshotKind::Automatic, 1, |_| {});
        assert_eq!(case.decided(), BTreeMap::from([(old, why), (safety, why), (newest, why)]));
    }

    #[test]
    fn a_clones_goes_when_the_clone_is_made_or_has_failed() {
        let mut case = Case::new();
        let mut clone = |status, in_use| {
            case.add(SnapshotKind::Clone, 0, |row| {
                row.made_by_deployment_id = Some(DeploymentId::new());
                row.maker_status = Some(status);
                row.in_use = in_use;
            })
        };
        clone(DeploymentStatus::Running, true);
        let made = clone(DeploymentStatus::Succeeded, false);
        let failed = clone(DeploymentStatus::Failed, false);
        let why = Decision::Remove("the clone is made");
        assert_eq!(case.decided(), BTreeMap::from([(made, why), (failed, why)]));
    }

    #[test]
    fn those_of_a_deleted_environment_go_unless_they_are_pinned() {
        let mut case = Case::new();
        let gone = |row: &mut Snapshot| row.environment_status = EnvironmentStatus::Deleted;
        let manual = case.add(SnapshotKind::Manual, 0, gone);
        let automatic = case.add(SnapshotKind::Automatic, 0, gone);
        case.add(SnapshotKind::Manual, 0, |row| {
            gone(row);
            row.pinned = true;
        });
        case.add(SnapshotKind::Clone, 0, |row| {
            gone(row);
            row.in_use = true;
        });
        let why = Decision::Remove("its environment was deleted");
        assert_eq!(case.decided(), BTreeMap::from([(manual, why), (automatic, why)]));
    }

    #[test]
    fn the_last_one_of_a_removed_production_stays_until_its_time_is_over() {
        let mut case = Case::new();
        let last = case.add(SnapshotKind::Safety, 29, |row| row.environment_status = EnvironmentStatus::Deleted);
        let until = case.now + TimeDelta::days(1);
        case.rows[0].kept_until = Some(until);
        assert_eq!(case.decided(), BTreeMap::new());
        // While the environment goes, it is nobody's to retire either.
        case.rows[0].environment_status = EnvironmentStatus::Removing;
        assert_eq!(case.decided(), BTreeMap::new());
        case.rows[0].environment_status = EnvironmentStatus::Deleted;
        case.now = until;
        assert_eq!(case.decided(), BTreeMap::from([(last, Decision::Remove("its environment was deleted"))]));
    }

    #[test]
    fn rows_and_server_are_brought_together() {
        let mut case = Case::new();
        let lost = case.add(SnapshotKind::Manual, 0, |row| row.pinned = true);
        let failed_long_ago = case.add(SnapshotKind::Manual, 8, |row| row.status = SnapshotStatus::Failed);
        case.absent.extend([lost, failed_long_ago]);
        let found_again = case.add(SnapshotKind::Manual, 0, |row| row.status = SnapshotStatus::Failed);
        let making = |row: &mut Snapshot, status| {
            row.status = SnapshotStatus::Creating;
            row.made_by_deployment_id = Some(DeploymentId::new());
            row.maker_status = Some(status);
        };
        let whole = case.add(SnapshotKind::Clone, 0, |row| making(row, DeploymentStatus::Failed));
        let cut_off = case.add(SnapshotKind::Clone, 0, |row| making(row, DeploymentStatus::Failed));
        let to_retire = case.add(SnapshotKind::Automatic, 0, |row| {
            making(row, DeploymentStatus::Succeeded);
            row.retires = true;
        });
        let in_the_making = case.add(SnapshotKind::Automatic, 0, |row| making(row, DeploymentStatus::Running));
        // Somebody takes it; whoever takes it says so.
        let by_hand = case.add(SnapshotKind::Manual, 0, |row| row.status = SnapshotStatus::Creating);
        case.absent.extend([cut_off, to_retire, in_the_making, by_hand]);
        let expected = BTreeMap::from([
            (lost, Decision::Fail(LOST)),
            (failed_long_ago, Decision::Remove("it had failed long ago")),
            (found_again, Decision::Ready),
            (whole, Decision::Ready),
            (cut_off, Decision::Fail(CUT_OFF)),
            (to_retire, Decision::Retire),
        ]);
        assert_eq!(case.decided(), expected);
    }
}
