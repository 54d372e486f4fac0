//! What no row needs goes: slots that are not live, clusters that nobody uses, data sets that are neither live nor the ones before nor becoming
//! snapshots, instances that are deleted. A crash leaves such things, and a deployment that could not clean up behind itself.
//!
//! An instance that the store does not know is reported and left alone: its data may be all that there is after the store was lost.

use std::collections::BTreeMap;

use ocore_host::{Fence, InstanceObservation};
use ocore_model::{
    ids::{DataSetId, InstanceId, OperationId},
    instance::{Color, InstanceStatus},
};

use crate::{
    Control, Result,
    operations::{self, OperationKind},
    store::{self, reconcilers::IntendedRow},
};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    // First the world, then the rows: what an operation makes in between is in the rows before it is looked for.
    let observed = control.host.observe().await?;
    let intended: BTreeMap<InstanceId, IntendedRow> = store::reconcilers::intended(&mut *control.pool.acquire().await?, control.server_id)
        .await?
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    let mut changes = Vec::new();
    for row in intended.values().filter(|row| row.status == InstanceStatus::Removing) {
        changes.extend(destroy_again(control, row).await?);
    }
    for observation in &observed {
        let Some(row) = intended.get(&observation.instance) else {
            changes.extend(unknown(control, observation.instance).await?);
            continue;
        };
        if row.status != InstanceStatus::Removing {
            changes.extend(tidy(control, observation, row).await?);
        }
    }
    Ok(changes)
}

/// An instance without a row: an export's, which goes with it, or one that is left alone.
async fn unknown(control: &Control, instance: InstanceId) -> Result<Option<String>> {
    match store::exports::end_of_scratch(&mut *control.pool.acquire().await?, instance).await? {
        None => tracing::warn!(%instance, "an instance on this server is unknown to the store; it is left alone"),
        // Whoever writes the export removes it.
        Some(None) => {}
        Some(Some(_)) => {
            let fence = Fence { operation: OperationId::new(), generation: control.clock.now().timestamp_micros() };
            control.host.destroy_instance(instance, fence).await?;
            return Ok(Some(format!("removed the instance {instance}, in which an export was written")));
        }
    }
    Ok(None)
}

/// A removal that failed is asked for again.
async fn destroy_again(control: &Control, row: &IntendedRow) -> Result<Option<String>> {
    let mut transaction = control.pool.begin().await?;
    store::operations::lock_instance(&mut transaction, row.id).await?;
    if store::operations::has_open(&mut transaction, row.id, "destroy").await? {
        return Ok(None);
    }
    operations::enqueue(&mut transaction, row.organization_id, row.id, OperationKind::Destroy).await?;
    transaction.commit().await?;
    Ok(Some(format!("{} is still to be removed; asked again", row.name)))
}

/// What is to go from an instance.
#[derive(Debug, Default, PartialEq, Eq)]
struct Leftovers {
    whole: bool,
    slots: Vec<Color>,
    clusters: Vec<DataSetId>,
    data_sets: Vec<DataSetId>,
}

fn leftovers(observation: &InstanceObservation, row: &IntendedRow) -> Leftovers {
    if row.status == InstanceStatus::Deleted {
        return Leftovers { whole: true, ..Leftovers::default() };
    }
    let rests = matches!(row.status, InstanceStatus::Stopped | InstanceStatus::Asleep);
    let is_live = |data_set: DataSetId| Some(data_set) == row.active_data_set_id;
    let needed =
        |data_set: DataSetId| is_live(data_set) || Some(data_set) == row.previous_data_set_id || row.retiring.contains(&data_set.as_uuid());
    Leftovers {
        whole: false,
        slots: observation
            .slots
            .iter()
            .filter(|slot| rests || Some(slot.color) != row.active_color || !is_live(slot.data_set))
            .map(|slot| slot.color)
            .collect(),
        clusters: observation.clusters.iter().copied().filter(|data_set| needed(*data_set) && (rests || !is_live(*data_set))).collect(),
        data_sets: observation.data_sets.iter().copied().filter(|data_set| !needed(*data_set)).collect(),
    }
}

async fn tidy(control: &Control, observation: &InstanceObservation, row: &IntendedRow) -> Result<Vec<String>> {
    let leftovers = leftovers(observation, row);
    if row.operation_id.is_some() || leftovers == Leftovers::default() {
        return Ok(Vec::new());
    }
    let taken = store::reconcilers::take_if_free(&mut *control.pool.acquire().await?, row.id, row.generation).await?;
    let Some(generation) = taken else { return Ok(Vec::new()) };
    let (host, fence) = (&control.host, Fence { operation: OperationId::new(), generation });
    let mut changes = Vec::new();
    if leftovers.whole {
        host.destroy_instance(row.id, fence).await?;
        changes.push(format!("removed what was left of the deleted instance {}", row.name));
    }
    for color in leftovers.slots {
        host.stop_slot(row.id, color, fence).await?;
        changes.push(format!("stopped the {color} slot of {}, which is not live", row.name));
    }
    for data_set in leftovers.clusters {
        host.stop_cluster(row.id, data_set, fence).await?;
        changes.push(format!("stopped a database cluster of {} that nobody uses", row.name));
    }
    for data_set in leftovers.data_sets {
        host.remove_data_set(row.id, data_set, fence).await?;
        changes.push(format!("removed a data set of {} that nobody needs", row.name));
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use ocore_host::{ReleaseId, RunningSlot};
    use ocore_model::ids::OrganizationId;

    use super::*;

    fn slot(color: Color, data_set: DataSetId) -> RunningSlot {
        RunningSlot {
            color,
            data_set,
            release: ReleaseId("r".to_owned()),
            http: "127.0.0.1:8069".parse().unwrap(),
            websocket: None,
            takes_turns: true,
            pid: 1,
            started_at: Utc::now(),
        }
    }

    #[test]
    fn only_what_is_live_or_was_live_before_or_becomes_a_snapshot_stays() {
        let (live, before, lost) = (DataSetId::new(), DataSetId::new(), DataSetId::new());
        let retiring = DataSetId::new();
        let mut row = IntendedRow {
            id: InstanceId::new(),
            organization_id: OrganizationId::new(),
            name: "Shop".to_owned(),
            status: InstanceStatus::Running,
            settings: serde_json::json!({}),
            env_vars: None,
            active_color: Some(Color::Blue),
            active_data_set_id: Some(live),
            active_release: Some("r".to_owned()),
            active_http: None,
            active_websocket: None,
            previous_data_set_id: Some(before),
            retiring: vec![retiring.as_uuid()],
            operation_id: None,
            generation: 1,
            failed_starts: 0,
            last_restart_at: None,
        };
        let observation = InstanceObservation {
            instance: row.id,
            data_sets: vec![live, before, retiring, lost],
            clusters: vec![live, before, lost],
            slots: vec![slot(Color::Blue, live), slot(Color::Green, lost)],
            memory_kills: 0,
        };
        let expected = Leftovers { whole: false, slots: vec![Color::Green], clusters: vec![before], data_sets: vec![lost] };
        assert_eq!(leftovers(&observation, &row), expected);
        row.status = InstanceStatus::Stopped;
        let expected = Leftovers { slots: vec![Color::Blue, Color::Green], clusters: vec![live, before], ..expected };
        assert_eq!(leftovers(&observation, &row), expected);
        row.status = InstanceStatus::Deleted;
        assert!(leftovers(&observation, &row).whole);
    }
}
