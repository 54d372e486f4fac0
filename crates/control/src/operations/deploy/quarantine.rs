//! The node that turns a raw copy into one that may serve. It fails closed: what is not harmless is never started. And what becomes of a copy that
//! something in it or in the project has kept from that: it is set aside when the deployment is taken back.
//!
//! The node that fails announces that in the store before its failure is recorded, and the undo of the copy finds it there. So a crash in between
//! changes nothing: a node that runs again takes back what it has announced before.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ocore_host::{HostError, Neutralize, NewDataSet, RawDataSet, ServableDataSet, SetAside};
use ocore_model::{
    deployment::{DataOrigin, StepName},
    environment::Stage,
    quarantine::QuarantineStatus,
};
use serde::{Deserialize, Serialize};

use super::{
    data,
    step::{Step, UndoStep},
};
use crate::{
    Error, Result,
    operations::saga::{Failure, FailureKind},
    quarantines::KEPT,
    secrets::{self, Secret},
    store::{self, quarantines::NewQuarantine},
};

/// What the quarantine lets out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Released {
    pub(super) data_set: ServableDataSet,
    /// Of Odoo's `admin`; sealed, in base64.
    pub(super) admin_password: String,
}

/// Nothing of the source is live in the copy any more, and it is the target's own: its address, its mail catcher, its password. What was checked
/// and found is kept with the deployment.
pub(super) async fn neutralize(step: Arc<Step>) -> Result<(Released, String), Failure> {
    let (parameters, control) = (&step.parameters, step.control());
    withdraw(&step).await?;
    // A copy of another environment passes through here also when that one's data had been made harmless: address and catcher are another's.
    let data_set = match step.context.output("deploy::copy")? {
        NewDataSet::Raw(data_set) => data_set,
        NewDataSet::Servable(data_set) => RawDataSet::quarantined(data_set.id()),
    };
    let password = data::new_password();
    let request = Neutralize {
        data_set,
        release: step.context.output("deploy::build")?,
        base_url: control.settings.instance_url(&parameters.slug),
        mail: control.host.mail_address(parameters.instance).await?,
        admin_password: password.clone(),
        env_vars: parameters.settings.open(control, parameters.instance)?.env_vars,
    };
    let neutralized = match control.host.neutralize(parameters.instance, request, step.fence(), step.progress()).await {
        Ok(neutralized) => neutralized,
        Err(error) => return Err(failed(&step, StepName::Neutralize, error.into()).await),
    };
    let report = serde_json::to_value(&neutralized.report).map_err(|error| Error::internal("writing a neutralization report", error))?;
    let mut connection = control.pool.acquire().await?;
    let source = match parameters.origin {
        DataOrigin::Environment { environment, .. } => Some(environment),
        DataOrigin::Snapshot { snapshot, .. } => {
            store::snapshots::read(&mut connection, snapshot).await?.map(|snapshot| snapshot.environment_id)
        }
        _ => None,
    };
    store::neutralizations::write(&mut connection, parameters.deployment, parameters.environment, source, &report, control.clock.now())
        .await?;
    let sealed = secrets::seal(&control.settings, data::password_place(parameters.instance), &Secret::new(password))?;
    let unknown = neutralized.report.findings.iter().filter(|finding| finding.verdict == ocore_host::FindingVerdict::Unknown).count();
    let facts = neutralized.report.facts.len();
    let summary = match unknown {
        0 => format!("harmless: {facts} facts hold"),
        1 => format!("harmless: {facts} facts hold; 1 finding is for a person to look at"),
        unknown => format!("harmless: {facts} facts hold; {unknown} findings are for a person to look at"),
    };
    Ok((Released { data_set: neutralized.data_set, admin_password: BASE64.encode(sealed) }, summary))
}

