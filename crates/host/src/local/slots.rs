//! Slots: the two places where an instance's Odoo runs.

use std::net::SocketAddr;

use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::Color,
};
use serde::{Deserialize, Serialize};

use super::{
    layout::{Layout, Unit},
    process::Process,
};
use crate::{
    api::{OdooSettings, ReleaseId, RunningSlot},
    error::{HostError, Result},
};

/// What the record of a slot's process says besides the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotDetails {
    pub data_set: DataSetId,
    pub release: ReleaseId,
    pub http: SocketAddr,
    pub websocket: Option<SocketAddr>,
    pub settings: OdooSettings,
    /// Not so in records of earlier versions.
    #[serde(default)]
    pub takes_turns: bool,
}

/// A slot's process and its details, when it lives.
pub fn find(layout: &Layout, instance: InstanceId, color: Color) -> Result<Option<(Process, SlotDetails)>> {
    let Some(process) = Process::find(&layout.record(instance, Unit::Slot(color)))? else { return Ok(None) };
    let details = serde_json::from_value(process.record.details.clone())
        .map_err(|error| HostError::machine_from(format!("the record of slot {color} of instance {instance} is damaged"), error))?;
    Ok(Some((process, details)))
}

/// The instance's slots whose Odoo lives.
pub fn running(layout: &Layout, instance: InstanceId) -> Result<Vec<RunningSlot>> {
    let mut slots = Vec::new();
    for color in Color::ALL {
        if let Some((process, details)) = find(layout, instance, *color)? {
            slots.push(describe(*color, &process, &details));
        }
    }
    Ok(slots)
}

/// A slot's process as the API shows it.
pub fn describe(color: Color, process: &Process, details: &SlotDetails) -> RunningSlot {
    RunningSlot {
        color,
        data_set: details.data_set,
        release: details.release.clone(),
        http: details.http,
        websocket: details.websocket,
        takes_turns: details.takes_turns,
        pid: process.pid(),
        started_at: process.record.started_at,
    }
}
