//! The nodes that work on data: a new data set beside the live one, and Odoo's modules in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ocore_host::{DataSource, HostError, NewDataSet, Progress, RunModules, ServableDataSet, SlotSpec};
use ocore_model::{
    deployment::{DataMode, DataOrigin, DeploymentStatus, StepName},
    ids::InstanceId,
    names::ModuleName,
    report::Moment,
};
use rand::{RngExt, distr::Alphanumeric};

use super::{
    Parameters, quarantine, rehearsal,
    release::Planned,
    snapshot,
    step::{Step, UndoStep},
    template, watch,
};
use crate::{
    egress,
    operations::saga::Failure,
    routes,
    secrets::{self, Place, Secret},
    store,
};

const PASSWORD_LENGTH: usize = 24;

/// A data set of its own, beside the live one. Where it is a copy of the live one, the live slot rests from here on. A new slot beside the live one
/// takes the live data as they are.
pub(super) async fn copy(step: Arc<Step>) -> Result<(NewDataSet, String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    if !step.beside {
        snapshot::keep_earlier(&step).await?;
    }
    let rests = parameters.rests_to_copy(step.beside);
    if let Some(live) = parameters.live.as_ref().filter(|_| rests && !step.again) {
        // Nobody waits yet.
        control.host.prepare_copy(parameters.instance, parameters.data_set, live.data_set, step.fence(), step.progress()).await?;
    }
    watch::mark(control, parameters, Moment::Changing).await;
    // From this transaction on a later push waits instead of taking this one's place. The instance is locked first, as everywhere.
    let mut transaction = control.pool.begin().await?;
    let longest = rehearsal::longest_hold(&step)?;
    step.held(store::deploy::set_updating(&mut transaction, parameters.instance, step.fence().generation, rests, longest).await?)?;
    if !store::deploy::begin_changing(&mut transaction, parameters.deployment).await? {
        let standing = store::deploy::standing(&mut transaction, parameters.deployment).await?;
        let superseded = standing.is_some_and(|standing| standing.status == DeploymentStatus::Superseded);
        return Err(if superseded { Failure::superseded() } else { Failure::cancelled() });
    }
    if step.beside {
        let data_set = parameters.data_set(step.beside);
        let color = parameters.live.as_ref().filter(|_| step.same).map_or(parameters.color, |live| live.color);
        store::deploy::set_place(&mut transaction, parameters.deployment, color, data_set, parameters.origin).await?;
    }
    if rests {
        routes::raise(&mut transaction, parameters.instance).await?;
    }
    transaction.commit().await?;
    if rests {
        if let Some(expected) = rehearsal::expected_hold(&step)? {
            step.say(&format!("requests are held for about {} s", expected.as_secs()));
        }
        // Nobody gets an error while the old Odoo rests.
        step.hold_requests().await;
    }
    control.host.create_instance(parameters.instance, step.fence()).await?;
    egress::apply(control, parameters.instance).await?;
    crate::mail::prepare(control, parameters.instance).await;
    if step.beside {
        let live = NewDataSet::Servable(ServableDataSet::proven(parameters.data_set(step.beside)));
        return Ok((live, "the live data, as they are".to_owned()));
    }
    let (made, source) = create(&step).await?;
    let summary = match source {
        DataSource::Template { .. } => "a copy of a template",
        DataSource::CopyOf(_) | DataSource::Rehearsal { .. } => "the live data, copied aside",
        DataSource::Fresh => "an empty database",
        DataSource::Import { .. } => "the data of the backup",
        DataSource::Snapshot { .. } | DataSource::Taken { .. } if made.is_raw() => "a raw copy, in quarantine",
        DataSource::Snapshot { .. } | DataSource::Taken { .. } => "the data of the snapshot",
    };
    Ok((made, summary.to_owned()))
}

