//! The node that runs the update on a throw-away copy of the live data first, while those go on being used. It is evidence: a failure ends the
//! deployment before anything that somebody uses is touched.

use std::{sync::Arc, time::Duration};

use ocore_host::{DataSource, HostError, RunModules, SourceId};
use ocore_model::{
    deployment::{DataOrigin, StepName},
    evidence::{Gate, GateStatus},
    plan::Way,
    rehearsal::Rehearsal,
};

use super::{
    data::{names, renames},
    release::Planned,
    step::{Step, UndoStep},
};
use crate::{
    Error,
    operations::saga::{Failure, FailureKind},
    store::{self, evidence::Evidence},
};

/// For how long requests wait beside the update itself: the end of those on their way and of the copy.
const AROUND_AN_UPDATE: Duration = Duration::from_millis(1500);
/// For what served before to serve again, on a busy machine.
const WAY_BACK: Duration = Duration::from_secs(20);
/// An update that takes so many times as long as its rehearsal is ended, since something else is wrong.
const LONGER_AT_MOST: u32 = 5;
/// And no less than this.
const LEAST_PATIENCE: Duration = Duration::from_mins(1);

/// Gives what was seen, or `None` when nothing was to be rehearsed.
pub(super) async fn rehearse(step: Arc<Step>) -> Result<(Option<Rehearsal>, String), Failure> {
    let (parameters, control) = (&step.parameters, step.control());
    let planned: Planned = step.context.output("deploy::plan")?;
    if planned.plan.install.is_empty() && planned.plan.update.is_empty() {
        return Ok((None, "not needed: nothing is installed or updated".to_owned()));
    }
    let source: SourceId = step.context.output("deploy::checkout")?;
    let settings = control.host.find_source(&source).await?.map(|source| source.deploy).unwrap_or_default();
    let Some(live) = parameters.live.as_ref().filter(|_| settings.rehearse.contains(&parameters.stage)) else {
        return Ok((None, format!("not asked for in {}; see [deploy] rehearse in the project's ocore.toml", parameters.stage)));
    };
    let begun = control.clock.now();
    let seen = async {
        // An earlier run's may hold half an update.
        control.host.remove_data_set(parameters.instance, parameters.rehearsal, step.fence()).await?;
        let source = DataSource::Rehearsal { of: live.data_set };
        control.host.create_data_set(parameters.instance, parameters.rehearsal, source, step.fence(), step.progress()).await?;
        let request = RunModules {
            data_set: parameters.rehearsal,
            release: step.context.output("deploy::build")?,
            install: names(&planned.plan.install)?,
            update: names(&planned.plan.update)?,
            renames: renames(&planned.plan.renames)?,
            corrections: planned.corrections.clone(),
            with_demo: false,
            admin_password: None,
            settings: parameters.settings.open(control, parameters.instance)?,
        };
        Ok::<_, Failure>(control.host.rehearse_modules(parameters.instance, request, step.fence(), step.progress()).await?)
    };
    let seen = seen.await;
    let mut connection = control.pool.acquire().await?;
    let mut evidence = Evidence {
        gate: Gate::Rehearsal,
        status: GateStatus::Passed,
        required: true,
        summary: String::new(),
        excerpt: None,
        details: None,
        started_at: begun,
        completed_at: control.clock.now(),
    };
    let mut rehearsal = match seen {
        Ok(seen) => seen,
        Err(failure) => {
            if failure.kind == FailureKind::Rejected {
                evidence.status = GateStatus::Failed;
                evidence.summary = failure.message.clone();
                evidence.excerpt = Some(failure.excerpt.clone()).filter(|excerpt| !excerpt.is_empty());
                store::evidence::write(&mut connection, parameters.deployment, &evidence).await?;
                let message = format!("the rehearsal on a copy of the live data failed: {}", failure.message);
                return Err(Failure { message, ..failure });
            }
            return Err(failure);
        }
    };
    let before = store::evidence::last_passed(&mut connection, parameters.environment, Gate::Rehearsal).await?;
    let before: Option<Rehearsal> = before.and_then(|details| serde_json::from_value(details).ok());
    rehearsal.compare(before.as_ref());
    for line in rehearsal.lines() {
        step.say(&line);
    }
    if rehearsal.needs_held_writes() && planned.plan.way < Way::UpdateAndHoldWrites {
        let mut plan = planned.plan;
        plan.way = Way::UpdateAndHoldWrites;
        plan.reasons.push(
            "the rehearsal saw the schema become stricter, or whole tables written anew: nobody may write during the update".to_owned(),
        );
        step.say("the plan is corrected: nobody may write during the update");
        let json = serde_json::to_value(&plan).map_err(|error| Error::internal("writing a plan", error))?;
        store::deploy::set_plan(&mut connection, parameters.deployment, &json).await?;
    }
    evidence.summary = rehearsal.summary();
    evidence.details = Some(serde_json::to_value(&rehearsal).map_err(|error| Error::internal("writing a rehearsal", error))?);
    evidence.completed_at = control.clock.now();
    store::evidence::write(&mut connection, parameters.deployment, &evidence).await?;
    drop(connection);
    control.host.remove_data_set(parameters.instance, parameters.rehearsal, step.fence()).await?;
    Ok((Some(rehearsal), evidence.summary))
}

pub(super) async fn undo_rehearse(step: Arc<UndoStep>) -> Result<(), Failure> {
    let parameters = &step.parameters;
    match step.control().host.remove_data_set(parameters.instance, parameters.rehearsal, step.fence()).await {
        Ok(()) | Err(HostError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the rehearsal saw, for the steps after it.
fn seen(step: &Step) -> Result<Option<Rehearsal>, Failure> {
    if step.parameters.origin != DataOrigin::Live || !step.has(StepName::Rehearse) {
        return Ok(None);
    }
    step.context.output("deploy::rehearse")
}

/// How long requests will be held, as far as the rehearsal tells.
pub(super) fn expected_hold(step: &Step) -> Result<Option<Duration>, Failure> {
    Ok(seen(step)?.as_ref().map(hold_after))
}

/// How long requests are held for an update that was rehearsed like this.
pub(in crate::operations) fn hold_after(rehearsal: &Rehearsal) -> Duration {
    Duration::from_secs_f64(rehearsal.seconds.max(0.0)) + AROUND_AN_UPDATE
}

/// How long requests are held at most, as far as the rehearsal tells: until an update that is ended for being late has given way to what served before.
pub(super) fn longest_hold(step: &Step) -> Result<Option<Duration>, Failure> {
    Ok(patience(step)?.map(|patience| patience + WAY_BACK))
}

/// How long the update may take, as far as the rehearsal tells.
pub(super) fn patience(step: &Step) -> Result<Option<Duration>, Failure> {
    Ok(seen(step)?.map(|seen| (Duration::from_secs_f64(seen.seconds.max(0.0)) * LONGER_AT_MOST).max(LEAST_PATIENCE)))
}
