//! Writes the exports that somebody asked for, one after the other, and removes those whose time is over.
//!
//! An export lives in an instance of its own that no row of `instances` knows: with users of its own, without a way out of the machine, gone when
//! the export has ended. One that was interrupted begins anew.

use std::{collections::BTreeSet, sync::Arc};

use ocore_host::{DataSource, ExportedFile, Fence, HostError, Neutralize, NewDataSet, Progress, ReleaseId, TakeSnapshot, WriteExport};
use ocore_model::{
    export::ExportStatus,
    ids::{ExportId, OperationId},
};
use rand::{RngExt, distr::Alphanumeric};
use tokio_util::sync::CancellationToken;

use super::Quiet;
use crate::{
    Control, Error, Result,
    exports::{KEPT, place},
    secrets::{self, Secret},
    store::{self, exports::Export},
};

const PASSWORD_LENGTH: usize = 24;
/// Nothing listens there: mail of an export goes nowhere, wherever it is restored.
const NO_MAIL: std::net::SocketAddr = std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let now = control.clock.now();
    let lying: Vec<ExportId> = control.host.exports().await?;
    let open = store::exports::open_of_server(&mut *control.pool.acquire().await?, control.server_id).await?;
    let mut changes = Vec::new();
    // One that was given up while it was written, by a process that did not live to clear it away.
    for export in store::exports::abandoned_of_server(&mut *control.pool.acquire().await?, control.server_id).await? {
        let fence = Fence { operation: OperationId::new(), generation: now.timestamp_micros() };
        clear(control, &export, fence).await?;
        store::exports::set_cleared(&mut *control.pool.acquire().await?, export.id, now).await?;
        changes.push(format!("cleared away the export {}, which was given up", export.file_name));
    }
    let mut needed = BTreeSet::new();
    for export in open {
        if export.expires_at <= now && export.status != ExportStatus::Running {
            store::exports::expire(&mut *control.pool.acquire().await?, export.id).await?;
            changes.push(format!("the export {} has expired", export.file_name));
            continue;
        }
        needed.insert(export.id);
        if matches!(export.status, ExportStatus::Waiting | ExportStatus::Running) {
            changes.push(write(control, &export).await?);
        }
    }
    for id in lying.into_iter().filter(|id| !needed.contains(id)) {
        control.host.remove_export(id).await?;
        changes.push(format!("removed the file of the export {id}"));
    }
    Ok(changes)
}

async fn write(control: &Control, export: &Export) -> Result<String> {
    let now = control.clock.now();
    if !store::exports::begin(&mut *control.pool.acquire().await?, export.id, now).await? {
        return Ok(format!("the export {} was given up", export.file_name));
    }
    // Whatever an interrupted attempt has left goes first; a later generation than its own.
    let fence = Fence { operation: OperationId::new(), generation: now.timestamp_micros() };
    clear(control, export, fence).await?;
    let outcome = bring_out(control, export, fence).await;
    let cleared = clear(control, export, fence).await;
    let now = control.clock.now();
    let mut connection = control.pool.acquire().await?;
    match outcome {
        Ok((file, password)) => {
            cleared?;
            let sealed = match password {
                Some(password) => Some(secrets::seal(&control.settings, place(export.id), &Secret::new(password))?),
                None => None,
            };
            store::exports::finish(&mut connection, export.id, &file, sealed.as_deref(), now, now + KEPT).await?;
            Ok(format!("exported {} ({} bytes)", export.file_name, file.bytes))
        }
        Err(error) => {
            store::exports::fail(&mut connection, export.id, &error.in_words(), now).await?;
            cleared?;
            Ok(format!("the export {} failed: {error}", export.file_name))
        }
    }
}

/// The copy, the snapshot behind it and the instance around it are gone.
async fn clear(control: &Control, export: &Export, fence: Fence) -> Result<()> {
    control.host.destroy_instance(export.scratch_instance_id, fence).await?;
    Ok(control.host.remove_snapshot(export.snapshot_id).await?)
}

async fn bring_out(control: &Control, export: &Export, fence: Fence) -> Result<(ExportedFile, Option<String>)> {
    let host = &control.host;
    let progress = || Progress { log: Arc::new(Quiet), cancel: CancellationToken::new() };
    let source = store::exports::source(&mut *control.pool.acquire().await?, export.environment_id).await?;
    let gone = || Error::conflict("nothing_live", "the environment has no data any more");
    let source = source.ok_or_else(gone)?;
    let data_set = source.data_set_id.ok_or_else(gone)?;
    let release = source.release.map(ReleaseId);
    let taken = TakeSnapshot { snapshot: export.snapshot_id, instance: source.instance_id, data_set, release: release.clone() };
    host.take_snapshot(taken, progress()).await?;
    let scratch = export.scratch_instance_id;
    host.create_instance(scratch, fence).await?;
    let from = DataSource::Snapshot { snapshot: export.snapshot_id, as_own: !export.neutralized };
    let made = host.create_data_set(scratch, export.scratch_data_set_id, from, fence, progress()).await?;
    // From here on the copy has what it needs.
    host.remove_snapshot(export.snapshot_id).await?;
    let mut password = None;
    if let (NewDataSet::Raw(raw), true) = (made, export.neutralized) {
        let release =
            release.ok_or_else(|| Error::conflict("nothing_live", "the environment has no release to neutralize its data with"))?;
        let chosen: String = rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect();
        let request = Neutralize {
            data_set: raw,
            release,
            base_url: format!("http://{}.invalid", source.slug),
            mail: NO_MAIL,
            admin_password: chosen.clone(),
            env_vars: std::collections::BTreeMap::new(),
        };
        host.neutralize(scratch, request, fence, progress()).await.map_err(explain)?;
        password = Some(chosen);
    }
    let request = WriteExport {
        export: export.id,
        data_set: export.scratch_data_set_id,
        format: export.format,
        with_file_store: export.with_file_store,
    };
    Ok((host.write_export(scratch, request, fence, progress()).await.map_err(explain)?, password))
}

/// What the server says is for the person who asked.
fn explain(error: HostError) -> Error {
    match error {
        HostError::Machine { summary, .. } => Error::Unavailable { code: "machine", message: summary },
        error => error.into(),
    }
}
