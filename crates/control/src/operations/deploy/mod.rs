//! Deploy: brings a commit live on data from somewhere, or leaves everything as it was. A push, a clone, a rollback and an import are all this
//! one saga; [`DataOrigin`] says where the data come from, and which of the nodes there are.
//!
//! The live data set is never touched: the deployment works in a new one and starts the other colour on it. Up to the switch everything that
//! it made can be thrown away; after a failure the old slot, which was paused meanwhile, goes on with its old data. So each node may be cut off at
//! any point: the next run finds the live data as they were. Once nothing can fail any more, what was live before becomes a snapshot.
//!
//! Where only code has changed, nothing is copied and nothing rests: the other colour starts *beside* the live one on the same data, and takes
//! over when it answers. Whether it does so is decided by the plan, once ([`release::Planned`]).

mod data;
mod prove;
mod quarantine;
mod rehearsal;
mod release;
mod settle;
mod slot;
mod snapshot;
mod step;
mod template;
mod watch;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ocore_host::{OdooSettings, ReleaseId, ServableDataSet, SlotSpec};
use ocore_model::{
    deployment::{DataOrigin, DeploymentStatus, StepName, Trigger},
    environment::Stage,
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, ProjectId, SnapshotId},
    instance::{Color, InstanceStatus},
    names::{CommitSha, OdooVersion},
    project::ModuleSelection,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use self::step::{last, step, undo};
pub(super) use self::{
    prove::drain,
    rehearsal::hold_after,
    settle::{must_stop, settled},
};
use super::saga::{Failure, Graph};
use crate::{
    Control, Error, Result,
    store::{self, deploy::DeployRow},
    variables::SealedSettings,
};

/// Fixed at the first claim, for the whole run: while the operation holds the instance, nobody else changes what is live.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Parameters {
    deployment: DeploymentId,
    project: ProjectId,
    environment: EnvironmentId,
    #[serde(default = "version_one::stage")]
    stage: Stage,
    instance: InstanceId,
    /// The label of the instance's host name.
    #[serde(default)]
    slug: String,
    branch: String,
    commit: CommitSha,
    odoo_version: OdooVersion,
    selection: ModuleSelection,
    with_demo: bool,
    /// A push began it, and nobody asked for a start.
    #[serde(default)]
    by_push: bool,
    #[serde(alias = "data", deserialize_with = "version_one::origin")]
    origin: DataOrigin,
    /// What is known of the snapshot that `origin` names.
    restored: Option<Restored>,
    settings: SealedSettings,
    /// The slot and the data set that it makes.
    color: Color,
    data_set: DataSetId,
    /// The throw-away copy on which the update is rehearsed.
    #[serde(default = "DataSetId::new")]
    rehearsal: DataSetId,
    /// The snapshot that the new data set becomes when it has been live and is taken back: users may have written there.
    #[serde(default = "SnapshotId::new")]
    rescued: SnapshotId,
    /// What was live before; `None` for the first deployment.
    live: Option<Live>,
    /// The snapshot that what was live becomes; without one it is removed.
    keeps: Option<SnapshotId>,
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
    #[serde(default)]
    is_neutralized: bool,
}

/// What is read of operations that the version of oCore before this one began; they are taken back.
mod version_one {
    use ocore_model::{
        deployment::{DataMode, DataOrigin},
        environment::Stage,
    };
    use serde::{Deserialize, Deserializer};

    /// It decides nothing for data of the instance's own.
    pub(super) fn stage() -> Stage {
        Stage::Production
    }

    pub(super) fn origin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DataOrigin, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Word {
            Origin(DataOrigin),
            Mode(DataMode),
        }
        Ok(match Word::deserialize(deserializer)? {
            Word::Origin(origin) => origin,
            Word::Mode(DataMode::Keep) => DataOrigin::Live,
            Word::Mode(DataMode::Fresh) => DataOrigin::Fresh,
        })
    }
}

/// A snapshot that is gone back to.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Restored {
    release: Option<ReleaseId>,
    /// Of the instance's own data: sealed, in base64.
    admin_password: Option<String>,
    is_neutralized: bool,
}

impl Live {
    fn slot(&self, settings: OdooSettings) -> SlotSpec {
        SlotSpec { color: self.color, data_set: ServableDataSet::proven(self.data_set), release: self.release.clone(), settings }
    }
}

impl Parameters {
    /// The live slot that rests (it is paused), from the copy of its data or from the start of what takes its place, and goes on if this fails. So nobody
    /// writes what is lost. None rests while the new one works beside it on its data.
    fn live_to_rest(&self, beside: bool) -> Option<&Live> {
        self.live.as_ref().filter(|_| !beside && matches!(self.origin, DataOrigin::Live | DataOrigin::Snapshot { .. }))
    }