fn source(parameters: &Parameters) -> DataSource {
    let as_own = !parameters.is_raw();
    match parameters.origin {
        DataOrigin::Fresh => DataSource::Fresh,
        DataOrigin::Live => parameters.live.as_ref().map_or(DataSource::Fresh, |live| DataSource::CopyOf(live.data_set)),
        // The instance's own snapshot keeps its standing in any case.
        DataOrigin::Snapshot { snapshot, of } => DataSource::Snapshot { snapshot, as_own: as_own && of != parameters.instance },
        DataOrigin::Environment { snapshot, .. } => DataSource::Taken { snapshot },
        DataOrigin::Import { import } => DataSource::Import { import, as_own },
    }
}

async fn create(step: &Step) -> Result<(NewDataSet, DataSource), Failure> {
    let parameters = &step.parameters;
    if template::applies(parameters) {
        return template::create(step).await;
    }
    let source = source(parameters);
    let host = &step.control().host;
    let made = host.create_data_set(parameters.instance, parameters.data_set, source, step.fence(), step.progress()).await?;
    Ok((made, source))
}

pub(super) async fn undo_copy(step: Arc<UndoStep>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    let (control, fence) = (step.control(), step.fence());
    if step.beside {
        // The live data are not this deployment's, and the live slot has not rested.
        watch::mark(control, parameters, Moment::Undone).await;
        return Ok(());
    }
    // Users first; nobody waits for what is thrown away.
    if let Some(live) = parameters.live_to_rest(step.beside) {
        if parameters.ran() {
            let settings = parameters.settings.open(control, parameters.instance)?;
            let running = control.host.start_slot(parameters.instance, live.slot(settings), fence, step.progress()).await?;
            let websocket = running.websocket.map(|address| address.to_string());
            let http = running.http.to_string();
            let mut connection = control.pool.acquire().await?;
            let written = store::deploy::set_addresses(&mut connection, parameters.instance, fence.generation, &http, websocket.as_deref());
            step.held(written.await?)?;
        }
        let mut transaction = control.pool.begin().await?;
        step.held(store::deploy::set_updating(&mut transaction, parameters.instance, fence.generation, false, None).await?)?;
        routes::raise(&mut transaction, parameters.instance).await?;
        transaction.commit().await?;
        routes::apply(control).await?;
        watch::mark(control, parameters, Moment::Undone).await;
    }
    if snapshot::rescue(&step).await? || quarantine::set_aside(&step).await? {
        return Ok(());
    }
    match control.host.remove_data_set(parameters.instance, parameters.data_set, fence).await {
        // Not there: the first deployment failed before the instance was.
        Ok(()) | Err(HostError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Odoo installs and updates modules in the new data set. Gives the sealed password of a fresh database's `admin`.
pub(super) async fn update(step: Arc<Step>) -> Result<(Option<String>, String), Failure> {
    let parameters = &step.parameters;
    let control = step.control();
    let Planned { plan, corrections, .. } = step.context.output("deploy::plan")?;
    if plan.install.is_empty() && plan.update.is_empty() {
        step.say("nothing that Odoo loads into its database has changed");
        return Ok((None, "nothing to do".to_owned()));
    }
    if parameters.is_raw() {
        quarantine::withdraw(&step).await?;
    }
    if step.again {
        // Odoo commits module by module: what an interrupted run left is neither the old state nor the new one.
        step.say("this step was interrupted; it begins again with a new copy");
        control.host.remove_data_set(parameters.instance, parameters.data_set, step.fence()).await?;
        // What was taken of another environment has become the copy that is gone now.
        snapshot::take_again(&step).await?;
        create(&step).await?;
    }
    let password = match plan.data {
        DataMode::Fresh => Some(new_password()),
        DataMode::Keep => None,
    };
    let rest = template::rest(&step, names(&plan.install)?).await?;
    let request = RunModules {
        data_set: parameters.data_set,
        release: step.context.output("deploy::build")?,
        install: rest.clone(),
        update: names(&plan.update)?,
        renames: renames(&plan.renames)?,
        corrections,
        with_demo: parameters.with_demo && plan.data == DataMode::Fresh,
        admin_password: password.clone(),
        settings: parameters.settings.open(control, parameters.instance)?,
    };
    let before = if plan.data == DataMode::Keep && !rest.is_empty() { Some(installed(&step).await?) } else { None };
    if let Err(failure) = run(&step, request).await {
        return Err(quarantine::failed(&step, StepName::Update, failure).await);
    }
    let sealed = match password {
        Some(password) => {
            Some(BASE64.encode(secrets::seal(&control.settings, password_place(parameters.instance), &Secret::new(password))?))
        }
        None => None,
    };
    let mut parts = Vec::new();
    if rest.is_empty() && !plan.install.is_empty() {
        parts.push("everything came with the template".to_owned());
    } else if !rest.is_empty() {
        parts.push(format!("{} installed", rest.len()));
    }
    if !plan.update.is_empty() {
        parts.push(format!("{} updated", plan.update.len()));
    }
    if let Some(before) = before {
        let along: Vec<String> =
            installed(&step).await?.into_iter().filter(|name| !before.contains(name) && !plan.install.contains(name)).collect();
        if !along.is_empty() {
            parts.push(format!("and with them, since they need them or Odoo adds them by itself: {}", along.join(", ")));
        }
    }
    Ok((sealed, parts.join(", ")))
}

/// The modules of the new data set.
async fn installed(step: &Step) -> Result<BTreeSet<String>, Failure> {
    let modules = step.control().host.installed_modules(step.parameters.instance, step.parameters.data_set, step.fence()).await?;
    Ok(modules.into_iter().filter(|module| module.state == "installed").map(|module| module.name).collect())
}

/// Users wait: an update that takes far longer than its rehearsal is ended, and what served before serves again.
async fn run(step: &Step, request: RunModules) -> Result<(), Failure> {
    let (asked, host) = (step.progress(), &step.control().host);
    let progress = Progress { cancel: asked.cancel.child_token(), ..asked.clone() };
    let cancel = progress.cancel.clone();
    let (parameters, fence) = (&step.parameters, step.fence());
    let running = async {
        // A raw copy is not served yet, and a fresh one gets its password first.
        if parameters.is_raw() || request.admin_password.is_some() {
            return host.run_modules(parameters.instance, request, fence, progress).await;
        }
        let slot = SlotSpec {
            color: parameters.color,
            data_set: ServableDataSet::proven(parameters.data_set),
            release: request.release.clone(),
            settings: request.settings.clone(),
        };
        // The next step finds it.
        host.update_and_serve(parameters.instance, request, slot, fence, progress).await.map(drop)
    };
    let Some(patience) = rehearsal::patience(step)? else { return Ok(running.await?) };
    tokio::pin!(running);
    let late = tokio::select! {
        done = &mut running => return Ok(done?),
        () = tokio::time::sleep(patience) => patience,
    };
    cancel.cancel();
    match running.await {
        Err(HostError::Cancelled) if !asked.cancel.is_cancelled() => Err(Failure::rejected(format!(
            "the update was ended after {} s, much longer than its rehearsal took, so that users do not wait any longer; see what slows the server or \
             its disk, and deploy again",
            late.as_secs()
        ))),
        done => Ok(done?),
    }
}

pub(super) fn password_place(instance: InstanceId) -> Place {
    Place { table: "instances", column: "admin_password", row: instance.as_uuid() }
}

pub(super) fn new_password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect()
}

pub(super) fn renames(renames: &BTreeMap<String, String>) -> Result<Vec<(ModuleName, ModuleName)>, Failure> {
    let pairs = renames.iter().map(|(from, to)| names(&[from.clone(), to.clone()]));
    pairs.map(|pair| Ok(<[ModuleName; 2]>::try_from(pair?).map_err(|_| Failure::broken("a rename has no two names"))?.into())).collect()
}

pub(super) fn names(names: &[String]) -> Result<Vec<ModuleName>, Failure> {
    names.iter().map(|name| name.parse().map_err(|error: ocore_model::names::InvalidName| Failure::rejected(error.to_string()))).collect()
}
