//! What has been uploaded whole is checked; what nobody goes on with, or nobody needs any more, goes.

use std::collections::BTreeSet;

use ocore_host::{CheckImport, HostError, Progress};
use ocore_model::{
    ids::{EnvironmentId, ImportId},
    import::ImportStatus,
};
use tokio_util::sync::CancellationToken;

use super::Quiet;
use crate::{
    Control, Result,
    store::{self, imports::Import},
};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let now = control.clock.now();
    let lying: Vec<ImportId> = control.host.uploads().await?;
    let open = store::imports::open_of_server(&mut *control.pool.acquire().await?, control.server_id).await?;
    let mut changes = Vec::new();
    let mut needed = BTreeSet::new();
    for import in open {
        if import.status != ImportStatus::Importing && import.expires_at <= now {
            let from = [import.status];
            let mut connection = control.pool.acquire().await?;
            store::imports::set_status(&mut connection, import.id, &from, ImportStatus::Expired, "nobody went on with it", now).await?;
            changes.push(format!("the import {} has expired", import.id));
            continue;
        }
        needed.insert(import.id);
        if import.status == ImportStatus::Received {
            changes.push(check(control, &import).await?);
        }
    }
    for id in lying.into_iter().filter(|id| !needed.contains(id)) {
        control.host.remove_upload(id).await?;
        changes.push(format!("removed the upload of the import {id}"));
    }
    Ok(changes)
}

async fn check(control: &Control, import: &Import) -> Result<String> {
    let (odoo_version, release) = target(control, import.environment_id).await?;
    let request = CheckImport { import: import.id, odoo_version, release };
    let progress = Progress { log: std::sync::Arc::new(Quiet), cancel: CancellationToken::new() };
    let outcome = control.host.check_import(request, progress).await;
    let mut connection = control.pool.acquire().await?;
    match outcome {
        Ok(facts) => {
            let to = if facts.problems.is_empty() { ImportStatus::Checked } else { ImportStatus::Rejected };
            let facts_json = serde_json::to_value(&facts).map_err(|error| crate::Error::internal("the facts of an import", error))?;
            store::imports::set_facts(&mut connection, import.id, &facts_json, to, &facts.problems.join("; ")).await?;
            Ok(format!("checked the import {}: {to}", import.id))
        }
        Err(HostError::Rejected { summary, .. }) => {
            let from = [ImportStatus::Received];
            let now = control.clock.now();
            store::imports::set_status(&mut connection, import.id, &from, ImportStatus::Rejected, &summary, now).await?;
            Ok(format!("rejected the import {}: {summary}", import.id))
        }
        Err(error) => Err(error.into()),
    }
}

/// The series that will run on the data, and the release whose modules are known.
async fn target(control: &Control, environment: EnvironmentId) -> Result<(ocore_model::names::OdooVersion, Option<ocore_host::ReleaseId>)> {
    let source = store::exports::source(&mut *control.pool.acquire().await?, environment).await?;
    let source = source.ok_or(crate::Error::NotFound { what: "environment" })?;
    let version = source.odoo_version.parse().map_err(|error| crate::Error::internal("the Odoo version of an instance", error))?;
    let release = match source.release.map(ocore_host::ReleaseId) {
        Some(release) => control.host.find_release(&release).await?.map(|found| found.id),
        None => None,
    };
    Ok((version, release))
}