    /// The new data are a copy of the live ones: the live slot rests while they are copied.
    fn rests_to_copy(&self, beside: bool) -> bool {
        !beside && self.origin == DataOrigin::Live && self.live.is_some()
    }

    /// The data set that becomes live: a new one, or the live one.
    fn data_set(&self, beside: bool) -> DataSetId {
        self.live.as_ref().filter(|_| beside).map_or(self.data_set, |live| live.data_set)
    }

    /// The snapshot that what was live becomes. What goes on being live becomes none.
    fn keeps(&self, beside: bool) -> Option<SnapshotId> {
        self.keeps.filter(|_| !beside)
    }

    /// Whether the live Odoo ran when this began. A stopped one stays stopped if this fails, and a sleeper sleeps on.
    fn ran(&self) -> bool {
        !matches!(self.was, InstanceStatus::Stopped | InstanceStatus::Asleep | InstanceStatus::Creating)
    }

    /// The data come as a raw copy and are made harmless on their way.
    fn is_raw(&self) -> bool {
        self.origin.is_raw(self.instance, self.stage)
    }

    /// Whether what becomes live is a copy that was made harmless.
    fn becomes_neutralized(&self) -> bool {
        match self.origin {
            _ if self.is_raw() => true,
            DataOrigin::Live => self.live.as_ref().is_some_and(|live| live.is_neutralized),
            DataOrigin::Snapshot { .. } => self.restored.as_ref().is_some_and(|restored| restored.is_neutralized),
            DataOrigin::Fresh | DataOrigin::Environment { .. } | DataOrigin::Import { .. } => false,
        }
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
            is_neutralized: row.is_neutralized,
        }),
        _ => None,
    };
    let origin = origin(&mut transaction, &row, was_live.is_some()).await?;
    let restored = match origin {
        DataOrigin::Snapshot { snapshot, .. } => Some(restored(&mut transaction, snapshot).await?),
        _ => None,
    };
    let keeps = row.keeps_previous && was_live.is_some() && {
        // A rollback says itself whether it keeps what it takes away.
        matches!(origin, DataOrigin::Snapshot { .. })
            || store::snapshot_settings::of_environment(&mut transaction, row.environment_id)
                .await?
                .is_none_or(|settings| settings.auto_enabled)
    };
    let parameters = Parameters {
        deployment,
        project: row.project_id,
        environment: row.environment_id,
        stage: row.stage,
        instance: row.instance_id,
        slug: row.slug,
        branch: row.branch,
        commit: row.commit_sha,
        odoo_version: row.odoo_version,
        selection: serde_json::from_value(row.module_selection).map_err(unreadable("a project's modules"))?,
        with_demo: row.with_demo,
        by_push: matches!(row.trigger, Trigger::Push | Trigger::Webhook),
        origin,
        restored,
        settings: SealedSettings::new(&control.settings, row.instance_id, row.settings, row.env_vars)?,
        color: was_live.as_ref().map_or(Color::Blue, |live| live.color.other()),
        data_set: DataSetId::new(),
        rehearsal: DataSetId::new(),
        rescued: SnapshotId::new(),
        live: was_live,
        keeps: keeps.then(SnapshotId::new),
        was: live.status,
        was_message: live.status_message,
    };
    store::deploy::set_place(&mut transaction, deployment, parameters.color, parameters.data_set, origin).await?;
    store::steps::create(&mut transaction, deployment, &origin.steps(parameters.instance, parameters.stage)).await?;
    transaction.commit().await?;
    Ok(parameters)
}

/// Writes the steps of a deployment that is asked for, so that they can be drawn before it runs.
pub(super) async fn draw(connection: &mut PgConnection, deployment: DeploymentId) -> Result<()> {
    let row = store::deploy::find(connection, deployment).await?.ok_or(Error::NotFound { what: "deployment" })?;
    store::steps::create(connection, deployment, &row.data_origin.steps(row.instance_id, row.stage)).await
}

/// Where the data come from, now that it is known what is live. What an environment was cloned from is asked again as long as nothing is
/// live in it: a push to a clone whose copy failed does not bring up an empty one.
async fn origin(connection: &mut PgConnection, row: &DeployRow, is_live: bool) -> Result<DataOrigin> {
    let asked = row.data_origin.0;
    if is_live || asked != DataOrigin::Live {
        return Ok(asked);
    }
    let Some(environment) = row.cloned_from_id else { return Ok(DataOrigin::Fresh) };
    let source = store::deploy::source(connection, environment).await?;
    Ok(match source.and_then(|source| source.data_set_id) {
        Some(_) => DataOrigin::Environment { environment, snapshot: SnapshotId::new() },
        None => DataOrigin::Fresh,
    })
}

