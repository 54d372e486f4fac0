//! Deploy: brings a commit live, or leaves everything as it was.
//!
//! The live data set is never touched: the deployment works in a new one, a copy of the live one or a fresh one, and starts the other colour
//! on it. Up to the switch everything that it made can be thrown away; after a failure the old slot is started again on its old data. So each
//! node may be cut off at any point: the next run finds the live data as they were.

mod data;
mod prove;
mod release;
mod settle;
mod slot;
mod step;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ocore_host::{OdooSettings, ReleaseId, ServableDataSet, SlotSpec};
use ocore_model::{
    deployment::{DataMode, DeploymentStatus, StepName},
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, ProjectId},
    instance::{Color, InstanceStatus},
    names::{CommitSha, OdooVersion},
    project::ModuleSelection,
};
use serde::{Deserialize, Serialize};

pub(super) use self::settle::{must_stop, settled};
use self::step::{step, undo};
use super::saga::{Failure, Graph};
use crate::{Control, Error, Result, store};

/// Fixed at the first claim, for the whole run: while the operation holds the instance, nobody else changes what is live.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Parameters {
    deployment: DeploymentId,
    project: ProjectId,
    environment: EnvironmentId,
    instance: InstanceId,
    branch: String,
    commit: CommitSha,
    odoo_version: OdooVersion,
    selection: ModuleSelection,
    with_demo: bool,
    data: DataMode,
    settings: OdooSettings,
    /// The slot and the data set that it makes.
    color: Color,
    data_set: DataSetId,
    /// What was live before; `None` for the first deployment.
    live: Option<Live>,
    was: InstanceStatus,
    was_message: String,
}

/// What was live, so that it can be put back exactly.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Live {
    color: Color,
    data_set: DataSetId,
    release: ReleaseId,
    deployment: Option<DeploymentId>,
    http: Option<String>,
    websocket: Option<String>,
    previous_data_set: Option<DataSetId>,
    /// Sealed, in base64.
    admin_password: Option<String>,
    commit: Option<CommitSha>,
}

impl Live {
    fn slot(&self, settings: &OdooSettings) -> SlotSpec {
        SlotSpec {
            color: self.color,
            data_set: ServableDataSet::proven(self.data_set),
            release: self.release.clone(),
            settings: settings.clone(),
        }
    }
}

impl Parameters {
    /// The live slot has to rest while its data are copied, and runs again if this fails.
    fn live_to_rest(&self) -> Option<&Live> {
        self.live.as_ref().filter(|_| self.data == DataMode::Keep)
    }

    /// Whether the live Odoo ran when this began. A stopped one stays stopped if this fails.
    fn ran(&self) -> bool {
        !matches!(self.was, InstanceStatus::Stopped | InstanceStatus::Creating)
    }
}

pub(super) async fn parameters(control: &Control, deployment: DeploymentId) -> Result<Parameters, Failure> {
    let mut transaction = control.pool.begin().await?;
    let row = store::deploy::find(&mut transaction, deployment).await?.ok_or(Error::NotFound { what: "deployment" })?;
    match row.status {
        DeploymentStatus::Superseded => return Err(Failure::superseded()),
        DeploymentStatus::Cancelled => return Err(Failure::cancelled()),
        _ => {}
    }
    let live = store::deploy::live(&mut transaction, row.instance_id).await?.ok_or(Error::NotFound { what: "instance" })?;
    if matches!(live.status, InstanceStatus::Removing | InstanceStatus::Deleted) {
        return Err(Failure::rejected("the instance is being removed"));
    }
    let place = store::deploy::branch_place(&mut transaction, row.environment_id).await?;
    let unreadable = |what: &'static str| move |error| Failure::from(Error::internal(format!("reading {what}"), error));
    let was_live = match (live.active_color, live.active_data_set_id, live.active_release) {
        (Some(color), Some(data_set), Some(release)) => Some(Live {
            color,
            data_set,
            release: ReleaseId(release),
            deployment: live.active_deployment_id,
            http: live.active_http,
            websocket: live.active_websocket,
            previous_data_set: live.previous_data_set_id,
            admin_password: live.admin_password.map(|sealed| BASE64.encode(sealed)),
            commit: place.and_then(|place| place.live_commit_sha),
        }),
        _ => None,
    };
    let parameters = Parameters {
        deployment,
        project: row.project_id,
        environment: row.environment_id,
        instance: row.instance_id,
        branch: row.branch,
        commit: row.commit_sha,
        odoo_version: row.odoo_version,
        selection: serde_json::from_value(row.module_selection).map_err(unreadable("a project's modules"))?,
        with_demo: row.with_demo,
        // Without data there is nothing to keep.
        data: if was_live.is_some() && row.data_mode == "keep" { DataMode::Keep } else { DataMode::Fresh },
        settings: serde_json::from_value(row.settings).map_err(unreadable("an instance's settings"))?,
        color: was_live.as_ref().map_or(Color::Blue, |live| live.color.other()),
        data_set: DataSetId::new(),
        live: was_live,
        was: live.status,
        was_message: live.status_message,
    };
    let snapshot = parameters.live.as_ref().map(|live| live.data_set);
    store::deploy::set_place(&mut transaction, deployment, parameters.color, parameters.data_set, snapshot, parameters.data).await?;
    transaction.commit().await?;
    Ok(parameters)
}

/// The nodes in their order, each with what takes it back.
pub(super) fn graph() -> Graph {
    Graph::default()
        .then("deploy::checkout", step(StepName::Checkout, release::checkout))
        .then("deploy::plan", step(StepName::Plan, release::plan))
        .then("deploy::build", step(StepName::Build, release::build))
        .step(
            "deploy::copy",
            step(StepName::Copy, data::copy),
            "deploy::undo_copy",
            undo(&[StepName::Copy, StepName::Update], data::undo_copy),
        )
        .then("deploy::update", step(StepName::Update, data::update))
        .step("deploy::start", step(StepName::Start, slot::start), "deploy::undo_start", undo(&[StepName::Start], slot::undo_start))
        .step("deploy::switch", step(StepName::Switch, slot::switch), "deploy::undo_switch", undo(&[StepName::Switch], slot::undo_switch))
        .then("deploy::verify", step(StepName::Verify, slot::verify))
}

fn short(commit: &CommitSha) -> &str {
    commit.as_str().get(..10).unwrap_or(commit.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graph_is_the_one_that_stored_operations_have() {
        // A change here needs a new SCHEMA_VERSION.
        let (_, dag) = graph().build("deploy", &serde_json::json!({})).unwrap();
        let names: Vec<String> = dag.get_nodes().map(|node| node.name().as_ref().to_owned()).collect();
        assert_eq!(
            names,
            [
                "deploy::checkout",
                "deploy::plan",
                "deploy::build",
                "deploy::undo_copy",
                "deploy::copy",
                "deploy::update",
                "deploy::undo_start",
                "deploy::start",
                "deploy::undo_switch",
                "deploy::switch",
                "deploy::verify",
            ]
        );
    }
}
