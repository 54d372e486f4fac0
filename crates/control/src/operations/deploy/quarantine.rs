//! The node that turns a raw copy into one that may serve. It fails closed: what is not harmless is never started.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ocore_host::{Neutralize, NewDataSet, RawDataSet, ServableDataSet};
use ocore_model::deployment::{DataOrigin, StepName};
use serde::{Deserialize, Serialize};

use super::{data, step::Step};
use crate::{
    Error,
    operations::saga::Failure,
    secrets::{self, Secret},
    store,
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
        env_vars: parameters.settings.env_vars.clone(),
    };
    let neutralized = control.host.neutralize(parameters.instance, request, step.fence(), step.progress()).await?;
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