/// The data set that may serve, whichever way it came.
pub(super) fn servable(step: &Step) -> Result<ServableDataSet, Failure> {
    if step.has(StepName::Neutralize) {
        return Ok(step.context.output::<Released>("deploy::neutralize")?.data_set);
    }
    match step.context.output("deploy::copy")? {
        NewDataSet::Servable(data_set) => Ok(data_set),
        NewDataSet::Raw(_) => Err(Failure::broken("the data are a raw copy, which is never started")),
    }
}

/// A node that works on a raw copy begins: what an earlier run of it has announced does not hold.
pub(super) async fn withdraw(step: &Step) -> Result<()> {
    store::quarantines::withdraw(&mut *step.control().pool.acquire().await?, step.parameters.deployment).await
}

/// A node that works on a raw copy has failed. Was it refused, and neither cancelled nor let down by the machine, then the copy is worth a look.
pub(super) async fn failed(step: &Step, name: StepName, failure: Failure) -> Failure {
    if failure.kind == FailureKind::Rejected && step.parameters.is_raw() {
        match announce(step, name, &failure).await {
            Ok(()) => step.say(&format!(
                "the raw copy stays in quarantine for {} days: `ocore quarantine show` tells of it, `ocore quarantine destroy` removes it",
                KEPT.num_days()
            )),
            Err(error) => step.say(&format!("the raw copy cannot be kept in quarantine and is removed: {error}")),
        }
    }
    failure
}

async fn announce(step: &Step, name: StepName, failure: &Failure) -> Result<()> {
    let (parameters, control) = (&step.parameters, step.control());
    let mut connection = control.pool.acquire().await?;
    let (source, were_production) = match parameters.origin {
        DataOrigin::Environment { environment, .. } => (Some(environment), false),
        DataOrigin::Snapshot { snapshot, .. } => match store::snapshots::read(&mut connection, snapshot).await? {
            Some(row) => (Some(row.environment_id), row.stage == Stage::Production),
            None => (None, true),
        },
        DataOrigin::Import { .. } | DataOrigin::Fresh | DataOrigin::Live => (None, true),
    };
    let now = control.clock.now();
    let new = NewQuarantine {
        deployment: parameters.deployment,
        data_set: parameters.data_set,
        step: name,
        message: &failure.message,
        excerpt: &failure.excerpt,
        source,
        were_production,
        expires_at: now + KEPT,
    };
    store::quarantines::announce(&mut connection, &new, now).await
}

/// Sets the copy of a deployment that is taken back aside, when that was announced. False when it is to be removed like any other.
pub(super) async fn set_aside(step: &UndoStep) -> Result<bool, Failure> {
    let (parameters, control) = (&step.parameters, step.control());
    if !parameters.is_raw() {
        return Ok(false);
    }
    let row = store::quarantines::of_deployment(&mut *control.pool.acquire().await?, parameters.deployment).await?;
    // Somebody may have destroyed it already.
    let Some(row) = row.filter(|row| row.status != QuarantineStatus::Removing) else { return Ok(false) };
    let request = SetAside { data_set: RawDataSet::quarantined(parameters.data_set), reason: row.message };
    let aside = match control.host.set_aside(parameters.instance, request, step.fence()).await {
        Ok(aside) => aside,
        Err(error @ (HostError::Cancelled | HostError::Fenced { .. })) => return Err(error.into()),
        // To have it taken back is more than to have it looked at; the reason stays with the deployment.
        Err(error) => {
            tracing::warn!(deployment = %parameters.deployment, %error, "a copy could not be set aside and is removed");
            store::quarantines::withdraw(&mut *control.pool.acquire().await?, parameters.deployment).await?;
            return Ok(false);
        }
    };
    let report = aside.report.as_ref().map(serde_json::to_value).transpose();
    let report = report.map_err(|error| Error::internal("writing a neutralization report", error))?;
    let (database, files) = (aside.database_bytes.cast_signed(), aside.file_store_bytes.cast_signed());
    store::quarantines::set_kept(&mut *control.pool.acquire().await?, parameters.deployment, database, files, report.as_ref()).await?;
    Ok(true)
}