async fn restored(connection: &mut PgConnection, snapshot: SnapshotId) -> Result<Restored, Failure> {
    let row = store::snapshots::read(connection, snapshot)
        .await?
        .ok_or_else(|| Failure::rejected("the snapshot has been removed; choose another one"))?;
    Ok(Restored {
        release: row.release.map(ReleaseId),
        admin_password: row.admin_password.map(|sealed| BASE64.encode(sealed)),
        is_neutralized: row.standing.as_deref() == Some("neutralized"),
    })
}

/// Every node in its order, each with what takes it back.
pub(super) fn nodes() -> Graph {
    Graph::default()
        .then("deploy::checkout", step(StepName::Checkout, release::checkout))
        .step(
            "deploy::snapshot",
            step(StepName::Snapshot, snapshot::take),
            "deploy::undo_snapshot",
            undo(&[StepName::Snapshot], snapshot::undo_take),
        )
        .then("deploy::plan", step(StepName::Plan, release::plan))
        .then("deploy::build", step(StepName::Build, release::build))
        .step(
            "deploy::rehearse",
            step(StepName::Rehearse, rehearsal::rehearse),
            "deploy::undo_rehearse",
            undo(&[StepName::Rehearse], rehearsal::undo_rehearse),
        )
        .step(
            "deploy::copy",
            step(StepName::Copy, data::copy),
            "deploy::undo_copy",
            undo(&[StepName::Copy, StepName::Update, StepName::Neutralize], data::undo_copy),
        )
        .then("deploy::update", step(StepName::Update, data::update))
        .then("deploy::neutralize", step(StepName::Neutralize, quarantine::neutralize))
        .step("deploy::start", step(StepName::Start, slot::start), "deploy::undo_start", undo(&[StepName::Start], slot::undo_start))
        .step("deploy::switch", step(StepName::Switch, slot::switch), "deploy::undo_switch", undo(&[StepName::Switch], slot::undo_switch))
        .then("deploy::verify", step(StepName::Verify, slot::verify))
        // From here on nothing fails: it is live.
        .then("deploy::let_go", last(slot::let_go))
}

/// The nodes that a deployment has.
pub(super) fn graph(parameters: &Parameters) -> Graph {
    let steps = parameters.origin.steps(parameters.instance, parameters.stage);
    nodes().only(|node| {
        let step = node.trim_start_matches("deploy::").trim_start_matches("undo_").parse::<StepName>();
        step.map_or(true, |step| steps.contains(&step))
    })
}

fn short(commit: &CommitSha) -> &str {
    commit.as_str().get(..10).unwrap_or(commit.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_version_before_are_read_to_be_taken_back() {
        let id = "0197a3b0-0000-7000-8000-000000000000";
        let live = serde_json::json!({
            "color": "blue", "data_set": id, "release": "r", "deployment": id, "http": "127.0.0.1:1", "websocket": null,
            "previous_data_set": null, "admin_password": null, "commit": "a".repeat(40),
        });
        let parameters: Parameters = serde_json::from_value(serde_json::json!({
            "deployment": id, "project": id, "environment": id, "instance": id, "branch": "main", "commit": "a".repeat(40),
            "odoo_version": "19.0", "selection": {"kind": "own"}, "with_demo": false, "data": "keep", "settings": {}, "color": "green",
            "data_set": id, "live": live, "was": "running", "was_message": "",
        }))
        .unwrap();
        assert_eq!((parameters.origin, parameters.keeps), (DataOrigin::Live, None));
        assert!(parameters.live_to_rest(false).is_some());
    }

    #[test]
    fn the_graph_is_the_one_that_stored_operations_have() {
        // A change here needs a new SCHEMA_VERSION.
        let (_, dag) = nodes().build("deploy", &serde_json::json!({})).unwrap();
        let names: Vec<String> = dag.get_nodes().map(|node| node.name().as_ref().to_owned()).collect();
        assert_eq!(
            names,
            [
                "deploy::checkout",
                "deploy::undo_snapshot",
                "deploy::snapshot",
                "deploy::plan",
                "deploy::build",
                "deploy::undo_rehearse",
                "deploy::rehearse",
                "deploy::undo_copy",
                "deploy::copy",
                "deploy::update",
                "deploy::neutralize",
                "deploy::undo_start",
                "deploy::start",
                "deploy::undo_switch",
                "deploy::switch",
                "deploy::verify",
                "deploy::let_go",
            ]
        );
    }
}
